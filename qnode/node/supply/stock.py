"""The stock: keys set aside for pairs of encryptors, for the time when the sites cannot reach each other.

Only pairs that ask have a stock. All of them have the same size, together at most `SHARE` of the keys that
their site may assign. The stock takes nothing from other pairs: a pair that finds too few free keys takes
back, by agreement with the peer, its own stock and the stock of pairs that have not asked recently. A stock
that was not used for `DEMAND_S` becomes free again instead of expiring. A stock survives a restart.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from qnode.errors import LinkError, NotEnoughKeys, ShareUsedUp
from qnode.keys import Assignment, StockItem
from qnode.node.supply.async_store import AsyncStore
from qnode.units import CHUNK_BITS

SHARE = 1 / 8
DEMAND_S = 86_400.0
PERIOD_S = 5.0
IDLE_PERIOD_S = 600.0  # while no pair has asked
# If the stock was too small for a request, the stocks of others are checked again only after this time.
LOOK_AGAIN_S = 1.0

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

    async def announce(self, assignment: Assignment) -> None:
        """Return once the peer holds ``assignment``; a caller that does not wait for it takes it back.

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
    """The changes of a stock: assignments to take back, keys to set aside."""

    take_back: list[int] = field(default_factory=list)
    set_aside: dict[SaePair, int] = field(default_factory=dict)


def pair_of(item: StockItem) -> SaePair:
    """Return the pair of a stock item."""
    return SaePair(item.master_sae, item.slave_sae)


def plan_stock(
    items: Sequence[StockItem], asking: Collection[SaePair], n_free: int, stock_per_pair: int, now: float
) -> StockPlan:
    """Return the changes of a stock of ``items`` for the pairs ``asking``, with ``n_free`` free chunks.

    ``now`` is in the seconds of `StockItem.assigned_at`. A new plan after the changes is empty.
    """
    result = StockPlan()
    held = Counter[SaePair]()
    for item in items:
        held[pair_of(item)] += item.n_keys
    n_held = sum(held[pair] for pair in asking)
    budget = int(SHARE * (n_free + held.total()))
    if not stock_per_pair:
        budget = n_held = 0
    each = min(stock_per_pair, max(1, budget // max(1, len(asking))))
    # When the store runs empty, only a stock of more than twice the mean counts as surplus.
    most = 2 * max(each, n_held // max(1, len(asking)))
    for item in items:
        surplus = pair_of(item) in asking and held[pair_of(item)] > most
        if surplus or not stock_per_pair or now - item.assigned_at > DEMAND_S:
            result.take_back.append(item.assignment_id)
    ids = set(result.take_back)
    taken_back = {pair_of(item) for item in items if item.assignment_id in ids}
    room = min(budget - n_held, n_free)
    for pair in asking:
        number = min(each - held[pair], room)
        if number > 0 and 2 * held[pair] < each and pair not in taken_back:
            result.set_aside[pair] = number
            room -= number
    return result


class Stock:
    """The stock of one site."""

    def __init__(self, store: AsyncStore, peer: PeerAssignments) -> None:
        self._store = store
        self._peer = peer
        self._asked_at_s: dict[SaePair, float] = {}
        self._newly_asked = trio.Event()
        self._in_hand: set[int] = set()
        self._nothing_until_s = -math.inf

    def note_asked(self, pair: SaePair) -> None:
        """Remember that a pair asks: it gets a stock, or keeps the one it has."""
        if pair not in self._asked_at_s:
            self._newly_asked.set()
        self._asked_at_s[pair] = trio.current_time()

    async def keep(self, pairs: Callable[[], Collection[SaePair]], stock_per_pair: Callable[[], int]) -> None:
        """During a session, keep a stock for those of ``pairs`` that ask."""
        while True:
            self._newly_asked = trio.Event()
            await self._look_after(self._asking(pairs()), stock_per_pair())
            with trio.move_on_after(PERIOD_S if self._asked_at_s else IDLE_PERIOD_S):
                await self._newly_asked.wait()

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

    def _asking(self, pairs: Collection[SaePair] | None = None) -> dict[SaePair, float]:
        """Return the pairs that asked recently; others, and those not in ``pairs``, are forgotten."""
        known = self._asked_at_s if pairs is None else set(pairs)
        since_s = trio.current_time() - DEMAND_S
        self._asked_at_s = {
            pair: at_s for pair, at_s in self._asked_at_s.items() if at_s >= since_s and pair in known
        }
        return self._asked_at_s

    async def _look_after(self, asking: Collection[SaePair], stock_per_pair: int) -> None:
        items = await self._store.stock_items()
        if not items and not asking:
            return
        counts = await self._store.counts()
        plan = plan_stock(items, asking, counts.available_own, stock_per_pair, self._store.now())
        if plan.take_back and self._peer.can_release:
            await self._take_back([one for one in plan.take_back if one not in self._in_hand])
        for pair, number in plan.set_aside.items():
            with suppress(NotEnoughKeys):  # an encryptor took the keys first
                await self._set_aside(pair, number)

    async def _set_aside(self, pair: SaePair, number: int) -> None:
        assignment = await self._store.assign(pair.master, (pair.slave,), number, CHUNK_BITS, stock=True)
        try:
            await self._peer.announce(assignment)
        except (LinkError, ShareUsedUp) as error:
            log.warning("stock.refused", master=pair.master, slave=pair.slave, reason=str(error))
            await self._peer.take_back([assignment.assignment_id]).wait()
            return
        await self._store.acknowledge(assignment.assignment_id)
        log.info("stock.filled", master=pair.master, slave=pair.slave, keys=number)

    async def _take_back(self, assignment_ids: list[int]) -> None:
        if not assignment_ids:
            return
        self._in_hand.update(assignment_ids)
        try:
            await self._peer.take_back(assignment_ids).wait()
        finally:
            self._in_hand.difference_update(assignment_ids)
        log.info("stock.freed", assignments=len(assignment_ids))
