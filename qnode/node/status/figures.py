"""What the node knows about itself, gathered while it works; `status()` is the one view of it."""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec.structs
import structlog

from qnode import __version__
from qnode.block.decision import assumptions
from qnode.block.error_rate import ErrorRate
from qnode.block.outcome import IMPLAUSIBLE, Reason
from qnode.block.span import BlockSpan
from qnode.block.span_policy import RecentBlocks
from qnode.config import SiteConfig
from qnode.devices.status import DeviceStatus
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import Pair, XCounts
from qnode.distill.estimation import boundary_terms, visibility_error
from qnode.distill.keylength import KeyLength
from qnode.distill.plausibility import examine
from qnode.keys import BlockRecord, Counts, Loss, PadsLeft, Positions
from qnode.link.authentication import epsilon_of_tag
from qnode.node.status.block_table import BlockTable, KnownOfBlock
from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.model import (
    LOST,
    Alarm,
    AuthenticationStatus,
    BlockStatus,
    BlockSummary,
    Discard,
    EtsiStatus,
    KeyStatus,
    NodeStatus,
    PeerStatus,
    QuantumStatus,
    SiteStatus,
    State,
    Totals,
)
from qnode.tls_validity import DAY_S, Validity

log = structlog.get_logger()

# A measured error rate beyond this is no eavesdropper's: the slots are miscounted.
MISALIGNED_QBER = 0.35
# A source that waits for us, as a simulation does, may keep Bob silent for longer than hardware would.
LONGEST_UNANNOUNCED_S = 30.0

EXPIRY_ALARM_S = 7 * DAY_S
MOST_TOLD = 3

# Alarms about the process itself: they belong into the line that the service manager shows.
_OF_THE_NODE = frozenset(
    {AlarmName.NODE_RELOAD_FAILED, AlarmName.NODE_RESTART_NEEDED, AlarmName.LISTENER_WAITING}
)


class _Distilled(NamedTuple):
    """A block in its commit; ``ended_s``: when its last click was announced, of a clock that never jumps."""

    counts: BlockCounts
    result: KeyLength
    span: BlockSpan
    ended_s: float


