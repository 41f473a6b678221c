"""Any attenuator with a command to set, a question to read, and numbers as answers.

``preset`` names the commands of a maker; each can be replaced. In a command `{value}` is the attenuation,
written as Python formats numbers, and `{channel}` the slot of a mainframe.
"""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from qnode.config.description import Described, Limits, check_limits
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.scpi import Scpi, ScpiConfig, open_scpi
from qnode.devices.settings import check_plausible, check_within, confirm, kept_safe
from qnode.errors import TransientDeviceError


class Commands(Struct, frozen=True, kw_only=True):
    """What one kind of attenuator understands; ``scale``: its figures for each dB of attenuation."""

    identify: str = "*IDN?"
    setting: str = ":INP:ATT {value:.3f}"
    query: str = ":INP:ATT?"
    least: str = ":INP:ATT? MIN"
    most: str = ":INP:ATT? MAX"
    errors: str = ":SYST:ERR?"
    scale: float = 1.0


_ATT: Final = Commands(
    setting="ATT {value:.3f} DB", query="ATT?", least="ATT? MIN", most="ATT? MAX", errors=""
)
PRESETS: Final = {
    "scpi": Commands(),
    "keysight-816x": Commands(
        setting=":INP{channel}:ATT {value:.3f}",
        query=":INP{channel}:ATT?",
        least=":INP{channel}:ATT? MIN",
        most=":INP{channel}:ATT? MAX",
    ),
    "exfo-fva-3100": replace(_ATT, scale=-1.0),
    "jdsu-ha": replace(_ATT, identify="IDN?"),
}
_REPLACED: Final = ("setting", "query", "least", "most", "errors", "scale")


class ScpiAttenuatorConfig(ScpiConfig, frozen=True, kw_only=True):
    """Where the attenuator is and what it understands."""

    preset: Annotated[
        Literal["scpi", "keysight-816x", "exfo-fva-3100", "jdsu-ha"],
        Described("whose commands it understands"),
    ] = "scpi"
    channel: Annotated[int, Described("the slot of a mainframe", limits=Limits(1, 99))] = 1
    setting: Annotated[str | None, Described("command that sets `{value}`")] = None
    query: Annotated[str | None, Described("question for the attenuation")] = None
    least: Annotated[str | None, Described("question for the least attenuation")] = None
    most: Annotated[str | None, Described("question for the most attenuation")] = None
    errors: Annotated[str | None, Described("question for errors, after each setting; empty: none")] = None
    scale: Annotated[
        float | None, Described("the instrument's figure for 1 dB, such as -1", limits=Limits(-1e6, 1e6))
    ] = None
    limits_db: Annotated[
        tuple[float, float] | None,
        Described("least and most; default: the instrument is asked", limits="the least first"),
    ] = None
    working_db: Annotated[
        float | None,
        Described(
            "attenuation once all is safe, where no controller sets it; default: the most",
            limits=Limits(0.0, 200.0),
        ),
    ] = None
    tolerance_db: Annotated[
        float, Described("how far a setting may read back from its value", limits=Limits(1e-4, 1.0))
    ] = 0.05
    settling_s: Annotated[float, Described("the time to reach a setting", limits=Limits(0.1, 60.0))] = 3.0
    safe_commands: Annotated[
        tuple[str, ...], Described("commands after the most attenuation, such as one that closes a shutter")
    ] = ()
    ready_commands: Annotated[
        tuple[str, ...], Described("commands once it is safe: wavelength, opening a shutter")
    ] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits(self)
        if not self.commands.scale:
            raise ValueError("scale: expected another figure than 0")
        try:
            if self.filled("setting", value=1.0) == self.filled("setting", value=2.0):
                raise ValueError("setting: expected a command with {value} in it")
        except (KeyError, IndexError, AttributeError) as wrong:
            raise ValueError(f"setting: expected {{value}} and {{channel}} only, got {wrong}") from None
        if self.limits_db is not None and not 0 <= self.limits_db[0] < self.limits_db[1]:
            raise ValueError(f"limits_db: expected two figures, the least first, got {list(self.limits_db)}")

    @property
    def commands(self) -> Commands:
        """The commands of the preset, with those of this table in their place."""
        own: dict[str, Any] = {name: getattr(self, name) for name in _REPLACED}
        return replace(PRESETS[self.preset], **{name: one for name, one in own.items() if one is not None})

    def filled(self, name: str, value: float = 0.0) -> str:
        """Return a command with its figures in place."""
        command: str = getattr(self.commands, name)
        return command.format(value=value * self.commands.scale, channel=self.channel)


