"""Compares the measurements of a run with the analytic model of the same link at the same efficiency."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from qnode.block.outcome import Reason
from qnode.choices import LockState
from qnode.config import LinkParameters
from qnode.errors import QnodeError
from qnode.loopback.prepare import LoopbackConfig
from qnode.loopback.result import LinkResult
from qnode.loopback.run import LinkOutcome
from qnode.operate.status.model import BlockSummary, NodeStatus
from qnode.operate.status.troubles import why_no_key
from qnode.plan.forecast import forecast
from qnode.simulate.parameters import Settings


class RunDisturbed(QnodeError):
    """A run that cannot be compared, because a daemon or the session between them ended."""


class LinkRow(Struct, frozen=True, kw_only=True):
    """One line of a comparison: rates per simulated second, fractions; None if there is no value.

    ``c_z_per_s``, ``c_plus_per_s``: central-slot clicks of Z states and of |+>. ``phi_z_upper``: mean over
    the accepted blocks.
    """

    secret_bits_per_s: float
    sifted_bits_per_s: float
    c_z_per_s: float
    c_plus_per_s: float
    qber_z: float | None
    e_vis: float | None
    asymmetry: float | None
    phi_z_upper: float | None
    f_ec: float | None


class Scatter(Struct, frozen=True, kw_only=True):
    """Expected relative standard deviations of the measured row: at most 1/sqrt of a count.

    ``secret_bits_per_s`` comes from the differences between the blocks' secret bits; None for fewer than two
    blocks.
    """

    secret_bits_per_s: float | None
    sifted_bits_per_s: float | None
    c_z_per_s: float | None
    c_plus_per_s: float | None
    qber_z: float | None
    e_vis: float | None


class Measured(Struct, frozen=True, kw_only=True):
    """Blocks after the first one of a run, which contains the disclosed sample.

    ``times_real_time``: simulated seconds a wall second, from the first lock on.
    """

    row: LinkRow
    scatter: Scatter
    simulated_s: float
    times_real_time: float | None
    accepted: int
    discarded: dict[str, int]
    no_key_because: str | None
    keys_compared: int
    keys_different: int


class Predicted(Struct, frozen=True, kw_only=True):
    """The model's row. ``discarded``: why its block would give no key, ``told``: in words; None: it does."""

    row: LinkRow
    discarded: str | None
    told: str | None


class BlockLog:
    """Bob's status after each block, as far as it was read in between."""

    def __init__(self, blocks: int, tell: Callable[[NodeStatus], None] | None = None) -> None:
        self.statuses: list[NodeStatus] = []
        self._blocks = blocks
        self._tell = tell

    def until(self, _result: LinkResult, status: NodeStatus) -> bool:
        """Note a status; True when enough blocks were decided (an `Until` of `run_link`).

        Raises:
            RunDisturbed: a daemon was started again, or the session between them ended.
        """
        number = decided(status)
        before = decided(self.statuses[-1]) if self.statuses else 0
        if number < before or Reason.LINK in status.block.discarded:
            raise RunDisturbed("a daemon or the session between the two ended during the run")
        if number > before:
            self.statuses.append(status)
            if self._tell is not None:
                self._tell(status)
        if number < self._blocks:
            return False
        return status.block.decided_s > self.statuses[0].block.decided_s


def decided(status: NodeStatus) -> int:
    """Return how many blocks were accepted or discarded."""
    return status.block.accepted + sum(status.block.discarded.values())


