"""Any optical power meter that answers a question with a power."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Struct

from qnode.config.description import Described
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.scpi import Scpi, ScpiConfig, open_scpi
from qnode.errors import DeviceError

_WATTS: Final = {"W": 1.0, "mW": 1e-3, "uW": 1e-6, "nW": 1e-9}
MOST_W: Final = 1e3  # beyond this it is no power of a link: the unit is wrong


class ScpiPowerMeterConfig(ScpiConfig, frozen=True, kw_only=True):
    """Where the power meter is and what it understands."""

    query: Annotated[str, Described("question for the power; Keysight 816x: READ1:POW?")] = "MEAS:POW?"
    unit: Annotated[Literal["W", "mW", "uW", "nW", "dBm"], Described("the unit of its answer")] = "W"
    errors: Annotated[str, Described("question for errors, after each command; empty: none")] = "SYST:ERR?"
    ready_commands: Annotated[
        tuple[str, ...], Described("commands when it is opened: wavelength, unit, range")
    ] = ()


class ScpiPowerMeter:
    """A power meter that speaks SCPI: `PowerMonitor`."""

    Config: ClassVar[type[Struct]] = ScpiPowerMeterConfig

    def __init__(self, scpi: Scpi, config: ScpiPowerMeterConfig, identity: DeviceIdentity) -> None:
        self._scpi = scpi
        self._config = config
        self.identity = identity

    @classmethod
    @asynccontextmanager
    async def open(cls, config: ScpiPowerMeterConfig) -> AsyncIterator["ScpiPowerMeter"]:
        """Identify the instrument and make it ready.

        Raises:
            DeviceError: another device, or one that refuses a command.
        """
        async with open_scpi(config, "power meter") as scpi:
            identity = await scpi.identify(config)
            await scpi.make_ready(config.ready_commands, config.errors)
            yield cls(scpi, config, identity)

    async def power_w(self) -> float:
        """Return the power.

        Raises:
            DeviceError: the light is beyond the meter's range.
        """
        figure = await self._scpi.number(self._config.query)
        if self._config.unit == "dBm":
            power_w = 1e-3 * 10 ** (min(figure, 1e3) / 10)
        else:
            power_w = figure * _WATTS[self._config.unit]
        if abs(power_w) > MOST_W:
            raise DeviceError(
                f"{self._scpi.device}: {figure:g} {self._config.unit} is no power: correct unit"
            )
        return power_w
