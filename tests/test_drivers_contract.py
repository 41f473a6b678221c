"""The shipped drivers keep the contract of `qnode.devices.protocols`.

mypy compares every signature: a driver with a method that takes, returns or lacks something else than the
contract says fails `make check`, which names the method.
"""

import re
import tomllib
from pathlib import Path

import pytest
from qnode_drivers.idq_time_controller import IdqTimeController
from qnode_drivers.open_protocol_tdc import OpenTdc
from qnode_drivers.open_protocol_transmitter import OpenTransmitter
from qnode_drivers.optilab_bcb4 import OptilabBcb4
from qnode_drivers.oz_dd100 import OzDd100
from qnode_drivers.picoquant import PicoQuantTdc
from qnode_drivers.pymeasure_bridge import Bridge, PymeasureInstrument
from qnode_drivers.random_stream import RandomStream
from qnode_drivers.replay import ReplayTdc, ReplayTransmitter
from qnode_drivers.s_fifteen_tdc1 import SFifteenTdc1
from qnode_drivers.scpi_attenuator import ScpiAttenuator
from qnode_drivers.scpi_power_meter import ScpiPowerMeter
from qnode_drivers.scpi_sensor import ScpiSensor
from qnode_drivers.simulated import SimulatedTdc, SimulatedTransmitter
from qnode_drivers.swabian_time_tagger import SwabianTimeTagger
from qnode_drivers.tag_file import TagFileTdc

from qnode.config import DeviceSection, convert
from qnode.devices.capabilities import (
    BiasControl,
    BiasLock,
    Laser,
    PatternControl,
    PowerMonitor,
    RandomSource,
    VariableAttenuator,
)
from qnode.devices.protocols import Device, Sensor, TagSource, Transmitter
from qnode.devices.registry import DRIVER_GROUP, DriverClass, driver_config
from qnode.errors import ConfigError

DRIVERS: list[DriverClass] = [
    SimulatedTransmitter,
    ReplayTransmitter,
    SimulatedTdc,
    ReplayTdc,
    TagFileTdc,
    SFifteenTdc1,
    SwabianTimeTagger,
    PicoQuantTdc,
    IdqTimeController,
    OptilabBcb4,
    OzDd100,
    OpenTransmitter,
    OpenTdc,
    PymeasureInstrument,
    RandomStream,
    ScpiAttenuator,
    ScpiPowerMeter,
    ScpiSensor,
]


class Opened:
    """The devices as the node uses them once they are open; never called, only checked."""

    def simulated_transmitter(self, device: SimulatedTransmitter) -> Transmitter:
        return device

    def replay_transmitter(self, device: ReplayTransmitter) -> Transmitter:
        return device

    def simulated_tdc(self, device: SimulatedTdc) -> TagSource:
        return device

    def replay_tdc(self, device: ReplayTdc) -> TagSource:
        return device

    def tag_file(self, device: TagFileTdc) -> TagSource:
        return device

    def s_fifteen_tdc1(self, device: SFifteenTdc1) -> tuple[TagSource, Sensor]:
        return device, device

    def idq_time_controller(self, device: IdqTimeController) -> tuple[TagSource, Sensor]:
        return device, device

    def picoquant(self, device: PicoQuantTdc) -> tuple[TagSource, Sensor]:
        return device, device

    def swabian_time_tagger(self, device: SwabianTimeTagger) -> tuple[TagSource, Sensor]:
        return device, device

    def optilab_bcb4(self, device: OptilabBcb4) -> tuple[BiasControl, BiasLock, Sensor]:
        return device, device, device

    def open_transmitter(self, device: OpenTransmitter) -> tuple[Transmitter, PatternControl, Laser, Sensor]:
        return device, device, device, device

    def open_tdc(self, device: OpenTdc) -> tuple[TagSource, Sensor]:
        return device, device

    def oz_dd100(self, device: OzDd100) -> VariableAttenuator:
        return device

    def pymeasure(self, device: Bridge) -> Device:
        return device

    def random_stream(self, device: RandomStream) -> RandomSource:
        return device

    def scpi_attenuator(self, device: ScpiAttenuator) -> VariableAttenuator:
        return device

    def scpi_power_meter(self, device: ScpiPowerMeter) -> PowerMonitor:
        return device

    def scpi_sensor(self, device: ScpiSensor) -> Sensor:
        return device


def test_every_driver_that_ships_is_held_to_the_contract() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    shipped = project["entry-points"][DRIVER_GROUP]
    assert {f"{driver.__module__}:{driver.__qualname__}" for driver in DRIVERS} == set(shipped.values())
    assert {name.replace("-", "_") for name in shipped} <= vars(Opened).keys()


def test_an_address_of_a_kind_that_the_device_does_not_have_is_refused() -> None:
    of_every_kind = (
        "serial:///dev/ttyUSB0",
        "tcp://localhost:1",
        "usb://1209:0001",
        "visa://ASRL1::INSTR",
        "zmq://localhost:1",
    )
    for driver, table, kinds in (
        (OpenTdc, {}, ("serial", "tcp", "usb")),
        (OpenTransmitter, {}, ("serial", "tcp", "usb")),
        (OptilabBcb4, {}, ("serial", "tcp")),
        (OzDd100, {}, ("serial", "tcp")),
        (ScpiAttenuator, {}, ("serial", "tcp", "visa")),
        (ScpiPowerMeter, {}, ("serial", "tcp", "visa")),
        (ScpiSensor, {"readings": {"cooler_a": {"query": "I?"}}}, ("serial", "tcp", "visa")),
    ):
        for address in of_every_kind:
            if address.partition(":")[0] not in kinds:
                with pytest.raises(ConfigError, match="address: expected serial:///dev/serial/by-id/NAME or"):
                    driver_config(driver, {"address": address, **table}, "[devices.one.config]")


def test_every_example_of_a_device_is_a_table_that_its_driver_takes() -> None:
    top = Path(__file__).parent.parent
    shipped = tomllib.loads((top / "pyproject.toml").read_text())["project"]["entry-points"][DRIVER_GROUP]
    drivers = {f"{driver.__module__}:{driver.__qualname__}": driver for driver in DRIVERS}
    shown = set()
    for example in re.findall(r"```toml\n(.*?)```", (top / "docs" / "devices.md").read_text(), re.DOTALL):
        for name, raw in tomllib.loads(example).get("devices", {}).items():
            section = convert(raw, DeviceSection, where=f"[devices.{name}]")
            driver_config(drivers[shipped[section.driver]], section.config, f"[devices.{name}.config]")
            shown.add(section.driver)
    assert {"scpi-attenuator", "optilab-bcb4", "pymeasure"} <= shown
