"""Swabian Time Tagger, against a stand-in for the maker's library with its documented calls."""

from typing import Any

import numpy as np
import pytest
import trio
from library_drivers_support import use_stand_ins
from qnode_drivers.swabian_time_tagger import SwabianConfig, SwabianTimeTagger
from supervised_driver_support import supervised

from qnode.devices.conformance import check_driver
from qnode.devices.registry import driver_config
from qnode.errors import ConfigError, DeviceError, DeviceGone, TransientDeviceError
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S

CHANNELS = {"z": 1, "x": -2}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_ins(monkeypatch)


def config(**more: Any) -> SwabianConfig:
    made = driver_config(SwabianTimeTagger, {"channels": CHANNELS, **more}, "[devices.tdc.config]")
    assert isinstance(made, SwabianConfig)
    return made


async def read(n: int, **more: Any) -> tuple[list[TagBlock], dict[str, float]]:
    """Return blocks and readings of a device."""
    blocks: list[TagBlock] = []
    with trio.fail_after(120):
        async with SwabianTimeTagger.open(config(**more)) as device:
            tags = device.tags()
            async for block in tags:
                blocks.append(block)
                if len(blocks) == n:
                    break
            await tags.aclose()
            return blocks, await device.readings()


async def test_it_conforms() -> None:
    await check_driver(SwabianTimeTagger, {"channels": CHANNELS, "z_threshold_v": 0.1}, order_window_ps=0)


async def test_tags_come_in_both_channels_with_the_time_of_the_device() -> None:
    blocks, readings = await read(20)
    channels = np.concatenate([block.channels for block in blocks])
    passed_s = (blocks[-1].until_ps - blocks[0].until_ps) / PS_PER_S
    for channel in (0, 1):
        assert np.count_nonzero(channels == channel) == pytest.approx(2000 * passed_s, rel=0.4)
    assert readings["lost_total"] == readings["overflows_total"] == 0
    assert blocks[0].until_ps > 3600 * PS_PER_S  # since the device was switched on


async def test_what_the_device_missed_is_lost_by_its_own_count() -> None:
    blocks, readings = await read(5, serial="MISSED")
    assert sum(block.lost for block in blocks) == 2 * 65535 + 20  # not the 1000 of an input that is not used
    assert readings["lost_total"] == 2 * 65535 + 20
    assert readings["overflows_total"] == 1


@pytest.mark.parametrize(
    ("serial", "error", "told"),
    [
        ("ABSENT", DeviceError, "open failed: RuntimeError: No Time Tagger with serial number ABSENT found"),
        ("CRASH", DeviceGone, "ended by SIGABRT in read; it said: .*"),
        ("ERROR", TransientDeviceError, "an error in its stream: its time has jumped"),
        (
            "FULL",
            TransientDeviceError,
            "buffer of 1,048,576 tags was full, an unknown number of tags",
        ),
    ],
)
async def test_a_fault_is_one_clear_error(serial: str, error: type[DeviceError], told: str) -> None:
    with pytest.raises(error, match=told):
        await read(100, serial=serial)


async def test_a_library_that_hangs_is_a_device_to_be_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnode_drivers.swabian_time_tagger.READ_LIMIT_S", 1.0)
    with pytest.raises(TransientDeviceError, match="no answer to read within 1 s, its process was killed"):
        await read(100, serial="HANG")
    assert len((await read(2))[0]) == 2


async def test_a_library_that_crashes_again_and_again_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with trio.fail_after(200):
        table = {"channels": CHANNELS, "serial": "CRASH"}
        async with supervised(monkeypatch, SwabianTimeTagger, table) as watched:
            await watched.tags_again()
            await watched.tags_again(after_openings=1)
            status = watched.board["tdc"]
    assert status.restarts >= 1
    assert "ended by SIGABRT in read" in status.state.because or status.state.state == "running"


async def test_a_level_that_reads_back_differently_is_refused() -> None:
    told = r"trigger level of input 2 was set to -0\.3 V and reads back as 0\.5 V"
    with pytest.raises(DeviceError, match=told):
        await read(1, serial="STUCK", x_threshold_v=-0.3)


async def test_without_the_library_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnode_drivers.swabian_time_tagger.LIBRARY", "qnode_drivers.swabian_absent:Library")
    with pytest.raises(DeviceError, match=r"cannot be imported: .*; pip install 'qnode\[swabian\]'"):
        await read(1)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"channels": {"z": 0, "x": 2}}, "channels.z: expected an input from 1 to 18, negative for falling"),
        ({"z_threshold_v": 9.0}, "z_threshold_v: expected a value from -2.5 to 2.5"),
    ],
)
def test_a_wrong_table_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config(**wrong)
