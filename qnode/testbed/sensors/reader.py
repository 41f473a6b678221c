"""The reader at the plant: polls the meter at fixed times and spools each reading, or why it is missing.

A poll has less time than a period, so that none delays the next. Its connection carries one request at a time
in Modbus' TCP framing, and is closed after every poll that failed: an answer that comes late finds nobody.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from qnode.addresses import host_and_port
from qnode.config.reading import Impossible
from qnode.testbed.sensors.part import (
    address_faults,
    quiet,
    run_asyncio,
    say,
    settings_of_command,
    write_status,
)
from qnode.testbed.sensors.record import MOST_POLLS, Reason
from qnode.testbed.sensors.slots import Outcome, PollFailed, StampClock, missed_between
from qnode.testbed.sensors.spool import ReadingSpool

# Outcomes that wait for a slow disk; what comes on top is a gap.
_MOST_WAITING: Final = 600
_SYNC_PERIOD_S: Final = 1.0


class ReaderSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the meter is, how often it is read, and where the spool lies.

    ``meter``: HOST:PORT of its Modbus TCP server, or of its OPC UA server. ``most_bytes``: bound of the
    spool. ``status``: file with the reader's figures, replaced once a second.
    """

    source: Literal["modbus", "opcua"]
    meter: str
    spool: Path
    status: Path
    period_ms: Annotated[int, Meta(ge=10, le=60_000)] = 100
    timeout_ms: Annotated[int, Meta(ge=1)] = 80
    device_id: Annotated[int, Meta(ge=0, le=255)] = 1
    most_bytes: Annotated[int, Meta(ge=1)] = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        faults = address_faults(meter=self.meter)
        if self.timeout_ms >= self.period_ms:
            faults.append(f"timeout_ms: {self.timeout_ms} must be less than period_ms, {self.period_ms}")
        Impossible.check(faults)


class ReaderStatus(Struct, kw_only=True):
    """The figures of a reader: of the whole spool, and by reason since this process began."""

    spool: str
    number: int
    readings: int
    missed: int
    reasons: dict[str, int]
    connected: bool


Poll = Callable[[], Awaitable[tuple[float, ...]]]
Put = Callable[[Outcome], None]


class Spooling:
    """Takes outcomes and writes them to the spool in the order of their slots; what lies between is a gap.

    A spool begins with a reading: before the meter has answered once there is nothing to count from.
    """

    def __init__(self, settings: ReaderSettings, left_out: Reason) -> None:
        self._settings = settings
        self.spool = ReadingSpool(settings.spool, settings.most_bytes)
        last = self.spool.last_record
        self.last_slot = None if last is None else last.time_ms // settings.period_ms + last.polls - 1
        self._between: Reason = "not_running"
        self._left_out = left_out
        self._queue: asyncio.Queue[Outcome] = asyncio.Queue(_MOST_WAITING)
        self._reasons: Counter[str] = Counter()
        self.connected = False

    def put(self, outcome: Outcome) -> None:
        """Hand over an outcome; with a full queue it is left out, and later counted as missed."""
        try:
            self._queue.put_nowait(outcome)
        except asyncio.QueueFull:
            say("the disk is too slow: a poll is missed")

    async def run(self) -> None:
        """Write what comes until cancelled; then write what is left, and close the spool."""
        beat = asyncio.create_task(self._sync_and_tell())
        try:
            while True:
                await self._write(await self._queue.get())
        finally:
            beat.cancel()
            while not self._queue.empty():
                self._append(self._queue.get_nowait())
            self.spool.close()
            self._tell()

    async def _write(self, outcome: Outcome) -> None:
        # Shielded: a cancelled append would go on in its thread beside the last ones.
        work = asyncio.ensure_future(asyncio.to_thread(self._append, outcome))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await work
            raise
        except OSError as error:  # the slot stays missing, so the next append tells of the gap
            say(f"{self._settings.spool}: {error.strerror or error}: a poll is missed")

    def _append(self, outcome: Outcome) -> None:
        if outcome.reason is not None:
            self._reasons[outcome.reason] += 1
            if self.last_slot is None:
                return
        missed = missed_between(self.last_slot, outcome.slot)
        period_ms = self._settings.period_ms
        if self.last_slot is not None and outcome.slot <= self.last_slot:  # only an OPC UA server does that
            if not self._reasons["stamped_earlier"]:
                say("opcua.stamped_earlier: values with time stamps that are spooled already are left out")
            self._reasons["stamped_earlier"] += 1
            return
        if missed:
            polls = min(missed.stop - missed.start, MOST_POLLS)
            self.spool.put(missed.start * period_ms, reason=self._between, polls=polls)
            self._reasons[self._between] += polls
            self.last_slot, self._between = missed.stop - 1, self._left_out
        self.spool.put(outcome.slot * period_ms, outcome.values, outcome.reason)
        self.last_slot, self._between = outcome.slot, self._left_out

    async def _sync_and_tell(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_PERIOD_S)
            try:
                await asyncio.to_thread(self.spool.sync)
                self._tell()
            except OSError as error:
                say(f"{self._settings.spool}: {error}")

    def _tell(self) -> None:
        last = self.spool.last_record
        status = ReaderStatus(
            spool=self.spool.identity,
            number=last.number if last else 0,
            readings=last.readings if last else 0,
            missed=last.missed if last else 0,
            reasons=dict(self._reasons),
            connected=self.connected,
        )
        write_status(self._settings.status, status)


