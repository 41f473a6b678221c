"""Rebalancing: free chunks move to the site whose encryptors request more.

Each chunk is assignable by one site only. A block's chunks are divided as configured. Later, a site with more
free chunks than its share of the demand gives some to the peer. Both sites know both demands: their own
assignments, and those of the peer, which they accept. A site gives only chunks that it owns, so there is no
conflict. A hand-over that a cut leaves open is repeated at the start of the next session.
"""

import math
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
# Without demand and new keys the store is asked this often: keys also become free as assignments end.
UNCHANGED_PERIOD_S = 10.0
# The initial demand of both sites in chunks.
PRIOR_CHUNKS = 16.0
# Older demand is halved after this much new demand.
WINDOW_CHUNKS = 4096.0
# A hand-over costs both sites a few writes, so its least size is this, and a certain part of the free chunks.
LEAST_CHUNKS = 16
LEAST_PART = 1 / 16
# A hand-over names its chunks as ranges, some of each block.
MOST_CHUNKS = 1 << 16


@dataclass
class Demand:
    """The recent demand: chunks that each site's encryptors have requested as masters."""

    own: float = PRIOR_CHUNKS
    peer: float = PRIOR_CHUNKS

    def add(self, own: int, peer: int) -> None:
        """Add the assignments at both sites."""
        self.own += own
        self.peer += peer
        while self.own + self.peer > WINDOW_CHUNKS:
            self.own, self.peer = self.own / 2, self.peer / 2
        self.own, self.peer = max(self.own, PRIOR_CHUNKS), max(self.peer, PRIOR_CHUNKS)

    def surplus(self, free_own: int, free_peer: int) -> int:
        """Return how many of ``free_own`` chunks the peer should get by its demand; 0 if only a few."""
        total = free_own + free_peer
        missing = round(total * self.peer / (self.own + self.peer)) - free_peer
        if missing < max(LEAST_CHUNKS, LEAST_PART * total):
            return 0
        return min(missing, free_own, MOST_CHUNKS)


class Giver(Protocol):
    """The part of the key control that hand-overs need."""

    @property
    def accepted_chunks(self) -> int:
        """The number of chunks that the peer has assigned in this session."""

    async def hand_over(self, handover: Handover) -> bool:
        """Transfer a hand-over to the peer, or void it; False if neither was possible."""


class Assigner(Protocol):
    """The part of the key supply that shows its demand."""

    @property
    def assigned_chunks(self) -> int:
        """The number of chunks that this site has assigned since its start."""


async def rebalance(store: AsyncStore, giver: Giver, assigner: Assigner, demand: Demand) -> None:
    """Let the ownership of chunks follow ``demand`` during a session.

    Raises:
        LinkError: the session ended; an open hand-over is repeated in the next one.
    """
    own, peer = assigner.assigned_chunks, 0
    may_be_open = True  # a hand-over, left by an earlier session or by an error in this one
    gains, asked_at_s = store.gains, -math.inf
    while True:
        changed = (assigner.assigned_chunks, giver.accepted_chunks, store.gains) != (own, peer, gains)
        demand.add(assigner.assigned_chunks - own, giver.accepted_chunks - peer)
        own, peer, gains = assigner.assigned_chunks, giver.accepted_chunks, store.gains
        if not (changed or may_be_open or trio.current_time() >= asked_at_s + UNCHANGED_PERIOD_S):
            await trio.sleep(PERIOD_S)
            continue
        asked_at_s = trio.current_time()
        try:
            handover = await store.pending_handover() if may_be_open else None
            may_be_open = True
            handover = handover or await _give_away(store, demand)
            if handover is None:
                may_be_open = False
            elif await giver.hand_over(handover):
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
    with suppress(NotEnoughKeys):  # an encryptor took the keys first
        return await store.give_away(number) if number else None
    return None
