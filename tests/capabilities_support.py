"""A device of the tests with every capability, held in memory; ``flaw`` names the promise that it breaks."""

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
import trio

from qnode.devices.capabilities import BiasPoint, DetectorState, LaserState, PulsePattern
from qnode.devices.protocols import DeviceIdentity
from qnode.errors import DeviceError

PATTERN = PulsePattern(
    qubit_rate_hz=6e8, bin_spacing_ps=800, p_z=0.9, probabilities=(0.7, 0.3), levels=(1.0, 0.4)
)


class BenchConfig(msgspec.Struct, frozen=True):
    """``flaw``: the promise to break."""

    flaw: str = ""


class Bench:
    """Everything on a bench in one device."""

    Config: ClassVar[type[msgspec.Struct]] = BenchConfig
    identity = DeviceIdentity("bench", "B-7")
    attenuation_limits_db = (0.0, 60.0)
    bias_limits_v = (-10.0, 10.0)
    phase_limits_rad = (0.0, 7.0)
    detector_channels: tuple[int, ...] = (0, 1)

    def __init__(self, flaw: str = "") -> None:
        self.flaw = flaw
        self.attenuation = 60.0
        self.bias = 0.5
        self.phase = 1.0
        self.point: BiasPoint = "maximum"
        self.laser_on = False
        self.detectors = {
            channel: DetectorState(bias_v=3.0, dead_time_s=2e-5, temperature_k=223.0, photocurrent_a=1e-9)
            for channel in (0, 1)
        }
        self.chosen = PATTERN
        self.emitting = False

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Any) -> "AsyncIterator[Bench]":
        """Yield a new bench, which is safe."""
        yield cls(config.flaw)

    async def _set(self, name: str, value: float, limits: tuple[float, float]) -> None:
        await trio.sleep(0.001)
        if not limits[0] <= value <= limits[1] and self.flaw != f"takes any {name}":
            raise DeviceError(f"{name} {value} is outside {limits}")
        setattr(self, name, value + (0.5 if self.flaw == f"{name} differs" else 0.0))

    async def attenuation_db(self) -> float:
        """Return the attenuation."""
        await trio.sleep(0.001)
        return self.attenuation

    async def set_attenuation_db(self, attenuation_db: float) -> None:
        """Set the attenuation."""
        await self._set("attenuation", attenuation_db, self.attenuation_limits_db)

    async def bias_v(self) -> float:
        """Return the bias."""
        await trio.sleep(0.001)
        return self.bias

    async def set_bias_v(self, bias_v: float) -> None:
        """Set the bias, by hand from now on."""
        await self._set("bias", bias_v, self.bias_limits_v)
        if self.flaw != "goes on holding":
            self.point = "manual"

    async def bias_point(self) -> BiasPoint:
        """Return the point."""
        await trio.sleep(0.001)
        return self.point

    async def set_bias_point(self, point: BiasPoint) -> None:
        """Hold a point."""
        await trio.sleep(0.001)
        if self.flaw != "holds maximum only":
            self.point = point
        if point == "manual" and self.flaw == "manual moves":
            self.bias = -9.0

    async def laser_state(self) -> LaserState:
        """Return the state."""
        await trio.sleep(0.001)
        return LaserState(self.laser_on, interlock_closed=self.flaw != "interlock open")

    async def set_laser(self, on: bool) -> None:
        """Switch."""
        await trio.sleep(0.001)
        if on and self.flaw == "interlock open":
            raise DeviceError("the interlock is open")
        self.laser_on = on and self.flaw != "laser stays off"

    async def power_w(self) -> float:
        """Return a power."""
        await trio.sleep(0.001)
        return math.nan if self.flaw == "power is no number" else 1e-6

    async def detector_state(self, channel: int) -> DetectorState:
        """Return the state."""
        await trio.sleep(0.001)
        return self.detectors[channel]

    async def set_detector(self, channel: int, wanted: DetectorState) -> None:
        """Set what is named."""
        await trio.sleep(0.001)
        if self.flaw == "takes any detector value":
            return
        if wanted.photocurrent_a is not None or channel not in self.detectors:
            raise DeviceError("a photocurrent cannot be set")
        if not all(0 <= value < 1e4 for value in msgspec.structs.astuple(wanted) if value is not None):
            raise DeviceError("outside its limits")
        named = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
        self.detectors[channel] = msgspec.structs.replace(self.detectors[channel], **named)

    async def phase_rad(self) -> float:
        """Return the phase."""
        await trio.sleep(0.001)
        return self.phase

    async def set_phase_rad(self, phase_rad: float) -> None:
        """Set the phase."""
        await self._set("phase", phase_rad, self.phase_limits_rad)

    async def random_bytes(self, number: int) -> bytes:
        """Return random bytes."""
        await trio.sleep(0.001)
        if self.flaw == "random bytes repeat":
            return bytes(range(number))
        return os.urandom(number - (self.flaw == "too few random bytes"))

    async def pattern(self) -> PulsePattern:
        """Return the pattern."""
        await trio.sleep(0.001)
        return self.chosen

    async def set_pattern(self, pattern: PulsePattern) -> None:
        """Set the pattern."""
        await trio.sleep(0.001)
        if self.emitting and self.flaw != "changes while it emits":
            raise DeviceError("stop the emission first")
        if not 0 < pattern.p_z < 1 and self.flaw != "takes any pattern":
            raise DeviceError("p_z is no fraction")
        self.chosen = pattern

    async def start_emission(self) -> None:
        """Start."""
        await trio.sleep(0.001)
        self.emitting = True

    async def stop_emission(self) -> None:
        """Stop."""
        await trio.sleep(0.001)
        self.emitting = False