class ScpiAttenuator:
    """An attenuator that speaks SCPI, or nearly: `VariableAttenuator`."""

    Config: ClassVar[type[Struct]] = ScpiAttenuatorConfig

    def __init__(
        self,
        scpi: Scpi,
        config: ScpiAttenuatorConfig,
        identity: DeviceIdentity,
        limits_db: tuple[float, float],
    ) -> None:
        self._scpi = scpi
        self._config = config
        self.identity = identity
        self.attenuation_limits_db = limits_db

    @classmethod
    @asynccontextmanager
    async def open(cls, config: ScpiAttenuatorConfig) -> AsyncIterator["ScpiAttenuator"]:
        """Identify the instrument and set the most attenuation, now and on every way out.

        Raises:
            DeviceError: another device, or the attenuation does not read back.
        """
        async with open_scpi(config, "attenuator") as scpi:
            identity = await scpi.identify(config, config.commands.identify)
            await scpi.forget(config.commands.errors)
            limits_db = config.limits_db or await _asked_limits(scpi, config)
            device = cls(scpi, config, identity, limits_db)
            async with kept_safe(scpi.device, device._make_safe):
                for command in config.ready_commands:
                    await scpi.tell(command, config.commands.errors)
                if config.working_db is not None:
                    await device.set_attenuation_db(config.working_db)
                yield device

    async def attenuation_db(self) -> float:
        """Return the attenuation that the instrument reports."""
        attenuation_db = abs(
            await self._scpi.number(self._config.filled("query")) / self._config.commands.scale
        )
        return check_plausible(
            self._scpi.device, "an attenuation in dB", attenuation_db, self.attenuation_limits_db
        )

    async def set_attenuation_db(self, attenuation_db: float) -> None:
        """Set the attenuation; returns when it reads back."""
        check_within(self._scpi.device, "an attenuation in dB", attenuation_db, self.attenuation_limits_db)
        await self._send(attenuation_db)
        await self._confirm(attenuation_db)

    async def _send(self, attenuation_db: float) -> None:
        await self._scpi.tell(self._config.filled("setting", attenuation_db), self._config.commands.errors)

    async def _confirm(self, attenuation_db: float) -> None:
        await confirm(
            self._scpi.device,
            "attenuation_db",
            attenuation_db,
            self.attenuation_db,
            near=self._config.tolerance_db,
            limit_s=self._config.settling_s,
        )

    async def _make_safe(self) -> None:
        """Set the most and close the shutter, which an attenuator that is stuck must not keep open."""
        most_db = self.attenuation_limits_db[1]
        try:
            await self._send(most_db)
        finally:
            for command in self._config.safe_commands:
                await self._scpi.tell(command, self._config.commands.errors)
        await self._confirm(most_db)


async def _asked_limits(scpi: Scpi, config: ScpiAttenuatorConfig) -> tuple[float, float]:
    """Ask for the limits, twice: the most is what is safe, and no garbled answer may name less."""
    asked = [
        [abs(await scpi.number(config.filled(end)) / config.commands.scale) for end in ("least", "most")]
        for _ in range(2)
    ]
    least, most = math.ceil(1e3 * min(asked[0])) / 1e3, math.floor(1e3 * max(asked[0])) / 1e3
    if asked[0] != asked[1] or least >= most:
        raise TransientDeviceError(
            f"{scpi.device}: expected limits in dB twice alike, {asked[0]} and {asked[1]} came: set limits_db"
        )
    return least, most
