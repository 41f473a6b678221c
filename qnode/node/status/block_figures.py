"""The figures of the blocks of one link for operators: an observer of the block dialogues."""

import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec.structs
import structlog

from qnode.block.decision import assumptions
from qnode.block.history import BlockHistory
from qnode.block.outcome import IMPLAUSIBLE, Reason
from qnode.block.span import BlockSpan
from qnode.config import LinkParameters
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import Pair, XCounts
from qnode.distill.estimation import boundary_terms, visibility_error
from qnode.distill.keylength import KeyLength
from qnode.distill.plausibility import examine
from qnode.keys import BlockRecord
from qnode.node.status.alarms import Alarms
from qnode.node.status.block_table import BlockTable, KnownOfBlock
from qnode.node.status.quantum_figures import QuantumFigures
from qnode.node.status.secret_rate import SecretRate
from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.model import BlockStatus, BlockSummary, Discard

log = structlog.get_logger()

OVERDUE_BLOCKS = 5

OnErrors = Callable[[int, int, int, float], None]
"""Gets each measured error rate: block, error bits among measured bits, span of the block in s."""


def _nobody(_block_id: int, _error_bits: int, _measured_bits: int, _span_s: float) -> None:
    """Need no error rate."""


class _Distilled(NamedTuple):
    """A block in its commit; ``ended_s``: the time of its last announcement by a monotonic clock."""

    counts: BlockCounts
    result: KeyLength
    span: BlockSpan
    ended_s: float


