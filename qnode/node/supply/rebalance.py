"""Free chunks move to the site whose encryptors ask for more.

Each chunk is assignable by one site only. A block's chunks are shared out as configured; from then on a site
that has more free chunks than its share of the demand gives of them to the peer. Both sites see both demands:
their own assignments, and the peer's, which they accept. A site only ever gives what is its own, so the two
never dispute; what a cut leaves open is repeated first of all in the next session.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from qnode.errors import NotEnoughKeys, StoreError, StoreUnusable
from qnode.keys import Handover
from qnode.node.supply.async_store import AsyncStore

log = structlog.get_logger()

PERIOD_S = 1.0
# Before anybody has asked, both count as having asked for so many chunks.
PRIOR_CHUNKS = 16.0
# Older demand fades by a half whenever so much more has come.
WINDOW_CHUNKS = 4096.0
# A hand-over costs both sites a few writes: not for less than this, nor for a small part of what there is.
LEAST_CHUNKS = 16
LEAST_PART = 1 / 16
# A hand-over names its chunks by ranges, some of each block.
MOST_CHUNKS = 1 << 16


@dataclass
class Demand:
    """Chunks that each site's encryptors have asked for as masters, of late."""

    own: float = PRIOR_CHUNKS
    peer: float = PRIOR_CHUNKS

    def add(self, own: int, peer: int) -> None:
        """Count what was assigned at either site."""
        self.own += own
        self.peer += peer
        while self.own + self.peer > WINDOW_CHUNKS:
            self.own, self.peer = self.own / 2, self.peer / 2
        self.own, self.peer = max(self.own, PRIOR_CHUNKS), max(self.peer, PRIOR_CHUNKS)

    def surplus(self, free_own: int, free_peer: int) -> int:
        """Return how many of ``free_own`` chunks are the peer's by his share of the demand, 0 for a few."""
        total = free_own + free_peer
        missing = round(total * self.peer / (self.own + self.peer)) - free_peer
        if missing < max(LEAST_CHUNKS, LEAST_PART * total):
            return 0
        return min(missing, free_own, MOST_CHUNKS)


class Giver(Protocol):
    """The conversation, as far as hand-overs need it."""

    @property
    def accepted_chunks(self) -> int:
        """How many chunks the peer has assigned in this session."""

    async def hand_over(self, handover: Handover) -> bool:
        """Have the peer own what was given away, or else void it; False when neither was done."""


class Assigner(Protocol):
    """The key supply, as far as its demand goes."""

    @property
    def assigned_chunks(self) -> int:
        """How many chunks this site has assigned since it started."""


async def rebalance(store: AsyncStore, giver: Giver, assigner: Assigner, demand: Demand) -> None:
    """Let ownership follow ``demand`` for the length of a session.

    Raises:
        LinkError: the session ended; what was given away is handed over in the next one.
    """
    own, peer = assigner.assigned_chunks, 0
    while True:
        demand.add(assigner.assigned_chunks - own, giver.accepted_chunks - peer)
        own, peer = assigner.assigned_chunks, giver.accepted_chunks
        try:
            handover = await store.pending_handover() or await _give_away(store, demand)
            if handover is not None and await giver.hand_over(handover):
                n_chunks = sum(item.count for item in handover.ranges)
                log.info("handover.done", handover=handover.handover_id, chunks=n_chunks)
        except StoreUnusable:
            raise
        except StoreError as error:  # the disk is full, or a restored store waits for the peer
            log.warning("handover.failed", reason=str(error))
        await trio.sleep(PERIOD_S)


async def _give_away(store: AsyncStore, demand: Demand) -> Handover | None:
    counts = await store.counts()
    number = demand.surplus(counts.available_own, counts.available_peer)
    with suppress(NotEnoughKeys):  # an encryptor was faster
        return await store.give_away(number) if number else None
    return None
