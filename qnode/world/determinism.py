"""All chance and all time of a run from one seed: the scheduler, clocks, randomness, worker threads.

The nodes reach for these through trio and the standard library. `determined` puts others in their place for
the length of a run, rather than having every module of the product take them as parameters: so nothing can
forget to, code that is new follows by itself, and the product has no switch that could be left on. It is for
processes that are given over to the simulated world; two runs at once in one process are refused.

The order of tasks that are ready together is trio's, drawn from a private generator of its scheduler. trio
offers to seed it to Hypothesis alone (`trio._core._run._hypothesis_plugin_setup`), so this module does what
that function does; it says so clearly if a later trio has no such thing.
"""

import math
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import trio

T = TypeVar("T")

# When every run begins: the time of day and the time since the machines' boot, in seconds.
TIME_OF_DAY_S = 1_800_000_000.0
SINCE_BOOT_S = 50_000.0
_running = False


class Threads(Protocol):
    """Where work goes that the nodes hand to worker threads."""

    async def run_sync(self, work: Callable[[], T], *, abandon_on_cancel: bool) -> T:
        """Return what ``work()`` returns, in the loop itself."""


class InlineThreads:
    """Work done in the loop: begun or answered a turn of the scheduler later, or both, as drawn.

    ``slow_share`` of all work begins late, and as much answers late, by ``late_s`` at the mean.
    """

    def __init__(self, rng: random.Random, slow_share: float = 0.0, late_s: float = 0.01) -> None:
        self._rng = rng
        self._slow_share = slow_share
        self._late_s = late_s

    async def run_sync(self, work: Callable[[], T], *, abandon_on_cancel: bool = False) -> T:
        """Return what ``work()`` returns; once begun it is not cancelled, as in a thread."""
        await trio.lowlevel.checkpoint_if_cancelled()
        drawn = self._rng.random()  # others have a turn before the work, after it, or both
        if drawn < 0.6:
            await trio.lowlevel.cancel_shielded_checkpoint()
        await self._be_late()
        try:
            return work()
        finally:
            if drawn >= 0.4:
                await trio.lowlevel.cancel_shielded_checkpoint()
            await self._be_late()

    async def _be_late(self) -> None:
        if self._slow_share and self._rng.random() < self._slow_share:
            with trio.CancelScope(shield=True):
                await trio.sleep(self._rng.expovariate(1.0 / self._late_s))


class WallClock:
    """What the time of day says: that of the run, and whatever somebody has set it to since."""

    def __init__(self) -> None:
        self.set_ahead_s = 0.0

    def time(self) -> float:
        """Return the time of day in unix seconds."""
        return TIME_OF_DAY_S + self.set_ahead_s + now_s()

    def time_ns(self) -> int:
        """Return the time of day in unix nanoseconds."""
        return round(self.time() * 1e9)


def now_s() -> float:
    """Return the seconds since the run began."""
    try:
        return trio.current_time()
    except RuntimeError:  # before trio runs, and after
        return 0.0


def _scheduler() -> random.Random:
    module: Any = trio._core._run
    generator = getattr(module, "_r", None)
    if not isinstance(generator, random.Random) or not hasattr(module, "_ALLOW_DETERMINISTIC_SCHEDULING"):
        raise RuntimeError(f"trio {trio.__version__} has no scheduler that can be seeded as this one expects")
    return generator


@contextmanager
def determined(seed: int | str, threads: Threads | None = None) -> Iterator[WallClock]:
    """Have everything inside follow from ``seed``; yields the wall clock, which may be set.

    Raises:
        RuntimeError: another run is under way in this process, or this trio cannot be seeded.
    """
    global _running
    if _running:
        raise RuntimeError("one run of the simulated world at a time in a process")
    scheduler = _scheduler()
    bytes_of = random.Random(f"bytes {seed}")
    inline = threads or InlineThreads(random.Random(f"threads {seed}"))
    clock = WallClock()

    async def run_sync(function: Callable[..., T], *args: object, **options: Any) -> T:
        work: Callable[[], T] = lambda: function(*args)  # noqa: E731
        return await inline.run_sync(work, abandon_on_cancel=bool(options.get("abandon_on_cancel")))

    def clock_gettime(_which: int) -> float:
        return SINCE_BOOT_S + now_s()

    replaced: list[tuple[Any, str, Any]] = [
        (trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        (trio.to_thread, "run_sync", run_sync),
        (time, "time", clock.time),
        (time, "time_ns", clock.time_ns),
        (time, "monotonic", now_s),
        (time, "clock_gettime", clock_gettime),
        (os, "urandom", bytes_of.randbytes),
        (secrets, "token_bytes", lambda n=32: bytes_of.randbytes(n)),
        (secrets, "randbits", bytes_of.getrandbits),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    state = scheduler.getstate()
    _running = True
    try:
        scheduler.seed(f"scheduler {seed}")
        for owner, name, value in replaced:
            setattr(owner, name, value)
        yield clock
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        scheduler.setstate(state)
        _running = False


class VirtualClock(trio.abc.Clock):
    """The clock of a run: it begins at 0 and jumps to the next thing that is due once no task can go on.

    That is half the work of `trio.testing.MockClock`, which first asks the system whether anything came from
    outside: nothing does here.
    """

    def __init__(self) -> None:
        self._now_s = 0.0

    def start_clock(self) -> None:
        """It stands still while tasks run."""

    def current_time(self) -> float:
        """Return the seconds since the run began."""
        return self._now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Jump to ``deadline``, which the scheduler asks about when no task can go on; sleep for no time."""
        if deadline == math.inf:
            return math.inf
        self._now_s = max(self._now_s, deadline)
        return 0.0
