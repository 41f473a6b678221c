"""The power meter as its Modbus TCP server shows it."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from qnode.addresses import host_and_port
from qnode.errors import QnodeError
from qnode.testbed.sensors.plant import PlantSettings
from qnode.testbed.sensors.power_meter import QUANTITIES, to_registers


def power_meter(settings: PlantSettings) -> SimDevice:
    """Return the meter, for any device identifier."""
    firsts = {quantity.register for quantity in QUANTITIES}

    async def show(
        function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        values: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        if values is not None or address not in firsts or address + count - 2 not in firsts:
            return ExcCodes.ILLEGAL_ADDRESS
        slot = int(time.time() * 1000 // settings.period_ms)
        for quantity, value in zip(QUANTITIES, settings.values(slot), strict=True):
            place = quantity.register - start
            registers[place : place + 2] = to_registers(value)
        return None

    data = [SimData(quantity.register, values=0.0, datatype=DataType.FLOAT32) for quantity in QUANTITIES]
    return SimDevice(id=0, simdata=data, action=show)


@asynccontextmanager
async def show_by_modbus(settings: PlantSettings) -> AsyncIterator[None]:
    """Serve the meter while the body runs."""
    server = ModbusTcpServer(power_meter(settings), address=host_and_port(settings.modbus, "modbus"))
    try:
        await server.serve_forever(background=True)
    except RuntimeError:  # its log alone knows why
        raise QnodeError(
            f"{settings.modbus}: cannot listen there: not an address of this place, or in use"
        ) from None
    try:
        yield
    finally:
        server.close()
