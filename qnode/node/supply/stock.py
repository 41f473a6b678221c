"""The stock: keys agreed ahead with the other site, for pairs of encryptors that ask.

A pair's stock has two parts. Its *reserve* is for the time when the sites cannot reach each other. The
reserves of all pairs have the same size, together at most `SHARE` of the keys that the site may assign. What
a pair has *ahead* is as much as it requested over the last `AHEAD_S`. For this the pairs share at most
another `SHARE`, and none has more than another that requests as much. While the link is up, requests are
answered from the stock without a round trip, as long as half the reserve stays. A stock that becomes low is
filled up meanwhile.

Only pairs that ask have a stock. When keys are short, new ones fill the stocks first, so that pairs that take
all they can get do not keep others from theirs; a reserve stays as others use up the free keys. Otherwise a
stock takes nothing from other pairs. A pair that finds too few free keys takes back, by agreement with the
peer, its own stock and the stock of pairs that have not asked recently. What a pair no longer needs ahead,
and a stock that was not used for `DEMAND_S`, become free again instead of expiring. It survives a restart.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog
import trio

from qnode.errors import LinkError, NotEnoughKeys, ShareUsedUp
from qnode.keys import Assignment, StockItem, StoredKey
from qnode.node.supply.async_store import AsyncStore
from qnode.units import CHUNK_BITS

SHARE = 1 / 8
AHEAD_S: Final = 5.0
DEMAND_S = 86_400.0
PERIOD_S = 5.0
IDLE_PERIOD_S = 600.0  # while no pair has asked
# If the stock was too small for a request, the stocks of others are checked again only after this time. After
# a stock was taken back, it is planned again after this time.
LOOK_AGAIN_S = 1.0
# After the peer refused keys for a pair, as its share is used up, the next are announced after this time.
HOLD_OFF_S = 2.0
# The peer computes the key_IDs of an assignment at once.
MOST_KEYS_AT_ONCE: Final = 4096
MOST_FILLED_AT_ONCE: Final = 16

log = structlog.get_logger()


class PeerAssignments(Protocol):
    """The peer's store, as reachable over the link."""

    @property
    def connected(self) -> bool:
        """Whether there is a session with settled earlier assignments, and the peer answers."""

    @property
    def round_trip_s(self) -> float:
        """The latest measured round trip, queues included; nan while unknown."""

    @property
    def can_release(self) -> bool:
        """Whether the peer can free assignments; otherwise they can only be voided."""

    async def announce(self, assignment: Assignment, taken_chunks: int = 0) -> None:
        """Return once the peer holds ``assignment``; a caller that does not wait for it takes it back.

        ``taken_chunks``: what encryptors have got of the stock since the last call.

        Raises:
            ShareUsedUp: the peer accepts no more for this pair.
            LinkError: it is unknown whether the peer holds it.
        """

    def take_back(self, assignment_ids: Sequence[int], *, late: bool = False) -> trio.Event:
        """Release undelivered assignments at both sites, now or in the next session.

        ``late``: the peer's answer to their announcement is overdue; until it comes the peer is not
        `connected`. The event is set when they are released, or left to the next session.
        """


@dataclass(frozen=True)
class SaePair:
    """A pair of encryptors: the master at this site, and the slave."""

    master: str
    slave: str


@dataclass(frozen=True)
class StockPlan:
    """The changes of a stock: assignments to take back, keys to set aside.

    ``reserve``: the size of each pair's reserve. ``most_ahead``: how many keys a pair has ahead at most.
    ``kept_reserve``: the reserve that a pair keeps as others use up the free keys. ``room``: how many more
    keys the stocks may have until the next plan.
    """

    take_back: list[int] = field(default_factory=list)
    set_aside: dict[SaePair, int] = field(default_factory=dict)
    reserve: int = 0
    most_ahead: int = 0
    kept_reserve: int = 0
    room: int = 0

    @property
    def changes_nothing(self) -> bool:
        """Whether the stock is as it should be."""
        return not self.take_back and not self.set_aside

    def kept_back(self) -> int:
        """Return how many keys a pair keeps for a cut while the link is up: half of its reserve."""
        return (self.reserve + 1) // 2

    def wanted(self, recent_keys: int) -> int:
        """Return the size of the stock of a pair that has requested ``recent_keys`` over `AHEAD_S`."""
        return self.reserve + min(recent_keys, self.most_ahead)

    def is_low(self, n_keys: int, wanted: int) -> bool:
        """Return whether half of what a stock of ``wanted`` keys gives while the link is up is used."""
        return 2 * n_keys < wanted + self.kept_back()


