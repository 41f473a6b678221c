"""The drivers of the open device protocol against their emulators, over real ports."""

from pathlib import Path

import pytest
from open_protocol_support import SteadySupply, at_port, is_safe, transmitter_emulator
from qnode_drivers.open_protocol_tdc import OpenTdc
from qnode_drivers.open_protocol_transmitter import OpenTransmitter

from qnode.devices.conformance import check_driver
from qnode.emulate.open_protocol_tdc import OpenTdcEmulator


@pytest.mark.parametrize("port", ["tcp", "pty"])
async def test_tdc_conforms(port: str) -> None:
    device = OpenTdcEmulator(SteadySupply(), simulated=False)
    async with at_port(device, port) as address:
        await check_driver(OpenTdc, {"address": address}, is_safe=lambda: is_safe(device))


@pytest.mark.parametrize("port", ["tcp", "pty"])
async def test_transmitter_conforms(tmp_path: Path, port: str) -> None:
    device = transmitter_emulator(tmp_path)
    async with at_port(device, port) as address:
        await check_driver(OpenTransmitter, {"address": address}, is_safe=lambda: is_safe(device))
