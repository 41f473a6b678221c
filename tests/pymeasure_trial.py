"""The bridge to pymeasure with three instruments of that library, against emulators over TCP and serial.

    python tests/pymeasure_trial.py [FOLDER]

FOLDER is one of Python packages with pymeasure, pyvisa-py and pyserial (the site-packages of another
environment); without it, they are installed into a temporary folder. Each instrument passes the conformance
kit. Ends with 1 if one does not.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
from qnode_drivers.pymeasure_bridge import PymeasureConfig, PymeasureInstrument

from qnode.devices.conformance import check_driver
from qnode.devices.readings import read
from qnode.devices.registry import driver_config
from qnode.emulate.ports import pty_port, tcp_port
from qnode.emulate.scpi import ScpiEmulator
from qnode.errors import DeviceError


class SettableEmulator(ScpiEmulator):
    """Takes over figures: ``settings`` has patterns of commands with the question that gives them back."""

    settings: tuple[tuple[str, str], ...] = ()

    def said(self, command: str) -> str | None:
        """Return the answer as text; None is no answer."""
        for pattern, question in self.settings:
            if found := re.fullmatch(pattern, command):
                self.answers[question] = found[1]
                return None
        return super().said(command)


def power_meter() -> tuple[ScpiEmulator, dict[str, Any]]:
    """Thorlabs PM100USB: a sensor."""
    emulator = ScpiEmulator(
        "Thorlabs,PM100USB,P2001234,1.7.0",
        {"SYST:SENSOR:IDN?": "S154C,180412101,12-APR-2018,1,18,289", "MEAS:POW?": "1.2345E-06"},
    )
    return emulator, {
        "instrument": "pymeasure.instruments.thorlabs:ThorlabsPM100USB",
        "readings": {"power_w": {"property": "power"}},
    }


def voltage_source() -> tuple[ScpiEmulator, dict[str, Any]]:
    """Yokogawa GS200: a bias control."""
    emulator = SettableEmulator(
        "YOKOGAWA,GS210,91T926460,1.05", {":SOURce:RANGe?": "10", ":SOURce:LEVel?": "0", "OUTPut:STATe?": "0"}
    )
    emulator.settings = ((r"SOURce:LEVel (\S+)", ":SOURce:LEVel?"), (r"OUTPut:STATe (\d)", "OUTPut:STATe?"))
    return emulator, {
        "instrument": "pymeasure.instruments.yokogawa:YokogawaGS200",
        "identity": "91T926460",
        "bias": {"property": "source_level", "limits": [-10, 10]},
        "ready": {"source_enabled": True},
    }


def bias_controller() -> tuple[ScpiEmulator, dict[str, Any]]:
    """Thorlabs MBX: the attenuator, the modulator's bias and a photodiode in one instrument, serial."""
    answers = {"MZM:MODE?": "1", "MZM:HOLD:VOLTAGE?": "0", "MZM:TAP:MW?": "0.5", "VOA:ATTEN?": "0.5"}
    emulator = SettableEmulator("THORLABS,MBX3,M00123456,1.0", {**answers, "VOA:POWER?": "0"}, line_end=b"\r")
    emulator.settings = (
        (r"VOA:ATTEN: (\S+)", "VOA:ATTEN?"),
        (r"VOA:POWER: (\d)", "VOA:POWER?"),
        (r"MZM:HOLD:VOLTAGE: (\S+)", "MZM:HOLD:VOLTAGE?"),
        (r"MZM:MODE: (\d)", "MZM:MODE?"),
    )
    return emulator, {
        "instrument": "pymeasure.instruments.thorlabs:ThorlabsMBXSeries",
        "readings": {"output_power_w": {"property": "mzm.power", "scale": 1e-3}},
        "attenuation": {"property": "voa.attenuation_setpoint", "limits": [0.5, 20]},
        "bias": {"property": "mzm.voltage_setpoint", "limits": [-10, 10]},
        "ready": {
            "voa.enabled": True,
            "mzm.mode": "pymeasure.instruments.thorlabs.thorlabsmbxseries:MzmMode.MANUAL",
        },
    }


Made = Callable[[], tuple[ScpiEmulator, dict[str, Any]]]


async def show(make: Made, *, serial: bool, packages: str) -> bool:
    """Check one instrument, and print what it reads."""
    emulator, table = make()
    port: AbstractAsyncContextManager[str] = pty_port(emulator) if serial else tcp_port(emulator)
    async with port as place:
        if serial:
            resource, ends = f"ASRL{place}::INSTR", {}
        else:
            host, number = place.removeprefix("tcp://").split(":")
            resource = f"TCPIP::{host}::{number}::SOCKET"
            ends = {"read_termination": "\n", "write_termination": "\n"}
        table |= {"resource": resource, "packages": packages, "arguments": {"visa_library": "@py", **ends}}
        name = table["instrument"].rpartition(":")[2]
        failed: tuple[BaseException, ...] = ()
        try:
            await check_driver(PymeasureInstrument, table)
            config = driver_config(PymeasureInstrument, table, "trial")
            assert isinstance(config, PymeasureConfig)
            async with PymeasureInstrument.open(config) as device:
                identity = device.identity
                print(f"{name}: conforms; {identity.model}, {identity.serial}: {await read(device)}")
        except* (AssertionError, DeviceError) as errors:
            failed = errors.exceptions
        if failed:
            print(f"{name}: {failed}; the last commands were {emulator.heard[-8:]}")
        return not failed


async def main(packages: str) -> bool:
    """Check the three."""
    results = [await show(make, serial=False, packages=packages) for make in (power_meter, voltage_source)]
    return all([*results, await show(bias_controller, serial=True, packages=packages)])


PACKAGES = ("pymeasure==0.16.0", "pyvisa-py==0.8.1", "pyserial==3.5")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(not trio.run(main, sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, *PACKAGES], check=True
        )
        sys.exit(not trio.run(main, folder))
