"""OZ Optics DD-100 and DA-100 attenuators with a motor, over a serial line (9600 8N1) or a terminal server.

A command ends with CR. An answer is some lines, then `Done` and an empty line, or a line `Error-N`. The unit
does its own homing when it is switched on; the driver never moves it to its home position.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, Final

import trio
from msgspec import Struct

from qnode.config.description import Described, Limits, check_limits
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.scpi import check_identity_text
from qnode.devices.settings import check_plausible, check_within, confirm, figure, kept_safe
from qnode.devices.transport import SerialSettings, check_address, open_transport
from qnode.devices.transport.lines import Lines
from qnode.errors import DeviceError, TransientDeviceError

MOVE_LIMIT_S: Final = 4.0
MOST_LINES: Final = 40
RESOLUTION_DB: Final = 0.05
_ERRORS: Final = {
    "Error-2": "a command that it does not know",
    "Error-5": "its home sensor has failed, return it to the maker",
    "Error-6": "a value beyond its range",
    "Error-7": "the voltage of its motor exceeds the safe limit",
}


class OzDd100Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the attenuator is and what it can do."""

    address: Annotated[
        str, Described("address of the device: serial:///dev/serial/by-id/..., tcp://HOST:PORT")
    ]
    identity: Annotated[
        str, Described("a text in the answer to CD, such as the serial number; another device is refused")
    ] = ""
    limits_db: Annotated[
        tuple[float, float],
        Described("least attenuation, the insertion loss, and most", limits="the least first"),
    ] = (0.0, 60.0)
    working_db: Annotated[
        float | None,
        Described(
            "attenuation once all is safe, where no controller sets it; default: the most",
            limits=Limits(0.0, 200.0),
        ),
    ] = None

    def __post_init__(self) -> None:
        check_address(self.address, "serial", "tcp")
        check_limits(self)
        if not 0 <= self.limits_db[0] < self.limits_db[1]:
            raise ValueError(f"limits_db: expected two figures, the least first, got {list(self.limits_db)}")


class OzDd100:
    """A motorised attenuator: `VariableAttenuator`."""

    Config: ClassVar[type[Struct]] = OzDd100Config

    def __init__(self, lines: Lines, config: OzDd100Config) -> None:
        self._lines = lines
        self._lock = trio.Lock()
        self._device = f"OZ Optics attenuator at {config.address}"
        self.attenuation_limits_db = config.limits_db
        self.identity = DeviceIdentity("OZ Optics DD-100", "unknown")

    @classmethod
    @asynccontextmanager
    async def open(cls, config: OzDd100Config) -> AsyncIterator["OzDd100"]:
        """Identify the unit and set the most attenuation, now and on every way out.

        Raises:
            DeviceError: another device, or the attenuation does not read back.
        """
        async with open_transport(config.address, serial=SerialSettings(baud=9600)) as port:
            device = cls(Lines(port, line_end=b"\r\n", command_end=b"\r"), config)
            said = await device._ask("CD")
            check_identity_text(device._device, "; ".join(said), config.identity)
            serial = re.search(r"(?i)\b(?:s/?n|serial)[^\w-]*([\w-]+)", " ".join(said))
            device.identity = DeviceIdentity("OZ Optics DD-100", serial[1] if serial else "unknown")

            async def most() -> None:
                await device.set_attenuation_db(config.limits_db[1])

            async with kept_safe(device._device, most):
                if config.working_db is not None:
                    await device.set_attenuation_db(config.working_db)
                yield device

    async def attenuation_db(self) -> float:
        """Return the attenuation that the unit reports."""
        answer = " ".join(await self._ask("A?"))
        found = re.search(r"(?i)atten:\s*([^\s(]+)", answer)
        if found is None:
            raise TransientDeviceError(f"{self._device}: expected Atten:... as answer to A?, {answer!r} came")
        if found[1].lower() == "unknown":
            raise DeviceError(
                f"{self._device}: does not know its attenuation: block the light, send H, try again"
            )
        attenuation_db = figure(self._device, "A?", found[1])
        return check_plausible(
            self._device, "an attenuation in dB", attenuation_db, self.attenuation_limits_db
        )

    async def set_attenuation_db(self, attenuation_db: float) -> None:
        """Move to an attenuation; returns when it is reached and reads back."""
        check_within(self._device, "an attenuation in dB", attenuation_db, self.attenuation_limits_db)
        await self._ask(f"A{attenuation_db:.2f}", limit_s=MOVE_LIMIT_S)
        await confirm(
            self._device,
            "attenuation_db",
            attenuation_db,
            self.attenuation_db,
            near=RESOLUTION_DB,
            limit_s=1.0,
        )

    async def _ask(self, command: str, limit_s: float = 2.0) -> list[str]:
        """Return the lines before `Done`, without empty lines and an echo of the command."""
        async with self._lock:
            line = await self._lines.ask(command, limit_s=limit_s)
            said: list[str] = []
            while line.strip() != "Done":
                if line.startswith("Error"):
                    meaning = _ERRORS.get(line.strip(), "an error that the manual lists")
                    raise DeviceError(f"{self._device}: answered {command} with {line.strip()}: {meaning}")
                said.append(line.strip())
                if len(said) > MOST_LINES:
                    raise TransientDeviceError(
                        f"{self._device}: no Done after {command}: is it another device?"
                    )
                line = await self._lines.receive(limit_s=limit_s)
            return [one for one in said if one and one != command]
