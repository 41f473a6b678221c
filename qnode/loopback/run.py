"""One run of the loopback link: both daemons, the encryptors that drain them, and Bob's status."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from msgspec import Struct

from qnode.loopback.delay import delay_line
from qnode.loopback.encryptors import Comparison, run_encryptors
from qnode.loopback.prepare import LoopbackConfig, Prepared, Staging, prepare
from qnode.loopback.result import Ledger, LinkResult
from qnode.loopback.sites import Tell, keep_bench, keep_site
from qnode.operate.blocks.row import KEPT_BLOCKS, DecidedBlock
from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_blocks, ask_events
from qnode.operate.control.server import ask_node
from qnode.operate.status.model import NodeStatus

POLL_S = 0.5
SERVING_S = 120.0
_EVENTS = 1000
_EVENTS_PATIENCE_S = 10.0

Until = Callable[[LinkResult, NodeStatus], bool]


class LinkOutcome(Struct, frozen=True):
    """The outcome of a run: its result, Bob's last status, latest events and blocks, oldest first."""

    result: LinkResult
    status: NodeStatus
    events: list[dict[str, Any]]
    blocks: list[DecidedBlock] = []


@asynccontextmanager
async def sites_running(prepared: Prepared, tell: Tell) -> AsyncIterator[None]:
    """Run all daemons until the body ends, which starts when they answer; ``tell`` gets their logs.

    Raises (in a group):
        SiteFailed: a daemon refused to start.
        trio.TooSlowError: they do not answer.
    """
    async with AsyncExitStack() as lines:
        for line in prepared.lines:  # before the nursery opens: what is entered last must be left first
            await lines.enter_async_context(delay_line(line.bob_port, line.alice_port, line.round_trip_s))
        async with trio.open_nursery() as nursery:
            for name, bench in prepared.benches.items():
                nursery.start_soon(keep_bench, name, bench, tell)
            for name, site_file in prepared.site_files.items():
                nursery.start_soon(keep_site, name, site_file, tell)
            with trio.fail_after(SERVING_S):
                for link in prepared.endpoints.links:
                    for site in link.sites.values():
                        await answer_of(Path(site.control_socket))
            yield
            nursery.cancel_scope.cancel()


class LoopbackLink:
    """One link of a prepared folder. ``status``: the latest of its Bob, after the first reading."""

    def __init__(self, prepared: Prepared, p_z: float, index: int = 0) -> None:
        self.endpoints = prepared.endpoints.links[index]
        self.comparison = Comparison()
        self.status: NodeStatus | None = None
        self.started_s = trio.current_time()
        self.ledger = Ledger(p_z)
        self._ca = prepared.endpoints.ca

    @property
    def _bob(self) -> Path:
        return Path(self.endpoints.sites["bob"].control_socket)

    def result(self) -> LinkResult:
        """Return the result so far."""
        wall_s = trio.current_time() - self.started_s
        return self.ledger.result(self.endpoints.name, self.comparison, wall_s)

    async def exchange_keys(self, wanted: int | None = None) -> None:
        """Let the encryptors fetch and compare keys until ``wanted`` are compared, or for ever."""
        with trio.CancelScope() as scope:
            await run_encryptors(self._ca, self.endpoints, self.comparison, wanted, scope.cancel)

    async def look(self) -> NodeStatus:
        """Return Bob's status, as soon as it is available, and add it to the result."""
        self.status = await answer_of(self._bob)
        self.ledger.see(self.status)
        return self.status

    async def events(self) -> list[dict[str, Any]]:
        """Return Bob's latest events, oldest first.

        Raises:
            NodeNotRunning, NoAnswer: like `qnode.operate.control.client.ask_events`.
        """
        return await trio.to_thread.run_sync(
            lambda: ask_events(self._bob, _EVENTS, patience_s=_EVENTS_PATIENCE_S)
        )

    async def blocks(self) -> list[DecidedBlock]:
        """Return the decided blocks that Bob's site keeps; raises like `events`."""
        return await trio.to_thread.run_sync(
            lambda: ask_blocks(self._bob, KEPT_BLOCKS, patience_s=_EVENTS_PATIENCE_S)
        )


async def run_link(
    config: LoopbackConfig, directory: Path, staging: Staging, until: Until, tell: Tell | None = None
) -> LinkOutcome:
    """Run both sites in ``directory`` until ``until`` returns True for the result and Bob's status.

    ``until`` is called every `POLL_S`.

    Raises:
        ConfigError: the folder cannot be used.
        ExceptionGroup: of the errors of `sites_running`.
    """
    prepared = prepare(directory, config, staging)
    return await run_prepared(prepared, config.link.source.p_z, until, tell, exchange=True)


async def run_prepared(
    prepared: Prepared, p_z: float, until: Until, tell: Tell | None = None, *, exchange: bool
) -> LinkOutcome:
    """Run both sites of a prepared folder; with ``exchange`` the demonstration encryptors drain them.

    Raises:
        ExceptionGroup: of the errors of `sites_running`.
    """
    link = LoopbackLink(prepared, p_z)
    async with sites_running(prepared, tell or _ignore), trio.open_nursery() as nursery:
        if exchange:
            nursery.start_soon(link.exchange_keys)
        while True:
            status = await link.look()
            if until(link.result(), status):
                break
            await trio.sleep(POLL_S)
        outcome = LinkOutcome(link.result(), status, await link.events(), await link.blocks())
        nursery.cancel_scope.cancel()
    return outcome


async def answer_of(control_socket: Path) -> NodeStatus:
    """Return the status of a daemon, as soon as it answers."""
    while True:
        try:
            return await ask_node(control_socket)
        except (NodeNotRunning, NoAnswer):
            await trio.sleep(POLL_S)  # it starts, or restarts


def _ignore(_role: str, _line: str) -> None:
    pass
