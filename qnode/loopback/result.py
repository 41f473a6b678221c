"""The result of a loopback run, from the status of both sites."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from qnode.loopback.encryptors import Comparison
from qnode.operate.status.model import NodeStatus

_SUMMED = (
    "sifted_bits",
    "secret_bits",
    "lambda_ec_bits",
    "error_bits",
    "measured_bits",
    "c_plus_clicks",
    "c_z_clicks",
    "ec_parities",
    "shannon_bits",
)


# The fields that are added in the sum over links.
_ADDED = (
    "keys_delivered",
    "keys_compared",
    "keys_different",
    "sifted_bits",
    "secret_bits",
    "lambda_ec_bits",
    "secret_bits_per_simulated_s",
    "blocks_accepted",
)


class LoopbackFigures(Struct, frozen=True, kw_only=True):
    """What came out of one link, or of all. Fractions, not percent; None: not measured.

    ``simulated_s`` is the tag time of the decided blocks; ``secret_bits`` count before the
    authentication pool's refill; ``f_ec`` is without verification.
    """

    keys_delivered: int
    keys_compared: int
    keys_different: int
    simulated_s: float
    wall_s: float
    simulated_s_per_wall_s: float
    qber_z: float | None
    e_vis: float | None
    phase_error_upper: float | None
    sifted_bits: int
    secret_bits: int
    lambda_ec_bits: int
    f_ec: float | None
    secret_bits_per_simulated_s: float
    blocks_accepted: int
    blocks_discarded: dict[str, int]
    simulated: bool


class LinkResult(LoopbackFigures, frozen=True, kw_only=True):
    """The result of the link ``name``."""

    name: str


class LoopbackResult(LoopbackFigures, frozen=True, kw_only=True):
    """The one JSON object of `qnode loopback --json`: the sum over ``links``, and each of them.

    ``simulated_s`` is the largest of the links, and rates are the sums of the links' rates.
    ``phase_error_upper`` is the largest.
    """

    links: list[LinkResult]


@dataclass
class _GrowingSum:
    """A counter that continues to grow when its daemon restarts and begins at zero."""

    value: float = 0.0
    seen: float = 0.0

    def see(self, reading: float) -> None:
        self.value += reading - self.seen if reading >= self.seen else reading
        self.seen = reading


@dataclass
class Ledger:
    """Sums over the whole run, across restarts of the daemons."""

    p_z: float
    _sums: dict[str, _GrowingSum] = field(default_factory=dict)
    _discarded: dict[str, _GrowingSum] = field(default_factory=dict)
    _simulated: bool = True
    _phase_error_upper: float | None = None

    def see(self, status: NodeStatus) -> None:
        """Add a status of Bob's site, which has the tag time; the rest is the same at both sites."""
        for name in _SUMMED:
            self._count(name, getattr(status.totals, name))
        self._count("accepted", status.block.accepted)
        self._count("decided_s", status.block.decided_s)
        for reason, number in status.block.discarded.items():
            self._discarded.setdefault(reason, _GrowingSum()).see(number)
        if status.block.last is not None:
            self._phase_error_upper = status.block.last.phi_z_upper
        self._simulated = status.simulated

    def result(self, name: str, comparison: Comparison, wall_s: float) -> LinkResult:
        """Return the sums so far of the link ``name``."""
        simulated_s = self.total("decided_s")
        return LinkResult(
            name=name,
            keys_delivered=comparison.delivered,
            keys_compared=comparison.compared,
            keys_different=comparison.different,
            simulated_s=simulated_s,
            wall_s=wall_s,
            simulated_s_per_wall_s=simulated_s / wall_s if wall_s else 0.0,
            qber_z=_ratio(self.total("error_bits"), self.total("measured_bits")),
            e_vis=_ratio(
                self.p_z * self.total("c_plus_clicks"), 2 * (1 - self.p_z) * self.total("c_z_clicks")
            ),
            phase_error_upper=self._phase_error_upper,
            sifted_bits=int(self.total("sifted_bits")),
            secret_bits=int(self.total("secret_bits")),
            lambda_ec_bits=int(self.total("lambda_ec_bits")),
            f_ec=_ratio(self.total("ec_parities"), self.total("shannon_bits")),
            secret_bits_per_simulated_s=self.total("secret_bits") / simulated_s if simulated_s else 0.0,
            blocks_accepted=int(self.total("accepted")),
            blocks_discarded={reason: int(count.value) for reason, count in self._discarded.items()},
            simulated=self._simulated,
        )

    def total(self, name: str) -> float:
        """Return one sum: a field of `Totals`, ``accepted`` blocks, or ``decided_s``."""
        return self._sums[name].value if name in self._sums else 0.0

    def _count(self, name: str, reading: float) -> None:
        self._sums.setdefault(name, _GrowingSum()).see(reading)


def result_of_links(links: Sequence[tuple[Ledger, LinkResult]]) -> LoopbackResult:
    """Return the result of all links together; each with its ledger, which has the counts."""
    ledgers, results = [ledger for ledger, _ in links], [result for _, result in links]
    first = results[0]
    if len(results) == 1:
        figures = {name: getattr(first, name) for name in LoopbackFigures.__struct_fields__}
        return LoopbackResult(**figures, links=results)
    total = {name: math.fsum(ledger.total(name) for ledger in ledgers) for name in _SUMMED}
    phase_errors = [one.phase_error_upper for one in results if one.phase_error_upper is not None]
    discarded = Counter[str]()
    for one in results:
        discarded.update(one.blocks_discarded)
    p_z, simulated_s = ledgers[0].p_z, max(one.simulated_s for one in results)
    return LoopbackResult(
        wall_s=first.wall_s,
        simulated_s=simulated_s,
        simulated_s_per_wall_s=simulated_s / first.wall_s if first.wall_s else 0.0,
        qber_z=_ratio(total["error_bits"], total["measured_bits"]),
        e_vis=_ratio(p_z * total["c_plus_clicks"], 2 * (1 - p_z) * total["c_z_clicks"]),
        phase_error_upper=max(phase_errors, default=None),
        f_ec=_ratio(total["ec_parities"], total["shannon_bits"]),
        blocks_discarded=dict(discarded),
        simulated=any(one.simulated for one in results),
        links=results,
        **{name: sum(getattr(one, name) for one in results) for name in _ADDED},
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
