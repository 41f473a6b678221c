"""The power meter and its reader: registers, faults of a meter, the grid of polls, OPC UA."""

import asyncio
import contextlib
import selectors
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pymodbus", reason="needs the extra testbed")
pytest.importorskip("asyncua", reason="needs the extra testbed")

from hypothesis import given
from hypothesis import strategies as st
from pymodbus.client import AsyncModbusTcpClient

from qnode.addresses import free_ports
from qnode.config.reading import convert
from qnode.errors import ConfigError
from qnode.testbed.sensors.load_curve import BURST_BEGIN_S, BURST_S, currents_a, measured
from qnode.testbed.sensors.modbus_meter import ModbusMeter
from qnode.testbed.sensors.modbus_server import show_by_modbus
from qnode.testbed.sensors.opcua_reader import SlotCollation, subscribe
from qnode.testbed.sensors.opcua_server import show_by_opcua
from qnode.testbed.sensors.plant import PlantSettings
from qnode.testbed.sensors.power_meter import BLOCKS, NAMES, QUANTITIES, from_registers, to_registers
from qnode.testbed.sensors.reader import ReaderSettings, Spooling, poll_on_grid
from qnode.testbed.sensors.record import Record
from qnode.testbed.sensors.slots import Outcome, PollFailed, StampClock
from qnode.testbed.sensors.spool import read_after

PATIENT_S = 60.0


def test_the_registers_are_those_of_the_manual() -> None:
    manual = {
        "voltage_l1_n_v": 1,
        "voltage_l3_l1_v": 11,
        "current_l1_a": 13,
        "current_l3_a": 17,
        "apparent_power_l1_va": 19,
        "active_power_l1_w": 25,
        "frequency_hz": 55,
        "apparent_power_va": 63,
        "active_power_w": 65,
        "power_factor": 69,
    }
    registers = {quantity.name: quantity.register for quantity in QUANTITIES}
    assert {name: registers[name] for name in manual} == manual
    assert BLOCKS == ((1, 30), (55, 16))


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
def test_values_are_the_same_after_their_registers(values: list[float]) -> None:
    registers = [register for value in values for register in to_registers(value)]
    assert from_registers(registers) == tuple(values)


def test_a_value_has_its_high_word_first() -> None:
    assert to_registers(230.0) == (0x4366, 0x0000)


def test_registers_that_are_no_whole_values_are_refused() -> None:
    with pytest.raises(ValueError, match="3 registers"):
        from_registers([1, 2, 3])


def test_the_load_has_its_burst_in_minute_25() -> None:
    quiet = [
        max(currents_a(float(second)))
        for second in range(0, 3600)
        if not 0 <= second - BURST_BEGIN_S < BURST_S
    ]
    burst = [min(currents_a(BURST_BEGIN_S + second)) for second in range(int(BURST_S))]
    assert BURST_BEGIN_S == 25 * 60
    assert min(burst) > 2 * max(quiet)
    assert measured(12.3) == measured(12.3) != measured(12.4)


def plant_settings() -> PlantSettings:
    modbus, opcua = free_ports(2)
    return PlantSettings(modbus=f"127.0.0.1:{modbus}", opcua=f"127.0.0.1:{opcua}", began=time.time())


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_the_meter_is_read_over_modbus_as_it_shows() -> None:
    settings = plant_settings()

    async def read() -> tuple[float, ...]:
        async with (
            show_by_modbus(settings),
            ModbusMeter("127.0.0.1", port_of(settings.modbus), PATIENT_S) as meter,
        ):
            return await meter.read()

    values = asyncio.run(read())
    shown = dict(zip(NAMES, values, strict=True))
    assert 220 < shown["voltage_l1_n_v"] < 240
    assert 380 < shown["voltage_l1_l2_v"] < 415
    assert 49.9 < shown["frequency_hz"] < 50.1
    assert shown["active_power_w"] == pytest.approx(
        shown["power_factor"] * shown["apparent_power_va"], rel=1e-4
    )


