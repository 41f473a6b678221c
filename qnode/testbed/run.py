"""One testbed from its first process to its outcome."""

import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final, Literal

import trio
from msgspec import Struct

from qnode.errors import QnodeError
from qnode.loopback.prepare import LoopbackConfig, Prepared
from qnode.loopback.run import answer_of
from qnode.testbed.agent_status import agent_status
from qnode.testbed.key_side import run_key_side
from qnode.testbed.line import OperatorsLine, open_line
from qnode.testbed.measure import PathFigures, Pings, measure_path, ping_command, read_pings
from qnode.testbed.needs import versions
from qnode.testbed.network import LINE_ADDRESS, TUNNEL_ADDRESS, Network, Site
from qnode.testbed.outcome import CurrentBin, KeySide, Outage, Outcome, SensorSide, TunnelSide
from qnode.testbed.parts import Part, in_time, keeping
from qnode.testbed.progress import Progress
from qnode.testbed.relay import LineQuality
from qnode.testbed.sensors.account import SensorAccount
from qnode.testbed.sensors.chain import ChainSettings, NotDrained, SensorChain
from qnode.testbed.sites import AgentAtSite, agents, node_parts, prepare_nodes
from qnode.testbed.timetable import Planned, planned_outages
from qnode.testbed.tunnels import KITS, TunnelName, site_tunnels

NODES_ANSWER_S: Final = 120.0
# In real time the first block of the Turin link takes more than two minutes.
FIRST_KEY_S: Final = 900.0
RECOVERY_S: Final = 120.0
SAMPLE_PERIOD_MS: Final = 100
PING_INTERVAL_S: Final = 0.1
BINS: Final = 600
_LOOK_S: Final = 0.25
_SHOW_S: Final = 0.5
_SPOOL_PORT: Final = 7600
# A lost ping is told when the next one is sent.
_PING_EDGE_S: Final = 1.0


Source = Literal["modbus", "opcua"]


class NoTunnel(QnodeError):
    """No packet came through the tunnel in time."""


class Asked(Struct, frozen=True, kw_only=True):
    """What a testbed is to do. ``hours``: of the key side; None: without it. ``folder``: for all its files.

    ``speed``, ``link_speed``: tag seconds a second of the key side and of the link that feeds the tunnel;
    None is as fast as possible.
    """

    command: str
    minutes: float
    outages: bool
    hours: float | None
    speed: float | None
    link_speed: float | None
    config: LoopbackConfig
    tunnel: TunnelName
    period_s: float
    source: Source
    line: LineQuality
    folder: Path


async def run_testbed(asked: Asked, network: Network, progress: Progress) -> Outcome:
    """Run the key side, then the sites with tunnel and sensors in real time, and return what came out.

    Raises (in groups):
        PartEnded: a process ended by itself.
        QnodeError: a part cannot be set up, or does not answer.
    """
    keys = None
    if asked.hours is not None:
        progress.stage(f"the key side: {asked.hours:g} simulated hours")
        keys = await run_key_side(asked.config, asked.folder, asked.hours, asked.speed, progress)
    async with AsyncExitStack() as stack:
        line = await stack.enter_async_context(open_line(network, asked.line, asked.folder / "line.log"))
        prepared = prepare_nodes(asked.folder / "nodes", asked.config, asked.link_speed)
        progress.stage("the nodes start")
        await stack.enter_async_context(keeping(*node_parts(network, prepared, asked.folder)))
        await _nodes_answer(prepared)
        tunnels = site_tunnels(asked.tunnel, network, asked.folder)
        await stack.enter_async_context(keeping(*(one.part for one in tunnels.values())))
        for one in tunnels.values():
            await one.set_up()
        at_sites = agents(network, prepared, tunnels, asked.period_s, asked.folder / "agents")
        await stack.enter_async_context(keeping(*(one.part for one in at_sites.values())))
        progress.stage("the tunnel waits for its first key")
        await _tunnel_is_up(network, prepared, progress)
        progress.stage("round trip and throughput, without the tunnel and through it")
        direct = await measure_path(network, LINE_ADDRESS["office"], LINE_ADDRESS["plant"])
        through = await measure_path(network, TUNNEL_ADDRESS["office"], TUNNEL_ADDRESS["plant"])
        real_time = _RealTime(asked, network, line, at_sites, progress)
        return await real_time.run((direct, through), keys)


