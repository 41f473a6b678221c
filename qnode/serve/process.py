"""Start and stop of a front end as a process."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import structlog
import trio

from qnode.keys import front_end_store
from qnode.operate.daemon import StopLimit, attend, run_until_told
from qnode.operate.events.log import configure_log
from qnode.secret_files import read_store_key
from qnode.serve.config import load_front_end
from qnode.serve.run import RunningFrontEnd

STOP_LIMIT_S: Final = 15.0

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
        store_key=read_store_key(config.store.store_key),
        anchor=config.store.anchor,
        kme_id=site.kme_id,
        peer_kme_id=site.peer_kme_id,
        anchor_lost=anchor_lost,
    )

    async def run(nursery: trio.Nursery, hangups: AsyncIterator[int]) -> None:
        running = RunningFrontEnd(config, path, store, events.recent)
        await running.start(nursery)
        log.info("front_end.started", name=site.name, kme_id=site.kme_id)
        await attend("front_end", running, nursery, hangups)

    with StopLimit("front_end", STOP_LIMIT_S, "the store hangs") as limit:
        try:
            run_until_told(run, limit, stop_at_eof=stop_at_eof)
        finally:
            store.leave()
    log.info("front_end.stopped")
    events.flush()
    return 0
