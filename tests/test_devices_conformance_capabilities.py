"""The conformance kit on capabilities: it passes a good device and catches each broken promise."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from capabilities_support import Bench
from trio.testing import MockClock

from qnode.devices.conformance import check_driver
from qnode.devices.protocols import DeviceIdentity
from qnode.errors import DeviceError, TransientDeviceError


async def test_a_good_device_of_every_capability_conforms(autojump_clock: MockClock) -> None:
    await check_driver(Bench, {})


@pytest.mark.parametrize(
    ("flaw", "promise"),
    [
        (
            "takes any attenuation",
            r"set_attenuation_db\(66\) took a value outside its limits: raise DeviceError",
        ),
        (
            "attenuation differs",
            r"attenuation_db\(\) is 45.5 after set_attenuation_db\(45\): read each setting",
        ),
        ("takes any bias", r"set_bias_v\(12\) took a value outside"),
        ("bias differs", r"bias_v\(\) is 0.5 after set_bias_v\(0\)"),
        ("takes any phase", r"set_phase_rad\(7.7\) took"),
        ("goes on holding", r"after set_bias_v\(\), bias_point\(\) is 'maximum', expected 'manual'"),
        ("holds maximum only", r"bias_point\(\) is 'maximum' after set_bias_point\('quadrature_rising'\)"),
        ("manual moves", r"set_bias_point\('manual'\) moved the bias from 0.5 V to -9 V"),
        ("laser stays off", r"the laser is off after set_laser\(True\)"),
        ("power is no number", "power_w is nan"),
        (
            "takes any detector value",
            r"set_detector\(0, .*photocurrent_a=1e-06.* took what no detector can have",
        ),
        ("random bytes repeat", "returned the same bytes twice"),
        ("too few random bytes", "returned 31 as bytes"),
        ("changes while it emits", r"set_pattern\(\) took a pattern while it emits"),
        ("takes any pattern", r"set_pattern\(\) took p_z of 1.5"),
    ],
)
async def test_a_capability_that_breaks_a_promise_is_caught(
    flaw: str, promise: str, autojump_clock: MockClock
) -> None:
    with pytest.raises(AssertionError, match=promise):
        await check_driver(Bench, {"flaw": flaw})


async def test_a_laser_with_an_open_interlock_may_refuse(autojump_clock: MockClock) -> None:
    await check_driver(Bench, {"flaw": "interlock open"})


class Dark(Bench):
    """Opened with light: neither is set first."""

    def __init__(self, flaw: str = "") -> None:
        super().__init__(flaw)
        self.attenuation = 3.0


class Bright(Bench):
    def __init__(self, flaw: str = "") -> None:
        super().__init__(flaw)
        self.laser_on = True


class Narrow(Bench):
    phase_limits_rad = (0.0, 6.0)


class Inverted(Bench):
    bias_limits_v = (10.0, -10.0)


class Deaf(Bench):
    async def set_bias_v(self, bias_v: float) -> None:
        await trio.sleep_forever()


class Farther(Bench):
    detector_channels = (0, 4)


class Unfounded:
    """Has half of a capability."""

    Config = Bench.Config
    identity = DeviceIdentity("unfounded", "U-1")

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Any) -> "AsyncIterator[Unfounded]":
        yield cls()

    async def bias_v(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("driver", "promise"),
    [
        (Dark, "opened, the attenuation is 3 dB, expected the greatest, 60: set it first"),
        (Bright, "opened, the laser is on: switch it off first"),
        (Narrow, "phase_limits_rad spans 6, expected 2 π"),
        (Inverted, r"bias_limits_v is \(10.0, -10.0\), expected two finite figures, the least first"),
        (Deaf, r"set_bias_v\(\): nothing within 30 s"),
        (Farther, r"detector_channels is \(0, 4\), expected 0 \(Z\), 1 \(X\) or both"),
        (Unfounded, "has bias_v but no bias_limits_v, set_bias_v, which every BiasControl has"),
    ],
)
async def test_a_device_that_does_not_keep_its_capability_is_caught(
    driver: Any, promise: str, autojump_clock: MockClock
) -> None:
    with pytest.raises(AssertionError, match=promise):
        await check_driver(driver, {})


class Late(Bench):
    """After a cancelled setting, the answer to the next question is the one to the setting."""

    owed: float | None = None

    async def set_attenuation_db(self, attenuation_db: float) -> None:
        self.owed = -99.0
        with suppress(DeviceError):
            await super().set_attenuation_db(attenuation_db)
            self.owed = None
            return
        self.owed = None
        raise DeviceError("outside its limits")

    async def attenuation_db(self) -> float:
        owed, self.owed = self.owed, None
        if owed is not None and self.flaw == "notices":
            raise TransientDeviceError("an answer to another question")
        return await super().attenuation_db() if owed is None else owed


async def test_a_late_answer_taken_for_another_is_caught(autojump_clock: MockClock) -> None:
    with pytest.raises(AssertionError, match=r"after a cancelled set_attenuation_db\(\), .* is -99"):
        await check_driver(Late, {})
    await check_driver(Late, {"flaw": "notices"})


class Lamp:
    """What stays behind when the device is closed, and what the driver leaves out of its ``open``."""

    def __init__(self, flaw: str) -> None:
        self.flaw = flaw
        self.bench = Bench()

    def driver(self) -> Any:
        lamp = self

        class Driver(Bench):
            @classmethod
            @asynccontextmanager
            async def open(cls, config: Any) -> AsyncIterator[Bench]:
                if lamp.flaw != "not first":
                    lamp.bench.attenuation, lamp.bench.laser_on = 60.0, False
                try:
                    yield lamp.bench
                except Exception:
                    if lamp.flaw == "not after an error":
                        raise
                    lamp.bench.attenuation, lamp.bench.laser_on = 60.0, False
                    raise
                except BaseException:
                    if lamp.flaw != "not when cancelled":
                        lamp.bench.attenuation, lamp.bench.laser_on = 60.0, False
                    raise

        return Driver

    def is_safe(self) -> bool:
        return self.bench.attenuation == 60.0 and not self.bench.laser_on


@pytest.mark.parametrize(
    ("flaw", "promise"),
    [
        ("not after an error", "left by an error, the hardware was not left safe"),
        ("not when cancelled", "cancelled in use, the hardware was not left safe"),
        ("not first", "opened, the hardware is not safe: make it so first"),
    ],
)
async def test_a_laser_or_attenuator_that_is_not_made_safe_is_caught(
    flaw: str, promise: str, autojump_clock: MockClock
) -> None:
    lamp = Lamp(flaw)
    if flaw == "not first":
        lamp.bench.attenuation = 3.0
    with pytest.raises(AssertionError, match=promise):
        await check_driver(lamp.driver(), {}, is_safe=lamp.is_safe)


async def test_a_laser_and_attenuator_that_are_made_safe_conform(autojump_clock: MockClock) -> None:
    lamp = Lamp("")
    lamp.bench.attenuation = 3.0
    await check_driver(lamp.driver(), {}, is_safe=lamp.is_safe)