def pair_of(item: StockItem) -> SaePair:
    """Return the pair of a stock item."""
    return SaePair(item.master_sae, item.slave_sae)


def level(wishes: Collection[int], budget: int) -> int:
    """Return the largest number to which ``wishes`` can be limited so that their sum fits ``budget``."""
    rest, left = budget, len(wishes)
    for wish in sorted(wishes):
        if wish * left > rest:
            return rest // left
        rest -= wish
        left -= 1
    return budget


def plan_stock(
    items: Sequence[StockItem],
    asking: Mapping[SaePair, int],
    n_free: int,
    stock_per_pair: int,
    now: float,
    coming: Mapping[SaePair, int] | None = None,
    kept_before: int = sys.maxsize,
) -> StockPlan:
    """Return the changes of a stock of ``items`` with ``n_free`` free chunks.

    ``asking``: the pairs that ask, with the keys that each requested over `AHEAD_S`. ``now`` is in the
    seconds of `StockItem.assigned_at`. ``coming``: keys on their way into the stock. ``kept_before``:
    the `StockPlan.kept_reserve` of the plan before, if there was one. A new plan after the changes changes
    nothing.
    """
    held = Counter(coming or {})
    for item in items:
        held[pair_of(item)] += item.n_keys
    n_held = sum(held[pair] for pair in asking)
    budget = int(SHARE * (n_free + held.total())) if stock_per_pair else 0
    reserve = min(stock_per_pair, max(1, budget // max(1, len(asking))))
    # The reserve that is planned shrinks with the free keys; the one that a pair has stays.
    mean = n_held // max(1, len(asking))
    kept_reserve = max(reserve, min(mean, stock_per_pair, kept_before))
    result = StockPlan(reserve=reserve, most_ahead=level(asking.values(), budget), kept_reserve=kept_reserve)
    wanted = {pair: result.wanted(recent) for pair, recent in asking.items()}
    left = held.copy()
    for item in reversed(items):
        pair = pair_of(item)
        surplus = pair in wanted and left[pair] > 2 * max(wanted[pair], kept_reserve)
        if surplus or not stock_per_pair or now - item.assigned_at > DEMAND_S:
            result.take_back.append(item.assignment_id)
            left[pair] -= item.n_keys
    room = min(budget + sum(wanted.values()) - reserve * len(wanted) - n_held, n_free)
    for pair, number in wanted.items():
        number = min(number - held[pair], room)
        if number > 0 and result.is_low(held[pair], wanted[pair]) and left[pair] == held[pair]:
            result.set_aside[pair] = number
            room -= number
    room = min(2 * budget - n_held, n_free) - sum(result.set_aside.values())
    return replace(result, room=max(0, room))


@dataclass
class _Asking:
    """A pair that asks: when last, and how many keys over about the `AHEAD_S` before."""

    at_s: float
    keys: float = 0.0

    def add(self, number: int) -> None:
        """Count a request for keys."""
        now_s = trio.current_time()
        self.keys = number + self.keys * math.exp((self.at_s - now_s) / AHEAD_S)
        self.at_s = now_s

    def recent_keys(self) -> int:
        """Return the keys requested recently, as of now."""
        return round(self.keys * math.exp((self.at_s - trio.current_time()) / AHEAD_S))


class Stock:
    """The stock of one site."""

    def __init__(self, store: AsyncStore, peer: PeerAssignments) -> None:
        self._store = store
        self._peer = peer
        self._pairs: dict[SaePair, _Asking] = {}
        self._plan = StockPlan(kept_reserve=sys.maxsize)
        # What the store has, as far as known here: the store decides.
        self._held = Counter[SaePair]()
        self._coming: dict[SaePair, int] = {}
        self._room = 0
        self._held_off_until_s: dict[SaePair, float] = {}
        self._low: set[SaePair] = set()
        self._changed = trio.Event()
        self._look_now = False
        self._short = False
        store.on_new_keys = self._note_new_keys
        self._in_hand: set[int] = set()
        self._nothing_until_s = -math.inf
        self._untold_chunks = 0
        self.most_keys_at_once = MOST_KEYS_AT_ONCE
        """The size of the assignments into which a stock is divided."""

    def note_asked(self, pair: SaePair, number: int) -> None:
        """Remember that a pair requests keys: it gets a stock, or keeps the one it has."""
        asking = self._pairs.get(pair)
        if asking is None:
            asking = self._pairs[pair] = _Asking(trio.current_time())
            self._look_now = True
            self._changed.set()
        asking.add(number)

    def note_short(self) -> None:
        """Remember that a request found too few keys: of the next ones each pair gets its share first."""
        self._short = True

    def _note_new_keys(self) -> None:
        if self._short:
            self._short = False
            self._look_now = True
            self._changed.set()

    async def take_ahead(self, pair: SaePair, number: int) -> list[StoredKey] | None:
        """Deliver keys agreed ahead while the link is up; None if they do not suffice beside the reserve."""
        enough = self._held[pair] - number >= self._plan.kept_back()
        keys = await self.take(pair, number) if enough else None
        self._note_if_low(pair)
        return keys

    def note_taken(self, pair: SaePair, number: int) -> None:
        """Remember that a front end took keys of the pair's stock, or found too few."""
        self._held[pair] -= number
        self._untold_chunks += number
        self._note_if_low(pair)

    def _note_if_low(self, pair: SaePair) -> None:
        asking = self._pairs.get(pair)
        if asking is not None and pair not in self._coming:
            wanted = self._plan.wanted(asking.recent_keys())
            if self._plan.is_low(self._held[pair], wanted):
                self._low.add(pair)
                self._changed.set()

    async def take(self, pair: SaePair, number: int) -> list[StoredKey] | None:
        """Deliver keys of the pair's stock, the reserve included; None if they do not suffice."""
        self._held[pair] -= number
        try:
            keys = await self._store.take_from_stock(pair.master, pair.slave, number, CHUNK_BITS)
        except NotEnoughKeys as short:
            self._held[pair] = short.available
            return None
        self._untold_chunks += number
        return keys

    def told_chunks(self) -> int:
        """Return the chunks that encryptors got of the stock since the last call, for the peer."""
        told, self._untold_chunks = self._untold_chunks, 0
        return told

    async def keep(self, pairs: Callable[[], Collection[SaePair]], stock_per_pair: Callable[[], int]) -> None:
        """During a session, keep a stock for those of ``pairs`` that ask."""
        self._coming.clear()
        self._held_off_until_s.clear()
        at_once = trio.CapacityLimiter(MOST_FILLED_AT_ONCE)
        async with trio.open_nursery() as nursery:

            def fill(pair: SaePair, number: int) -> None:
                self._coming[pair] = number
                nursery.start_soon(self._fill, at_once, pair, number)

            while True:
                self._changed = trio.Event()
                self._look_now = False
                for pair, number in (await self._look_after(pairs(), stock_per_pair())).items():
                    fill(pair, number)
                pause_s = PERIOD_S if self._pairs else IDLE_PERIOD_S
                if self._plan.take_back:  # these pairs may have none until they are looked at again
                    pause_s = LOOK_AGAIN_S
                with trio.move_on_after(pause_s):
                    while not self._look_now:
                        await self._changed.wait()
                        self._changed = trio.Event()
                        low, self._low = self._low, set()
                        for pair in low:
                            self._fill_up(pair, fill)

    def _fill_up(self, pair: SaePair, fill: Callable[[SaePair, int], None]) -> None:
        """Let a stock that is low be filled up."""
        asking = self._pairs.get(pair)
        if asking is None or not self._may_fill(pair):
            return
        wanted = self._plan.wanted(asking.recent_keys())
        if not self._plan.is_low(self._held[pair], wanted):
            return
        number = min(wanted - self._held[pair], self._room)
        if number > 0:
            self._room -= number
            fill(pair, number)
        elif self._plan.room > 0:  # otherwise nothing was filled up since the last look
            self._look_now = True

    def _may_fill(self, pair: SaePair) -> bool:
        """Return whether keys can be announced for a pair: none is on its way, or was refused recently."""
        held_off_until_s = self._held_off_until_s.get(pair, -math.inf)
        return pair not in self._coming and trio.current_time() >= held_off_until_s

    async def take_back_for(self, pair: SaePair, n_chunks: int) -> bool:
        """Free ``n_chunks`` of stock for a pair with too few keys: its own, and that of pairs not asking.

        Returns whether they are free now; if they do not suffice, nothing changes.
        """
        if not self._peer.can_release:
            return False
        own = await self._store.stock_count(pair.master, pair.slave)
        if own < n_chunks and trio.current_time() < self._nothing_until_s:
            return False
        asking = self._asking()
        items = [
            item
            for item in await self._store.stock_items()
            if item.assignment_id not in self._in_hand
            and (pair_of(item) == pair or pair_of(item) not in asking)
        ]
        items.sort(key=lambda item: pair_of(item) != pair)
        chosen: list[int] = []
        for item in items:
            if n_chunks > 0:
                chosen.append(item.assignment_id)
                n_chunks -= item.n_keys
        if n_chunks > 0:
            self._nothing_until_s = trio.current_time() + LOOK_AGAIN_S
            return False
        await self._take_back(chosen)
        return True

    def _asking(self, pairs: Collection[SaePair] | None = None) -> dict[SaePair, int]:
        """Return the keys that each pair requested recently; pairs that do not ask, or are not in ``pairs``,
        are forgotten.
        """
        known = self._pairs if pairs is None else set(pairs)
        since_s = trio.current_time() - DEMAND_S
        self._pairs = {
            pair: asking for pair, asking in self._pairs.items() if asking.at_s >= since_s and pair in known
        }
        return {pair: asking.recent_keys() for pair, asking in self._pairs.items()}

    async def _look_after(self, pairs: Collection[SaePair], stock_per_pair: int) -> dict[SaePair, int]:
        """Plan the stock, and take back what is too much; return the keys to set aside."""
        asking = self._asking(pairs)
        items = await self._store.stock_items()
        self._held = Counter()
        for item in items:
            self._held[pair_of(item)] += item.n_keys
        if not items and not asking:
            self._plan, self._room = StockPlan(), 0
            return {}
        counts = await self._store.counts()
        self._plan = plan = plan_stock(
            items,
            asking,
            counts.available_own,
            stock_per_pair,
            self._store.now(),
            self._coming,
            self._plan.kept_reserve,
        )
        self._room = plan.room
        if plan.take_back and self._peer.can_release:
            await self._take_back([one for one in plan.take_back if one not in self._in_hand])
        return {pair: number for pair, number in plan.set_aside.items() if self._may_fill(pair)}

    async def _fill(self, at_once: trio.CapacityLimiter, pair: SaePair, number: int) -> None:
        """Set keys aside for a pair."""
        try:
            async with at_once:
                while number > 0:
                    part = min(number, self.most_keys_at_once)
                    with suppress(NotEnoughKeys):  # an encryptor took the keys first
                        if not await self._set_aside(pair, part):
                            return
                    number -= part
        finally:
            self._coming.pop(pair, None)

    async def _set_aside(self, pair: SaePair, number: int) -> bool:
        assignment = await self._store.assign(pair.master, (pair.slave,), number, CHUNK_BITS, stock=True)
        try:
            await self._peer.announce(assignment, self.told_chunks())
        except (LinkError, ShareUsedUp) as error:
            log.warning("stock.refused", master=pair.master, slave=pair.slave, reason=str(error))
            self._held_off_until_s[pair] = trio.current_time() + HOLD_OFF_S
            await self._peer.take_back([assignment.assignment_id]).wait()
            return False
        await self._store.acknowledge(assignment.assignment_id)
        self._held[pair] += number
        log.debug("stock.filled", master=pair.master, slave=pair.slave, keys=number)
        return True

    async def _take_back(self, assignment_ids: list[int]) -> None:
        if not assignment_ids:
            return
        self._in_hand.update(assignment_ids)
        try:
            await self._peer.take_back(assignment_ids).wait()
        finally:
            self._in_hand.difference_update(assignment_ids)
        log.info("stock.freed", assignments=len(assignment_ids))
