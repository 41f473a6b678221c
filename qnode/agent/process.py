"""Start and stop of an agent as a process: the log, signals, the service manager."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import structlog
import trio

from qnode.agent.config import load_agent
from qnode.agent.run import RunningAgent
from qnode.errors import ConfigError, first_of
from qnode.operate.events.log import EventLog, configure_log
from qnode.operate.notify import Notifier, feed_watchdog, from_environment

STATUS_S: Final = 2.0
# The watch of an agent goes round once a second; each call to a tunnel in it ends within 15 s.
LONGEST_ROUND_S: Final = 60.0

log = structlog.get_logger()


def run_agent_until_signal(path: Path) -> int:
    """Run the agent of the file at ``path`` until SIGTERM or SIGINT; return the exit status.

    SIGHUP, which the caller has blocked, renews the TLS files. The tunnel stays as it is at the end.

    Raises:
        ConfigError: the file cannot be used.
    """
    config = load_agent(path)
    events = configure_log(config.agent.log_level)
    events.take_stderr()

    async def main() -> None:
        with (
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
            trio.open_signal_receiver(signal.SIGHUP) as hangups,
        ):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            running = RunningAgent(config, events.recent)
            notifier = from_environment()
            async with trio.open_nursery() as nursery:
                await nursery.start(running.run)
                log.info("agent.started", name=config.agent.name, role=config.agent.role, kind=config.kind)
                notifier.ready()
                nursery.start_soon(_tell, notifier, running)
                nursery.start_soon(_renew, running, notifier, hangups)
                nursery.start_soon(feed_watchdog, notifier, lambda: _is_alive(running))
                async for number in signals:
                    log.info("agent.stopping", signal=signal.Signals(number).name)
                    notifier.stopping()
                    nursery.cancel_scope.cancel()
                    break

    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        first = first_of(group)
        raise (first if isinstance(first, ConfigError) else group) from None
    _end(events)
    return 0


def _end(events: EventLog) -> None:
    log.info("agent.stopped")
    events.flush()


def _is_alive(running: RunningAgent) -> bool:
    return trio.current_time() - running.agent.watched_at < LONGEST_ROUND_S


async def _tell(notifier: Notifier, running: RunningAgent) -> None:
    while True:
        condition = running.agent.judge()
        age_s = running.agent.holding.age_s()
        key = "no key" if age_s is None else f"key {age_s:.0f} s old"
        because = f", {condition.because}" if condition.because else ""
        notifier.status(f"{condition.state.value}, {key}{because}")
        await trio.sleep(STATUS_S)


async def _renew(running: RunningAgent, notifier: Notifier, hangups: AsyncIterator[int]) -> None:
    async for _ in hangups:
        notifier.reloading()
        try:
            running.renew()
            log.info("agent.reloaded")
        except ConfigError as error:
            log.error("agent.reload_refused", reason=str(error))
        notifier.ready()
