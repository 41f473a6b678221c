"""Worker threads of the world: work is done in the loop itself, and a disk that hangs makes it wait.

Which site's work it is, a context variable tells that each site's process sets.
"""

import random
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import trio

from qnode.choices import Role
from qnode.world.determinism import InlineThreads

T = TypeVar("T")
SITE: ContextVar[Role | None] = ContextVar("SITE", default=None)


class WorldThreads(InlineThreads):
    """`InlineThreads`, but for the sites in ``hanging``, whose disks answer only once that is over."""

    def __init__(self, rng: random.Random, slow_share: float, late_s: float) -> None:
        super().__init__(rng, slow_share, late_s)
        self.hanging: set[Role] = set()
        self._goes_on = trio.Event()
        self.nursery: trio.Nursery | None = None

    def go_on(self) -> None:
        """Let those go on whose disk no longer hangs."""
        self._goes_on.set()
        self._goes_on = trio.Event()

    async def run_sync(self, work: Callable[[], T], *, abandon_on_cancel: bool = False) -> T:
        """Do ``work``; of work that is abandoned nobody hears, but it is done all the same."""
        site = SITE.get()
        if site not in self.hanging or not abandon_on_cancel:
            return await super().run_sync(work, abandon_on_cancel=abandon_on_cancel)
        results: list[T | BaseException] = []
        done = trio.Event()

        async def in_the_thread() -> None:
            while site in self.hanging:
                await self._goes_on.wait()
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - it is for whoever waits, as from a thread
                results.append(error)
            done.set()

        assert self.nursery is not None
        self.nursery.start_soon(in_the_thread)
        await done.wait()
        (result,) = results
        if isinstance(result, BaseException):
            raise result
        return result
