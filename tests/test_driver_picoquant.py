"""PicoQuant's devices, against a stand-in for snAPI with its documented calls and records of T2 mode."""

from typing import Any

import numpy as np
import pytest
import trio
from library_drivers_support import use_stand_ins
from qnode_drivers.picoquant import PicoQuantConfig, PicoQuantTdc

from qnode.devices.conformance import check_driver
from qnode.devices.registry import driver_config
from qnode.errors import ConfigError, DeviceError, DeviceGone, TransientDeviceError
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S

CHANNELS = {"z": 1, "x": 2}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_ins(monkeypatch)


def config(**more: Any) -> PicoQuantConfig:
    made = driver_config(PicoQuantTdc, {"channels": CHANNELS, **more}, "[devices.tdc.config]")
    assert isinstance(made, PicoQuantConfig)
    return made


async def read(n: int, **more: Any) -> list[TagBlock]:
    blocks: list[TagBlock] = []
    with trio.fail_after(120):
        async with PicoQuantTdc.open(config(**more)) as device:
            tags = device.tags()
            async for block in tags:
                blocks.append(block)
                if len(blocks) == n:
                    break
            await tags.aclose()
    return blocks


async def test_it_conforms() -> None:
    table = {"channels": CHANNELS, "z_level_mv": -100, "x_level_mv": -120, "reference": "external"}
    await check_driver(PicoQuantTdc, table, order_window_ps=0)


async def test_tags_come_in_both_channels_and_the_time_goes_on_by_overflows() -> None:
    blocks = await read(20)
    channels = np.concatenate([block.channels for block in blocks])
    times_ps = np.concatenate([block.times_ps for block in blocks])
    passed_s = (blocks[-1].until_ps - blocks[0].until_ps) / PS_PER_S
    for channel in (0, 1):
        assert np.count_nonzero(channels == channel) == pytest.approx(2000 * passed_s, rel=0.4)
    assert (np.diff(times_ps) >= 0).all()
    assert not (times_ps % 5).any()


@pytest.mark.parametrize(
    ("serial", "error", "told"),
    [
        ("ABSENT", DeviceError, "open failed: RuntimeError: found no device ABSENT"),
        ("OLD", DeviceError, r"a HydraHarp 400 of version 1\.0 sends older records"),
        ("CRASH", DeviceGone, "ended by SIGABRT in read; it said: .*"),
        ("FULL", TransientDeviceError, "buffer of 4,194,304 records was full, an unknown number of tags"),
        (
            "OVERRUN",
            TransientDeviceError,
            "the measurement has ended by itself: the device's buffer",
        ),
        ("GARBAGE", TransientDeviceError, "^PicoQuant: a record is none of T2 mode: bytes were lost"),
    ],
)
async def test_a_fault_is_one_clear_error(serial: str, error: type[DeviceError], told: str) -> None:
    with pytest.raises(error, match=told):
        await read(100, serial=serial)


@pytest.mark.parametrize(
    ("serial", "limit", "told"),
    [
        ("HANG", "READ_LIMIT_S", "no answer to read within 1 s, its process was killed"),
        ("SILENT", "LONGEST_SILENCE_S", "silent for 1 s, expected overflows also in the dark"),
    ],
)
async def test_hanging_and_silence_end_the_opening(
    serial: str, limit: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"qnode_drivers.picoquant.{limit}", 1.0)
    with pytest.raises(TransientDeviceError, match=told):
        await read(1000, serial=serial)


async def test_a_level_that_the_library_refuses_is_told() -> None:
    with pytest.raises(DeviceError, match="refused the trigger level -1400 mV of input 2"):
        await read(1, x_level_mv=-1400)


async def test_an_input_that_the_device_does_not_have_is_told() -> None:
    with pytest.raises(DeviceError, match="MultiHarp 150 4P has 4 inputs, channels names input 9"):
        await read(1, channels={"z": 1, "x": 9})


def test_a_wrong_table_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"channels\.x: expected an input from 0 to 64, got 65"):
        config(channels={"z": 0, "x": 65})