async def _nodes_answer(prepared: Prepared) -> None:
    with trio.move_on_after(NODES_ANSWER_S):
        for site in prepared.endpoints.sites.values():
            await answer_of(Path(site.control_socket))
        return
    raise QnodeError(f"the nodes do not answer within {NODES_ANSWER_S:g} s; see their logs")


async def _tunnel_is_up(network: Network, prepared: Prepared, progress: Progress) -> None:
    """Wait until a ping comes through the tunnel; show meanwhile how the first block fills."""
    bob = Path(prepared.endpoints.sites["bob"].control_socket)
    ping = ["ping", "-n", "-c", "1", "-W", "1", "-I", TUNNEL_ADDRESS["plant"], TUNNEL_ADDRESS["office"]]
    with trio.move_on_after(FIRST_KEY_S):
        while True:
            done = await trio.run_process(
                network.inside("plant", *ping), capture_stdout=True, capture_stderr=True, check=False
            )
            if done.returncode == 0:
                return
            block = (await answer_of(bob)).block
            filled = "waits for light" if block.filled is None else f"{block.filled:.0%} full"
            progress.show({"block": f"{block.current or 1}, {filled}", "accepted": str(block.accepted)})
            await trio.sleep(_SHOW_S)
    raise NoTunnel(f"nothing came through the tunnel within {FIRST_KEY_S:g} s; see the logs of the agents")


