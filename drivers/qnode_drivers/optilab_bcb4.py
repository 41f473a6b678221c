"""Optilab BCB-4, a controller for the bias of an intensity modulator (9600 8N1, CR LF, RS-485 or USB).

The maker publishes commands, not what answers a setting: whatever comes is dropped, and the setting is read
back. On leaving it goes on as it is: a bias harms nothing, and a lock takes a minute and a half to settle.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, Final

import trio
from msgspec import Struct

from qnode.config.description import Described, Limits, check_limits
from qnode.devices.capabilities import BiasPoint
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.scpi import check_identity_text
from qnode.devices.settings import check_within, confirm
from qnode.devices.transport import SerialSettings, check_address, open_transport
from qnode.devices.transport.lines import Lines
from qnode.errors import DeviceError, DeviceGone, TransientDeviceError

ZERO_V: Final = 10.97  # the bias at code 0
VOLTS_A_CODE: Final = -21.95 / 16384
CODES: Final = 16384
ACKNOWLEDGED_WITHIN_S: Final = 0.2
SETTING_LIMIT_S: Final = 2.0
WATTS_A_COUNT: Final = 0.226e-6
_POINTS: Final[dict[BiasPoint, int]] = {
    "quadrature_rising": 1,
    "quadrature_falling": 2,
    "maximum": 3,
    "minimum": 4,
    "manual": 5,
}
_POINT_OF_MODE: Final[dict[int, BiasPoint]] = {number: point for point, number in _POINTS.items()} | {
    6: "manual"
}  # 6: with dither


class OptilabBcb4Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the controller is, and what it holds."""

    address: Annotated[
        str, Described("address of the device: serial:///dev/serial/by-id/..., tcp://HOST:PORT")
    ]
    unit: Annotated[int, Described("the address of the board on its line", limits=Limits(0, 9))] = 1
    identity: Annotated[
        str, Described("a text in the answer to RFW, the firmware; another device is refused")
    ] = ""
    point: Annotated[
        BiasPoint | None, Described("the point to hold from the opening on; default: as the controller does")
    ] = None

    def __post_init__(self) -> None:
        check_address(self.address, "serial", "tcp")
        check_limits(self)


class OptilabBcb4:
    """A bias controller: `BiasControl`, `BiasLock` and `Sensor`."""

    Config: ClassVar[type[Struct]] = OptilabBcb4Config
    bias_limits_v = (ZERO_V + (CODES - 1) * VOLTS_A_CODE, ZERO_V)

    def __init__(self, lines: Lines, config: OptilabBcb4Config) -> None:
        self._lines = lines
        self._lock = trio.Lock()
        self._unit = config.unit
        self._device = f"Optilab BCB-4 at {config.address}"
        self.identity = DeviceIdentity("Optilab BCB-4", f"unit-{config.unit}")

    @classmethod
    @asynccontextmanager
    async def open(cls, config: OptilabBcb4Config) -> AsyncIterator["OptilabBcb4"]:
        """Identify the board, and hold the point of the configuration.

        Raises:
            DeviceError: another device, or a setting does not read back.
        """
        async with open_transport(config.address, serial=SerialSettings(baud=9600)) as port:
            device = cls(Lines(port, line_end=b"\r\n", command_end=b"\r\n"), config)
            await device._status()
            if config.identity:
                firmware = await device._ask(f"RFW{config.unit}", r".+")
                check_identity_text(device._device, firmware[0], config.identity)
            if config.point is not None and config.point != await device.bias_point():
                await device.set_bias_point(config.point)
            yield device

    async def bias_v(self) -> float:
        """Return the bias voltage that the board gives out."""
        return ZERO_V + await self._code("V") * VOLTS_A_CODE

    async def set_bias_v(self, bias_v: float) -> None:
        """Give out a voltage, by hand from now on; returns when it reads back."""
        check_within(self._device, "a bias in V", bias_v, self.bias_limits_v)
        await self.set_bias_point("manual")
        await self._give_out(bias_v)

    async def bias_point(self) -> BiasPoint:
        """Return the point that the board holds, or seeks."""
        mode, _ = await self._status()
        return _POINT_OF_MODE[mode]

    async def set_bias_point(self, point: BiasPoint) -> None:
        """Hold a point from now on; settling takes up to 90 s, for which this does not wait."""
        if point == await self.bias_point():
            return
        held_v = await self.bias_v()
        await self._set(f"SET{self._unit}M:{_POINTS[point]}")
        if (found := await self.bias_point()) != point:
            raise DeviceError(f"{self._device}: set to hold {point}, reads back as {found}")
        if point == "manual":
            await self._give_out(held_v)

    async def readings(self) -> dict[str, float]:
        """Return the power on its photodiode and the half-wave voltage that it has measured."""
        _, power = await self._status()
        return {
            "monitor_power_w": power * WATTS_A_COUNT,
            "half_wave_v": ZERO_V + await self._code("VPI") * VOLTS_A_CODE,
        }

    async def _give_out(self, bias_v: float) -> None:
        code = min(max(round((bias_v - ZERO_V) / VOLTS_A_CODE), 0), CODES - 1)
        await self._set(f"SET{self._unit}V:{code:05d}")
        near = -1.5 * VOLTS_A_CODE
        await confirm(self._device, "bias_v", bias_v, self.bias_v, near=near, limit_s=SETTING_LIMIT_S)

    async def _code(self, what: str) -> int:
        (code,) = await self._ask(f"READ{self._unit}{what}", r"(\d{1,5})")
        if int(code) >= CODES:
            raise TransientDeviceError(f"{self._device}: expected a code below {CODES}, {code} came")
        return int(code)

    async def _status(self) -> tuple[int, int]:
        """Return the mode and the counts of the photodiode: unit, mode and counts stand in one word."""
        mode, power = await self._ask(f"READ{self._unit}S", rf"{self._unit}([1-6])(\d{{1,8}})")
        return int(mode), int(power)

    async def _ask(self, question: str, form: str) -> tuple[str, ...]:
        async with self._lock:
            answer = (await self._lines.ask(question)).strip()
        found = re.fullmatch(form, answer)
        if found is None:
            raise TransientDeviceError(
                f"{self._device}: expected {form} as answer to {question}, {answer[:60]!r} came: is it "
                "another device, or another unit on this line?"
            )
        return found.groups() or (answer,)

    async def _set(self, command: str) -> None:
        async with self._lock:
            await self._lines.tell(command)
            try:
                await self._lines.receive(limit_s=ACKNOWLEDGED_WITHIN_S)
            except DeviceGone:
                raise
            except TransientDeviceError:
                pass  # nothing came, or no text
