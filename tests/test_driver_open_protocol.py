"""The drivers of the open device protocol against their emulators, over real ports."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from open_protocol_support import ScriptedSupply, SteadySupply, at_port, is_safe, transmitter_emulator
from qnode_drivers.open_protocol import Entry, Kind, Parameter, encode_entries, frame, start
from qnode_drivers.open_protocol_tdc import OpenTdc, OpenTdcConfig, TdcWithPhase
from qnode_drivers.open_protocol_transmitter import (
    OpenTransmitter,
    OpenTransmitterConfig,
    TransmitterWithBoth,
)

from qnode.config import LinkParameters, convert
from qnode.devices.capabilities import BiasControl, PhaseControl, PowerMonitor
from qnode.devices.conformance import check_driver
from qnode.devices.protocols import EmissionRun
from qnode.devices.transport import open_transport
from qnode.devices.transport.transcript import PRESENT, Transcript
from qnode.emulate.open_protocol import HELLO, built_frame
from qnode.emulate.open_protocol_tdc import OpenTdcEmulator
from qnode.emulate.open_protocol_transmitter import OpenTransmitterEmulator
from qnode.errors import ConfigError, DeviceError, DeviceGone, TransientDeviceError
from qnode.simulate.fibre_address import fibre_at
from qnode.simulate.parameters import SimulationParameters
from qnode.simulate.tdc import open_receiver
from qnode.tags.types import UNKNOWN_SYMBOL, Slots, TagBlock

PATIENCE_S = 60.0
MS = 10**9  # ps


async def collected(device: OpenTdc, until_ps: int) -> list[TagBlock]:
    """Return the blocks of tags up to a time."""
    blocks = []
    with trio.fail_after(PATIENCE_S):
        async with aclosing(device.tags()) as tags:
            async for block in tags:
                blocks.append(block)
                if block.until_ps >= until_ps:
                    break
    return blocks


def tags_of(blocks: list[TagBlock]) -> list[tuple[int, int]]:
    return [
        (time, channel)
        for block in blocks
        for time, channel in zip(block.times_ps.tolist(), block.channels.tolist(), strict=True)
    ]


async def until(holds: Callable[[], bool]) -> None:
    """Wait until an emulator has come so far."""
    with trio.fail_after(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 (it has no events for tests)
            await trio.sleep(0.001)


async def give_when_running(supply: ScriptedSupply, device: OpenTdcEmulator, blocks: int) -> None:
    """Let ``blocks`` of 500 tags click, one a millisecond, once the host has started the stream."""
    await until(lambda: device.running)
    random = np.random.default_rng(2)
    for number in range(blocks):
        times = np.sort(random.integers(number * MS, (number + 1) * MS, 500)).tolist()
        supply.give(times, random.integers(0, 2, 500).tolist(), (number + 1) * MS)
        await trio.sleep(0.001)
    for number in range(20):  # the last frames may be damaged too
        supply.give([], [], (blocks + number + 1) * MS)
        await trio.sleep(0.03)


@pytest.mark.parametrize("port", ["tcp", "pty", "usb"])
async def test_tdc_conforms(port: str) -> None:
    phases: list[float] = []
    device = OpenTdcEmulator(SteadySupply(), simulated=False, set_phase=phases.append)
    async with at_port(device, port) as address:
        await check_driver(OpenTdc, {"address": address}, is_safe=lambda: is_safe(device))


@pytest.mark.parametrize("port", ["tcp", "pty", "usb"])
async def test_transmitter_conforms(tmp_path: Path, port: str) -> None:
    device = transmitter_emulator(tmp_path)
    async with at_port(device, port) as address:
        await check_driver(OpenTransmitter, {"address": address}, is_safe=lambda: is_safe(device))


@pytest.mark.parametrize("fault", ["none", "damage", "dropped frames", "full buffer", "overflow"])
async def test_each_tag_comes_once_or_is_counted_as_lost(fault: str) -> None:
    supply = ScriptedSupply()
    device = OpenTdcEmulator(supply, buffer_tags=400 if fault == "full buffer" else 1 << 20)
    damage = 3e-4 if fault == "damage" else 0.0
    blocks = 40
    async with at_port(device, damage=damage) as address, OpenTdc.open(OpenTdcConfig(address=address)) as tdc:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_when_running, supply, device, blocks)
            if fault == "dropped frames":
                device.drop_frames = 7
            elif fault == "overflow":
                device.overflow_tags = 3001
            got = await collected(tdc, (blocks + 1) * MS)
            nursery.cancel_scope.cancel()
        readings = await tdc.readings()
    tags, lost = tags_of(got), sum(block.lost for block in got)
    kept = iter(supply.sent)
    assert all(tag in kept for tag in tags)  # in order, none wrong, none twice
    assert len(tags) + lost == len(supply.sent) == 500 * blocks
    assert readings["tags_lost_count"] == lost
    assert (lost > 0) == (fault != "none")
    assert len(tags) > 0
    if fault == "overflow":
        assert lost == 3001


async def test_tags_of_unused_inputs_are_not_asked_for() -> None:
    supply = ScriptedSupply()
    device = OpenTdcEmulator(supply)
    async with (
        at_port(device) as address,
        OpenTdc.open(OpenTdcConfig(address=address, z_input=2, x_input=0)) as tdc,
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def give() -> None:
            await until(lambda: device.running)
            supply.give([1, 2, 3, 4], [0, 1, 2, 3], MS)
            await trio.sleep(0.05)
            supply.give([], [], 2 * MS)

        got = await collected(tdc, 2 * MS)
    assert tags_of(got) == [(1, 1), (3, 0)]


async def exhausted(tags: AsyncGenerator[TagBlock, None]) -> None:
    async for _ in tags:
        pass


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_tdc_that_begins_to_count_anew_is_opened_again(is_told: bool) -> None:
    device = OpenTdcEmulator(SteadySupply())
    async with (
        at_port(device) as address,
        OpenTdc.open(OpenTdcConfig(address=address)) as tdc,
        aclosing(tdc.tags()) as tags,
    ):
        await anext(tags)
        device.silent = not is_told  # else only the next answer to NOW shows it
        await device.begin_again()
        device.silent = False
        with trio.fail_after(PATIENCE_S), pytest.raises(TransientDeviceError, match="anew"):
            await exhausted(tags)


@asynccontextmanager
async def emitting(
    device: OpenTransmitterEmulator, damage: float = 0.0
) -> AsyncIterator[tuple[OpenTransmitter, EmissionRun]]:
    """Open the transmitter and follow its runs; gives it with its first run."""
    async with (
        at_port(device, damage=damage) as address,
        OpenTransmitter.open(OpenTransmitterConfig(address=address)) as opened,
        aclosing(opened.runs()) as runs,
    ):
        yield opened, await anext(runs)


def truth(device: OpenTransmitterEmulator, slots: Slots) -> list[int]:
    assert device.end is not None
    return [int(code) for code in device.end.symbols(device.end.emission_run.run_id, slots)]


async def looked_up(opened: OpenTransmitter, run_id: int, slots: Slots) -> list[int]:
    return [int(code) for code in await trio.to_thread.run_sync(opened.symbols, run_id, slots)]


@pytest.mark.parametrize("damage", [0.0, 2e-5])
async def test_symbols_are_those_sent_from_several_threads_at_a_time(tmp_path: Path, damage: float) -> None:
    device = transmitter_emulator(tmp_path)
    random = np.random.default_rng(4)
    async with emitting(device, damage) as (opened, run):
        batches = [np.unique(random.integers(0, 10**7, size)) for size in (1, 3, 251, 252, 253, 9000, 20_000)]
        batches += [np.arange(1000, 1_001_000), np.array([7, 7, 3, -1, 99]), np.empty(0, np.int64)]
        answers: dict[int, list[int]] = {}
        await until(lambda: device.sent_slots() > 10**7)

        async def look_up(number: int) -> None:
            answers[number] = await looked_up(opened, run.run_id, batches[number])

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for number in range(len(batches)):
                    nursery.start_soon(look_up, number)
        for number, slots in enumerate(batches):
            assert answers[number] == truth(device, slots)
        readings = await opened.readings()
    assert (readings["broken_frames_count"] > 0) == (damage > 0)


async def test_slots_outside_the_ring_and_of_other_runs_are_unknown(tmp_path: Path) -> None:
    device = transmitter_emulator(tmp_path)
    async with emitting(device) as (opened, run):
        await until(lambda: device.sent_slots() > 3)
        assert UNKNOWN_SYMBOL not in await looked_up(opened, run.run_id, np.arange(3))
        late = np.array([1 << 40, 1 << 61], np.int64)
        assert await looked_up(opened, run.run_id, late) == [UNKNOWN_SYMBOL] * 2
        assert await looked_up(opened, run.run_id + 1, np.arange(3)) == [UNKNOWN_SYMBOL] * 3
        device.settings[8, 0] = 0  # the ring is empty
        assert await looked_up(opened, run.run_id, np.arange(3)) == [UNKNOWN_SYMBOL] * 3


async def test_a_device_that_refuses_a_look_up_fails_with_its_reason(tmp_path: Path) -> None:
    device = transmitter_emulator(tmp_path)
    async with emitting(device) as (opened, run):
        device.refuses = {Kind.READ}
        with pytest.raises(DeviceError, match="symbols was refused with error 4: refused by the test"):
            await looked_up(opened, run.run_id, np.arange(5))


async def test_a_frame_of_an_unknown_kind_is_dropped_counted_and_not_recorded() -> None:
    record = Transcript()
    token = PRESENT.set(record)
    device = OpenTdcEmulator(SteadySupply())
    try:
        async with at_port(device) as address, OpenTdc.open(OpenTdcConfig(address=address)) as tdc:
            await device.send(built_frame(0x55, 0, b"from a later version"))
            assert (await tdc.readings())["unknown_frames_count"] == 1
    finally:
        PRESENT.reset(token)
    assert not any(b"later version" in exchange.data for exchange in record.exchanges())


async def test_symbols_of_a_count_that_began_meanwhile_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a device that does not look at the epoch of a request."""
    device = transmitter_emulator(tmp_path)
    async with emitting(device) as (opened, run):
        device.epoch += 1
        monkeypatch.setattr(device, "_looked_up", lambda _epoch, slots: np.ones(slots.size, np.uint8))
        assert await looked_up(opened, run.run_id, np.arange(5)) == [UNKNOWN_SYMBOL] * 5


