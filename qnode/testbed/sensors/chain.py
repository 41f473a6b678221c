"""The whole sensor chain: settings and processes of its parts at plant and edge, and its account."""

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec
import tomli_w
import trio
from msgspec import Struct

from qnode.addresses import host_and_port
from qnode.errors import QnodeError
from qnode.spool import acknowledged
from qnode.testbed.parts import Part, keeping
from qnode.testbed.sensors.account import AccountSettings, SensorAccount
from qnode.testbed.sensors.collector import COLLECTING, CollectorSettings, CollectorStatus
from qnode.testbed.sensors.influxd import influxd_command
from qnode.testbed.sensors.node_red import node_red_command
from qnode.testbed.sensors.part import read_status
from qnode.testbed.sensors.plant import PlantSettings
from qnode.testbed.sensors.reader import ReaderSettings
from qnode.testbed.sensors.record import Record
from qnode.testbed.sensors.spool import last_record
from qnode.testbed.sensors.spool_server import SpoolServerSettings

PartName = Literal["plant", "reader", "spool_server", "database", "collector", "node_red"]
AT_PLANT: Final[frozenset[PartName]] = frozenset({"plant", "reader", "spool_server"})
DATABASE: Final = "plant"
_LOOK_S: Final = 0.25


class NotDrained(QnodeError):
    """The spool was not empty in time."""


class ChainSettings(Struct, frozen=True, kw_only=True):
    """Where the chain runs.

    ``directory``: for settings, spool, database and logs. ``spool_address``: HOST:PORT where the spool
    server listens. ``collect_from``: where the collector reaches it. ``at_plant``, ``at_edge``: words in
    front of the commands of each place, such as those that run them in a network namespace. The meter and
    the database listen on the loopback address of their place. ``node_red``: the folder where npm has
    installed Node-RED; None: the chain runs without.
    """

    directory: Path
    spool_address: str
    collect_from: str
    at_plant: Sequence[str] = ()
    at_edge: Sequence[str] = ()
    source: Literal["modbus", "opcua"] = "modbus"
    period_ms: int = 100
    timeout_ms: int = 80
    modbus_address: str = "127.0.0.1:1502"
    opcua_address: str = "127.0.0.1:4840"
    database_address: str = "127.0.0.1:8086"
    node_red: Path | None = None
    node_red_address: str = "127.0.0.1:1880"


