"""One-time tags in the order of their pads, though many blocks end at once.

The pool uses pads strictly from the front, so that a position tells all of it. Hence a pad is reserved and
its tag sent without another in between, and the peer's tags are checked in the order in which they came.
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
        """Note that a tag of ``block_id`` came off the wire."""
        self._arrived.append(block_id)

    @asynccontextmanager
    async def turn(self, block_id: int) -> AsyncIterator[None]:
        """Wait until every tag that came before the one of ``block_id`` was checked or given up."""
        async with self._moved:
            while self._arrived[0] != block_id:
                await self._moved.wait()
        yield
        async with self._moved:
            self._arrived.popleft()
            self._moved.notify_all()

    async def give_up(self, block_id: int) -> None:
        """Forget the unchecked tags of a block that has ended."""
        async with self._moved:
            self._arrived = deque(waiting for waiting in self._arrived if waiting != block_id)
            self._moved.notify_all()