async def poll_on_grid(
    poll: Poll, period_ms: int, clock: StampClock, last_slot: int | None, put: Put
) -> None:
    """Call ``poll`` at each slot of the grid, until cancelled; a slot that passed meanwhile is left out."""
    last = last_slot
    while True:
        slot = int(clock.now_ms() // period_ms)
        if last is not None and slot <= last:
            await asyncio.sleep(((last + 1) * period_ms - clock.now_ms()) / 1000)
            continue
        last = slot
        try:
            put(Outcome(slot, await poll()))
        except PollFailed as failed:
            put(Outcome(slot, reason=failed.reason))


async def _main(settings: ReaderSettings) -> None:
    modbus = settings.source == "modbus"
    spooling = Spooling(settings, "not_polled" if modbus else "not_sent")
    writing = asyncio.create_task(spooling.run())
    if modbus:
        reading = asyncio.create_task(_poll_modbus(settings, spooling))
    else:
        from qnode.testbed.sensors.opcua_reader import subscribe

        reading = asyncio.create_task(subscribe(settings, spooling))
    try:
        await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        writing.cancel()
        await asyncio.wait({writing})
    for task in (reading, writing):
        if not task.cancelled():
            task.result()


async def _poll_modbus(settings: ReaderSettings, spooling: Spooling) -> None:
    from qnode.testbed.sensors.modbus_meter import ModbusMeter

    last = spooling.last_slot
    clock = StampClock(0.0 if last is None else (last + 1) * settings.period_ms)
    if clock.behind_ms:
        say(f"the clock is {clock.behind_ms / 1000:.1f} s behind the spool: stamps go on from its last one")
    host, port = host_and_port(settings.meter, "meter")
    async with ModbusMeter(host, port, settings.timeout_ms / 1000, settings.device_id) as meter:
        news = True

        async def poll() -> tuple[float, ...]:
            nonlocal news
            try:
                values = await meter.read()
            except PollFailed as failed:
                if news:
                    say(f"meter.lost: {failed.reason}: {failed}")
                news = spooling.connected = False
                raise
            news = True
            if not spooling.connected:
                say("meter.read")
            spooling.connected = True
            return values

        await poll_on_grid(poll, settings.period_ms, clock, last, spooling.put)


def main() -> None:
    """Run the reader whose settings file is the one argument."""
    settings = settings_of_command(ReaderSettings)
    quiet("asyncua", "pymodbus.logging")
    run_asyncio(lambda: _main(settings))


if __name__ == "__main__":
    main()
