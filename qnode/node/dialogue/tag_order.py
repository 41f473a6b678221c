"""One-time tags in the order of their pads, though many blocks end at once.

The pool uses pads strictly from the front, so one position describes its state. A pad is therefore reserved
and its tag sent without another tag in between, and the peer's tags are checked in the order of their
arrival.
"""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class TagOrder:
    """The order of tags in one session, both ways."""

    def __init__(self) -> None:
        self.sending = trio.Lock()
        self._arrived: deque[int] = deque()
        self._moved = trio.Condition()

    def arrive(self, block_id: int) -> None:
        """Note that a tag of ``block_id`` has arrived."""
        self._arrived.append(block_id)

    @asynccontextmanager
    async def turn(self, block_id: int) -> AsyncIterator[None]:
        """Wait until every tag that arrived before the one of ``block_id`` is checked or dropped."""
        async with self._moved:
            while self._arrived[0] != block_id:
                await self._moved.wait()
        yield
        async with self._moved:
            self._arrived.popleft()
            self._moved.notify_all()

    async def give_up(self, block_id: int) -> None:
        """Drop the unchecked tags of a block that has ended."""
        async with self._moved:
            self._arrived = deque(waiting for waiting in self._arrived if waiting != block_id)
            self._moved.notify_all()
