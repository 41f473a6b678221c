"""S-Fifteen TDC1: the maker's bytes, the conformance kit over a real line, and faults of the line."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from qnode_drivers.s_fifteen_stream import TICKS_PER_S, Tdc1Stream
from qnode_drivers.s_fifteen_tdc1 import SFifteenTdc1, Tdc1Config
from supervised_driver_support import supervised

from qnode.config import LinkParameters, convert
from qnode.devices.conformance import check_driver
from qnode.devices.registry import driver_config
from qnode.devices.tag_channels import TagChannels
from qnode.devices.transport.transcript import PRESENT, Transcript
from qnode.emulate.bench import Bench, run_bench
from qnode.emulate.clicks import dark_counts
from qnode.emulate.ports import Faults, pty_port, tcp_port
from qnode.emulate.tdc1 import Tdc1Emulator
from qnode.errors import ConfigError, DeviceError, DeviceGone, TransientDeviceError
from qnode.simulate.generator import KNOT_S, Lit, TagGenerator
from qnode.simulate.parameters import Settings, SimulationParameters
from qnode.tags.formats.tdc1_words import WRAP_TICKS
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S

CHANNELS = {"z": 1, "x": 2}


def config(address: str, **more: Any) -> Tdc1Config:
    table = {"address": address, "channels": CHANNELS, **more}
    made = driver_config(SFifteenTdc1, table, "[devices.tdc.config]")
    assert isinstance(made, Tdc1Config)
    return made


# The maker's bytes

# One second of a real device in the dark, with two events, as the maker's example prints it.
RECORDED = bytes.fromhex("11ef0180 11ef0100 a12bca2c 11ef0100 11ef0180 11ef0100 a1faa509".replace(" ", ""))


class Script:
    """Answers as a device did, sends a recorded stream, and keeps what it was sent."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self.got = bytearray()
        self.answers = answers
        self.ended = trio.Event()

    async def serve(self, stream: trio.abc.Stream) -> None:
        pending = b""
        while data := await stream.receive_some(4096):
            self.got += data
            *lines, pending = (pending + data).split(b"\r\n")
            for line in lines:
                if line in self.answers:
                    await stream.send_all(self.answers[line])
        self.ended.set()


async def test_the_bytes_are_those_of_the_makers_library() -> None:
    start = b"INPKT;NEG -0.5;time 0;timestamp;counts?;"
    script = Script(
        {b"*IDN?": b"TDC1_00141\r\n", b"level?": b"-0.500 V\r\n", b"REFCLK?": b"0\r\n", start: RECORDED * 8}
    )
    with trio.fail_after(30):
        async with tcp_port(script) as address:
            async with SFifteenTdc1.open(config(address)) as device:
                blocks = device.tags()
                first = await anext(blocks)
                await blocks.aclose()
            await script.ended.wait()
    expected = (
        b"\r\nabort\r\n*IDN?\r\nNIM\r\nlevel?\r\nREFCLK 0\r\nREFCLK?\r\n" + start + b"\r\n\r\nabort\r\n"
    )
    assert bytes(script.got) == expected
    assert np.allclose(first.times_ps[:2] / 1e12, [0.31540089, 0.8154234], atol=1e-8)
    assert first.channels[:2].tolist() == [0, 0]


# Conformance


@pytest.mark.parametrize("port", [pty_port, tcp_port])
async def test_it_conforms(port: Callable[[Tdc1Emulator], Any]) -> None:
    emulator = Tdc1Emulator(dark_counts(5000.0))
    async with port(emulator) as place:
        address = place if "://" in place else f"serial://{place}"
        table = {"address": address, "channels": CHANNELS}
        await check_driver(SFifteenTdc1, table, order_window_ps=0)
        assert not emulator.streaming


# The tags


@asynccontextmanager
async def tagging(emulator: Tdc1Emulator, **more: Any) -> AsyncIterator[SFifteenTdc1]:
    async with (
        pty_port(emulator) as path,
        SFifteenTdc1.open(config(f"serial://{path}", **more)) as device,
    ):
        yield device


