"""Start and stop of a front end as a process: the log, signals, the service manager."""

import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import structlog
import trio

from qnode.errors import ConfigError, QnodeError, first_of
from qnode.keys import front_end_store
from qnode.operate.events.log import configure_log
from qnode.operate.notify import Notifier, feed_watchdog, from_environment
from qnode.serve.config import load_front_end
from qnode.serve.run import RunningFrontEnd

STATUS_S: Final = 1.0
STOP_LIMIT_S: Final = 15.0
LOG_LINGER_S: Final = 0.2
_READ_BYTES: Final = 4096

log = structlog.get_logger()


def run_front_end_until_signal(path: Path, *, anchor_lost: bool, stop_at_eof: bool) -> int:
    """Run the front end of the file at ``path`` until SIGTERM or SIGINT; return the exit status.

    SIGHUP, which the caller has blocked, reads encryptors and certificates again. At a stop in order the
    front end leaves, so that the node does not wait for it after a failover.

    Raises:
        ConfigError: the file cannot be used.
    """
    config = load_front_end(path)
    events = configure_log(config.operate.log_level)
    events.take_stderr()
    site = config.front_end
    store = front_end_store(
        config.store.postgresql,
        name=site.name,
        store_key=config.read_store_key(),
        anchor=config.store.anchor,
        kme_id=site.kme_id,
        peer_kme_id=site.peer_kme_id,
        anchor_lost=anchor_lost,
    )
    last_resort = threading.Timer(STOP_LIMIT_S, _exit_at_once)
    last_resort.daemon = True

    async def main() -> None:
        with (
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
            trio.open_signal_receiver(signal.SIGHUP) as hangups,
        ):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            running = RunningFrontEnd(config, path, store, events.recent)
            notifier = from_environment()
            async with trio.open_nursery() as nursery:
                await nursery.start(running.run)
                log.info("front_end.started", name=site.name, kme_id=site.kme_id)
                notifier.ready()
                nursery.start_soon(_tell, notifier, running)
                nursery.start_soon(_renew, running, notifier, hangups)
                nursery.start_soon(feed_watchdog, notifier, lambda: running.is_alive)
                if stop_at_eof:
                    nursery.start_soon(_stop_at_eof, nursery.cancel_scope)
                async for number in signals:
                    log.info("front_end.stopping", signal=signal.Signals(number).name)
                    break
                last_resort.start()
                notifier.stopping()
                nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        first = first_of(group)
        raise (first if isinstance(first, QnodeError) else group) from None
    finally:
        store.leave()
        last_resort.cancel()
    log.info("front_end.stopped")
    events.flush()
    return 0


def _exit_at_once() -> None:
    """End a process whose store hangs; what it had in hand is destroyed or still there."""
    log.error("front_end.stop_forced", reason=f"not stopped within {STOP_LIMIT_S:g} s: the store hangs")
    time.sleep(LOG_LINGER_S)
    os._exit(1)


async def _stop_at_eof(scope: trio.CancelScope) -> None:
    """Stop when the process at the other end of standard input has ended."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        while await stdin.receive_some(_READ_BYTES):
            pass
    scope.cancel()


async def _tell(notifier: Notifier, running: RunningFrontEnd) -> None:
    while True:
        because = running.supply.because
        node = ", the node is away" if running.supply.node_is_away else ""
        notifier.status(f"waiting: {because}" if because else f"serving{node}")
        await trio.sleep(STATUS_S)


async def _renew(running: RunningFrontEnd, notifier: Notifier, hangups: AsyncIterator[int]) -> None:
    async for _ in hangups:
        notifier.reloading()
        try:
            running.renew()
        except ConfigError as error:
            log.error("front_end.reload_refused", reason=str(error))
        notifier.ready()
