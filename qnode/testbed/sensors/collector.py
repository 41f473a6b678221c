"""The collector at the edge: drains the spool across the tunnel into the database.

It acknowledges a record only when the database has taken it, or has refused it for good and the journal has
it. It keeps no place of its own: after a crash it begins where the spool says, and what it writes again is
the same point. So every record is stored exactly once.
"""

import os
from pathlib import Path
from typing import Final

import msgspec
import trio
from msgspec import Struct

from qnode.addresses import host_and_port
from qnode.config.reading import Impossible
from qnode.influxdb import InfluxDb
from qnode.testbed.sensors.influxdb import line_of
from qnode.testbed.sensors.part import address_faults, run_trio, say, settings_of_command, write_status
from qnode.testbed.sensors.record import DamagedRecord, decode
from qnode.testbed.sensors.spool_line import Batch, LineBroken, Take, receive, send
from qnode.testbed.sensors.spool_server import WAIT_S

COLLECTING: Final = "collecting"
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 8.0
_ANSWER_S: Final = WAIT_S + 5.0
_CONNECT_S: Final = 5.0


class CollectorSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the collector reads and writes.

    ``spool``: HOST:PORT of the spool server. ``url``: of InfluxDB. ``journal``: file of what was set aside.
    ``batch``: most records of one write.
    """

    spool: str
    url: str
    database: str
    journal: Path
    status: Path
    batch: int = 500

    def __post_init__(self) -> None:
        Impossible.check(address_faults(spool=self.spool))


class SetAside(Struct, frozen=True, tag="set_aside"):
    """A record that the database refused for good, with its words."""

    spool: str
    number: int
    line: str
    because: str


class Absent(Struct, frozen=True, tag="absent"):
    """Numbers ``first`` to ``last`` that the spool had no more: it was full, or they were damaged."""

    spool: str
    first: int
    last: int


class Journal:
    """The file of records that will never be in the database; written before they are acknowledged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set_aside: dict[tuple[str, int], SetAside] = {}
        self.absent: dict[tuple[str, int, int], Absent] = {}
        for line in path.read_bytes().splitlines() if path.exists() else []:
            try:
                self._know(msgspec.json.decode(line, type=SetAside | Absent))
            except msgspec.MsgspecError:  # torn by a crash before it was acknowledged: it comes again
                continue

    def _know(self, entry: SetAside | Absent) -> bool:
        if isinstance(entry, SetAside):
            return self.set_aside.setdefault((entry.spool, entry.number), entry) is entry
        return self.absent.setdefault((entry.spool, entry.first, entry.last), entry) is entry

    def add(self, entries: list[SetAside | Absent]) -> None:
        """Write entries that are new."""
        new = [entry for entry in entries if self._know(entry)]
        if new:
            with self._path.open("ab") as file:
                # The new line first: what a crash tore before is then a line of its own.
                file.write(b"".join(b"\n" + msgspec.json.encode(entry) for entry in new))
                file.flush()
                os.fsync(file.fileno())

    def counts(self, spool: str) -> tuple[int, int]:
        """Return how many records of ``spool`` were set aside, and how many were absent."""
        aside = sum(1 for name, _ in self.set_aside if name == spool)
        absent = reach = 0
        # A hole that grew before it was acknowledged is there twice.
        for name, first, last in sorted(self.absent):
            if name == spool:
                absent += max(0, last - max(first - 1, reach))
                reach = max(reach, last)
        return aside, absent


class CollectorStatus(Struct, kw_only=True):
    """The figures of a collector; ``acknowledged``: the number up to which everything is dealt with."""

    spool: str
    acknowledged: int
    set_aside: int
    absent: int
    state: str


class Collector:
    """Drains one spool into one database."""

    def __init__(self, settings: CollectorSettings, database: InfluxDb) -> None:
        self._settings, self._database = settings, database
        self._journal = Journal(settings.journal)
        self._state = "starting"
        self._spool, self._acknowledged = "", 0

    def _tell(self, state: str) -> None:
        if state != self._state:
            say(f"collector.{state}")
        self._state = state
        aside, absent = self._journal.counts(self._spool)
        status = CollectorStatus(
            spool=self._spool, acknowledged=self._acknowledged, set_aside=aside, absent=absent, state=state
        )
        write_status(self._settings.status, status)

    def _tell_away(self, because: str) -> None:
        self._tell(f"waits for the database: {because}")

    async def run(self) -> None:
        """Collect until cancelled; whatever fails is tried again after a pause that doubles up to 8 s."""
        pause_s = _FIRST_PAUSE_S
        while True:
            before = self._acknowledged
            try:
                await self._drain()
            except (LineBroken, OSError, trio.TooSlowError) as error:
                self._tell(f"waits for the spool: {error or 'no answer'}")
            if self._acknowledged > before:
                pause_s = _FIRST_PAUSE_S
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _drain(self) -> None:
        host, port = host_and_port(self._settings.spool, "spool")
        with trio.fail_after(_CONNECT_S):
            stream = await trio.open_tcp_stream(host, port)
        async with stream:
            after: int | None = None
            while True:
                with trio.fail_after(_ANSWER_S):
                    await send(stream, Take(self._spool, after, self._settings.batch))
                    batch = await receive(stream, Batch)
                # What was stored last is acknowledged at the spool now.
                self._spool, self._acknowledged = batch.spool, batch.after
                self._tell(COLLECTING)
                after = await self._store(batch)

    async def _store(self, batch: Batch) -> int:
        """Store a batch, and return the number up to which everything is dealt with."""
        try:
            records = [decode(raw) for raw in batch.records]
        except DamagedRecord as error:
            raise LineBroken(f"a record was damaged on its way: {error}") from None
        numbers = [record.number for record in records]
        if numbers != sorted(set(numbers)) or (numbers and numbers[0] <= batch.after):
            raise LineBroken("records out of order")
        absent: list[SetAside | Absent] = [
            Absent(batch.spool, before + 1, number - 1)
            for before, number in zip([batch.after, *numbers], numbers, strict=False)
            if number > before + 1
        ]
        lines = [line_of(record, batch.spool) for record in records]
        refused = await self._database.write_until_taken(lines, self._tell_away) if lines else {}
        aside = [
            SetAside(batch.spool, numbers[place], lines[place], words)
            for place, words in sorted(refused.items())
        ]
        if absent or aside:
            await trio.to_thread.run_sync(self._journal.add, [*absent, *aside])
            say(f"collector.journal: {len(aside)} refused, {sum(_many(entry) for entry in absent)} absent")
        return numbers[-1] if numbers else batch.after


def _many(entry: SetAside | Absent) -> int:
    return entry.last - entry.first + 1 if isinstance(entry, Absent) else 1


async def _main(settings: CollectorSettings) -> None:
    database = InfluxDb(settings.url, settings.database)
    try:
        await Collector(settings, database).run()
    finally:
        with trio.CancelScope(shield=True):
            await database.aclose()


def main() -> None:
    """Run the collector whose settings file is the one argument."""
    settings = settings_of_command(CollectorSettings)
    run_trio(lambda: _main(settings))


if __name__ == "__main__":
    main()
