"""The sensor chain alone on this machine, without namespaces or a tunnel, through outages as wished."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, get_args

import trio
from msgspec import Struct

from qnode.addresses import free_ports
from qnode.testbed.sensors.account import SensorAccount
from qnode.testbed.sensors.chain import ChainSettings, PartName, SensorChain
from qnode.testbed.sensors.forwarder import Forwarder
from qnode.testbed.sensors.node_red import PICTURE

Outage = Literal["line", "database", "collector", "spool_server", "reader", "plant"]
OUTAGES: Final[tuple[Outage, ...]] = get_args(Outage)
_TELL_PERIOD_S: Final = 10.0

Tell = Callable[[str], None]


class Alone(Struct, frozen=True, kw_only=True):
    """A run of ``minutes``; each outage begins at its share of the time and lasts ``outage_s``."""

    directory: Path
    minutes: float
    source: Literal["modbus", "opcua"] = "modbus"
    outages: tuple[Outage, ...] = ()
    outage_s: float = 30.0
    node_red: Path | None = None


async def run_alone(wanted: Alone, tell: Tell) -> SensorAccount:
    """Run the chain, and return its account when everything read is in the database.

    Raises:
        NotDrained: no reading reaches the database, or not all do.
        PartEnded (in a group): a part ended by itself.
    """
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    line_port = listeners[0].socket.getsockname()[1]
    spool, modbus, opcua, database, node_red = free_ports(5)
    settings = ChainSettings(
        directory=wanted.directory,
        spool_address=f"127.0.0.1:{spool}",
        collect_from=f"127.0.0.1:{line_port}",
        source=wanted.source,
        modbus_address=f"127.0.0.1:{modbus}",
        opcua_address=f"127.0.0.1:{opcua}",
        database_address=f"127.0.0.1:{database}",
        node_red=wanted.node_red,
        node_red_address=f"127.0.0.1:{node_red}",
    )
    chain, line = SensorChain(settings), Forwarder(spool)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.serve, listeners[0])
        async with chain.running():
            tell(f"the chain works; database http://127.0.0.1:{database}, logs in {chain.directory}")
            if wanted.node_red is not None:
                tell(f"picture: http://127.0.0.1:{node_red}{PICTURE}")
            nursery.start_soon(_tell_figures, chain, tell)
            began = trio.current_time()
            async with trio.open_nursery() as outages:  # waits for the end of the last one
                for n, outage in enumerate(wanted.outages):
                    await trio.sleep_until(began + 60 * wanted.minutes * (n + 1) / (len(wanted.outages) + 1))
                    outages.start_soon(_outage, outage, wanted.outage_s, chain, line, tell)
                await trio.sleep_until(began + 60 * wanted.minutes)
            await chain.drain()
            account = await chain.account()
        nursery.cancel_scope.cancel()
    return account


async def _outage(name: Outage, lasting_s: float, chain: SensorChain, line: Forwarder, tell: Tell) -> None:
    tell(f"outage of the {name.replace('_', ' ')} for {lasting_s:g} s")
    if name == "line":
        line.cut()
        await trio.sleep(lasting_s)
        line.mend()
    else:
        part: PartName = name
        chain.parts[part].kill()
        await trio.sleep(lasting_s)
        chain.parts[part].start()
    tell(f"the outage of the {name.replace('_', ' ')} is over; {chain.waiting()} records wait at the plant")


async def _tell_figures(chain: SensorChain, tell: Tell) -> None:
    began = time.monotonic()
    while True:
        await trio.sleep(_TELL_PERIOD_S)
        record = chain.last()
        readings, missed = (record.readings, record.missed) if record else (0, 0)
        tell(
            f"{time.monotonic() - began:.0f} s: {readings} samples read, {missed} polls missed, "
            f"{chain.waiting()} waiting at the plant"
        )