def measured(statuses: Sequence[NodeStatus], link: LinkParameters, outcome: LinkOutcome) -> Measured:
    """Return the blocks decided between the first and the last of ``statuses``.

    The error rate is that of the whole run, because errors are known before a block is decided.

    Raises:
        ValueError: there is no block between them.
    """
    first, last = statuses[0], statuses[-1]
    seconds = last.block.decided_s - first.block.decided_s
    if seconds <= 0.0:
        raise ValueError("nothing to measure: a run has two blocks at least")

    def gained(name: str) -> float:
        return float(getattr(last.totals, name) - getattr(first.totals, name))

    summaries = _summaries(statuses)
    p_z = link.source.p_z
    asymmetries = [
        status.quantum.asymmetry for status in statuses[1:] if status.quantum.asymmetry is not None
    ]
    row = LinkRow(
        secret_bits_per_s=gained("secret_bits") / seconds,
        sifted_bits_per_s=gained("sifted_bits") / seconds,
        c_z_per_s=gained("c_z_clicks") / seconds,
        c_plus_per_s=gained("c_plus_clicks") / seconds,
        qber_z=_ratio(last.totals.error_bits, last.totals.measured_bits),
        e_vis=_ratio(p_z * gained("c_plus_clicks"), 2.0 * (1.0 - p_z) * gained("c_z_clicks")),
        asymmetry=statistics.fmean(asymmetries) if asymmetries else None,
        phi_z_upper=statistics.fmean(block.phi_z_upper for block in summaries) if summaries else None,
        f_ec=_ratio(gained("ec_parities"), gained("shannon_bits")),
    )
    discards = {
        reason: number - first.block.discarded.get(reason, 0)
        for reason, number in last.block.discarded.items()
    }
    return Measured(
        row=row,
        scatter=Scatter(
            secret_bits_per_s=_secret_scatter(summaries),
            sifted_bits_per_s=_scatter(gained("sifted_bits")),
            c_z_per_s=_scatter(gained("c_z_clicks")),
            c_plus_per_s=_scatter(gained("c_plus_clicks")),
            qber_z=_scatter(last.totals.error_bits),
            e_vis=_scatter(gained("c_plus_clicks"), gained("c_z_clicks")),
        ),
        simulated_s=seconds,
        times_real_time=_times_real_time(last, outcome.events),
        accepted=last.block.accepted - first.block.accepted,
        discarded={reason: number for reason, number in discards.items() if number},
        no_key_because=why_no_key(last),
        keys_compared=outcome.result.keys_compared,
        keys_different=outcome.result.keys_different,
    )


def predicted(config: LoopbackConfig, settings: Settings, f_ec: float) -> Predicted:
    """Return the model's row for a link at ``settings`` whose correction discloses ``f_ec`` times the limit.

    The expected block goes through the same decision as a real one does.
    """
    expected = forecast(config.simulation, config.link, f_ec, settings)
    rates = expected.rates
    row = LinkRow(
        secret_bits_per_s=expected.secret_bits_per_s,
        sifted_bits_per_s=expected.sifted_bits_per_s,
        c_z_per_s=rates.x.c_z.total,
        c_plus_per_s=rates.x.c_plus.total,
        qber_z=rates.qber_z,
        e_vis=expected.e_vis,
        asymmetry=expected.asymmetry,
        phi_z_upper=expected.result.phi_z_upper if expected.result is not None else None,
        f_ec=f_ec,
    )
    return Predicted(row=row, discarded=expected.lost, told=expected.why_no_key)


def deviation(found: float | None, expected: float | None) -> float | None:
    """Return the relative deviation of ``found`` from ``expected``; None if it is meaningless."""
    return found / expected - 1.0 if found is not None and expected else None


def _times_real_time(last: NodeStatus, events: Sequence[dict[str, Any]]) -> float | None:
    locks = (event for event in events if event.get("event") == "quantum.lock")
    lock = next((event for event in locks if event.get("state") == LockState.LOCKED), None)
    if lock is None or last.at <= lock["at"]:
        return None
    return float(last.block.decided_s / (last.at - lock["at"]))


def _summaries(statuses: Sequence[NodeStatus]) -> list[BlockSummary]:
    """Return the blocks accepted after the first status, as far as the status was read in between."""
    seen = {status.block.last.block_id: status.block.last for status in statuses if status.block.last}
    if statuses[0].block.last is not None:
        del seen[statuses[0].block.last.block_id]
    return list(seen.values())


def _secret_scatter(summaries: Sequence[BlockSummary]) -> float | None:
    if len(summaries) < 2:
        return None
    secret = [float(summary.secret_bits) for summary in summaries]
    return statistics.stdev(secret) / statistics.fmean(secret) / math.sqrt(len(secret))


def _scatter(*counts: float) -> float | None:
    """Return the relative standard deviation of a ratio of independent counts."""
    return math.sqrt(sum(1.0 / count for count in counts)) if all(counts) else None


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
