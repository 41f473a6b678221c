"""The key store for the event loop: calls run in threads, and each is durable when it returns."""

import math
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple, TypeVar
from uuid import UUID

from msgspec import Struct

from qnode.audit.entries import AuditPage
from qnode.errors import NotEnoughKeys
from qnode.keys import (
    Assignment,
    AuditStanding,
    BlockRecord,
    BlockState,
    Condition,
    Counts,
    FrontEnds,
    Handover,
    KeyStore,
    Loss,
    PadId,
    PadsLeft,
    Positions,
    PreparedBlock,
    Release,
    StockItem,
    StoredBlock,
    StoredKey,
    StoreStanding,
)
from qnode.link.authentication import AuthenticationTag, TranscriptHash, make_tag, verify_tag
from qnode.node.supply.key_clock import KeyClock
from qnode.node.supply.stalls import STALL_S
from qnode.node.supply.store_calls import StoreCalls
from qnode.units import CHUNK_BITS

T = TypeVar("T")

DAY_S = 86_400.0
# A page is encoded in the event loop.
AUDIT_PAGE_BYTES = 1 << 18

# A hello has room for this many; pads of older segments beyond them are discarded.
MOST_RUNS = 2000


class StoreLook(NamedTuple):
    """What the status says of a store."""

    counts: Counts
    pads: PadsLeft
    positions: Positions
    audit: AuditStanding
    condition: Condition