class BlockFigures:
    """The blocks of one link since the start of the process; ``history`` gets them as well."""

    def __init__(
        self, link: LinkParameters, quantum: QuantumFigures, alarms: Alarms, history: BlockHistory
    ) -> None:
        self._link = link
        self._quantum = quantum
        self._alarms = alarms
        self._history = history
        self._open: dict[int, KnownOfBlock] = {}
        self._accepted = 0
        self._announced_s: dict[int, float] = {}
        self._distilled: dict[int, _Distilled] = {}
        self._undecided: dict[int, tuple[str, str]] = {}
        self._decided_s = 0.0
        self._discarded: dict[str, int] = {}
        self._rate = SecretRate()
        self._last: BlockSummary | None = None
        self._last_discard: Discard | None = None
        self.table = BlockTable(link)
        self.on_errors: OnErrors = _nobody

    def status(self) -> BlockStatus:
        """Return the present view."""
        return BlockStatus(
            current=self._quantum.current_block,
            filled=self._quantum.filled,
            in_flight=len(self._open.keys() | self._announced_s.keys()),
            accepted=self._accepted,
            discarded=dict(self._discarded),
            decided_s=self._decided_s,
            last=self._last,
            last_discard=self._last_discard,
            secret_bits_per_s=self._secret_rate(),
        )

    def _secret_rate(self) -> float | None:
        overdue = self._last is not None and not self.secret_bits_per_s(time.time())
        return 0.0 if overdue else self._rate.bits_per_s()

    def secret_bits_per_s(self, at: float) -> float:
        """Return the rate of the last block with key; 0 if several more are overdue ``at`` Unix time."""
        last = self._last
        if last is None or last.span_s <= 0.0 or at - last.finished_at > OVERDUE_BLOCKS * last.span_s:
            return 0.0
        return last.secret_bits / last.span_s

    def sifted(self, block_id: int, n_z: Pair, x: XCounts, span: BlockSpan) -> None:
        """Note a block's public counts."""
        self._open[block_id] = KnownOfBlock(span_s=self._span_s(span), n_z=n_z, x=x)
        p_z = self._link.source.p_z
        self._quantum.show(e_vis=visibility_error(x, p_z), asymmetry=boundary_terms(x, p_z).asymmetry)

    def verified(self, block_id: int, counts: BlockCounts) -> None:
        """Note the public counts of a verified block."""
        checks = examine(counts, self._link)
        self._open[block_id] = msgspec.structs.replace(self._open[block_id], verified=counts, checks=checks)
        self._quantum.show(checks=checks, checks_of_block=block_id)
        self._history.verified(block_id, counts)
        self._errors(block_id, int(counts.m_z.total), int(counts.n_z.total))

    def dropped(self, clicks: int) -> None:
        """Count clicks that were found but could not be used."""
        self._quantum.count(clicks_dropped=clicks)

    def sampled(self, block_id: int, error_bits: int, measured_bits: int) -> None:
        """Note the errors in a disclosed sample of a block."""
        self._history.sampled(block_id, error_bits, measured_bits)
        self._errors(block_id, error_bits, measured_bits)

    def _errors(self, block_id: int, error_bits: int, measured_bits: int) -> None:
        if measured_bits:
            self._quantum.show(qber_z=error_bits / measured_bits)
            known = self._open.get(block_id)
            span_s = known.span_s if known is not None else None
            self.on_errors(block_id, error_bits, measured_bits, span_s or 0.0)
        self._quantum.count(error_bits=error_bits, measured_bits=measured_bits)

    def announced(self, block_id: int, span_s: float) -> None:
        """Note a completely announced block, and its duration in tag time."""
        self._announced_s[block_id] = span_s

    def _span_s(self, span: BlockSpan) -> float:
        return span.n_slots / self._link.source.qubit_rate_hz

    def _decided(self, block_id: int) -> KnownOfBlock:
        """Add a block's counts to the totals, and return its known figures."""
        announced_s = self._announced_s.pop(block_id, None)
        self._decided_s += announced_s or 0.0
        self._distilled.pop(block_id, None)
        self._undecided.pop(block_id, None)
        known = self._open.pop(block_id, None)
        if known is None or known.n_z is None or known.x is None:
            return KnownOfBlock(span_s=announced_s)
        self._quantum.count(
            sifted_bits=int(known.n_z.total),
            c_plus_clicks=int(known.x.c_plus.total),
            c_z_clicks=int(known.x.c_z.total),
        )
        return known

    def distilled(
        self, block_id: int, counts: BlockCounts, result: KeyLength, span: BlockSpan, took_s: float
    ) -> None:
        """Note the key that a block is about to give, before its commit."""
        self._distilled[block_id] = _Distilled(counts, result, span, time.monotonic() - took_s)

    def undecided(self, block_id: int, reason: str, detail: str) -> None:
        """Note a block whose commit was interrupted; `resumed` or `settled` decides it."""
        self._undecided[block_id] = (reason, detail)
        log.warning("block.interrupted", block=block_id, reason=reason, detail=detail)

    def resumed(self, block_id: int, record: BlockRecord) -> None:
        """Count a block as accepted, because the sites have confirmed it in a new session."""
        self._undecided.pop(block_id, None)
        cut = self._distilled.get(block_id)
        if cut is not None:
            took_s = time.monotonic() - cut.ended_s
            self.accepted(block_id, cut.counts, cut.result, cut.span, took_s)
            return
        # This process started after the block, and knows only the record of the store.
        self.table.resumed(block_id, record)
        self._accepted += 1
        self._quantum.count(secret_bits=record.secret_bits)
        self._alarms.clear_alarm(AlarmName.BLOCK_DISCARDED)

    def settled(self) -> None:
        """Count all undecided blocks as lost: the new session has confirmed no more of them."""
        for block_id, (reason, detail) in list(self._undecided.items()):
            self.lost(block_id, reason, detail)

    def accepted(
        self, block_id: int, counts: BlockCounts, result: KeyLength, span: BlockSpan, took_s: float
    ) -> None:
        """Count a block that gave key."""
        self.table.accepted(block_id, self._decided(block_id), result)
        self._accepted += 1
        self._history.accepted(self._span_s(span), counts)
        source = self._link.source
        summary = BlockSummary(
            block_id=block_id,
            finished_at=time.time(),
            n_z=int(counts.n_z.total),
            qber_z=counts.qber_z,
            e_vis=visibility_error(counts.x, source.p_z),
            asymmetry=boundary_terms(counts.x, source.p_z).asymmetry,
            phi_z_upper=result.phi_z_upper,
            secret_bits=result.length,
            lambda_ec_bits=counts.lambda_ec_bits,
            f_ec=counts.f_ec,
            reconciliation=counts.method,
            estimator=result.estimator,
            assumptions=list(assumptions(result, self._link).values()),
            span_s=self._span_s(span),
            took_s=took_s,
        )
        self._last = summary
        self._rate.add(summary.finished_at, summary.span_s, summary.secret_bits)
        self._quantum.count(
            secret_bits=result.length,
            lambda_ec_bits=counts.lambda_ec_bits,
            ec_parities=counts.alice_parities,
            shannon_bits=counts.shannon_bits,
        )
        self._alarms.clear_alarm(AlarmName.BLOCK_DISCARDED)
        self._alarms.clear_alarm(AlarmName.COUNTS_IMPLAUSIBLE)
        log.info(
            "block.done",
            block=block_id,
            sifted=summary.n_z,
            qber_z=round(summary.qber_z, 5),
            e_vis=round(summary.e_vis or 0.0, 5),
            phase_error_upper=round(summary.phi_z_upper, 4),
            f_ec=round(summary.f_ec, 4),
            leak=summary.lambda_ec_bits,
            secret=summary.secret_bits,
            span_s=round(summary.span_s, 3),
            took_s=round(took_s, 3),
        )

    def lost(self, block_id: int, reason: str, detail: str) -> None:
        """Count a block that gave no key, with its reason."""
        known = self._decided(block_id)
        self.table.lost(block_id, reason, detail, known)
        self._history.lost(reason)
        self._discarded[reason] = self._discarded.get(reason, 0) + 1
        self._last_discard = Discard(block_id=block_id, at=time.time(), reason=reason, detail=detail)
        if reason != Reason.STORE_FULL:  # its key was not needed
            self._rate.add(self._last_discard.at, known.span_s or 0.0, 0)
        log.warning(
            "block.discarded",
            block=block_id,
            reason=reason,
            detail=detail,
            span_s=round(known.span_s or 0.0, 3),
        )
        if reason in IMPLAUSIBLE:
            self._alarms.raise_alarm(
                AlarmName.COUNTS_IMPLAUSIBLE,
                f"block {block_id} cannot be from this link as it is configured ({reason}): {detail}",
            )
        if reason != Reason.STORE_FULL:  # which is no fault: there are more keys than needed
            self._alarms.raise_alarm(AlarmName.BLOCK_DISCARDED, f"the last block gave no key ({reason})")
