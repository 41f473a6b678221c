"""Keys for encryptors: what ETSI GS QKD 014 asks of this site, answered by both stores together.

A key is assigned durably at the peer before it is handed out here, so that the other encryptor's request
always finds it. An assignment that was not acknowledged is voided on both sides at the next connection.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import structlog
import trio

from qnode.errors import LinkDown, LinkError, NotEnoughKeys
from qnode.etsi014 import Key, KeySupply
from qnode.keys import Assignment, BlockRecord
from qnode.keys import Key as StoredKey
from qnode.node.decision import RECORDED
from qnode.node.storage import Storage
from qnode.units import CHUNK_BITS

# An encryptor waits at most this long for the peer's acknowledgement.
ACKNOWLEDGE_S = 2.0

STOCK_PERIOD_S = 5.0

log = structlog.get_logger()


class PeerStore(Protocol):
    """The peer's store, as far as the link reaches."""

    @property
    def connected(self) -> bool:
        """Tell whether a session stands in which earlier assignments are settled."""

    async def announce(self, assignment: Assignment) -> None:
        """Return once the peer holds ``assignment``.

        Raises:
            LinkError: whether he holds it is unknown.
        """

    def give_up(self, assignment: Assignment) -> None:
        """Have an assignment voided that was not acknowledged, now or in the next session."""


@dataclass(frozen=True)
class SaePair:
    """Who asks here as master, and for whom."""

    master: str
    slave: str


class SiteSupply(KeySupply):
    """The supply of one site, which agrees with ``peer`` on every key."""

    def __init__(self, storage: Storage, peer: PeerStore) -> None:
        self._storage = storage
        self._peer = peer
        self.assigned_chunks = 0
        """How many chunks were assigned to encryptors that asked: the demand here."""

    def _connected(self) -> bool:
        return self._peer.connected

    async def stored_key_count(self, master: str, slave: str, size_bits: int) -> int:
        """Return how many keys could be had now: while the link is down, those of the stock."""
        if not self._connected():
            return await self._storage.stock_count(master, slave) if size_bits == CHUNK_BITS else 0
        return await self._storage.stored_key_count(size_bits)

    async def allocate(self, master: str, slaves: tuple[str, ...], number: int, size_bits: int) -> list[Key]:
        """Assign ``number`` keys to master and slaves at both sites and return them.

        While the link is down, keys of the default size for one slave come from the stock assigned before.

        Raises:
            NotEnoughKeys: nothing was taken.
            LinkDown: the peer did not acknowledge; these keys are given up, nobody receives them.
        """
        if not self._connected():
            return await self._from_stock(master, slaves, number, size_bits)
        assignment = await self._storage.assign(master, slaves, number, size_bits)
        try:
            with trio.fail_after(ACKNOWLEDGE_S):
                await self._peer.announce(assignment)
            keys = await self._storage.deliver_to_master(assignment.assignment_id)
        except (LinkError, trio.TooSlowError):
            # The peer may be gone without our knowing yet. These keys are given up; others were set aside.
            self._peer.give_up(assignment)
            return await self._from_stock(master, slaves, number, size_bits)
        except BaseException:
            # The caller has gone, or the disk is full. Unacknowledged keys never expire: without this they
            # would fill the store for as long as the session lasts.
            self._peer.give_up(assignment)
            raise
        self.assigned_chunks += sum(item.count for item in assignment.ranges)
        return _for_delivery(keys)

    async def _from_stock(
        self, master: str, slaves: tuple[str, ...], number: int, size_bits: int
    ) -> list[Key]:
        if len(slaves) == 1 and size_bits == CHUNK_BITS:
            with suppress(NotEnoughKeys):
                keys = await self._storage.take_from_stock(master, slaves[0], number, size_bits)
                return _for_delivery(keys)
        raise LinkDown("the other site cannot be reached to agree on keys")

    async def keep_stock(self, pairs: Callable[[], list[SaePair]], stock_per_pair: Callable[[], int]) -> None:
        """While the link is up, assign keys in advance for the time when it is not; only from plenty."""
        while True:
            wanted = stock_per_pair()
            for pair in pairs():
                missing = wanted - await self._storage.stock_count(pair.master, pair.slave)
                if 2 * missing > wanted and await self._storage.stored_key_count(CHUNK_BITS) > 4 * wanted:
                    with suppress(NotEnoughKeys):  # an encryptor was faster
                        await self._set_aside(pair, missing)
            await trio.sleep(STOCK_PERIOD_S)

    async def _set_aside(self, pair: SaePair, number: int) -> None:
        assignment = await self._storage.assign(pair.master, (pair.slave,), number, CHUNK_BITS, stock=True)
        await self._peer.announce(assignment)
        await self._storage.acknowledge(assignment.assignment_id)
        log.info("stock.filled", master=pair.master, slave=pair.slave, keys=number)

    async def fetch(self, slave: str, master: str, key_ids: tuple[UUID, ...]) -> list[Key]:
        """Return keys that were assigned to ``slave``, each once.

        Raises:
            KeyNotFound, NotNamed: nothing was taken.
        """
        return _for_delivery(await self._storage.deliver_to_slave(slave, master, key_ids))


def _for_delivery(keys: list[StoredKey]) -> list[Key]:
    result: list[Key] = []
    record: BlockRecord | None = None
    for key in keys:
        if key.record is not record:  # keys of one block share theirs
            record = key.record
            extension = {
                "simulated": record.simulated,
                "estimator": record.estimator,
                "eps_sec": record.eps_sec,
            }
            if RECORDED in record.assumptions:  # whoever has the recording has the key
                extension["recorded"] = True
        result.append(Key(key.key_id, key.key, extension))
    return result
