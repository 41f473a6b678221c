"""The conformance kit: it passes a good driver and catches each broken promise."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
import trio
import trio.testing
from devices_support import Metronome, MetronomeConfig, fresh_metronome

from qnode.devices import conformance
from qnode.devices.conformance import check_driver
from qnode.devices.protocols import DeviceIdentity, EmissionRun
from qnode.tags.types import UNKNOWN_SYMBOL, Codes, Slots, TagBlock

TABLE = {"serial": "M-7"}


async def test_a_good_tag_source_conforms() -> None:
    driver = fresh_metronome()
    await check_driver(driver, TABLE)
    assert driver.opened == driver.left_safe == 2


class ThawedConfig(msgspec.Struct):
    serial: str = "M-1"
    period_s: float = 0.001
    simulated: bool = False


class Thawed(Metronome):
    Config = ThawedConfig


class Nameless(Metronome):
    def __init__(self, config: MetronomeConfig) -> None:
        super().__init__(config)
        self.identity = DeviceIdentity("metronome", "")


class Fickle(Metronome):
    def __init__(self, config: MetronomeConfig) -> None:
        super().__init__(config)
        self.identity = DeviceIdentity("metronome", str(type(self).opened))


class Mute(Metronome):
    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        nothing: list[TagBlock] = []
        for block in nothing:
            yield block


class Backwards(Metronome):
    def block(self, number: int) -> TagBlock:
        return super().block(5 - number)


class Tardy(Metronome):
    def block(self, number: int) -> TagBlock:
        good = super().block(number)
        return TagBlock(good.times_ps - 10**9, good.channels, good.until_ps)


class Floating(Metronome):
    def block(self, number: int) -> TagBlock:
        good = super().block(number)
        return TagBlock(good.times_ps.astype(np.float64), good.channels, good.until_ps)


class Channels(Metronome):
    def block(self, number: int) -> TagBlock:
        good = super().block(number)
        return TagBlock(good.times_ps, good.channels + np.int8(5), good.until_ps)


class Uneven(Metronome):
    def block(self, number: int) -> TagBlock:
        good = super().block(number)
        return TagBlock(good.times_ps, good.channels[1:], good.until_ps)


class Fevered(Metronome):
    async def readings(self) -> dict[str, float]:
        return {"temperature_celsius": float("nan")}


class Clinging(Metronome):
    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        number = 0
        while True:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.0001)
            yield self.block(number)
            number += 1


class Nested(Channels):
    """Runs a nursery while it is open, as drivers with a reader task do."""

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Any) -> AsyncIterator[Metronome]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            yield cls(config)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("driver", "promise"),
    [
        (Thawed, "not frozen"),
        (Nameless, "does not name its serial"),
        (Fickle, "opened again, the device says"),
        (Mute, "without a single block"),
        (Backwards, "until_ps went back"),
        (Tardy, "after its time was said to be complete"),
        (Floating, "float64, not int64"),
        (Channels, "neither Z nor X"),
        (Nested, "neither Z nor X"),
        (Uneven, r"\(10,\) times, \(9,\) channels"),
        (Fevered, "temperature_celsius is nan"),
        (Clinging, "goes on yielding"),
    ],
)
async def test_each_broken_promise_is_caught(driver: type[Metronome], promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        await check_driver(driver, TABLE)


async def test_a_silent_source_is_caught(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(AssertionError, match="tags: nothing within 30 s"):
        await check_driver(fresh_metronome(), {"period_s": 1e9})


async def test_a_device_that_is_left_slowly_is_caught(autojump_clock: trio.testing.MockClock) -> None:
    class Slow(Metronome):
        @classmethod
        @asynccontextmanager
        async def open(cls, config: Any) -> AsyncIterator[Metronome]:
            try:
                yield cls(config)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(conformance.LEAVING_LIMIT_S + 1)

    with pytest.raises(AssertionError, match=r"took 6.0 s to be left"):
        await check_driver(Slow, TABLE)


async def test_unknown_keys_that_the_driver_takes_are_caught() -> None:
    class LaxConfig(MetronomeConfig, frozen=True):
        no_driver_has_this_key: int = 0

    class Lax(Metronome):
        Config: ClassVar[type[msgspec.Struct]] = LaxConfig

    with pytest.raises(AssertionError, match="takes unknown keys"):
        await check_driver(Lax, TABLE)


class LampConfig(msgspec.Struct, frozen=True):
    fault: str = ""


class Lamp:
    """A transmitter that sends the parity of the slot; ``fault`` breaks one promise."""

    Config: ClassVar[type[msgspec.Struct]] = LampConfig

    def __init__(self, config: Any) -> None:
        self.identity = DeviceIdentity("lamp", "L-1")
        self._fault = config.fault
        self._asked = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Any) -> "AsyncIterator[Lamp]":
        yield cls(config)

    async def runs(self) -> AsyncGenerator[EmissionRun, None]:
        yield EmissionRun(run_id=2**63 if self._fault == "wide" else 17, started_at_s=1.8e9)
        await trio.sleep_forever()

    def symbols(self, run_id: int, slots: Slots) -> Codes:
        self._asked += 1
        sent = (slots % 2).astype(np.uint8)
        if self._fault == "forgetful":
            sent = ((slots + self._asked) % 2).astype(np.uint8)
        if self._fault == "liar":
            return sent
        unknown = (slots < 0) | (slots > 10**9) | (run_id != 17)
        return np.where(unknown, np.uint8(UNKNOWN_SYMBOL), sent)


async def test_a_good_transmitter_conforms() -> None:
    await check_driver(Lamp, {})


@pytest.mark.parametrize(
    ("fault", "promise"),
    [("wide", "more than 63 bits"), ("forgetful", "has another symbol"), ("liar", "never sent")],
)
async def test_a_transmitters_broken_promises_are_caught(fault: str, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        await check_driver(Lamp, {"fault": fault})