async def test_a_transmitter_that_counts_slots_anew_begins_another_run(tmp_path: Path) -> None:
    """Bob's end of the fibre, which has a world of its own, lets Alice's slots begin again."""
    device = transmitter_emulator(tmp_path)
    fibre = fibre_at(str(tmp_path / "fibre" / "fibre.sock"))
    async with (
        open_receiver(fibre, SimulationParameters(), LinkParameters()),
        at_port(device) as address,
        OpenTransmitter.open(OpenTransmitterConfig(address=address)) as opened,
        aclosing(opened.runs()) as runs,
    ):
        with trio.fail_after(PATIENCE_S):
            first, second = await anext(runs), await anext(runs)
        assert first.run_id != second.run_id
        await until(lambda: device.sent_slots() > 3)
        assert await looked_up(opened, first.run_id, np.arange(3)) == [UNKNOWN_SYMBOL] * 3
        assert await looked_up(opened, second.run_id, np.arange(3)) == truth(device, np.arange(3))
        assert device.end is not None
        assert abs(second.started_at_s - device.end.emission_run.started_at_s) < 0.5


async def test_an_interlock_that_opens_ends_the_run_and_keeps_the_laser_off(tmp_path: Path) -> None:
    device = transmitter_emulator(tmp_path)
    async with emitting(device) as (opened, _):
        assert device.settings[6, 0] == 1
        await device.open_interlock()
        with pytest.raises(TransientDeviceError, match="interlock"):
            await opened.laser_state()
    assert is_safe(device)
    async with (
        at_port(device) as address,
        OpenTransmitter.open(OpenTransmitterConfig(address=address)) as opened,
    ):
        assert (await opened.laser_state()).interlock_closed is False
        with pytest.raises(DeviceError, match="interlock"):
            await opened.set_laser(True)
    assert is_safe(device)


