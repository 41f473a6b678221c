"""Work distributed over processes, which end quietly with this one when it is interrupted."""

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers:
    """Processes for one kind of work after another; made by `worker_processes`."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def map(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Return an iterator over the result of each of ``jobs``, in their order.

        Raises:
            Exception: ``work`` raised it.
        """
        # Ctrl-C goes to every process of a terminal. The worker processes ignore it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.map(work, jobs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def worker_processes(count: int, context: BaseContext | None = None) -> Iterator[Workers]:
    """Yield ``count`` processes; an error in the body ends them at once."""
    pool = ProcessPoolExecutor(count, context)
    try:
        yield Workers(pool)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
