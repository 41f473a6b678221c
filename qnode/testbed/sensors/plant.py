"""The plant: a power meter with a Modbus TCP server and an OPC UA server that show the same load.

Both servers show the value of the present slot of a grid, so a reading is the same by either.
"""

import asyncio
from typing import Annotated

from msgspec import Meta, Struct

from qnode.config.reading import Impossible
from qnode.testbed.sensors.load_curve import measured
from qnode.testbed.sensors.part import address_faults, quiet, run_asyncio, say, settings_of_command


class PlantSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the meter's servers listen, and when its load curve began (seconds of Unix time)."""

    modbus: str
    opcua: str
    began: float
    period_ms: Annotated[int, Meta(ge=10, le=60_000)] = 100

    def __post_init__(self) -> None:
        Impossible.check(address_faults(modbus=self.modbus, opcua=self.opcua))

    def values(self, slot: int) -> tuple[float, ...]:
        """Return what the meter shows in a slot of the grid."""
        return measured(slot * self.period_ms / 1000 - self.began)


async def _main(settings: PlantSettings) -> None:
    from qnode.testbed.sensors.modbus_server import show_by_modbus
    from qnode.testbed.sensors.opcua_server import show_by_opcua

    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(show_by_opcua(settings, ready))
        # The start of one server would hold up the answers of the other.
        await ready.wait()
        async with show_by_modbus(settings):
            say("plant.ready")
            await asyncio.Future()


def main() -> None:
    """Run the plant whose settings file is the one argument."""
    settings = settings_of_command(PlantSettings)
    quiet("asyncua", "pymodbus.logging")
    run_asyncio(lambda: _main(settings))


if __name__ == "__main__":
    main()
