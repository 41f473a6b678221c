"""Keys for encryptors: both stores together answer the requests of ETSI GS QKD 014.

A key is assigned durably at the peer before it is delivered here, so that the request of the other encryptor
always finds it. Most requests are answered from keys that were agreed ahead (`stock`), without a round trip.
For the others an assignment is made at once. One that was not acknowledged in time becomes free again at both
sites when the peer responds. Until then encryptors are answered from the stock, or at once with an error.
"""

import math
from collections.abc import Callable, Collection
from uuid import UUID

import structlog
import trio

from qnode.delivery import Key, KeySupply, for_delivery
from qnode.errors import LinkDown, LinkError, NotEnoughKeys, ShareUsedUp
from qnode.keys import FrontEnds, StoredKey, chunks_per_key
from qnode.node.supply.async_store import AsyncStore
from qnode.node.supply.stock import HOLD_OFF_S, PeerAssignments, SaePair, Stock
from qnode.units import CHUNK_BITS

# An encryptor waits this long for the peer's acknowledgement, plus two measured round trips; together not
# longer than the limit of its call.
ACKNOWLEDGE_S = 2.0
MOST_ACKNOWLEDGE_S = 8.0
# One front end at a time takes keys of an assignment, so that there must be several.
MOST_KEYS_FOR_FRONT_ENDS = 64

log = structlog.get_logger()