@pytest.mark.parametrize(("first", "count"), [(2, 2), (1, 3), (1, 31), (49, 2), (0, 2), (200, 2)])
def test_the_meter_refuses_a_read_that_cuts_a_value(first: int, count: int) -> None:
    settings = plant_settings()

    async def refused() -> bool:
        async with show_by_modbus(settings):
            client = AsyncModbusTcpClient("127.0.0.1", port=port_of(settings.modbus), timeout=PATIENT_S)
            await client.connect()
            answer = await client.read_input_registers(first, count=count)
            client.close()
            return answer.isError()

    assert asyncio.run(refused())


# A meter of the test answers each request as a list says, then as it should.
Answer = Callable[[asyncio.StreamWriter, bytes, bytes], Awaitable[None]]


def frame(header: bytes, body: bytes) -> bytes:
    return header[:4] + struct.pack(">H", len(body) + 1) + header[6:7] + body


def right_answer(header: bytes, request: bytes, value: float) -> bytes:
    _, _, count = struct.unpack(">BHH", request)
    registers = [register for _ in range(count // 2) for register in to_registers(value)]
    return frame(header, struct.pack(f">BB{count}H", 3, 2 * count, *registers))


@contextlib.asynccontextmanager
async def scripted_meter(*script: Answer) -> AsyncIterator[tuple[int, list[int]]]:
    """Serve a meter whose values are the number of the connection; yields its port and its connections."""
    left, connections = list(script), [0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections[0] += 1
        value = float(connections[0])
        try:
            while True:
                header = await reader.readexactly(7)
                request = await reader.readexactly(int.from_bytes(header[4:6], "big") - 1)
                if left:
                    await left.pop(0)(writer, header, request)
                else:
                    writer.write(right_answer(header, request, value))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], connections


async def silent(writer: asyncio.StreamWriter, header: bytes, request: bytes) -> None:
    """Never answer."""


async def closing(writer: asyncio.StreamWriter, header: bytes, request: bytes) -> None:
    writer.close()


async def short(writer: asyncio.StreamWriter, header: bytes, request: bytes) -> None:
    writer.write(frame(header, struct.pack(">BBHH", 3, 4, *to_registers(7.0))))


async def empty(writer: asyncio.StreamWriter, header: bytes, request: bytes) -> None:
    writer.write(frame(header, b"\x03\x00"))


async def busy(writer: asyncio.StreamWriter, header: bytes, request: bytes) -> None:
    writer.write(frame(header, b"\x83\x06"))


async def garbage(writer: asyncio.StreamWriter, header: bytes, request: bytes) -> None:
    writer.write(b"\xff" * 40)


async def other_transaction(writer: asyncio.StreamWriter, header: bytes, request: bytes) -> None:
    other = bytes([header[0], header[1] ^ 0x55]) + header[2:]
    writer.write(right_answer(other, request, 99.0))


async def _late(writer: asyncio.StreamWriter, header: bytes, request: bytes) -> None:
    await asyncio.sleep(0.6)
    writer.write(right_answer(header, request, 99.0))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (silent, "timeout"),
        (_late, "timeout"),
        (closing, "disconnected"),
        (short, "wrong_answer"),
        (empty, "wrong_answer"),
        (busy, "exception"),
        (garbage, "timeout"),
        (other_transaction, "timeout"),
    ],
)
def test_a_faulty_answer_is_one_missed_poll_with_its_reason_and_shifts_nothing(
    fault: Answer, reason: str
) -> None:
    async def polls() -> list[Any]:
        found: list[Any] = []
        async with scripted_meter(fault) as (port, _), ModbusMeter("127.0.0.1", port, 0.4) as meter:
            for _ in range(3):
                try:
                    found.append(await meter.read())
                except PollFailed as failed:
                    found.append(failed.reason)
                await asyncio.sleep(0.25)  # a late answer arrives now
        return found

    second = (2.0,) * len(NAMES)  # the values of the second connection
    assert asyncio.run(polls()) == [reason, second, second]


