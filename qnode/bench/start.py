"""The time to the first key of two daemons with compiled kernels, and the memory of a waiting daemon."""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import trio

from qnode.bench.links import TURIN
from qnode.bench.pair import peak_memory_mib
from qnode.bench.results import BenchResult, Effort, Machine, summary
from qnode.loopback.prepare import Prepared, Staging, prepare
from qnode.loopback.result import LinkResult
from qnode.loopback.run import run_prepared
from qnode.loopback.sites import keep_site
from qnode.offline.warm import warm
from qnode.operate.status.model import NodeStatus

_WAITING_S = 3.0  # a daemon has started by then and found no peer


def start(_machine: Machine, effort: Effort) -> Iterator[BenchResult]:
    """Measure seconds from the start of both sites to their first key, and the memory of a lone daemon."""
    warm()
    yield summary("start", [_first_key_s() for _ in range(effort.fewest)], "s", n_bits=1_000_000)
    with tempfile.TemporaryDirectory(prefix="qnode-bench-") as directory:
        prepared = prepare(Path(directory), TURIN, Staging())
        yield summary("start", [trio.run(_lone_daemon_mib, prepared)], "MiB")


def _first_key_s() -> float:
    """Run the Turin link at full speed until its first key; return the time since the start."""

    def seen(_result: LinkResult, status: NodeStatus) -> bool:
        return status.block.accepted > 0

    with tempfile.TemporaryDirectory(prefix="qnode-bench-") as directory:
        prepared = prepare(Path(directory), TURIN, Staging())
        began_s = time.time()
        outcome = trio.run(partial(run_prepared, prepared, TURIN.link.source.p_z, seen, exchange=False))
    first = next(event for event in outcome.events if event["event"] == "block.done")
    return float(first["at"]) - began_s


async def _lone_daemon_mib(prepared: Prepared) -> float:
    """Run Alice's daemon alone for a while; return its peak resident memory."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_site, "alice", prepared.site_files["alice"], _ignore)
        await trio.sleep(_WAITING_S)
        held_mib = peak_memory_mib(prepared.site_files["alice"])
        nursery.cancel_scope.cancel()
    return held_mib


def _ignore(_site: str, _line: str) -> None:
    pass
