"""A daemon as a process: it runs until it is told to stop, and each stop ends within a limit."""

import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final, Protocol, Self

import structlog
import trio

from qnode.errors import ConfigError, QnodeError, StoreError, StoreUnusable
from qnode.operate.notify import feed_watchdog, from_environment, tell_status

LOG_LINGER_S: Final = 0.2  # for the log's own thread
_READ_BYTES: Final = 4096

log = structlog.get_logger()

Run = Callable[[trio.Nursery, AsyncIterator[int]], Awaitable[None]]


class StopLimit:
    """Ends the process with exit status 1 if its stop, once begun, lasts too long.

    Nobody can cancel a call to a disk, a database or a device that hangs. Stores and anchors survive this end
    as they survive a crash. Enter it around everything that a stop waits for.
    """

    def __init__(self, daemon: str, limit_s: float, hangs: str) -> None:
        """``daemon``: first word of log events; ``hangs``: what is then likely to hang, for the log."""
        self.daemon = daemon
        self._limit_s = limit_s
        self._hangs = hangs
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def begin(self) -> None:
        """Let the time run, unless it runs already."""
        if self._timer is None:
            self._start(self._limit_s)

    def extend(self, more_s: float) -> None:
        """Let the time begin anew, ``more_s`` longer, for what comes beside the stop."""
        if self._timer is not None:
            self._timer.cancel()
        self._start(self._limit_s + more_s)

    def _start(self, limit_s: float) -> None:
        self._timer = threading.Timer(limit_s, self._exit_at_once, [limit_s])
        self._timer.daemon = True
        self._timer.start()

    def _exit_at_once(self, limit_s: float) -> None:
        log.error(f"{self.daemon}.stop_forced", reason=f"not stopped within {limit_s:g} s: {self._hangs}")
        time.sleep(LOG_LINGER_S)
        os._exit(1)


def run_until_told(run: Run, limit: StopLimit, *, stop_at_eof: bool = False) -> None:
    """Run a daemon until SIGTERM or SIGINT, an error, or, with ``stop_at_eof``, the end of standard input.

    ``run(nursery, hangups)`` starts the daemon in ``nursery``; ``hangups`` yields for each SIGHUP, which the
    caller of this function has blocked. ``limit`` begins with the end of ``nursery``, whatever the reason.

    Raises:
        QnodeError: the error that explains the end.
    """
    try:
        trio.run(_run_until_told, run, limit, stop_at_eof)
    except BaseExceptionGroup as group:
        raise clearest(group) from None
    finally:
        limit.begin()


async def _run_until_told(run: Run, limit: StopLimit, stop_at_eof: bool) -> None:
    with (
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
        trio.open_signal_receiver(signal.SIGHUP) as hangups,
    ):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        async with trio.open_nursery() as nursery:

            def stop(because: str) -> None:
                limit.begin()
                log.info(f"{limit.daemon}.stopping", signal=because)
                from_environment().stopping()
                nursery.cancel_scope.cancel()

            nursery.start_soon(_begin_at_the_end, limit)
            nursery.start_soon(run, nursery, hangups)
            if stop_at_eof:
                nursery.start_soon(_stop_at_eof, stop)
            async for number in signals:
                stop(signal.Signals(number).name)
                return


async def _begin_at_the_end(limit: StopLimit) -> None:
    """Begin ``limit`` when the nursery of this task is cancelled, as it also is by an error."""
    try:
        await trio.sleep_forever()
    finally:
        limit.begin()


async def _stop_at_eof(stop: Callable[[str], None]) -> None:
    """Stop when the process at the other end of standard input has ended."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        while await stdin.receive_some(_READ_BYTES):
            pass
    stop("end of standard input")


class Running(Protocol):
    """A running agent or front end."""

    @property
    def is_alive(self) -> bool:
        """Whether it makes progress."""

    def headline(self) -> str:
        """Return its state in one line."""

    def renew(self) -> None:
        """Read its files again. Raises ConfigError: they cannot be used; nothing changes."""


async def attend(daemon: str, running: Running, nursery: trio.Nursery, hangups: AsyncIterator[int]) -> None:
    """Tell the service manager of a daemon that has started, and renew it at each of ``hangups``.

    ``daemon``: first word of log events.
    """
    notifier = from_environment()
    notifier.ready()
    nursery.start_soon(tell_status, notifier, running.headline)
    nursery.start_soon(feed_watchdog, notifier, lambda: running.is_alive)
    async for _ in hangups:
        notifier.reloading()
        try:
            running.renew()
        except ConfigError as error:
            log.error(f"{daemon}.reload_refused", reason=str(error))
        notifier.ready()


def clearest(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that explains the end of a daemon, if all errors in the group are its own.

    A broken store fails in several tasks at once: that is one error. Unexpected errors are shown completely.
    """
    leaves = [leaf for leaf in _leaves(group) if not isinstance(leaf, trio.Cancelled)]
    if len(leaves) == 1 or all(isinstance(leaf, QnodeError) for leaf in leaves):
        kinds = (StoreUnusable, ConfigError, StoreError, BaseException)
        return next(leaf for kind in kinds for leaf in leaves if isinstance(leaf, kind))
    return group


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