class LinkKeySupply(KeySupply):
    """The supply of one site, which agrees with ``peer`` on every key."""

    def __init__(self, store: AsyncStore, peer: PeerAssignments) -> None:
        self._store = store
        self._peer = peer
        self._stock = Stock(store, peer)
        self._told: dict[tuple[str, str], tuple[int, int]] | None = None
        self._held_off: dict[SaePair, tuple[float, str]] = {}
        self.assigned_chunks = 0
        """The number of chunks delivered to masters: the demand at this site."""

    async def stored_key_count(self, master: str, slave: str, size_bits: int) -> int:
        """Return the number of keys available now; while the link is down, the number in stock."""
        in_stock, free = await self._store.stock_and_free(master, slave, size_bits)
        if not self._peer.connected:
            return in_stock
        return free + in_stock if self._peer.can_release else free

    async def allocate(self, master: str, slaves: tuple[str, ...], number: int, size_bits: int) -> list[Key]:
        """Deliver ``number`` keys to the master that the peer holds for the slaves.

        Keys of the default size for one slave come from the stock; if that is low, only while the peer is not
        reachable, or there are no others.

        Raises:
            NotEnoughKeys: nothing was taken.
            ShareUsedUp: nothing was taken; keys of this pair must be fetched first.
            LinkDown: the peer did not acknowledge in time; these keys become free again.
        """
        pair = SaePair(master, slaves[0]) if len(slaves) == 1 and size_bits == CHUNK_BITS else None
        if pair is not None:
            self._stock.note_asked(pair, number)
        if not self._peer.connected:
            return await self._from_stock(pair, number)
        # A peer of protocol 1 cannot be told of the demand.
        if pair is not None and self._peer.can_release:
            keys = await self._stock.take_ahead(pair, number)
            if keys is not None:
                return self._given(keys, number)
        try:
            return await self._agree(pair, master, slaves, number, size_bits)
        except (NotEnoughKeys, ShareUsedUp) as refusal:
            self._stock.note_short()
            keys = None if pair is None else await self._stock.take(pair, number)
            if keys is not None:
                return self._given(keys, number)
            if isinstance(refusal, ShareUsedUp) or not await self._free_for(
                refusal, master, slaves, size_bits
            ):
                raise
        return await self._agree(pair, master, slaves, number, size_bits)

    async def _agree(
        self, pair: SaePair | None, master: str, slaves: tuple[str, ...], number: int, size_bits: int
    ) -> list[Key]:
        """Assign keys, agree on them with the peer, and deliver them."""
        self._check_hold_off(master, slaves)
        assignment = await self._store.assign(master, slaves, number, size_bits)
        these = [assignment.assignment_id]
        try:
            with trio.fail_after(self._patience_s()):
                await self._peer.announce(assignment, self._stock.told_chunks())
            keys = await self._store.deliver_to_master(assignment.assignment_id)
        except ShareUsedUp as full:
            self._peer.take_back(these)
            self._hold_off(master, slaves, full)
            raise
        except trio.TooSlowError:
            self._peer.take_back(these, late=True)
            return await self._from_stock(pair, number)
        except LinkError:
            self._peer.take_back(these)
            return await self._from_stock(pair, number)
        except BaseException:
            # The caller has disconnected, or the disk is full. Unacknowledged keys never expire: without this
            # they would fill the store during the session.
            self._peer.take_back(these)
            raise
        return self._given(keys, sum(item.count for item in assignment.ranges))

    def _given(self, keys: list[StoredKey], n_chunks: int) -> list[Key]:
        self.assigned_chunks += n_chunks
        return for_delivery(keys)

    def _patience_s(self) -> float:
        round_trip_s = self._peer.round_trip_s
        if math.isnan(round_trip_s):
            return MOST_ACKNOWLEDGE_S
        return min(ACKNOWLEDGE_S + 2.0 * round_trip_s, MOST_ACKNOWLEDGE_S)

    async def _free_for(
        self, short: NotEnoughKeys, master: str, slaves: tuple[str, ...], size_bits: int
    ) -> bool:
        """Free the missing keys of a request from the stock, if that is possible."""
        missing = chunks_per_key(size_bits) * (short.asked - short.available)
        return await self._stock.take_back_for(SaePair(master, slaves[0]), missing)

    def _check_hold_off(self, master: str, slaves: tuple[str, ...]) -> None:
        """Send no request for a pair whose share of the peer's store was used up recently."""
        for slave in slaves:
            until_s, reason = self._held_off.get(SaePair(master, slave), (0.0, ""))
            if trio.current_time() < until_s:
                raise ShareUsedUp(reason)

    def _hold_off(self, master: str, slaves: tuple[str, ...], full: ShareUsedUp) -> None:
        log.warning("share.used_up", master=master, slaves=slaves, reason=str(full))
        until_s = trio.current_time() + HOLD_OFF_S
        for slave in slaves:
            self._held_off[SaePair(master, slave)] = until_s, str(full)

    async def _from_stock(self, pair: SaePair | None, number: int) -> list[Key]:
        keys = None if pair is None else await self._stock.take(pair, number)
        if keys is None:
            raise LinkDown("the other site cannot be reached to agree on keys")
        return self._given(keys, number)

    def note_front_ends(self, told: FrontEnds) -> None:
        """Keep more keys ahead for pairs that front ends are asked for."""
        if told.names:
            self._stock.most_keys_at_once = MOST_KEYS_FOR_FRONT_ENDS
        before, self._told = self._told, {**(self._told or {}), **told.totals}
        if before is None:  # what was asked before this node began
            return
        for names, (asked, delivered) in told.totals.items():
            asked_before, delivered_before = before.get(names, (0, 0))
            pair = SaePair(*names)
            if asked > asked_before:
                self._stock.note_asked(pair, asked - asked_before)
            if (asked, delivered) != (asked_before, delivered_before):
                self._stock.note_taken(pair, delivered - delivered_before)
                self.assigned_chunks += delivered - delivered_before

    async def keep_stock(
        self, pairs: Callable[[], Collection[SaePair]], stock_per_pair: Callable[[], int]
    ) -> None:
        """While the link is up, keep a stock for pairs that ask."""
        await self._stock.keep(pairs, stock_per_pair)

    async def fetch(self, slave: str, master: str, key_ids: tuple[UUID, ...]) -> list[Key]:
        """Return keys that were assigned to ``slave``, each once.

        Raises:
            KeyNotFound, NotNamed: nothing was taken.
        """
        return for_delivery(await self._store.deliver_to_slave(slave, master, key_ids))