class SensorChain:
    """The parts of a chain, which `running` runs."""

    def __init__(self, settings: ChainSettings) -> None:
        self._settings = settings
        self.directory = settings.directory.resolve()
        self.spool = self.directory / "spool"
        self.url = f"http://{settings.database_address}"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._collector_status = self.directory / "collector.json"
        self._collector_status.unlink(missing_ok=True)  # of an earlier run
        self.parts: dict[PartName, Part] = {
            name: self._part(name)
            for name in get_args(PartName)
            if name != "node_red" or settings.node_red is not None
        }

    def _part(self, name: PartName) -> Part:
        log = self.directory / f"{name}.log"
        if name == "database":
            command = influxd_command(self.directory / "influxdb", self._settings.database_address)
        elif name == "node_red":
            assert self._settings.node_red is not None
            address = host_and_port(self._settings.node_red_address, "node_red_address")
            folder = self.directory / "node_red"
            command = node_red_command(self._settings.node_red, folder, address, self.url, DATABASE)
        else:
            command = _module(name, self._write(name, self._settings_of(name)))
        return Part(name, [*self._at(name), *command], log)

    def _at(self, name: PartName) -> Sequence[str]:
        return self._settings.at_plant if name in AT_PLANT else self._settings.at_edge

    def _write(self, name: str, settings: Struct) -> Path:
        path = self.directory / f"{name}.toml"
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in _items(settings)}
        path.write_text(tomli_w.dumps(plain))
        return path

    def _settings_of(self, name: PartName) -> Struct:
        chain = self._settings
        if name == "plant":
            return PlantSettings(
                modbus=chain.modbus_address,
                opcua=chain.opcua_address,
                began=time.time(),
                period_ms=chain.period_ms,
            )
        if name == "reader":
            return ReaderSettings(
                source=chain.source,
                meter=chain.modbus_address if chain.source == "modbus" else chain.opcua_address,
                spool=self.spool,
                status=self.directory / "reader.json",
                period_ms=chain.period_ms,
                timeout_ms=chain.timeout_ms,
            )
        if name == "spool_server":
            return SpoolServerSettings(spool=self.spool, listen=chain.spool_address)
        return CollectorSettings(
            spool=chain.collect_from,
            url=self.url,
            database=DATABASE,
            journal=self.directory / "journal.jsonl",
            status=self._collector_status,
        )

    @asynccontextmanager
    async def running(self, deadline_s: float = 60.0) -> AsyncIterator[None]:
        """Run all parts while the body runs, which begins when a reading has reached the database.

        The reader starts last: programs that start beside it would have it miss polls.

        Raises (in groups):
            NotDrained: a step of the start took longer than ``deadline_s``.
            PartEnded: a part ended by itself.
        """
        reader = self.parts["reader"]
        async with keeping(*(part for part in self.parts.values() if part is not reader)):
            if not await _within(deadline_s, self._collector_waits):
                raise NotDrained(f"no collector after {deadline_s:g} s; see {self.directory}/*.log")
            before = acknowledged(self.spool)
            async with keeping(reader):
                if not await _within(deadline_s, lambda: acknowledged(self.spool) > before):
                    raise NotDrained(
                        f"no reading reached the database within {deadline_s:g} s; see {self.directory}/*.log"
                    )
                yield

    def _collector_waits(self) -> bool:
        status = read_status(self._collector_status, CollectorStatus)
        return status is not None and status.state == COLLECTING

    def last(self) -> Record | None:
        """Return the last record of the spool, with the numbers of readings and missed polls so far."""
        return last_record(self.spool)

    def waiting(self) -> int:
        """Return how many records wait at the plant."""
        last = self.last()
        return (last.number if last else 0) - self.acknowledged()

    def acknowledged(self) -> int:
        """Return the number of the record up to which the database has everything."""
        return acknowledged(self.spool)

    async def drain(self, deadline_s: float = 120.0) -> None:
        """Stop the reader, and wait until everything is in the database.

        Raises:
            NotDrained: it was not within ``deadline_s``.
        """
        self.parts["reader"].kill()
        if not await _within(deadline_s, lambda: not self.waiting()):
            raise NotDrained(f"{self.waiting()} records still wait after {deadline_s:g} s")

    async def account(self, begin_ms: int = 0, end_ms: int = 0, bins: int = 0) -> SensorAccount:
        """Return the account of the chain, asked for where the database is.

        ``begin_ms``, ``end_ms``, ``bins``: as in `AccountSettings`.

        Raises:
            QnodeError: the database does not answer.
        """
        settings = AccountSettings(
            spool=self.spool,
            journal=self.directory / "journal.jsonl",
            url=self.url,
            database=DATABASE,
            begin_ms=begin_ms,
            end_ms=end_ms,
            bins=bins,
        )
        command = [*self._settings.at_edge, *_module("account", self._write("account", settings))]
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode != 0:
            raise QnodeError(f"no account: {done.stderr.decode(errors='replace').strip()}")
        return msgspec.json.decode(done.stdout, type=SensorAccount)


async def _within(deadline_s: float, holds: Callable[[], bool]) -> bool:
    """Look until ``holds``, at most for ``deadline_s``; return whether it does. It looks at files."""
    deadline = trio.current_time() + deadline_s
    while not holds():
        if trio.current_time() >= deadline:
            return False
        await trio.sleep(_LOOK_S)
    return True


def _items(settings: Struct) -> list[tuple[str, object]]:
    return [(name, getattr(settings, name)) for name in settings.__struct_fields__]


def _module(name: str, settings: Path) -> list[str]:
    return [sys.executable, "-m", f"qnode.testbed.sensors.{name}", str(settings)]