async def refuses(emulator: Tdc1Emulator, error: type[DeviceError], told: str, **more: Any) -> None:
    """Open the device, and expect an error then or while it streams."""
    async with pty_port(emulator) as path:
        with trio.fail_after(60), pytest.raises(error, match=told):  # noqa: PT012
            async with SFifteenTdc1.open(config(f"serial://{path}", **more)) as device:
                emulator.silent = True
                async for _ in device.tags():
                    pass


async def test_tags_come_in_both_channels_at_the_rate_of_the_clicks() -> None:
    with trio.fail_after(60):
        async with tagging(
            Tdc1Emulator(dark_counts(2000.0), z_input=3, x_input=4), channels={"z": 3, "x": 4}
        ) as tdc:
            blocks = tdc.tags()
            taken = [await anext(blocks) for _ in range(30)]
            readings = await tdc.readings()
            await blocks.aclose()
    channels = np.concatenate([block.channels for block in taken])
    passed_s = (taken[-1].until_ps - taken[0].until_ps) / PS_PER_S
    for channel in (0, 1):
        assert np.count_nonzero(channels == channel) == pytest.approx(2000 * passed_s, rel=0.25)
    assert readings["z_rate_hz"] == pytest.approx(2000, rel=0.3)


async def test_simulated_light_passes_emulator_and_driver_without_a_tag_uncounted_or_doubled() -> None:
    seen: list[TagBlock] = []

    async def clicks() -> AsyncGenerator[TagBlock, None]:
        generator = TagGenerator(SimulationParameters(seed=5), LinkParameters())
        began_s, knot = trio.current_time(), 0
        while True:
            knot += 5
            await trio.sleep_until(began_s + knot * KNOT_S)
            seen.append(generator.step(knot, Settings(), Lit(symbol_key=7, first_knot=0)))
            yield seen[-1]

    emulator = Tdc1Emulator(clicks)
    with trio.fail_after(120):
        async with tagging(emulator) as tdc:
            blocks = tdc.tags()
            taken = [await anext(blocks) for _ in range(25)]
            await blocks.aclose()
            zero = emulator._zero_ticks
    assert zero is not None
    until = taken[-1].until_ps // 2000
    ticks = np.concatenate([block.times_ps for block in seen]) // 2000 - zero
    sent = np.stack([ticks, np.concatenate([block.channels for block in seen])], 1)
    sent = np.unique(sent[(ticks >= 0) & (ticks <= until)], axis=0)  # one word for the clicks of a tick
    times_ps, channels = (
        np.concatenate([getattr(block, of) for block in taken]) for of in ("times_ps", "channels")
    )
    got = list(zip((times_ps // 2000).tolist(), channels.tolist(), strict=True))
    missing = set(map(tuple, sent.tolist())) - set(got)
    assert len(sent) > 1000
    assert len(got) == len(set(got)) == len(sent) - len(missing)
    # On a machine that stalls when the stream begins, words are in doubt once.
    assert len(missing) <= 2 * sum(block.lost for block in taken)
    assert emulator.overflowed == 0


async def test_it_stands_on_the_bench_of_emulated_devices(tmp_path: Path) -> None:
    device = {"kind": "s-fifteen-tdc1", "port": str(tmp_path / "tdc"), "serial_number": "00142"}
    made = convert({"device": [{**device, "fibre": str(tmp_path / "fibre")}]}, Bench, where="bench")
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_bench, made)
            while not await trio.Path(tmp_path / "tdc").exists():  # noqa: ASYNC110 - another task makes it
                await trio.sleep(0.01)
            opened = config(f"serial://{tmp_path / 'tdc'}", identity="00142")
            async with SFifteenTdc1.open(opened) as tdc:
                blocks = tdc.tags()
                while not (await anext(blocks)).times_ps.shape[0]:
                    pass  # dark counts
                await blocks.aclose()
            nursery.cancel_scope.cancel()


async def test_delays_of_the_configuration_move_each_channel() -> None:
    stream = Tdc1Stream(TagChannels(z=1, x=2, z_delay_ps=700, x_delay_ps=-300))
    words = np.array([(100 + i) << 5 | 0b11 for i in range(40)], "<u4").tobytes()
    block = stream.feed(words, 0.0)
    assert block.times_ps[:3].tolist() == [200_000 - 300, 200_700, 202_000 - 300]
    assert block.channels[:3].tolist() == [1, 0, 1]
    assert block.until_ps == (100 + 40 - 17) * 2000 - 300


# Lost bytes, noise, and a busy machine


def traffic(rate_hz: float, seed: int) -> tuple[bytes, "np.ndarray[Any, Any]", set[tuple[int, int]]]:
    """Return the bytes of three seconds, the arrival time of each, and the tags in it."""
    rng = np.random.default_rng(seed)
    ticks = np.unique(rng.integers(0, 3 * TICKS_PER_S, rng.poisson(rate_hz * 3)))
    patterns = rng.integers(1, 4, ticks.shape[0])
    data = (ticks % WRAP_TICKS << 5 | patterns).astype("<u4").tobytes()
    tags = {
        (tick * 2000, bit)
        for tick, pattern in np.stack([ticks, patterns], 1).tolist()
        for bit in (0, 1)
        if pattern >> bit & 1
    }
    return data, np.repeat(ticks / TICKS_PER_S, 4), tags


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["lost", "inserted"])
def test_no_garbled_word_becomes_a_tag(kind: str, seed: int) -> None:
    data, arrivals, tags = traffic(5000.0, seed)
    rng = np.random.default_rng(seed + 100)
    at, n = len(data) // 2 + seed, int(rng.integers(1, 4))
    if kind == "lost":
        data, arrivals = data[:at] + data[at + n :], np.delete(arrivals, slice(at, at + n))
    else:
        data = data[:at] + rng.bytes(n) + data[at:]
        arrivals = np.insert(arrivals, at, [arrivals[at]] * n)
    stream = Tdc1Stream(TagChannels(z=1, x=2))
    got, lost, until, position = [], 0, -(2**62), 0
    for now_s in np.arange(0.05, 3.2, 0.05):
        end = int(np.searchsorted(arrivals, now_s))
        block = stream.feed(data[position:end], float(now_s))
        position = end
        assert block.until_ps >= until
        until, lost = block.until_ps, lost + block.lost
        got += list(zip(block.times_ps.tolist(), block.channels.tolist(), strict=True))
    assert len(got) == len(set(got))
    assert set(got) <= tags
    assert lost == stream.lost_words > 0
    assert stream.realignments == 1
    assert len(got) > 0.8 * len(tags)  # it recovered


def pieces(*data: bytes) -> tuple[set[tuple[int, int]], Tdc1Stream]:
    """Return the tags of pieces that come every 50 ms, and the stream."""
    stream, got = Tdc1Stream(TagChannels(z=1, x=2)), set[tuple[int, int]]()
    for number, piece in enumerate(data):
        block = stream.feed(piece, 0.05 * number)
        got |= set(zip(block.times_ps.tolist(), block.channels.tolist(), strict=True))
    return got, stream


def fast(n: int, first_ms: int) -> tuple[bytes, set[tuple[int, int]]]:
    """Return ``n`` words of 1 Mcps from a time on, and their tags."""
    ticks = first_ms * TICKS_PER_S // 1000 + np.arange(n) * (TICKS_PER_S // 1_000_000) + np.arange(n) % 7
    data = (ticks % WRAP_TICKS << 5 | 1).astype("<u4").tobytes()
    return data, {(int(tick) * 2000, 0) for tick in ticks}


@pytest.mark.parametrize("lost", [1, 2, 3])
@pytest.mark.parametrize("first_ms", [1, 3, 9])
def test_words_garbled_at_the_end_of_a_piece_wait_for_the_next_one(lost: int, first_ms: int) -> None:
    data, tags = fast(4000, first_ms)
    cut = 4 * 2000 + 2
    got, stream = pieces(data[:4000], data[4000:cut] + data[cut + lost : 4 * 2060], data[4 * 2060 :])
    assert got <= tags
    assert stream.lost_words > 0


def test_words_garbled_between_two_losses_in_a_piece_are_thrown_away() -> None:
    data, tags = fast(4000, 3)
    got, stream = pieces(data[:4000], data[4000:6001] + data[6002:9001] + data[9004:], data[:0])
    assert got <= tags
    assert stream.lost_words > 0


def test_a_word_that_no_device_sends_is_not_dropped_uncounted() -> None:
    data, tags = fast(4000, 3)
    altered = bytearray(data)
    altered[4 * 2000] &= 0xE0  # no input
    got, stream = pieces(data[:4000], bytes(altered[4000:]), b"")
    assert got <= tags
    assert len(tags) - len(got) <= stream.lost_words + 16


def test_time_never_goes_back_after_words_were_thrown_away() -> None:
    data, _ = fast(4000, 200)
    stream = Tdc1Stream(TagChannels(z=1, x=2))
    before = stream.feed(data[:8000], 10.0)
    after = [stream.feed(data[8001:12000], 9.7), stream.feed(data[12000:], 9.7)]  # a clock that was set back
    assert before.until_ps <= after[0].until_ps <= after[1].until_ps
    assert stream.realignments >= 1


def test_a_sound_stream_loses_nothing_on_a_machine_that_stalls() -> None:
    data, arrivals, tags = traffic(5000.0, 3)
    rng = np.random.default_rng(4)
    stream = Tdc1Stream(TagChannels(z=1, x=2))
    got, position, now_s = [], 0, 0.0
    while now_s < 3.5:
        now_s += float(rng.choice([0.05, 0.6]))
        end = int(np.searchsorted(arrivals, now_s))
        block = stream.feed(data[position:end], now_s)
        position = end
        got += list(zip(block.times_ps.tolist(), block.channels.tolist(), strict=True))
    assert stream.lost_words == 0
    assert set(got) <= tags
    assert len(tags) - len(got) <= 2 * 16  # held at the end


@pytest.mark.parametrize("late_s", [0.1, 0.2, 0.5])
def test_a_stream_whose_first_words_came_late_goes_on_with_the_times_of_the_device(late_s: float) -> None:
    data, arrivals, tags = traffic(5000.0, 3)
    stream, got, position, reached = Tdc1Stream(TagChannels(z=1, x=2)), [], 0, []
    for number, now_s in enumerate(np.arange(0.05, 3.0, 0.05)):
        end = int(np.searchsorted(arrivals, now_s))
        if number and now_s < 0.05 + late_s:
            continue  # the machine stalls with the first words in hand
        first_late_s = late_s if number == 0 else 0.0
        block = stream.feed(data[position:end], float(now_s) + first_late_s)
        reached.append(block.until_ps)
        position = end
        got += list(zip(block.times_ps.tolist(), block.channels.tolist(), strict=True))
    assert stream.realignments <= 1
    assert len(got) == len(set(got))
    assert len(set(reached)) > len(reached) - 3
    due = sum(time_ps <= reached[-1] for time_ps, _ in tags)
    assert due - len(got) <= 2 * stream.lost_words


def test_a_lost_turn_of_the_counter_is_told() -> None:
    stream = Tdc1Stream(TagChannels(z=1, x=2))
    period = TICKS_PER_S // 1000
    words = (np.arange(10_000) * period % WRAP_TICKS << 5 | 1).astype("<u4").tobytes()
    stream.feed(words[:4000], 1.0)
    late_s = WRAP_TICKS / TICKS_PER_S  # a turn went missing: later words seem to come late by it
    told = r"behind this machine's clock: bytes were lost"
    with pytest.raises(TransientDeviceError, match=told):  # noqa: PT012
        for n in range(1, 9):
            stream.feed(words[4000 * n : 4000 * (n + 1)], n + 1 + late_s)


def test_babble_is_no_stream() -> None:
    stream = Tdc1Stream(TagChannels(z=1, x=2))
    rng = np.random.default_rng(8)
    told = "no words of a TDC1 in what it sent for 5 s: is it one"
    with pytest.raises(TransientDeviceError, match=told):  # noqa: PT012
        for n in range(400):
            assert stream.feed(rng.bytes(1000), n * 0.05).times_ps.shape[0] < 16
    assert stream.lost_words > 1000


# Faults at the line


@pytest.mark.parametrize("lost", [1, 2, 3])
@pytest.mark.parametrize("n", [40, 200])
def test_words_after_a_lost_first_byte_have_the_times_that_the_device_gave_them(lost: int, n: int) -> None:
    data, tags = fast(4000, 3)
    stream, got = Tdc1Stream(TagChannels(z=1, x=2)), set[tuple[int, int]]()
    for number, at in enumerate(range(0, len(data), 4 * n)):  # a machine that runs since 11 days
        block = stream.feed(data[max(at, lost) : at + 4 * n], 1e6 + n * 1e-6 * number)
        got |= set(zip(block.times_ps.tolist(), block.channels.tolist(), strict=True))
    assert stream.realignments == 1
    assert got <= tags
    assert len(got) > 3800
    assert len(tags) - len(got) <= stream.lost_words + 16


class FirstByteLost(Tdc1Emulator):
    """A device whose stream begins within a word."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "streaming" and value:
            self.lose_bytes = 1


async def test_a_stream_that_begins_within_a_word_has_its_time_of_day() -> None:
    emulator = FirstByteLost(dark_counts(5000.0))
    with trio.fail_after(60):
        async with tagging(emulator) as tdc:
            blocks = tdc.tags()
            taken = [await anext(blocks) for _ in range(20)]
            readings = await tdc.readings()
            await blocks.aclose()
    now_s = tdc.origin_s + taken[-1].until_ps / PS_PER_S
    assert now_s == pytest.approx(time.time(), abs=60.0)
    assert sum(block.lost for block in taken) == readings["lost_total"] > 0
    assert sum(block.times_ps.shape[0] for block in taken) > 0


async def test_bytes_lost_on_the_line_are_counted_and_the_stream_goes_on() -> None:
    emulator = Tdc1Emulator(dark_counts(5000.0))
    with trio.fail_after(60):
        async with tagging(emulator) as tdc:
            blocks, lost = tdc.tags(), 0
            for _ in range(5):
                assert (await anext(blocks)).lost == 0
            emulator.lose_bytes = 3
            while not lost:
                lost = (await anext(blocks)).lost
            while not (await anext(blocks)).times_ps.shape[0]:
                pass
            readings = await tdc.readings()
            await blocks.aclose()
    assert readings["lost_total"] >= lost
    assert readings["realignments_total"] >= 1


async def test_silence_is_an_error_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnode_drivers.s_fifteen_tdc1.LONGEST_SILENCE_S", 1.0)
    emulator = Tdc1Emulator()
    await refuses(emulator, TransientDeviceError, "silent for 1 s, expected words also when nothing")
    assert emulator.silent
    await refuses(emulator, TransientDeviceError, r"expected an answer to '\*IDN\?' within 2 s, nothing came")


async def test_an_unplugged_device_is_gone() -> None:
    plug = trio.CancelScope()

    class Unplugged(Tdc1Emulator):
        async def serve(self, stream: trio.abc.Stream) -> None:
            with plug:
                await super().serve(stream)

    async with tcp_port(Unplugged()) as address:
        with trio.fail_after(60), pytest.raises(DeviceGone):  # noqa: PT012
            async with SFifteenTdc1.open(config(address)) as device:
                async for _ in device.tags():
                    plug.cancel()


@pytest.mark.parametrize(("said", "identity"), [("Optilab BCB-4", ""), ("TDC1_00141", "99")])
async def test_another_device_on_the_port_is_told_by_its_answer(said: str, identity: str) -> None:
    emulator = Tdc1Emulator()
    emulator.identity = said
    told = f"expected a device with '{identity or 'TDC1'}' in its identity, '{said}' came: another device"
    await refuses(emulator, DeviceError, told, identity=identity)


class Stuck(Tdc1Emulator):
    """Takes no setting."""

    def _execute(self, command: str) -> None:
        if command.split()[0:1] not in (["NEG"], ["POS"], ["REFCLK"], ["TTL"]):
            super()._execute(command)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"threshold_v": 1.25}, r"threshold reads back as -0.5 V, expected 1.2 to 1.3 V after 1.25 V"),
        ({"levels": "TTL"}, r"reads back as -0.5 V, expected 0 to 3.3 V after TTL"),
        ({"reference": "external"}, r"REFCLK reads back as 0, expected 1 \(external\)"),
    ],
)
async def test_a_setting_that_reads_back_differently_is_refused(setting: dict[str, Any], told: str) -> None:
    await refuses(Stuck(), DeviceError, told, **setting)


async def test_a_stream_that_still_runs_is_stopped_before_the_device_is_asked() -> None:
    emulator = Tdc1Emulator(dark_counts(20_000.0))
    emulator.streaming = True
    with trio.fail_after(60):
        async with tagging(emulator) as tdc:
            assert tdc.identity.serial == "TDC1_00141"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"channels": {"z": 1, "x": 1}}, "z and x: expected two different inputs, got 1 twice"),
        ({"channels": {"z": 1, "x": 5}}, "channels.x: expected an input from 1 to 4, got 5"),
        ({"channels": {"z": 1, "x": 2, "x_delay_ps": 2_000_000}}, "x_delay_ps: expected a value from"),
        ({"threshold_v": 5.0}, "threshold_v: expected a value from -3.3 to 3.3, got 5"),
        (
            {"address": "zmq://localhost:1"},
            "address: expected serial:///dev/serial/by-id/NAME or tcp://HOST:PORT",
        ),
    ],
)
def test_a_wrong_table_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config(**{"address": "tcp://localhost:1", **wrong})


async def test_the_record_for_diagnosis_holds_no_tags() -> None:
    emulator, record = Tdc1Emulator(), Transcript()
    PRESENT.set(record)
    with trio.fail_after(60):
        async with tagging(emulator) as tdc:
            blocks = tdc.tags()
            for _ in range(5):
                await anext(blocks)
            await blocks.aclose()
    received = b"".join(one.data for one in record.exchanges() if not one.sent)
    assert received == b"TDC1_00141\r\n-0.500 V\r\n0\r\n"


async def test_a_device_that_never_stops_sending_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Babbling(Tdc1Emulator):
        async def serve(self, stream: trio.abc.Stream) -> None:
            while True:
                await stream.send_all(b"U" * 64)
                await trio.sleep(0.01)

    monkeypatch.setattr("qnode_drivers.s_fifteen_tdc1.LONGEST_BABBLE_S", 0.5)
    await refuses(Babbling(), TransientDeviceError, r"expected silence after 'abort', .*: is it a TDC1\?")


async def test_it_is_in_use_again_after_each_fault_and_no_tag_is_doubled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults, emulator = Faults(seed=3), Tdc1Emulator(dark_counts(5000.0))
    with trio.fail_after(200):
        async with pty_port(emulator, faults) as place:
            table = {"address": f"serial://{place}", "channels": CHANNELS}
            async with supervised(monkeypatch, SFifteenTdc1, table) as watched:
                await watched.tags_again()
                await faults.babble(b"what is this?")
                await watched.tags_again()
                for name, on, off in (("halves", True, False), ("noise", 0.01, 0.0)):
                    setattr(faults, name, on)
                    await trio.sleep(0.3)
                    setattr(faults, name, off)
                    await watched.tags_again()
                    await trio.sleep(0.5)
                    await watched.tags_again()
                assert watched.openings[-1][-1].times_ps.shape[0] > 10
                n_openings = len(watched.openings)
                faults.unplug()
                await trio.sleep(0.2)
                faults.plug()
                await watched.tags_again(n_openings)
    assert sum(block.lost for blocks in watched.openings for block in blocks) > 0
    for blocks in watched.openings:
        times = [block.times_ps * 2 + block.channels for block in blocks]
        together = np.concatenate(times) if times else np.empty(0)
        assert np.unique(together).shape == together.shape
        assert (np.diff([block.until_ps for block in blocks]) >= 0).all()