def monitored(device: TransmitterWithBoth) -> tuple[BiasControl, PowerMonitor]:
    return device, device  # mypy compares the signatures


def phased(device: TdcWithPhase) -> PhaseControl:
    return device


async def test_bias_power_and_phase_are_capabilities_of_devices_that_have_them(tmp_path: Path) -> None:
    device = transmitter_emulator(tmp_path)
    async with emitting(device) as (opened, _):
        assert isinstance(opened, TransmitterWithBoth)
        assert await opened.power_w() == pytest.approx(1e-6)
        await opened.set_bias_v(1.25)
        assert device.end is not None
        half_wave_v = SimulationParameters().modulator_half_wave_v
        assert device.end.changed.modulator_bias_rad == pytest.approx(np.pi * 1.25 / half_wave_v)
        assert await opened.bias_v() == 1.25
        await opened.set_laser(False)
        assert await opened.power_w() == 0.0
    for name in ((9, 0), (9, 1), (9, 2), (10, 0)):
        del device.settings[name]
    async with emitting(device) as (opened, _):
        assert not isinstance(opened, BiasControl | PowerMonitor)
    phases: list[float] = []
    async with (
        at_port(OpenTdcEmulator(SteadySupply(), set_phase=phases.append)) as address,
        OpenTdc.open(OpenTdcConfig(address=address)) as tdc,
    ):
        assert isinstance(tdc, TdcWithPhase)
        await tdc.set_phase_rad(-1.5)
        assert phases[-1] == pytest.approx(-1.5)
    async with (
        at_port(OpenTdcEmulator(SteadySupply())) as address,
        OpenTdc.open(OpenTdcConfig(address=address)) as tdc,
    ):
        assert not isinstance(tdc, PhaseControl)


