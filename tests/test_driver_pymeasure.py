"""The bridge to pymeasure: a real child process with stand-in classes, and each way in which it may fail.

`python tests/pymeasure_trial.py` shows it with instruments of pymeasure itself.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from driver_support import refused
from library_drivers_support import use_stand_ins
from qnode_drivers.pymeasure_bridge import Bridge, PymeasureConfig, PymeasureInstrument

from qnode.devices.capabilities import BiasControl, VariableAttenuator
from qnode.devices.conformance import check_driver
from qnode.devices.protocols import Device, Sensor
from qnode.devices.readings import read
from qnode.devices.registry import driver_config
from qnode.errors import ConfigError, DeviceGone


class Bench:
    """The settings of the instrument, in the file that they outlive the process in."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.state.write_text("temperature 21.5\nattenuation -3.0\nvoltage 0.5\n")

    @property
    def attenuation_db(self) -> float:
        return -float(self.state.read_text().splitlines()[1].split()[1])

    def table(self, mood: str = "", **keys: Any) -> dict[str, Any]:
        return {
            "instrument": "bridge_instruments:Bench",
            "resource": "TCPIP::bench::SOCKET",
            "arguments": {"state": str(self.state), "mood": mood},
            "readings": {"case_temperature_k": {"property": "temperature", "offset": 273.15}},
            "attenuation": {"property": "voa.attenuation", "limits": [0.5, 20], "scale": -1},
            "bias": {"property": "voltage", "limits": [-10, 10], "scale": 1000},
            **keys,
        }


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    use_stand_ins(monkeypatch)
    return Bench(tmp_path)


@asynccontextmanager
async def opened(table: dict[str, Any]) -> AsyncIterator[Device]:
    config = driver_config(PymeasureInstrument, table, "test")
    assert isinstance(config, PymeasureConfig)
    async with PymeasureInstrument.open(config) as device:
        yield device


async def test_it_conforms(bench: Bench) -> None:
    await check_driver(PymeasureInstrument, bench.table(), is_safe=lambda: bench.attenuation_db == 20)


async def test_the_configuration_names_the_capabilities(bench: Bench) -> None:
    async with opened(bench.table()) as device:
        assert isinstance(device, Sensor)
        assert isinstance(device, VariableAttenuator)
        assert isinstance(device, BiasControl)
        assert (device.identity.model, device.identity.serial) == ("MAKER TCPIP::bench::SOCKET", "SN-1")
        await device.set_bias_v(-2.5)
        assert await read(device) == pytest.approx(
            {"case_temperature_k": 294.65, "attenuation_db": 20, "bias_v": -2.5}
        )
    table = bench.table()
    del table["readings"], table["attenuation"]
    async with opened(table) as device:
        assert not isinstance(device, Sensor)
        assert not isinstance(device, VariableAttenuator)
        assert isinstance(device, BiasControl)


@pytest.mark.parametrize(
    ("mood", "said"),
    [
        ("hangs", "Bench at .*: no answer to get within 2 s, its process was killed"),
        ("crashes", "the process of the maker's library was ended by SIGABRT in get"),
    ],
)
async def test_a_library_that_hangs_or_crashes_is_a_dead_child(bench: Bench, mood: str, said: str) -> None:
    with refused(said):
        async with opened(bench.table(mood, answer_limit_s=2.0)) as device:
            await read(device)
    assert isinstance(device, Bridge)
    with pytest.raises(ProcessLookupError):
        os.kill(device._child.pid, 0)


async def test_a_dead_child_is_gone_at_once_for_every_later_question(bench: Bench) -> None:
    async with opened(bench.table("crashes")) as device:
        with pytest.raises(DeviceGone):
            await read(device)
        with pytest.raises(DeviceGone):
            await read(device)


async def test_an_answer_to_a_cancelled_question_is_not_taken_for_the_next(bench: Bench) -> None:
    async with opened(bench.table()) as device:
        assert isinstance(device, BiasControl)
        assert isinstance(device, VariableAttenuator)
        with trio.move_on_after(0):
            await device.attenuation_db()
        await device.set_bias_v(1.25)
        assert await device.bias_v() == 1.25


@pytest.mark.parametrize(
    ("mood", "keys", "said"),
    [
        (
            "no such resource",
            {},
            r"open failed: OSError: VI_ERROR_RSRC_NFOUND \(-1073807343\): Insufficient location",
        ),
        ("", {"instrument": "bridge_instruments:Nobody"}, "AttributeError: .*Nobody"),
        (
            "",
            {"instrument": "no_such_library:Bench"},
            "No module named 'no_such_library'; install qnode",
        ),
        ("", {"identity": "SN-2"}, "expected a device with 'SN-2' in its identity, 'MAKER,TCPIP"),
        (
            "",
            {"ready": {"temperature": 20.0}},
            "PropertyFault: temperature: AttributeError: .*no setter",
        ),
    ],
)
async def test_what_prevents_the_opening_is_one_clear_line(
    bench: Bench, mood: str, keys: dict[str, Any], said: str
) -> None:
    with refused(said):
        async with opened(bench.table(mood, **keys)):
            pass


async def test_a_value_that_the_library_truncates_or_refuses_is_told(bench: Bench) -> None:
    table = bench.table("truncates", bias={"property": "voltage", "limits": [-90, 90], "settling_s": 0.1})
    table["bias"]["scale"] = 1000
    async with opened(table) as device:
        assert isinstance(device, BiasControl)
        with refused("bias_v was set to 20 and reads back as 15 after 0.1 s"):
            await device.set_bias_v(20.0)
        with refused(r"PropertyFault: voltage: ValueError: Value of 40.0 is not in range \[-30,30\]"):
            await device.set_bias_v(40.0)


async def test_a_property_without_a_figure_is_no_reading(bench: Bench) -> None:
    table = bench.table(readings={"nothing_v": {"property": "nothing"}})
    async with opened(table) as device:
        with refused("nothing gave nan: no value"):
            await read(device)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"instrument": "ThorlabsPM100USB"}, "instrument: expected module:Class, got 'ThorlabsPM100USB'"),
        ({"readings": {}, "attenuation": None, "bias": None}, "expected readings, attenuation or bias"),
        ({"bias": {"property": "v", "limits": [1, -1]}}, r"limits: expected two figures, the least first"),
        ({"attenuation": {"property": "a", "limits": [-1, 1]}}, "an attenuation is not negative"),
        ({"readings": {"T°": {"property": "a"}}}, "readings: a reading is named"),
    ],
)
def test_a_wrong_table_is_refused(bench: Bench, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        driver_config(PymeasureInstrument, bench.table(**keys), "[devices.bench.config]")