class Figures:
    """Counters and states of one site. Only the event loop's thread touches them."""

    def __init__(self, config: SiteConfig, *, simulated: bool) -> None:
        self._config = config
        self._link = config.link
        self._simulated = simulated
        self._open: dict[int, KnownOfBlock] = {}
        self._accepted = 0
        self._announced_s: dict[int, float] = {}
        self._distilled: dict[int, _Distilled] = {}
        self._undecided: dict[int, tuple[str, str]] = {}
        self._decided_s = 0.0
        self._discarded: dict[str, int] = {}
        self._last: BlockSummary | None = None
        self._last_discard: Discard | None = None
        self._alarms: dict[str, Alarm] = {}
        self._lost_chunks = self._lost_pads = 0
        self._unheard: dict[str, str] = {}
        self.certificates: list[Validity] = []
        self.sae_differences: list[str] = []
        self._clicks_heard_s = -math.inf
        self.recent = RecentBlocks()
        self.decided = BlockTable(config.link)
        self.error_rate = ErrorRate(config.link.block.qber_z_limit)
        self.misaligned_block_id = 0
        self.state = State("starting", time.time())
        self.peer = PeerStatus(kme_id=config.peer.kme_id, connection=State("disconnected", time.time()))
        self.quantum = QuantumStatus(lock=State("searching", time.time()))
        self.totals = Totals()
        self.keys = KeyStatus()
        self.authentication = AuthenticationStatus()
        self.etsi014: Callable[[], EtsiStatus] = EtsiStatus
        self.log_lines_dropped: Callable[[], int] = int
        self.current_block: int | None = None
        self.filled: float | None = None
        self.recorded_since_s: float | None = None
        self.devices: Callable[[], list[DeviceStatus]] = list

    def status(self) -> NodeStatus:
        """Return the present view."""
        node = self._config.node
        return NodeStatus(
            at=time.time(),
            version=__version__,
            site=SiteStatus(role=node.role, kme_id=node.kme_id, link=self._link.name),
            simulated=self._simulated,
            recorded_since=self.recorded_since_s,
            state=self.state,
            peer=self.peer,
            quantum=self.quantum,
            block=BlockStatus(
                current=self.current_block,
                filled=self.filled,
                in_flight=len(self._open.keys() | self._announced_s.keys()),
                accepted=self._accepted,
                discarded=dict(self._discarded),
                decided_s=self._decided_s,
                last=self._last,
                last_discard=self._last_discard,
            ),
            totals=self.totals,
            keys=self.keys,
            authentication=self.authentication,
            devices=self.devices(),
            etsi014=self.etsi014(),
            log_lines_dropped=self.log_lines_dropped(),
            alarms=list(self._alarms.values()),
            certificates=self.certificates,
        )

    def raise_alarm(self, name: AlarmName, text: str) -> None:
        """Show an alarm until `clear_alarm`; logged once."""
        raised = self._alarms.get(name)
        if raised is None:
            log.warning("alarm.raised", alarm=name, text=text)
        self._alarms[name] = Alarm(name=str(name), since=raised.since if raised else time.time(), text=text)

    def has_alarm(self, name: AlarmName) -> bool:
        """Tell whether an alarm is raised."""
        return name in self._alarms

    def clear_alarm(self, name: AlarmName) -> None:
        """Take an alarm back."""
        if self._alarms.pop(name, None) is not None:
            log.info("alarm.cleared", alarm=name)

    def headline(self) -> str:
        """Say in one line, for the service manager, how the node itself fares."""
        own = [f"{alarm.name}: {alarm.text}" for alarm in self._alarms.values() if alarm.name in _OF_THE_NODE]
        return "; ".join([self.state.state, *own])

    def note_listening(self, where: str, because: str | None) -> None:
        """Note that the address of the key ``where`` is listened on, or what hinders that."""
        if because is None:
            self._unheard.pop(where, None)
        else:
            self._unheard[where] = f"{where}: {because}"
        if self._unheard:
            self.raise_alarm(AlarmName.LISTENER_WAITING, "; ".join(self._unheard.values()) + "; trying again")
        else:
            self.clear_alarm(AlarmName.LISTENER_WAITING)

    def note_sae_differences(self, number: int, first: list[str]) -> None:
        """Note how many pairs of encryptors one site alone has, and the ``first`` of them in words."""
        if not first:
            self.clear_alarm(AlarmName.SAES_DIFFER)
        elif first != self.sae_differences:
            more = f"; and {number - MOST_TOLD} more" if number > MOST_TOLD else ""
            self.raise_alarm(AlarmName.SAES_DIFFER, "; ".join(first[:MOST_TOLD]) + more)
        self.sae_differences = first

    def look_at_certificates(self, at: float) -> None:
        """Show what of `certificates` has expired at ``at`` (unix seconds), or soon will."""
        expired = [one for one in self.certificates if one.expired(at)]
        soon = [
            one for one in self.certificates if one not in expired and one.expires_within(EXPIRY_ALARM_S, at)
        ]
        for name, found, verb in (
            (AlarmName.CERTIFICATE_EXPIRED, expired, "expired"),
            (AlarmName.CERTIFICATE_EXPIRING, soon, "expires"),
        ):
            if found:
                told = (
                    f"{one}, {verb} {datetime.fromtimestamp(one.expires_at, UTC):%Y-%m-%d %H:%M} UTC"
                    for one in found
                )
                self.raise_alarm(name, "; ".join(told))
            else:
                self.clear_alarm(name)

    def note_recording(self, since_s: float | None) -> None:
        """Note since when somebody records this site; None: nobody does."""
        self.recorded_since_s = since_s

    def note_lock(self, state: str, because: str = "") -> None:
        """Note whether Bob's clicks are given slots; Alice infers it from what he asks of her."""
        lock = self.quantum.lock.to(state, because, at=time.time())
        self.quantum = msgspec.structs.replace(self.quantum, lock=lock)

    def lose_lock(self, because: str) -> None:
        """Note that there is nothing to look for a lock in: no tags come, or nobody announces clicks."""
        if self.quantum.lock.state != LOST:
            log.info("quantum.lock", state=LOST, because=because)
        self.note_lock(LOST, because)
        self.forget_rates()
        self.filled = None

    def forget_rates(self) -> None:
        """Note that the rates of clicks are not known."""
        self.quantum = msgspec.structs.replace(self.quantum, click_rates_hz={}, sifted_rate_bits_per_s=None)

    def clicks_heard(self) -> None:
        """Note at Alice's that Bob has just announced clicks; any thread may call this."""
        self._clicks_heard_s = time.monotonic()

    def look_after_lock(self) -> None:
        """Take back at Alice's that there is lock when Bob announces no more; to be called now and then."""
        is_silent = time.monotonic() - self._clicks_heard_s >= LONGEST_UNANNOUNCED_S
        if self.quantum.locked and is_silent:
            self.lose_lock(f"Bob has announced no clicks for more than {LONGEST_UNANNOUNCED_S:g} s")
        elif self.quantum.lock.state == LOST and not is_silent:
            self.note_lock("locked")

    def count(self, **added: int) -> None:
        """Add to totals, by the names that they have in `Totals`."""
        totals = self.totals
        sums = {name: getattr(totals, name) + number for name, number in added.items()}
        self.totals = msgspec.structs.replace(totals, **sums)

    def note_store(self, counts: Counts, pads: PadsLeft, positions: Positions) -> None:
        """Take over what the store counts."""
        self.keys = KeyStatus(
            available_own=counts.available_own,
            available_peer=counts.available_peer,
            prepared=counts.prepared,
            assigned=counts.assigned - counts.stock,
            stock=counts.stock,
            delivered_total=counts.delivered,
            void_total=counts.void,
            expired_total=counts.expired,
            # Counted apart, for the tags' share is too small to be added to the blocks' one by one.
            epsilon_total=positions.epsilon + pads.used * epsilon_of_tag(),
        )
        self.authentication = AuthenticationStatus(pads_left_send=pads.send, pads_left_receive=pads.receive)

    def note_uncleared(self, times: int) -> None:
        """Note how many times in a row the store's log could not be cleared of destroyed keys."""
        if times:
            text = f"sealed traces of destroyed keys stay in the store's log ({times} tries in a row)"
            self.raise_alarm(AlarmName.STORE_UNCLEARED, text)
        else:
            self.clear_alarm(AlarmName.STORE_UNCLEARED)

    def note_loss(self, loss: Loss) -> None:
        """Note what the store could not open and gave up; the alarm stays until the next start."""
        self._lost_chunks += loss.n_chunks
        self._lost_pads += loss.pads
        blocks = sorted({item.block_id for item in loss.ranges})
        log.error("store.damaged", chunks=loss.n_chunks, pads=loss.pads, blocks=blocks)
        self.raise_alarm(
            AlarmName.STORE_DAMAGED,
            f"{self._lost_chunks} chunks and {self._lost_pads} one-time pads could not be opened and were "
            "given up at both sites: check the disk and the memory of this machine",
        )

    # The book of blocks.

    def sifted(self, block_id: int, n_z: Pair, x: XCounts, span: BlockSpan) -> None:
        """Note a block's public counts."""
        self._open[block_id] = KnownOfBlock(span_s=self._span_s(span), n_z=n_z, x=x)
        p_z = self._link.source.p_z
        self.quantum = msgspec.structs.replace(
            self.quantum, e_vis=visibility_error(x, p_z), asymmetry=boundary_terms(x, p_z).asymmetry
        )

    def verified(self, block_id: int, counts: BlockCounts) -> None:
        """Note the public record of a block that is the same at both sites after correction."""
        checks = examine(counts, self._link)
        self._open[block_id] = msgspec.structs.replace(self._open[block_id], verified=counts, checks=checks)
        self.quantum = msgspec.structs.replace(self.quantum, checks=checks, checks_of_block=block_id)
        self.error_rate.counted(counts.qber_z)
        self._errors(block_id, int(counts.m_z.total), int(counts.n_z.total))

    def dropped(self, clicks: int) -> None:
        """Count clicks that were found and could not be used."""
        self.count(clicks_dropped=clicks)

    def sampled(self, block_id: int, error_bits: int, measured_bits: int) -> None:
        """Note the errors in a disclosed sample of a block."""
        if measured_bits:
            self.error_rate.sampled(error_bits / measured_bits)
        self._errors(block_id, error_bits, measured_bits)

    def _errors(self, block_id: int, error_bits: int, measured_bits: int) -> None:
        if measured_bits:
            if error_bits > MISALIGNED_QBER * measured_bits:
                self.misaligned_block_id = max(self.misaligned_block_id, block_id)
            self.quantum = msgspec.structs.replace(self.quantum, qber_z=error_bits / measured_bits)
        self.totals = msgspec.structs.replace(
            self.totals,
            error_bits=self.totals.error_bits + error_bits,
            measured_bits=self.totals.measured_bits + measured_bits,
        )

    def announced(self, block_id: int, span_s: float) -> None:
        """Note that a block is wholly announced, and how much tag time it covers."""
        self._announced_s[block_id] = span_s

    def _span_s(self, span: BlockSpan) -> float:
        return span.n_slots / self._link.source.qubit_rate_hz

    def _decided(self, block_id: int) -> KnownOfBlock:
        """Move a block's counts to the totals, and return what is known of it."""
        announced_s = self._announced_s.pop(block_id, None)
        self._decided_s += announced_s or 0.0
        self._distilled.pop(block_id, None)
        self._undecided.pop(block_id, None)
        known = self._open.pop(block_id, None)
        if known is None or known.n_z is None or known.x is None:
            return KnownOfBlock(span_s=announced_s)
        self.totals = msgspec.structs.replace(
            self.totals,
            sifted_bits=self.totals.sifted_bits + int(known.n_z.total),
            c_plus_clicks=self.totals.c_plus_clicks + int(known.x.c_plus.total),
            c_z_clicks=self.totals.c_z_clicks + int(known.x.c_z.total),
        )
        return known

    def distilled(
        self, block_id: int, counts: BlockCounts, result: KeyLength, span: BlockSpan, took_s: float
    ) -> None:
        """Note what key a block is about to give, before its commit."""
        self._distilled[block_id] = _Distilled(counts, result, span, time.monotonic() - took_s)

    def undecided(self, block_id: int, reason: str, detail: str) -> None:
        """Note a block whose commit was cut after its key was prepared: `resumed` or `settled` decides it."""
        self._undecided[block_id] = (reason, detail)
        log.warning("block.interrupted", block=block_id, reason=reason, detail=detail)

    def resumed(self, block_id: int, record: BlockRecord) -> None:
        """Count a block as one that gave key: the sites have confirmed it when they met again."""
        self._undecided.pop(block_id, None)
        cut = self._distilled.get(block_id)
        if cut is not None:
            took_s = time.monotonic() - cut.ended_s
            self.accepted(block_id, cut.counts, cut.result, cut.span, took_s)
            return
        # This process was started since, and knows of the block what the store does.
        self.decided.resumed(block_id, record)
        self._accepted += 1
        self.count(secret_bits=record.secret_bits)
        self.clear_alarm(AlarmName.BLOCK_DISCARDED)

    def settled(self) -> None:
        """Count all blocks that are still undecided as lost: the sites have met, and confirmed no more."""
        for block_id, (reason, detail) in list(self._undecided.items()):
            self.lost(block_id, reason, detail)

    def accepted(
        self, block_id: int, counts: BlockCounts, result: KeyLength, span: BlockSpan, took_s: float
    ) -> None:
        """Count a block that gave key."""
        self.decided.accepted(block_id, self._decided(block_id), result)
        self._accepted += 1
        self.recent.accepted(self._span_s(span), counts)
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
        self.totals = msgspec.structs.replace(
            self.totals,
            secret_bits=self.totals.secret_bits + result.length,
            lambda_ec_bits=self.totals.lambda_ec_bits + counts.lambda_ec_bits,
            ec_parities=self.totals.ec_parities + counts.alice_parities,
            shannon_bits=self.totals.shannon_bits + counts.shannon_bits,
        )
        self.clear_alarm(AlarmName.BLOCK_DISCARDED)
        self.clear_alarm(AlarmName.COUNTS_IMPLAUSIBLE)
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
        """Count a block that gave no key, and why."""
        known = self._decided(block_id)
        self.decided.lost(block_id, reason, detail, known)
        self.error_rate.lost(reason)
        self.recent.lost(reason)
        self._discarded[reason] = self._discarded.get(reason, 0) + 1
        self._last_discard = Discard(block_id=block_id, at=time.time(), reason=reason, detail=detail)
        log.warning(
            "block.discarded",
            block=block_id,
            reason=reason,
            detail=detail,
            span_s=round(known.span_s or 0.0, 3),
        )
        if reason in IMPLAUSIBLE:
            self.raise_alarm(
                AlarmName.COUNTS_IMPLAUSIBLE,
                f"block {block_id} cannot be from this link as it is configured ({reason}): {detail}",
            )
        if reason != Reason.STORE_FULL:  # which is nobody's fault: there are more keys than are wanted
            self.raise_alarm(AlarmName.BLOCK_DISCARDED, f"the last block gave no key ({reason})")
