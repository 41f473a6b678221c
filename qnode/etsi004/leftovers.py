"""Keys that no end of a stream will take: destroyed in the store of the slave's site."""

from collections import deque
from collections.abc import Iterable
from uuid import UUID

import structlog
import trio

from qnode.audit.door import through
from qnode.choices import Door
from qnode.delivery import KeySupply, SaeDirectory
from qnode.errors import KeyNotFound, NotNamed, StoreError
from qnode.etsi004.asking import ask_site
from qnode.etsi004.between import MOST_KEY_IDS, AskDiscard, PeerSites
from qnode.etsi004.streams import Leftover
from qnode.etsi004.wire import Status

log = structlog.get_logger()

FETCH_S = 10.0
MOST_LEFTOVERS = 4096


async def discard(supply: KeySupply, slave: str, master: str, key_ids: Iterable[UUID]) -> bool:
    """Take keys out of this site's store and give them to nobody; return whether all are gone."""
    for key_id in key_ids:
        try:
            with trio.fail_after(FETCH_S), through(Door.DISCARDED):
                await supply.fetch(slave, master, (key_id,))
        except (KeyNotFound, NotNamed):
            continue  # taken at the last moment, or destroyed before
        except (StoreError, trio.TooSlowError):
            return False
    return True


class Leftovers:
    """The keys of one home that wait to be destroyed. A restart forgets them; then they expire."""

    def __init__(self, supply: KeySupply, peers: PeerSites) -> None:
        self._supply = supply
        self._peers = peers
        self._waiting: deque[Leftover] = deque()

    def add(self, leftover: Leftover) -> None:
        """Remember keys to destroy; beyond a limit they are left to expire in the store."""
        for first in range(0, len(leftover.key_ids), MOST_KEY_IDS):
            part = leftover.key_ids[first : first + MOST_KEY_IDS]
            if len(self._waiting) >= MOST_LEFTOVERS:
                log.warning("stream.leftover_forgotten", slave=leftover.slave, keys=len(part))
                return
            self._waiting.append(Leftover(leftover.slave, leftover.master, part))

    async def destroy(self, directory: SaeDirectory) -> None:
        """Destroy what can be destroyed now."""
        for _ in range(len(self._waiting)):
            leftover = self._waiting.popleft()
            if not await self._destroy(leftover, directory):
                self._waiting.append(leftover)

    async def _destroy(self, leftover: Leftover, directory: SaeDirectory) -> bool:
        slave, master, key_ids = leftover.slave, leftover.master, leftover.key_ids
        site = directory.kme_of(slave)
        if site == directory.kme_id:
            return await discard(self._supply, slave, master, key_ids)
        if not self._peers.reaches(site):
            return False
        told = await ask_site(self._peers, site, AskDiscard(slave=slave, master=master, key_ids=key_ids))
        return told is not None and told.status == Status.SUCCESSFUL
