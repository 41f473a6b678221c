"""Readings of anything that answers questions with numbers: temperatures, voltages, currents, states."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, Final

from msgspec import Struct

from qnode.config.description import Described, Limits, check_limits
from qnode.devices.contract import readings_fault
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.scpi import Scpi, ScpiConfig, open_scpi

FIGURE: Final = Limits(-1e30, 1e30)


class ScpiReading(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One figure: ``field`` of the answer, times ``scale``, plus ``offset``."""

    query: Annotated[str, Described("the question")]
    field: Annotated[int, Described("which of the numbers between commas, from 0", limits=Limits(0, 999))] = 0
    scale: Annotated[
        float, Described("factor from the instrument's unit to that of the name", limits=FIGURE)
    ] = 1.0
    offset: Annotated[float, Described("added afterwards, such as 273.15 from °C to K", limits=FIGURE)] = 0.0

    def __post_init__(self) -> None:
        check_limits(self)


class ScpiSensorConfig(ScpiConfig, frozen=True, kw_only=True):
    """Where the instrument is and what to ask it."""

    readings: Annotated[
        dict[str, ScpiReading], Described("the figures by name; a name ends with its unit: temperature_k")
    ]
    errors: Annotated[str, Described("question for errors, after each command; empty: none")] = ""
    ready_commands: Annotated[tuple[str, ...], Described("commands when it is opened")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if fault := readings_fault(dict.fromkeys(self.readings, 1.0)):
            raise ValueError(f"readings: {fault}")


class ScpiSensor:
    """An instrument that is read: `Sensor`."""

    Config: ClassVar[type[Struct]] = ScpiSensorConfig

    def __init__(self, scpi: Scpi, config: ScpiSensorConfig, identity: DeviceIdentity) -> None:
        self._scpi = scpi
        self._config = config
        self.identity = identity

    @classmethod
    @asynccontextmanager
    async def open(cls, config: ScpiSensorConfig) -> AsyncIterator["ScpiSensor"]:
        """Identify the instrument and make it ready.

        Raises:
            DeviceError: another device, or one that refuses a command.
        """
        async with open_scpi(config, "instrument") as scpi:
            identity = await scpi.identify(config)
            await scpi.make_ready(config.ready_commands, config.errors)
            yield cls(scpi, config, identity)

    async def readings(self) -> dict[str, float]:
        """Ask each question once, one after another."""
        answers: dict[str, str] = {}
        found: dict[str, float] = {}
        for name, one in self._config.readings.items():
            if one.query not in answers:
                answers[one.query] = await self._scpi.ask(one.query)
            found[name] = self._scpi.field(one.query, answers[one.query], one.field) * one.scale + one.offset
        return found
