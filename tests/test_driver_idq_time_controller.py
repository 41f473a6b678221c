"""IDQ Time Controller: the maker's commands, the conformance kit over real ZeroMQ sockets, and faults."""

import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import numpy as np
import pytest
import trio

from qnode.devices.conformance import check_driver
from qnode.devices.registry import driver_config
from qnode.emulate.clicks import BLOCK_S, dark_counts
from qnode.errors import ConfigError, DeviceError, DeviceGone, TransientDeviceError
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S

pytest.importorskip("zmq")

from qnode_drivers.idq_time_controller import IdqConfig, IdqTimeController

from qnode.emulate.idq_time_controller import IdqEmulator

CHANNELS = {"z": 1, "x": 2}


def free_ports() -> int:
    """Return the first of two free ports in a row."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def table(emulator: IdqEmulator, **more: Any) -> dict[str, Any]:
    return {
        "address": emulator.address,
        "service": emulator.service,
        "stream_port": free_ports(),
        "channels": CHANNELS,
        **more,
    }


def config(raw: dict[str, Any]) -> IdqConfig:
    made = driver_config(IdqTimeController, raw, "[devices.tdc.config]")
    assert isinstance(made, IdqConfig)
    return made


@asynccontextmanager
async def running(emulator: IdqEmulator) -> AsyncIterator[IdqEmulator]:
    with trio.fail_after(120):
        async with emulator.running():
            yield emulator


async def read(emulator: IdqEmulator, n: int, **more: Any) -> list[TagBlock]:
    blocks: list[TagBlock] = []
    async with IdqTimeController.open(config(table(emulator, **more))) as device:
        tags = device.tags()
        async for block in tags:
            blocks.append(block)
            if len(blocks) == n:
                break
        await tags.aclose()
    return blocks


async def test_the_commands_are_those_of_the_manual_and_of_the_makers_examples() -> None:
    async with running(IdqEmulator()) as emulator:
        await read(emulator, 1, x_threshold_v=-0.4, edge="falling")
        expected = []
        for number, level in ((1, "0.5V"), (2, "-0.4V")):
            expected += [
                f"INPU{number}:ENAB ON;COUP DC;EDGE FALLING;THRE {level}",
                f"INPU{number}:THRE?",
                f"INPU{number}:EDGE?",
                f"DELA{number}:VALU 0;LINK INPU{number}",
                f"TSCO{number + 4}:FIR:LINK DELA{number}",
                f"TSCO{number + 4}:OPIN ONLYFIR;OPOU ONLYFIR;WIND:ENAB OFF",
                f"RAW{number}:STOP:LINK TSCO{number + 4}",
                f"RAW{number}:REF:LINK NONE",
                f"RAW{number}:REF:LINK?",
                f"RAW{number}:ERRORS:CLEAR",
            ]
        expected += ["REC:TRIG:ARM:MODE MANUal", "REC:ENABle ON", "REC:STOP", "REC:NUM INF"]
        expected += ["REC:PWID 200000000000;PPER 200000040000", "REC:PWID?", "REC:PPER?"]
        expected += ["RAW1:SEND ON", "RAW2:SEND ON", "REC:PLAY", "REC:STOP", "RAW1:SEND OFF", "RAW2:SEND OFF"]
        assert emulator.commands == ["*IDN?", *expected]
        assert not emulator.streams


async def test_it_conforms() -> None:
    async with running(IdqEmulator(dark_counts(2000.0))) as emulator:
        await check_driver(
            IdqTimeController,
            table(emulator, identity="100042"),
            order_window_ps=0,
            is_safe=lambda: not emulator.streams,
        )
        assert not emulator.playing


async def test_acquisitions_follow_each_other_without_a_seam() -> None:
    async with running(IdqEmulator(dark_counts(2000.0))) as emulator:
        blocks = await read(emulator, 5)
    assert [block.until_ps for block in blocks] == [n * 200_000_040_000 for n in range(1, 6)]
    times_ps = np.concatenate([block.times_ps for block in blocks])
    assert (np.diff(times_ps) >= 0).all()
    channels = np.concatenate([block.channels for block in blocks])
    for channel in (0, 1):
        assert np.count_nonzero(channels == channel) == pytest.approx(2000, rel=0.2)
    assert sum(block.lost for block in blocks) == 0


async def test_a_million_tags_a_second_of_an_input_come_through() -> None:
    async with running(IdqEmulator(dark_counts(1e6))) as emulator:
        blocks = await read(emulator, 2)
    for block in blocks:
        assert np.count_nonzero(block.channels == 0) == pytest.approx(200_000, rel=0.05)


async def test_times_go_on_exactly_from_one_acquisition_to_the_next() -> None:
    every_ps = 10**9

    async def comb() -> AsyncGenerator[TagBlock, None]:
        async with aclosing(dark_counts(0.0)()) as silence:
            async for block in silence:
                first_ps = block.until_ps - round(BLOCK_S * PS_PER_S)
                times_ps = np.arange(first_ps + every_ps // 2, block.until_ps, every_ps)
                yield TagBlock(times_ps, np.zeros(times_ps.shape[0], np.int8), block.until_ps)

    async with running(IdqEmulator(comb)) as emulator:
        blocks = await read(emulator, 4)
    times_ps = np.concatenate([block.times_ps for block in blocks])
    assert times_ps.shape[0] > 500
    assert (np.diff(times_ps) == every_ps).all()


async def test_errors_that_the_device_counts_are_lost() -> None:
    async with running(IdqEmulator()) as emulator:
        device_table = config(table(emulator))
        async with IdqTimeController.open(device_table) as device:
            tags, lost = device.tags(), 0
            await anext(tags)
            emulator.errors[1], emulator.errors[2] = 7, 5
            while not lost:
                lost = (await anext(tags)).lost
            await anext(tags)
            readings = await device.readings()
            await tags.aclose()
    assert lost == readings["lost_total"] == 12
    assert emulator.errors[1] == 0


async def test_a_missing_message_is_told() -> None:
    async with running(IdqEmulator()) as emulator:
        device_table = config(table(emulator))
        async with IdqTimeController.open(device_table) as device:
            tags = device.tags()
            await anext(tags)
            emulator.skip[2] = 1
            with pytest.raises(TransientDeviceError, match="behind this machine's clock: an acquisition is"):
                async for _ in tags:
                    pass


@pytest.mark.parametrize(
    ("fault", "more", "told"),
    [
        (
            {"identity": "Optilab BCB-4"},
            {},
            "expected a device with 'ID' in its identity, 'Optilab",
        ),
        ({}, {"identity": "999"}, "expected a device with '999' in its identity"),
        ({"stuck": "THRE"}, {}, r"INPU1:THRE\? reads back as 1, expected 0\.5"),
        ({"stuck": "EDGE"}, {"edge": "falling"}, r"INPU1:EDGE\? reads back as 'RISING', expected FALLING"),
        ({"service_error": "unknown address"}, {}, "DataLinkTarget service .*: refused .*: unknown address"),
    ],
)
async def test_what_does_not_fit_is_refused(fault: dict[str, Any], more: dict[str, Any], told: str) -> None:
    emulator = IdqEmulator()
    for name, value in fault.items():
        setattr(emulator, name, value)
    async with running(emulator):
        with pytest.raises(DeviceError, match=told):
            await read(emulator, 1, **more)
        assert not emulator.streams


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"\0" * 12, "12 bytes of tags came, expected 8 for each"),
        (b"\xff" * 8, "a tag of input 1 lies beyond the end of its acquisition of 200000000000 ps: RAW1 has"),
    ],
)
async def test_a_message_that_is_none_is_told(message: bytes, told: str) -> None:
    async with running(IdqEmulator()) as emulator:
        device_table = config(table(emulator))
        async with IdqTimeController.open(device_table) as device:
            tags = device.tags()
            await anext(tags)
            emulator.send_next(1, message)
            with pytest.raises(TransientDeviceError, match=told) as error:
                async for _ in tags:
                    pass
            assert str(int.from_bytes(message[:8], "little")) not in str(error.value).split()  # no tag


async def test_a_silent_device_is_an_error_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnode_drivers.idq_time_controller.ANSWER_LIMIT_S", 0.5)
    emulator = IdqEmulator()
    emulator.silent = True
    async with running(emulator):
        with pytest.raises(TransientDeviceError, match=r"an answer to '\*IDN\?' within 0.5 s, nothing"):
            await read(emulator, 1)


async def test_a_stream_that_ends_is_told() -> None:
    async with running(IdqEmulator()) as emulator:
        with pytest.raises((DeviceGone, TransientDeviceError), match=r"gone|silent for 4 s"):  # noqa: PT012
            async with IdqTimeController.open(config(table(emulator))) as device:
                tags = device.tags()
                await anext(tags)
                for name in list(emulator.streams):
                    emulator._stop(name)
                async for _ in tags:
                    pass


async def test_a_service_that_does_not_run_is_told() -> None:
    async with running(IdqEmulator()) as emulator:
        with pytest.raises(DeviceGone, match="cannot be reached"):
            await read(emulator, 1, service=f"zmq://127.0.0.1:{free_ports()}")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"address": "tcp://localhost:5555"}, "address: expected zmq://HOST:PORT"),
        ({"acquisition_s": 0.05}, "acquisition_s: expected a value from 0.2 to 1"),
        ({"channels": {"z": 1, "x": 5}}, "channels.x: expected an input from 1 to 4, got 5"),
        ({"stream_port": 80}, "stream_port: expected 1024 to 65532, got 80"),
    ],
)
def test_a_wrong_table_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config({"address": "zmq://localhost:5555", "channels": CHANNELS, **wrong})


def test_the_default_rate_of_blocks_is_one_in_a_fifth_of_a_second() -> None:
    made = config({"address": "zmq://localhost:5555", "channels": CHANNELS})
    assert made.acquisition_s * PS_PER_S == 200_000_000_000
