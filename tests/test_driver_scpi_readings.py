"""Power meters and sensors that speak SCPI: byte by byte, against an emulator, through faults."""

from typing import Any

import pytest
from driver_support import Replayed, refused
from qnode_drivers.scpi_power_meter import ScpiPowerMeter, ScpiPowerMeterConfig
from qnode_drivers.scpi_sensor import ScpiReading, ScpiSensor, ScpiSensorConfig

from qnode.devices.conformance import check_driver
from qnode.devices.readings import read
from qnode.devices.registry import driver_config
from qnode.emulate.ports import pty_port, tcp_port
from qnode.emulate.scpi import ScpiEmulator
from qnode.errors import ConfigError

METER = "THORLABS,PM100D,P0000001,2.4.0"


async def test_a_power_meter_is_spoken_to_as_the_maker_writes() -> None:
    replayed = Replayed(
        [
            (b"*IDN?\n", f"{METER}\n".encode()),
            (b"SYST:ERR?\n", b'+0,"No error"\n'),
            (b"SENS:CORR:WAV 1550\n", b""),
            (b"SYST:ERR?\n", b'+0,"No error"\n'),
            (b"MEAS:POW?\n", b"1.23000000E-06\n"),
        ]
    )
    async with tcp_port(replayed) as address:
        config = ScpiPowerMeterConfig(
            address=address, identity="P0000001", ready_commands=("SENS:CORR:WAV 1550",)
        )
        async with ScpiPowerMeter.open(config) as device:
            assert await read(device) == {"power_w": 1.23e-6}
    assert replayed.left == []


@pytest.mark.parametrize(
    ("unit", "said", "power_w"),
    [("W", "1.5E-6", 1.5e-6), ("uW", "1.5", 1.5e-6), ("dBm", "-30.0", 1e-6), ("nW", "-0.2", -0.2e-9)],
)
async def test_a_power_is_in_watts_whatever_the_meter_says(unit: Any, said: str, power_w: float) -> None:
    async with (
        tcp_port(ScpiEmulator(METER, {"MEAS:POW?": said})) as address,
        ScpiPowerMeter.open(ScpiPowerMeterConfig(address=address, unit=unit)) as device,
    ):
        assert await device.power_w() == pytest.approx(power_w)


@pytest.mark.parametrize(
    ("unit", "answer", "said"),
    [
        ("W", "+9.90000000E+37", r"MEAS:POW\? gave \+9.90000000E\+37: no value, or beyond its range"),
        ("W", "-45.2E3", "-45200 W is no power: correct unit"),
        ("dBm", "5E9", r"5e\+09 dBm is no power: correct unit"),
        ("W", "ERROR", r"expected a number as answer to MEAS:POW\?, 'ERROR' came"),
    ],
)
async def test_what_is_no_power_is_one_clear_line(unit: Any, answer: str, said: str) -> None:
    async with tcp_port(ScpiEmulator(METER, {"MEAS:POW?": answer})) as address:
        with refused(said):
            async with ScpiPowerMeter.open(ScpiPowerMeterConfig(address=address, unit=unit)) as device:
                await device.power_w()


async def test_a_command_that_the_meter_does_not_know_is_told() -> None:
    async with tcp_port(ScpiEmulator(METER)) as address:
        with refused("refused 'WAVELENGTH 1550': -113,\"Undefined header\""):
            async with ScpiPowerMeter.open(
                ScpiPowerMeterConfig(address=address, ready_commands=("WAVELENGTH 1550",))
            ):
                pass


READINGS: dict[str, Any] = {
    "detector_temperature_k": {"query": "TEMP?", "offset": 273.15},
    "leak_a": {"query": "MEAS?", "field": 1, "scale": 1e-9},
    "cooler_v": {"query": "MEAS?"},
}
ANSWERS: Any = {"TEMP?": "-50.25", "MEAS?": "3.30, 2.5,0"}


async def test_readings_are_fields_of_answers_with_scale_and_offset() -> None:
    emulator = ScpiEmulator(answers=ANSWERS, line_end=b"\r\n")
    async with tcp_port(emulator) as address:
        config = driver_config(
            ScpiSensor, {"address": address, "readings": READINGS, "line_end": "crlf"}, "test"
        )
        async with ScpiSensor.open(config) as device:  # type: ignore[arg-type]
            assert await device.readings() == pytest.approx(
                {"detector_temperature_k": 222.9, "leak_a": 2.5e-9, "cooler_v": 3.3}
            )
    assert emulator.heard == ["*IDN?", "TEMP?", "MEAS?"]


async def test_a_field_that_is_not_there_is_told() -> None:
    config: dict[str, Any] = {"readings": {"leak_a": ScpiReading(query="TEMP?", field=3)}}
    async with tcp_port(ScpiEmulator(answers=ANSWERS)) as address:
        with refused(r"expected 4 fields or more from TEMP\?, '-50.25' came"):
            async with ScpiSensor.open(ScpiSensorConfig(address=address, **config)) as device:
                await device.readings()


@pytest.mark.parametrize("line", ["tcp", "serial"])
async def test_they_conform(line: str) -> None:
    for driver, table, emulator in (
        (ScpiPowerMeter, {}, ScpiEmulator(METER, {"MEAS:POW?": "1E-6"})),
        (ScpiSensor, {"readings": READINGS}, ScpiEmulator(answers=ANSWERS)),
    ):
        async with pty_port(emulator) if line == "serial" else tcp_port(emulator) as place:
            address = f"serial://{place}" if line == "serial" else place
            await check_driver(driver, {"address": address, **table})


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        ({}, "readings: .*expected a dict with a figure or more"),
        ({"not a name": {"query": "X?"}}, "readings: a reading is named .*expected an identifier that ends"),
        ({"x_v": {"query": "X?", "field": -1}}, "field: expected a value from 0 to 999, got -1"),
        ({"x_v": {"question": "X?"}}, "question"),
    ],
)
def test_a_wrong_table_of_readings_is_refused(readings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        driver_config(ScpiSensor, {"address": "tcp://box:5025", "readings": readings}, "[devices.box.config]")