class PeerMemory(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A site's memory of its peer, and its segments of one-time pads: part of each hello.

    ``pad_segments``: first and last of each run of neighbouring segments, ascending.
    """

    view: Positions
    pad_segments: list[tuple[int, int]]

    def __post_init__(self) -> None:
        ends = [number for run in self.pad_segments for number in run]
        if ends != sorted(ends) or any(number < 0 for number in ends):
            raise ValueError("runs of segments that do not ascend")

    def holds(self, segment: int) -> bool:
        """Return whether the site holds pads of ``segment``."""
        return any(first <= segment <= last for first, last in self.pad_segments)


def runs_of(numbers: list[int]) -> list[tuple[int, int]]:
    """Return first and last of each run of neighbours in ascending ``numbers``, at most the latest runs."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs[-MOST_RUNS:]


class AsyncStore:
    """`qnode.keys.KeyStore`, asynchronous. A running call is not cancelled.

    Exception: if the store hangs, the task that waits for a call longer than `STALL_S` can be cancelled
    (`let_go`).
    """

    def __init__(self, store: KeyStore, most_chunks: int) -> None:
        self._store = store
        self.most_chunks = most_chunks
        self.key_lifetime_s = math.inf
        """The time for which keys wait to be fetched."""
        self._calls = StoreCalls(store)
        self.on_new_keys: Callable[[], None] = lambda: None
        """The callback for keys that can be assigned from now on."""
        self.gains = 0
        """How often keys came that this site or the peer can assign from now on."""
        self.on_loss: Callable[[Loss], None] = lambda loss: None
        """The callback for an entry that could not be decrypted and was discarded."""

    def _note_gain(self) -> None:
        self.gains += 1
        self.on_new_keys()

    @property
    def stalled_s(self) -> float:
        """The duration of the oldest running call."""
        return self._calls.stalled_s

    @property
    def unsettled(self) -> bool:
        """Whether the effects of a call are unknown here: a new session must settle them."""
        return self._calls.unsettled

    @unsettled.setter
    def unsettled(self, value: bool) -> None:
        self._calls.unsettled = value

    def let_go(self) -> None:
        """Allow the cancellation of tasks that wait longer than `STALL_S`; called repeatedly."""
        self._calls.let_go(STALL_S)

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await self._calls.apart(work)
        finally:
            self._tell_losses()

    async def _shared_call(self, work: Callable[[], T]) -> T:
        """Call the store, with all such calls that wait, in one commit: for those that come often."""
        try:
            return await self._calls.together(work)
        finally:
            self._tell_losses()

    def _tell_losses(self) -> None:
        for loss in self._store.new_losses():
            self.on_loss(loss)

    @cached_property
    def clock(self) -> KeyClock:
        """The clock for the age of keys, continued from its last mark."""
        return KeyClock(self._store.age_mark())

    def now(self) -> float:
        """Return the time for the age of keys, in the seconds used by assignments."""
        return self.clock.now()

    async def make_tag(self, hashed: TranscriptHash) -> AuthenticationTag:
        """Make a tag with a one-time pad; the pad is marked as used before this returns."""
        return await self._call(lambda: make_tag(self._store, hashed))

    async def verify_tag(self, hashed: TranscriptHash, theirs: AuthenticationTag) -> None:
        """Verify the peer's tag and use up its pad, in this order.

        Raises:
            AuthenticationError: the tag is wrong; nothing has changed.
        """
        pad_id = PadId(theirs.pad_segment, theirs.pad_index)
        await self._call(lambda: verify_tag(self._store, hashed, pad_id, theirs.tag))

    async def pads_left(self) -> PadsLeft:
        """Return the stock of one-time pads in each direction."""
        return await self._call(self._store.pads_left)

    async def record_block_opened(self, block_id: int, epsilon: float) -> None:
        """Record a block number as used: it is never used again."""
        await self._call(lambda: self._store.record_block_opened(block_id, epsilon))

    async def prepare(self, block: PreparedBlock) -> None:
        """Store a block durably as prepared."""
        await self._call(lambda: self._store.prepare(block))

    async def confirm(self, block_id: int) -> None:
        """Make a prepared block available."""
        await self._call(lambda: self._store.confirm(block_id))
        self._note_gain()

    async def void_block(self, block_id: int, reason: str) -> None:
        """Void a block."""
        await self._call(lambda: self._store.void_block(block_id, reason))

    async def block_record(self, block_id: int) -> BlockRecord:
        """Return the record of a prepared block's key."""
        return await self._call(lambda: self._store.block_record(block_id))

    async def unconfirmed_blocks(self) -> list[int]:
        """Return the blocks that wait for the peer's confirmation."""
        return await self._call(self._store.unconfirmed_blocks)

    async def block_states(self, block_ids: Iterable[int]) -> list[BlockState]:
        """Return the state of each block."""
        return await self._call(lambda: [self._store.block_state(block_id) for block_id in block_ids])

    async def assign(
        self, master: str, slaves: tuple[str, ...], number: int, size_bits: int, *, stock: bool = False
    ) -> Assignment:
        """Choose chunks for ``number`` keys; nothing is delivered before the peer holds the assignment."""
        return await self._shared_call(
            lambda: self._store.assign(master, slaves, number, size_bits, self.now(), stock=stock)
        )

    async def accept_assignment(self, assignment: Assignment, *, by_shares: bool) -> None:
        """Accept an assignment of the peer; ``by_shares``: a pair may use only its share of the store.

        Raises:
            ShareUsedUp: nothing was changed.
        """
        most = self.most_chunks if by_shares else None
        await self._shared_call(
            lambda: self._store.accept_assignment(assignment, self.now(), most_chunks=most)
        )

    async def acknowledge(self, assignment_id: int) -> None:
        """Note that the peer holds an assignment."""
        await self._shared_call(lambda: self._store.acknowledge(assignment_id))

    async def deliver_to_master(self, assignment_id: int) -> list[StoredKey]:
        """Deliver the keys of an assignment that the peer holds to the master, once."""
        return await self._shared_call(lambda: self._store.deliver_to_master(assignment_id))

    async def take_from_stock(self, master: str, slave: str, number: int, size_bits: int) -> list[StoredKey]:
        """Deliver keys that were assigned in advance; all or none."""

        def work() -> list[StoredKey]:
            if self._peer_may_have_expired_stock():
                raise NotEnoughKeys(number, 0)
            return self._store.take_from_stock(master, slave, number, size_bits)

        return await self._shared_call(work)

    async def stock_count(self, master: str, slave: str) -> int:
        """Return the number of keys of the default size that are assigned in advance for a pair."""
        return await self._shared_call(lambda: self._stock_count(master, slave))

    def _stock_count(self, master: str, slave: str) -> int:
        return 0 if self._peer_may_have_expired_stock() else self._store.stock_count(master, slave)

    async def stock_and_free(self, master: str, slave: str, size_bits: int) -> tuple[int, int]:
        """Return how many keys of a size are assigned in advance for a pair, and how many could be now."""

        def work() -> tuple[int, int]:
            in_stock = self._stock_count(master, slave) if size_bits == CHUNK_BITS else 0
            return in_stock, self._store.stored_key_count(size_bits)

        return await self._shared_call(work)

    def _peer_may_have_expired_stock(self) -> bool:
        """Return whether this machine was off so long that its stock may have expired at the peer."""
        return self.clock.uncounted_s > self.key_lifetime_s

    async def deliver_to_slave(self, slave: str, master: str, key_ids: tuple[UUID, ...]) -> list[StoredKey]:
        """Deliver assigned keys to a slave, each once."""
        return await self._shared_call(lambda: self._store.deliver_to_slave(slave, master, key_ids))

    async def tend_front_ends(self) -> FrontEnds:
        """Tell front ends that the node is there; return what is asked of them and delivered, in total."""
        return await self._call(lambda: self._store.tend_front_ends(self.key_lifetime_s))

    async def spend(self, sae_id: str, number: int, keys_per_minute: int) -> None:
        """Count keys for the limit of a master, together with front ends; raises SaeLimitReached."""
        await self._call(lambda: self._store.spend(sae_id, number, keys_per_minute))

    async def stock_items(self) -> list[StockItem]:
        """Return the stock, oldest first."""
        return await self._call(self._store.stock_items)

    async def begin_release(self, assignment_id: int) -> Release:
        """End the delivery of an own assignment, so that the peer can free it."""
        return await self._call(lambda: self._store.begin_release(assignment_id))

    async def begin_open_releases(self) -> list[Release]:
        """End the delivery of own assignments that the peer may not hold; return the releases."""
        return await self._call(self._store.begin_open_releases)

    async def leave_to_expire(self, assignment_id: int) -> None:
        """Note that the peer did not free an own assignment."""
        await self._call(lambda: self._store.leave_to_expire(assignment_id))

    async def finish_release(self, assignment_id: int) -> None:
        """Free an own assignment, after the peer has."""
        await self._call(lambda: self._store.finish_release(assignment_id))

    async def release_accepted(self, releases: list[Release]) -> None:
        """Free assignments that the peer releases."""

        def work() -> None:
            for release in releases:
                self._store.release_accepted(release)

        await self._call(work)

    async def void_assignment(self, assignment_id: int) -> None:
        """Void an own assignment that was never acknowledged, after the peer voided it."""
        await self._call(lambda: self._store.void_assignment(assignment_id))

    async def void_accepted(self, assignment: Assignment) -> None:
        """Void an assignment of the peer whose acknowledgement never arrived."""
        await self._call(lambda: self._store.void_accepted(assignment))

    async def give_away(self, number: int) -> Handover:
        """Give chunks to the peer; nobody assigns them before the peer has taken them.

        Raises:
            NotEnoughKeys: nothing was given.
        """
        return await self._call(lambda: self._store.give_away(number))

    async def pending_handover(self) -> Handover | None:
        """Return the hand-over that the peer has not yet taken."""
        return await self._call(self._store.pending_handover)

    async def finish_handover(self, handover_id: int) -> None:
        """Note that the peer owns the chunks of a hand-over."""
        await self._call(lambda: self._store.finish_handover(handover_id))

    async def take_over(self, handover: Handover) -> None:
        """Take over the chunks that the peer gave."""
        await self._call(lambda: self._store.take_over(handover))
        self._note_gain()

    async def void_handover(self, handover: Handover) -> None:
        """Void the chunks of a refused hand-over."""
        await self._call(lambda: self._store.void_handover(handover))

    async def meet_peer(
        self, generation: int, memory: PeerMemory, standing: StoreStanding | None = None
    ) -> tuple[bool, Condition]:
        """Compare this store with the memory of the proven peer; True if every chunk was voided.

        One-time pads that only one of the sites still holds are wiped: a restored site lacks some.
        ``standing`` is the peer's statement about its own store; None if its protocol has none.
        """

        def work() -> tuple[bool, Condition]:
            self.clock.hear_peer(None if standing is None else standing.time_of_day_s)
            self._store.note_peer(generation, standing)
            voided = self._store.confirm_generation(memory.view, standing)
            condition = self._store.condition()
            ours = self._store.pad_segments()
            kept = [segment for segment in ours if memory.holds(segment)]
            if kept != ours and condition.serves:
                self._store.keep_pad_segments(kept)
            return voided, condition

        return await self._call(work)

    async def open_losses(self) -> list[Loss]:
        """Return the losses of this store that the peer has not processed yet."""
        return await self._call(self._store.open_losses)

    async def accept_loss(self, loss: Loss) -> None:
        """Discard an entry that the peer cannot decrypt."""
        await self._call(lambda: self._store.accept_loss(loss))

    async def finish_loss(self, loss_id: int) -> None:
        """Note that the peer has discarded an entry that could not be decrypted here."""
        await self._call(lambda: self._store.finish_loss(loss_id))

    async def load_preshared(self, data: bytes) -> None:
        """Void every chunk, wipe the pool, and load a new pre-shared key."""
        await self._call(lambda: self._store.load_preshared(data, replace=True))

    async def expire(self, lifetime_s: float) -> int:
        """Wipe assigned keys that nobody fetched within ``lifetime_s``."""

        def work() -> int:
            mark = self.clock.mark()
            if mark is not None:
                self._store.keep_age_mark(mark)
            return self._store.expire(self.now(), lifetime_s)

        return await self._call(work)

    async def audit_page(self, chain: int, after: int) -> AuditPage:
        """Return the next entries of a chain of the audit."""
        return await self._call(lambda: self._store.audit_page(chain, after, AUDIT_PAGE_BYTES))

    async def record_changes(self, *changes: tuple[str, str, str]) -> None:
        """Record in the audit what an operator changed: what, its subject, and how."""
        await self._call(lambda: self._store.record_changes(*changes))

    async def prune_audit(self, keep_days: float) -> int:
        """Delete some entries of the audit that are older; return how many, 0 at the end."""
        before_s = time.time() - keep_days * DAY_S
        return await self._call(lambda: self._store.prune_audit(before_s))

    @property
    def uncleared(self) -> int:
        """How many times in a row the store's log could not be cleared of destroyed keys."""
        return self._store.uncleared

    async def look(self) -> StoreLook:
        """Return what the status says of the store, in one call."""
        store = self._store
        return await self._call(
            lambda: StoreLook(
                store.counts(),
                store.pads_left(),
                store.positions(),
                store.audit_standing(),
                store.condition(),
            )
        )

    async def counts(self) -> Counts:
        """Return chunk counts by state."""
        return await self._call(self._store.counts)

    async def recent_blocks(self, number: int) -> list[StoredBlock]:
        """Return the latest blocks, newest first."""
        return await self._call(lambda: self._store.recent_blocks(number))

    async def positions(self) -> Positions:
        """Return the positions of this site; the peer keeps a copy."""
        return await self._call(self._store.positions)