class _RealTime:
    """The part that lasts for the minutes asked for: sensors, pings, outages, and their account."""

    def __init__(
        self,
        asked: Asked,
        network: Network,
        line: OperatorsLine,
        at_sites: dict[Site, AgentAtSite],
        progress: Progress,
    ) -> None:
        self._asked, self._network, self._line = asked, network, line
        self._initiator, self._progress = at_sites["office"], progress
        self._outages: list[Outage] = []
        self._now_away = "nothing"
        self._chain = SensorChain(
            ChainSettings(
                directory=asked.folder / "sensors",
                spool_address=f"{TUNNEL_ADDRESS['plant']}:{_SPOOL_PORT}",
                collect_from=f"{TUNNEL_ADDRESS['plant']}:{_SPOOL_PORT}",
                # Meter and reader stand for devices that do nothing else.
                at_plant=network.inside("plant", *in_time()),
                at_edge=network.inside("office"),
                source=asked.source,
                period_ms=SAMPLE_PERIOD_MS,
            )
        )
        self._ping_log = asked.folder / "ping.log"
        command = ping_command(TUNNEL_ADDRESS["plant"], TUNNEL_ADDRESS["office"], PING_INTERVAL_S)
        self._ping = Part("the ping", network.inside("plant", *command), self._ping_log)

    async def run(self, paths: tuple[PathFigures, PathFigures], keys: KeySide | None) -> Outcome:
        self._progress.stage("the sensor chain starts")
        async with self._chain.running():
            return await self._sample(paths, keys)

    async def _sample(self, paths: tuple[PathFigures, PathFigures], keys: KeySide | None) -> Outcome:
        asked = self._asked
        began_at_s, began_s = time.time(), trio.current_time()
        before = await agent_status(self._initiator.control_socket)
        self._progress.stage(f"{asked.minutes:g} minutes of samples")
        async with keeping(self._ping), trio.open_nursery() as nursery:  # waits for the last recovery
            for planned in planned_outages(asked.minutes) if asked.outages else ():
                nursery.start_soon(self._outage, planned, began_s)
            with trio.move_on_at(began_s + 60.0 * asked.minutes):
                await self._show(began_s)
        after = await agent_status(self._initiator.control_socket)
        counts = await self._line.counts()
        self._progress.stage("what waits at the plant is drained")
        with suppress(NotDrained):  # what is not there counts as lost
            await self._chain.drain()
        began_ms = round(1000 * began_at_s)
        account = await self._chain.account(began_ms, began_ms + round(60_000 * asked.minutes), BINS)
        pings = await trio.to_thread.run_sync(self._pings)
        lost_in_cut = sum(self._in_cut(at_s - began_at_s) for at_s in pings.lost_at)
        return Outcome(
            command=asked.command,
            versions=versions(asked.tunnel),
            began_at_s=began_at_s,
            minutes=asked.minutes,
            line=counts,
            tunnel=TunnelSide(
                kind=KITS[asked.tunnel].title,
                period_s=asked.period_s,
                changes=after.changes_total - before.changes_total,
                failed_changes=after.changes_failed_total - before.changes_failed_total,
                keys_used=after.keys_total - before.keys_total,
                differ_longest_s=after.longest_differed_s,
                direct=paths[0],
                through=paths[1],
                pings_sent=len(pings.replies) + len(pings.lost_at),
                pings_lost=len(pings.lost_at) - lost_in_cut,
                pings_lost_in_cut=lost_in_cut,
            ),
            sensors=sensor_side(account, asked.minutes, began_at_s),
            outages=sorted(self._outages, key=lambda outage: outage.minute),
            keys=keys,
        )

    async def _outage(self, planned: Planned, began_s: float) -> None:
        """Let one part be away, and see when all is as before."""
        await trio.sleep_until(began_s + planned.begin_s)
        begin_s = trio.current_time() - began_s
        self._now_away = planned.what
        if planned.what == "tunnel":
            await self._line.cut()
        else:
            self._chain.parts[planned.what].kill()
        most = await self._watch_waiting(planned.lasting_s)
        if planned.what == "tunnel":
            await self._line.mend()
        else:
            self._chain.parts[planned.what].start()
        self._now_away = "nothing"
        ended_s = trio.current_time()
        recovered_s = None
        last = self._chain.last()
        with trio.move_on_after(RECOVERY_S):
            # Until the database has what was read up to the end of the outage.
            while last is not None and self._chain.acknowledged() < last.number:
                most = max(most, self._chain.waiting())
                await trio.sleep(_LOOK_S)
            recovered_s = trio.current_time() - ended_s
        self._outages.append(
            Outage(
                what=planned.what,
                minute=begin_s / 60.0,
                lasted_s=ended_s - began_s - begin_s,
                recovered_s=recovered_s,
                waiting=most,
            )
        )

    async def _watch_waiting(self, lasting_s: float) -> int:
        """Return the largest number of samples that waited in this time."""
        most = 0
        with trio.move_on_after(lasting_s):
            while True:
                most = max(most, self._chain.waiting())
                await trio.sleep(_LOOK_S)
        return most

    def _pings(self) -> Pings:
        with self._ping_log.open() as lines:
            return read_pings(lines)

    def _in_cut(self, since_s: float) -> bool:
        """Return whether a lost ping belongs to an outage of the line: in it, or before all was back."""
        return any(
            outage.what == "tunnel"
            and -_PING_EDGE_S
            <= since_s - 60.0 * outage.minute
            <= outage.lasted_s + (outage.recovered_s or 0.0) + _PING_EDGE_S
            for outage in self._outages
        )

    async def _show(self, began_s: float) -> None:
        while True:
            last, agent = self._chain.last(), await agent_status(self._initiator.control_socket)
            minutes = (trio.current_time() - began_s) / 60.0
            self._progress.show(
                {
                    "time": f"{minutes:.1f} of {self._asked.minutes:g} min",
                    "samples": f"{last.readings if last else 0} read, {self._chain.waiting()} waiting",
                    "missed polls": str(last.missed if last else 0),
                    "key": f"{agent.state.state}, {agent.changes_total} changes, "
                    f"{agent.changes_failed_total} failed",
                    "away": self._now_away,
                }
            )
            await trio.sleep(_SHOW_S)


def sensor_side(account: SensorAccount, minutes: float, began_at_s: float) -> SensorSide:
    """Return the sensors' part of an outcome from the account of the chain."""
    return SensorSide(
        due=round(60_000 * minutes / SAMPLE_PERIOD_MS),
        read=account.read,
        stored=account.stored,
        lost=account.read - account.stored,
        missed=account.missed,
        set_aside=account.set_aside,
        currents=[
            CurrentBin(
                minute=(one.time_ms / 1e3 - began_at_s) / 60.0,
                least_a=one.least,
                mean_a=one.mean,
                most_a=one.most,
            )
            for one in account.currents
        ],
    )