def test_a_meter_that_is_not_there_is_a_missed_poll() -> None:
    (port,) = free_ports(1)

    async def read() -> None:
        async with ModbusMeter("127.0.0.1", port, PATIENT_S) as meter:
            await meter.read()

    with pytest.raises(PollFailed, match="no connection") as failed:
        asyncio.run(read())
    assert failed.value.reason == "disconnected"


def test_good_readings_use_one_connection() -> None:
    async def count() -> int:
        async with (
            scripted_meter() as (port, connections),
            ModbusMeter("127.0.0.1", port, PATIENT_S) as meter,
        ):
            for _ in range(5):
                assert await meter.read() == (1.0,) * len(NAMES)
            return connections[0]

    assert asyncio.run(count()) == 1


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes as soon as everybody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_Instant(self))

    def time(self) -> float:
        return self.now_s


class _Instant(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout:
            self._loop.now_s += timeout
        return super().select(0)


class VirtualStamps(StampClock):
    def __init__(self, loop: VirtualLoop, start_ms: float) -> None:
        self._loop, self._start_ms = loop, start_ms

    def now_ms(self) -> float:
        return self._start_ms + 1000 * self._loop.now_s


@given(
    st.lists(st.one_of(st.floats(0, 0.08), st.floats(0, 1.0)), min_size=1, max_size=40),
    st.integers(0, 99),
)
def test_polls_stay_on_the_grid_whatever_each_takes(takes_s: list[float], phase_ms: int) -> None:
    loop = VirtualLoop()
    clock = VirtualStamps(loop, 5000.0 + phase_ms)
    left = list(takes_s)
    begun: list[float] = []
    outcomes: list[Outcome] = []

    async def poll() -> tuple[float, ...]:
        begun.append(clock.now_ms())
        await asyncio.sleep(left.pop(0))
        if not left:
            raise asyncio.CancelledError
        return (1.0,)

    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(poll_on_grid(poll, 100, clock, None, outcomes.append))
    loop.close()
    slots = [outcome.slot for outcome in outcomes]
    assert slots == sorted(set(slots))
    for slot, start_ms, took_s in zip(slots, begun, takes_s, strict=False):
        assert slot * 100 <= start_ms + 1e-6 < (slot + 1) * 100 + 1e-6
        assert took_s > 0.08 or start_ms <= slot * 100 + 101
    for before, after, took_s in zip(slots, slots[1:], takes_s, strict=False):
        if took_s <= 0.08 and begun[slots.index(before)] < before * 100 + 19:
            assert after == before + 1


def reader_settings(tmp_path: Path, **changes: Any) -> ReaderSettings:
    plain = {"source": "modbus", "meter": "127.0.0.1:1", "spool": "spool", "status": "reader.json", **changes}
    return convert(plain, ReaderSettings, where="reader.toml", folder=tmp_path)


def test_a_timeout_as_long_as_the_period_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="timeout_ms: 100 must be less than period_ms, 100"):
        reader_settings(tmp_path, timeout_ms=100)
    with pytest.raises(ConfigError, match="unknown key perod_ms, did you mean period_ms"):
        reader_settings(tmp_path, perod_ms=100)


def spooled(settings: ReaderSettings, *runs: list[Outcome]) -> list[Record]:
    async def run(outcomes: list[Outcome]) -> None:
        spooling = Spooling(settings, "not_polled")
        task = asyncio.create_task(spooling.run())
        await asyncio.sleep(0)
        for outcome in outcomes:
            spooling.put(outcome)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    for outcomes in runs:
        asyncio.run(run(outcomes))
    return read_after(settings.spool, 0, 1000)