async def test_a_device_whose_host_has_crashed_becomes_safe_by_itself(tmp_path: Path) -> None:
    device = transmitter_emulator(tmp_path)
    device.silent_host_s = 0.1
    async with at_port(device) as address, open_transport(address) as port:
        await port.send(frame(Kind.SET, 1, encode_entries([Entry(Parameter.LASER, 0, 1)])))
        await port.send(frame(Kind.START, 2, start(1)))
        await until(lambda: device.running and device.settings[6, 0] == 1)
        await until(lambda: is_safe(device))


async def test_neither_tags_nor_symbols_reach_the_record_of_the_last_bytes(tmp_path: Path) -> None:
    record = Transcript()
    token = PRESENT.set(record)
    try:
        async with emitting(transmitter_emulator(tmp_path)) as (opened, run):
            await trio.to_thread.run_sync(opened.symbols, run.run_id, np.arange(10_000) * 2)
            await opened.readings()
        async with (
            at_port(OpenTdcEmulator(SteadySupply())) as address,
            OpenTdc.open(OpenTdcConfig(address=address)) as tdc,
        ):
            await collected(tdc, 0)
    finally:
        PRESENT.reset(token)
    kinds = {exchange.data[2] & 0x7F for exchange in record.exchanges()}
    assert {Kind.HELLO, Kind.SAFE, Kind.START, Kind.HEALTH} <= kinds
    assert not kinds & {Kind.LOOK_UP, Kind.READ, Kind.TAGS}


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({}, {"serial_number": "0815"}, "expected serial number 0815, .* has E-TDC-1"),
        ({"kind": 1}, {}, "expected a TDC, .* is TRANSMITTER"),
        ({"versions": (2, 3)}, {}, "speaks versions 2 to 3"),
        ({"tick": (0, 1)}, {}, "tick of the device is 0/1"),
        ({}, {"thresholds_v": (0.1, 4.0)}, "SET was refused with error 3: .*-2000000 to 2000000"),
        ({"model": "\x1b[2J"}, {}, "not three printable texts"),
    ],
)
async def test_a_device_that_is_not_the_configured_one_is_refused_with_the_reason(
    change: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    device = OpenTdcEmulator(SteadySupply())
    for name, value in change.items():
        setattr(device, name, value)
    if "tick" in change:
        device.settings[16, 0] = 0
    async with at_port(device) as address:
        with pytest.raises(DeviceError, match=message):
            async with OpenTdc.open(OpenTdcConfig(address=address, **config)):
                pass
    if message.startswith(("expected", "speaks", "not three")):
        assert set(device.requests) == {HELLO}  # another device is left as it is


@pytest.mark.parametrize("change", [{"kind": 1}, {"serial": "another"}])
async def test_another_device_in_its_place_counts_as_gone_so_that_the_right_one_is_soon_in_use_again(
    change: dict[str, Any],
) -> None:
    device = OpenTdcEmulator(SteadySupply())
    for name, value in change.items():
        setattr(device, name, value)
    async with at_port(device) as address:
        with pytest.raises(DeviceGone):
            async with OpenTdc.open(OpenTdcConfig(address=address, serial_number="E-TDC-1")):
                pass


async def test_a_pattern_that_reads_back_differently_is_refused(tmp_path: Path) -> None:
    device = transmitter_emulator(tmp_path)

    async def rounded() -> None:
        device.settings[3, 0] = 1 << 31 | 1 << 24

    device.settings_changed = rounded  # type: ignore[method-assign]
    async with at_port(device) as address:
        with pytest.raises(DeviceError, match=r"p_z 0: .* was set, .* reads back"):
            async with OpenTransmitter.open(OpenTransmitterConfig(address=address)):
                pass
    assert is_safe(device)


async def test_a_ring_that_is_too_short_is_refused(tmp_path: Path) -> None:
    device = transmitter_emulator(tmp_path)
    device.settings[8, 0] = 1000
    async with at_port(device) as address:
        with pytest.raises(DeviceError, match="record of symbols covers"):
            async with OpenTransmitter.open(OpenTransmitterConfig(address=address)):
                pass


async def read_for_ever(sensor: OpenTransmitter) -> None:
    while True:
        await sensor.readings()


async def test_a_device_that_stops_answering_fails_and_one_that_leaves_is_gone(tmp_path: Path) -> None:
    device = transmitter_emulator(tmp_path)
    async with emitting(device) as (opened, run):
        device.silent = True
        with pytest.raises(TransientDeviceError):
            await trio.to_thread.run_sync(opened.symbols, run.run_id, np.arange(3))
        device.silent = False
        assert device._stream is not None
        await device._stream.aclose()
        with trio.fail_after(PATIENCE_S), pytest.raises(DeviceGone):
            await read_for_ever(opened)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"address": "tcp://nowhere"}, "expected host:port"),
        ({"p": (0.7, 0.2)}, "sum to 1"),
        ({"p": (0.5, 0.25, 0.25), "levels": (1.0, 0.5, 0.0)}, "two of each"),
        ({"bin_spacing_ps": 2000}, "less than the slot, 1666.67 ps"),
        ({"p_z": 1.0}, "p_z"),
        ({"levels": (1.5, 0.4)}, "levels"),
    ],
)
def test_an_impossible_pattern_is_refused_before_any_device(config: dict[str, Any], message: str) -> None:
    table = {"address": "tcp://127.0.0.1:4711", **config}
    with pytest.raises(ConfigError, match=message):
        convert(table, OpenTransmitterConfig, where="[devices.transmitter.config]")
