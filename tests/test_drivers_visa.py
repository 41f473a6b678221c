"""The SCPI drivers behind VISA resources: PyVISA's simulated instruments, and pyvisa-py where installed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qnode_drivers.scpi_attenuator import ScpiAttenuator
from qnode_drivers.scpi_power_meter import ScpiPowerMeter
from qnode_drivers.scpi_sensor import ScpiSensor

from qnode.devices.conformance import check_driver
from qnode.devices.registry import DriverClass
from qnode.devices.transport import open_transport
from qnode.devices.transport.lines import Lines
from qnode.emulate.ports import pty_port, tcp_port
from qnode.emulate.scpi import ScpiAttenuatorEmulator

pytest.importorskip("pyvisa_sim")

INSTRUMENTS = """
spec: "1.1"
devices:
  voa:
    eom:
      TCPIP INSTR: {q: "\\n", r: "\\n"}
      USB INSTR: {q: "\\n", r: "\\n"}
      GPIB INSTR: {q: "\\n", r: "\\n"}
    error: ERROR
    dialogues:
      - {q: "*IDN?", r: "HEWLETT-PACKARD,HP8156A,3328G00123,1.01"}
      - {q: ":INP:ATT? MIN", r: "+0.00000000E+00"}
      - {q: ":INP:ATT? MAX", r: "+6.00000000E+01"}
      - {q: ":SYST:ERR?", r: '+0,"No error"'}
      - {q: "MEAS:POW?", r: "1.5E-6"}
      - {q: "TEMP?", r: "-50.25,3.3"}
    properties:
      attenuation:
        default: 3.0
        getter: {q: ":INP:ATT?", r: "{:.8E}"}
        setter: {q: ":INP:ATT {}"}
        specs: {min: 0, max: 60, type: float}
resources:
  TCPIP0::192.0.2.7::inst0::INSTR: {device: voa}
  USB0::0x0957::0x1707::MY53220::INSTR: {device: voa}
  GPIB0::28::INSTR: {device: voa}
"""

TABLES: list[tuple[DriverClass, dict[str, Any]]] = [
    (ScpiAttenuator, {"identity": "3328G00123"}),
    (ScpiPowerMeter, {}),
    (ScpiSensor, {"readings": {"temperature_k": {"query": "TEMP?", "offset": 273.15}}}),
]


RESOURCES = ("TCPIP0::192.0.2.7::inst0::INSTR", "USB0::0x0957::0x1707::MY53220::INSTR", "GPIB0::28::INSTR")


@pytest.mark.parametrize("resource", RESOURCES)
async def test_they_conform_behind_any_resource(resource: str, tmp_path: Path) -> None:
    (tmp_path / "instruments.yaml").write_text(INSTRUMENTS)
    address = f"visa://{resource}?library={tmp_path}/instruments.yaml@sim"
    for driver, table in TABLES:
        await check_driver(driver, {"address": address, **table})


@pytest.mark.parametrize("resource", ["SOCKET", "ASRL"])
async def test_they_conform_over_pyvisa_py_against_the_emulators(resource: str) -> None:
    pytest.importorskip("pyvisa_py", reason="pyvisa-py is not among the developer's packages")
    answers: dict[str, str | Callable[[], str]] = {"MEAS:POW?": "1.5E-6", "TEMP?": "-50.25,3.3"}
    for driver, table in TABLES:
        emulator = ScpiAttenuatorEmulator()
        emulator.answers = answers
        async with pty_port(emulator) if resource == "ASRL" else tcp_port(emulator) as place:
            named = place.removeprefix("tcp://").replace(":", "::")
            address = f"ASRL{place}::INSTR" if resource == "ASRL" else f"TCPIP0::{named}::SOCKET"
            await check_driver(driver, {"address": f"visa://{address}?library=@py", **table})
            assert driver is not ScpiAttenuator or emulator.attenuation_db == 60


async def test_an_answer_that_an_earlier_user_left_in_the_instrument_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "instruments.yaml").write_text(INSTRUMENTS)
    address = f"visa://{RESOURCES[1]}?library={tmp_path}/instruments.yaml@sim"
    async with open_transport(address) as port:
        await port.send(b"*IDN?\n")
    async with open_transport(address) as port:
        assert await Lines(port).ask("MEAS:POW?", limit_s=20) == "1.5E-6"
