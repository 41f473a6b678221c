"""Start and stop of an agent as a process."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import structlog
import trio

from qnode.agent.config import load_agent
from qnode.agent.run import RunningAgent
from qnode.operate.daemon import StopLimit, attend, run_until_told
from qnode.operate.events.log import configure_log

STOP_LIMIT_S: Final = 17.0  # each call to a tunnel ends within 15 s

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

    async def run(nursery: trio.Nursery, hangups: AsyncIterator[int]) -> None:
        running = RunningAgent(config, events.recent)
        await running.start(nursery)
        log.info("agent.started", name=config.agent.name, role=config.agent.role, kind=config.kind)
        await attend("agent", running, nursery, hangups)

    with StopLimit("agent", STOP_LIMIT_S, "the encryptor hangs") as limit:
        run_until_told(run, limit)
    log.info("agent.stopped")
    events.flush()
    return 0