def test_every_slot_is_a_reading_or_in_a_gap_with_its_reason(tmp_path: Path) -> None:
    value = (1.5,) * len(NAMES)
    records = spooled(
        reader_settings(tmp_path),
        [Outcome(10, value), Outcome(11, reason="timeout"), Outcome(14, value), Outcome(14, value)],
        [Outcome(20, value)],
    )
    assert [(r.number, r.time_ms, r.reason, r.polls) for r in records] == [
        (1, 1000, None, 1),
        (2, 1100, "timeout", 1),
        (3, 1200, "not_polled", 2),
        (4, 1400, None, 1),
        (5, 1500, "not_running", 5),
        (6, 2000, None, 1),
    ]
    assert (records[-1].readings, records[-1].missed) == (3, 8)


def test_a_spool_begins_with_its_first_reading_and_counts_every_poll_from_there(tmp_path: Path) -> None:
    value = (1.5,) * len(NAMES)
    away = [Outcome(slot, reason="disconnected") for slot in (7, 8)]
    records = spooled(
        reader_settings(tmp_path), away, [*away, Outcome(9, value)], [Outcome(11, reason="timeout")]
    )
    assert [(r.time_ms, r.reason, r.polls) for r in records] == [
        (900, None, 1),
        (1000, "not_running", 1),
        (1100, "timeout", 1),
    ]


def test_a_time_stamp_far_away_is_one_gap_and_one_before_it_is_left_out(tmp_path: Path) -> None:
    value = (1.5,) * len(NAMES)
    records = spooled(
        reader_settings(tmp_path), [Outcome(0, value), Outcome(2**35, value), Outcome(5, value)]
    )
    assert [(r.time_ms, r.reason, r.polls) for r in records] == [
        (0, None, 1),
        (100, "not_polled", 2**32 - 1),
        (2**35 * 100, None, 1),
    ]


def test_time_stamps_go_on_from_the_spool_when_the_clock_is_behind() -> None:
    ahead_ms = time.time() * 1000 + 3_600_000
    clock = StampClock(ahead_ms)
    assert clock.now_ms() >= ahead_ms
    assert clock.behind_ms == pytest.approx(3_600_000, abs=60_000)


def test_values_of_a_slot_are_put_together_and_incomplete_slots_left_out() -> None:
    outcomes: list[Outcome] = []
    collation = SlotCollation(100, outcomes.append)

    def add(slot: int, indices: range) -> None:
        for index in indices:
            collation.add(index, float(slot), datetime.fromtimestamp(slot / 10, UTC))

    every = range(len(NAMES))
    add(100, every)
    add(101, every[:-1])
    add(103, every)
    add(102, every)  # as late as this it is no longer of use
    assert [outcome.slot for outcome in outcomes] == [100, 103, 102]
    assert outcomes[1].values == (103.0,) * len(NAMES)


def test_the_meter_is_read_by_an_opcua_subscription_also_after_a_restart(tmp_path: Path) -> None:
    plant = plant_settings()
    settings = reader_settings(tmp_path, source="opcua", meter=plant.opcua)

    async def serve_until(holds: Callable[[], bool]) -> None:
        ready = asyncio.Event()
        server = asyncio.create_task(show_by_opcua(plant, ready))
        await ready.wait()
        deadline_s = time.monotonic() + PATIENT_S
        while not holds() and time.monotonic() < deadline_s:  # noqa: ASYNC110  it looks at another's figures
            await asyncio.sleep(0.05)
        server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server

    async def run() -> None:
        spooling = Spooling(settings, "not_sent")
        tasks = [asyncio.create_task(subscribe(settings, spooling)), asyncio.create_task(spooling.run())]

        def readings() -> int:
            return spooling.spool.last_record.readings if spooling.spool.last_record else 0

        await serve_until(lambda: readings() >= 10)
        before = readings()
        await serve_until(lambda: readings() >= before + 10)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(run())
    records = read_after(settings.spool, 0, 1000)
    for record in records:
        if record.reason is None:
            shown = plant.values(record.time_ms // 100)
            assert record.values == tuple(struct.unpack("<f", struct.pack("<f", value))[0] for value in shown)
    covered = [record.time_ms // 100 + n for record in records for n in range(record.polls)]
    assert covered == list(range(covered[0], covered[0] + len(covered)))
    assert "not_sent" in {record.reason for record in records}
