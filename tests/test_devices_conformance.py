"""The conformance kit: it passes a good driver and catches each broken promise."""

import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
import trio
from devices_support import Metronome, MetronomeConfig, fresh_metronome
from trio.testing import MockClock as Clock

from qnode.devices import conformance
from qnode.devices.conformance import check_driver
from qnode.devices.protocols import DeviceIdentity, EmissionRun
from qnode.devices.registry import DriverClass
from qnode.tags.types import UNKNOWN_SYMBOL, Codes, Slots, TagBlock
from qnode.units import PS_PER_S

TABLE = {"serial": "M-7"}
NOW_S = time.time()


async def test_a_good_tag_source_conforms(autojump_clock: Clock) -> None:
    driver = fresh_metronome()
    await check_driver(driver, TABLE)
    assert driver.opened == driver.left_safe == 5  # cancelled in use, failed, cancelled twice while it opened


# What a tag source yields


def yielding(change: Callable[[int, TagBlock], TagBlock]) -> type[Metronome]:
    """Return a driver whose blocks are changed."""

    class Changed(Metronome):
        def block(self, number: int) -> TagBlock:
            return change(number, super().block(number))

    return Changed


def backwards(number: int, good: TagBlock) -> TagBlock:
    return replace(good, times_ps=good.times_ps - 2000 * number, until_ps=good.until_ps - 2000 * number)


def late(by_ps: int) -> Callable[[int, TagBlock], TagBlock]:
    def change(number: int, good: TagBlock) -> TagBlock:
        times_ps = good.times_ps.copy()
        times_ps[0] -= by_ps if number else 0
        return replace(good, times_ps=times_ps)

    return change


def disordered(by_ps: int) -> Callable[[int, TagBlock], TagBlock]:
    def change(_number: int, good: TagBlock) -> TagBlock:
        times_ps = good.times_ps.copy()
        times_ps[0] += by_ps
        return replace(good, times_ps=times_ps, until_ps=good.until_ps)

    return change


def read_only(_number: int, good: TagBlock) -> TagBlock:
    return replace(good, channels=np.frombuffer(good.channels.tobytes(), np.int8))


def of_every_second(_number: int, good: TagBlock) -> TagBlock:
    return replace(good, times_ps=np.repeat(good.times_ps, 2)[::2])


TOO_MANY = (1 << 20) + 1


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        (backwards, r"tags\(\), block 2: until_ps went back by 1000 ps: raise TransientDeviceError when"),
        (
            late(1_500_000),
            r"block 2: a tag came 1500000 ps after until_ps .* order window of 1000000 ps: sort",
        ),
        (
            disordered(1_500_000),
            "a tag lies 1499900 ps behind one before it, expected at most the order window",
        ),
        (
            lambda _, good: replace(good, until_ps=good.until_ps - PS_PER_S),
            "after until_ps, expected at most 100000000000: tags wait until it has passed them",
        ),
        (
            lambda number, good: replace(good, until_ps=good.until_ps + number * (1 << 62)),
            r"until_ps jumped by 53 days: is it in picoseconds\?",
        ),
        (
            lambda _, good: replace(good, until_ps=1000, times_ps=good.times_ps % 1000),
            "until_ps stood still over 5",
        ),
        (
            lambda _, good: replace(good, until_ps=np.int64(1000)),
            r"until_ps is 1000 \(int64\), expected an int",
        ),
        (lambda _, good: replace(good, lost=-1), r"lost is -1 \(int\)"),
        (lambda _, good: replace(good, times_ps=good.times_ps.astype(np.float64)), "of float64, expected"),
        (lambda _, good: replace(good, channels=good.channels.astype(np.int16)), "of int16, expected"),
        (lambda _, good: replace(good, channels=good.channels[1:]), "times_ps has 10 tags and channels 9"),
        (
            lambda _, good: replace(good, channels=good.channels + np.int8(5)),
            r"neither 0 \(Z\) nor 1 \(X\): map",
        ),
        (
            lambda _, good: replace(
                good, times_ps=np.zeros(TOO_MANY, np.int64), channels=np.zeros(TOO_MANY, np.int8)
            ),
            "1048577 tags in one block, expected at most 1048576",
        ),
        (read_only, "channels is read-only or has gaps: yield a copy"),
        (of_every_second, "times_ps is read-only or has gaps"),
        (lambda _, good: good.times_ps, r"tags\(\) yielded a ndarray, expected a TagBlock"),
    ],
)
async def test_blocks_of_tags_that_the_node_would_trip_over_are_caught(
    change: Callable[[int, TagBlock], TagBlock], promise: str, autojump_clock: Clock
) -> None:
    with pytest.raises(AssertionError, match=promise) as caught:
        await check_driver(yielding(change), TABLE)
    assert str(caught.value).startswith("Changed: ")


async def test_the_order_window_is_that_of_the_site_file(autojump_clock: Clock) -> None:
    for change in (late(1_500_000), disordered(1_500_000)):
        await check_driver(yielding(change), TABLE, order_window_ps=1_500_000)
    with pytest.raises(AssertionError, match="order window of 0 ps"):
        await check_driver(yielding(disordered(200)), TABLE, order_window_ps=0)


async def test_a_counter_that_wraps_conforms(autojump_clock: Clock) -> None:
    first_ps = 2**63 - 1500

    def wrapping(_number: int, good: TagBlock) -> TagBlock:
        return replace(good, times_ps=good.times_ps + np.int64(first_ps), until_ps=good.until_ps + first_ps)

    class Old(Metronome):
        def __init__(self, config: MetronomeConfig) -> None:
            super().__init__(config)
            self.origin_s = time.time() - first_ps / PS_PER_S

        def block(self, number: int) -> TagBlock:
            return wrapping(number, super().block(number))

    await check_driver(Old, TABLE)


class Reusing(Metronome):
    """Yields the same arrays again and again."""

    def block(self, number: int) -> TagBlock:
        if number == 0:
            self._first = super().block(0)
        self._first.times_ps[:] = super().block(number).times_ps
        return TagBlock(self._first.times_ps, self._first.channels, super().block(number).until_ps)


class Unpacing(Metronome):
    def block(self, number: int) -> TagBlock:
        self.paced = number < 2
        return super().block(number)


class Adjusting(Metronome):
    def block(self, number: int) -> TagBlock:
        self.origin_s += 1e-6
        return super().block(number)


class Counting(Metronome):
    def block(self, number: int) -> TagBlock:
        self.identity = DeviceIdentity("metronome", f"block {number}")
        return super().block(number)


class Numeric(Metronome):
    def __init__(self, config: MetronomeConfig) -> None:
        super().__init__(config)
        self.paced = 1  # type: ignore[assignment]


class Timeless(Metronome):
    def __init__(self, config: MetronomeConfig) -> None:
        super().__init__(config)
        self.origin_s = float("nan")


class Monotonic(Metronome):
    def __init__(self, config: MetronomeConfig) -> None:
        super().__init__(config)
        self.origin_s = 1234.5  # since the machine's start


class Mute(Metronome):
    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        nothing: list[TagBlock] = []
        for block in nothing:
            yield block


class Ending(Metronome):
    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        yield self.block(0)


class Blocks:
    """An iterator that nobody can close."""

    def __init__(self, metronome: Metronome) -> None:
        self._metronome, self._number = metronome, -1

    def __aiter__(self) -> "Blocks":
        return self

    async def __anext__(self) -> TagBlock:
        await trio.sleep(0.001)
        self._number += 1
        return self._metronome.block(self._number)


class Unclosable(Metronome):
    def tags(self) -> Any:
        return Blocks(self)


class Coroutine(Metronome):
    async def tags(self) -> Any:  # type: ignore[override]
        return [self.block(0)]


class Clinging(Metronome):
    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        number = 0
        while True:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.0001)
            yield self.block(number)
            number += 1


@pytest.mark.parametrize(
    ("driver", "promise"),
    [
        (Reusing, "the arrays of an earlier block have changed"),
        (Unpacing, r"paced and origin_s were \(True, .* let them be while the device is open"),
        (Adjusting, "paced and origin_s were"),
        (Counting, "the identity changed while the device was open"),
        (Numeric, r"paced is 1 \(int\), expected True or False"),
        (Timeless, "origin_s is nan"),
        (Monotonic, "s from the present: origin_s is the Unix time"),
        (Mute, "ended without a single block"),
        (Ending, r"tags\(\) ended: the node would not open the device again, raise DeviceGone"),
        (Unclosable, r"tags\(\) returned a Blocks, which has no aclose: write it as an async generator"),
        (Coroutine, r"tags\(\) returned a coroutine, which has no __aiter__, __anext__, aclose"),
        (Clinging, r"cancelled, tags\(\) goes on yielding"),
    ],
)
async def test_a_tag_source_that_breaks_a_promise_is_caught(
    driver: type[Metronome], promise: str, autojump_clock: Clock
) -> None:
    with pytest.raises(AssertionError, match=promise):
        await check_driver(driver, TABLE)


async def test_a_source_that_has_an_end_conforms_where_it_is_no_hardware(autojump_clock: Clock) -> None:
    await check_driver(Ending, {"simulated": True})


async def test_a_silent_source_is_caught(autojump_clock: Clock) -> None:
    with pytest.raises(AssertionError, match=r"tags\(\): nothing within 30 s"):
        await check_driver(fresh_metronome(), {"period_s": 1e9})

    class Pausing(Metronome):
        def block(self, number: int) -> TagBlock:
            self.config = MetronomeConfig(period_s=6.0)
            return super().block(number)

    with pytest.raises(AssertionError, match=r"tags\(\), block 1, the next one: nothing within 5 s"):
        await check_driver(Pausing, TABLE)


# The device and its readings


class Nameless(Metronome):
    def __init__(self, config: MetronomeConfig) -> None:
        super().__init__(config)
        self.identity = DeviceIdentity("metronome", "")


class Untold(Metronome):
    def __init__(self, config: MetronomeConfig) -> None:
        super().__init__(config)
        self.identity = DeviceIdentity("metronome", "M-1", simulated=None)  # type: ignore[arg-type]


class Fickle(Metronome):
    def __init__(self, config: MetronomeConfig) -> None:
        super().__init__(config)
        self.identity = DeviceIdentity("metronome", str(type(self).opened))


class Halved(Metronome):
    def __init__(self, config: MetronomeConfig) -> None:
        super().__init__(config)
        del self.origin_s


class OneLine(Metronome):
    """Tags and readings come over one line, which only one task at a time may use."""

    _busy = False

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        self._busy = True
        async for block in super().tags():
            yield block

    async def readings(self) -> dict[str, float]:
        await trio.sleep(0.001)
        return {"temperature_celsius": float("nan") if self._busy else 21.5}


class Fevered(Metronome):
    async def readings(self) -> dict[str, float]:
        return {"temperature_celsius": float("nan")}


class Nested(Fevered):
    """Runs a nursery while it is open, as drivers with a reader task do."""

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Any) -> AsyncIterator[Metronome]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            yield cls(config)
            nursery.cancel_scope.cancel()


class Bare:
    """A device that can do nothing."""

    Config: ClassVar[type[msgspec.Struct]] = MetronomeConfig
    identity = DeviceIdentity("bare", "B-1")

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Any) -> "AsyncIterator[Bare]":
        yield cls()


class ThawedConfig(msgspec.Struct):
    serial: str = "M-1"
    period_s: float = 0.001
    simulated: bool = False


class Thawed(Metronome):
    Config = ThawedConfig


class LaxConfig(MetronomeConfig, frozen=True):
    no_driver_has_this_key: int = 0


class Lax(Metronome):
    Config: ClassVar[type[msgspec.Struct]] = LaxConfig


@pytest.mark.parametrize(
    ("driver", "promise"),
    [
        (Nameless, "identity.serial is '', expected a text"),
        (Untold, "identity.simulated is None, expected True or False"),
        (Fickle, "opened again, the device says"),
        (Halved, "has paced, tags but no origin_s, which every TagSource has"),
        (Bare, "neither TagSource nor Transmitter nor Sensor nor Laser .*: the node has no use for it"),
        (Fevered, "temperature_celsius is nan"),
        (Nested, "temperature_celsius is nan"),
        (OneLine, "temperature_celsius is nan"),
        (Thawed, "Config is not frozen: declare it with frozen=True"),
        (Lax, "takes unknown keys"),
    ],
)
async def test_a_device_that_breaks_a_promise_is_caught(
    driver: DriverClass, promise: str, autojump_clock: Clock
) -> None:
    with pytest.raises(AssertionError, match=promise):
        await check_driver(driver, TABLE)


async def test_a_sensor_that_does_not_answer_is_caught(autojump_clock: Clock) -> None:
    class Sleepy(Bare):
        async def readings(self) -> dict[str, float]:
            await trio.sleep_forever()
            raise AssertionError

    with pytest.raises(AssertionError, match=r"Sleepy: readings\(\): nothing within 30 s"):
        await check_driver(Sleepy, {})


async def test_a_good_sensor_conforms(autojump_clock: Clock) -> None:
    class Thermometer(Bare):
        async def readings(self) -> dict[str, float]:
            return {"temperature_celsius": 21.5}

    await check_driver(Thermometer, {})


# Opening and leaving


class Hardware:
    """What is left on, and what a driver does about it; ``flaw`` is what it omits."""

    def __init__(self) -> None:
        self.on = False

    def driver(self, flaw: str) -> type[Metronome]:
        hardware = self

        class Switched(Metronome):
            @classmethod
            @asynccontextmanager
            async def open(cls, config: Any) -> AsyncIterator[Metronome]:
                hardware.on = True
                if flaw == "opening":
                    await trio.sleep(0.01)
                try:
                    await trio.sleep(0.01)
                    yield cls(config)
                except Exception:
                    if flaw == "hides errors":
                        return
                    raise
                except BaseException:
                    if flaw == "hides cancellation":
                        return
                    raise
                finally:
                    if flaw != "never":
                        hardware.on = False

        return Switched


async def test_hardware_that_is_left_safe_conforms(autojump_clock: Clock) -> None:
    hardware = Hardware()
    await check_driver(hardware.driver("none"), TABLE, is_safe=lambda: not hardware.on)


@pytest.mark.parametrize(
    ("flaw", "promise"),
    [
        ("never", "cancelled in use, the hardware was not left safe: make it so in a finally"),
        ("opening", "cancelled while opening, the hardware was not left safe"),
        ("hides errors", r"open\(\) hid an error of its user"),
        ("hides cancellation", r"open\(\) hid the cancellation"),
    ],
)
async def test_hardware_that_is_not_left_safe_is_caught(
    flaw: str, promise: str, autojump_clock: Clock
) -> None:
    hardware = Hardware()
    with pytest.raises(AssertionError, match=promise):
        await check_driver(hardware.driver(flaw), TABLE, is_safe=lambda: not hardware.on)


async def test_a_device_that_was_not_let_go_is_caught(autojump_clock: Clock) -> None:
    taken: list[int] = []

    class Holding(Metronome):
        @classmethod
        @asynccontextmanager
        async def open(cls, config: Any) -> AsyncIterator[Metronome]:
            if taken:
                await trio.sleep_forever()
            taken.append(1)
            yield cls(config)  # and never lets it go

    with pytest.raises(AssertionError, match=r"open\(\), again: nothing within 150 s"):
        await check_driver(Holding, TABLE)


async def test_a_device_that_is_left_slowly_is_caught(autojump_clock: Clock) -> None:
    class Slow(Metronome):
        @classmethod
        @asynccontextmanager
        async def open(cls, config: Any) -> AsyncIterator[Metronome]:
            try:
                yield cls(config)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(conformance.LEAVING_LIMIT_S + 1)

    with pytest.raises(AssertionError, match=r"took 6.0 s to be left, expected at most 5 s"):
        await check_driver(Slow, TABLE)


# A transmitter


class LampConfig(msgspec.Struct, frozen=True):
    fault: str = ""


class Lamp:
    """A transmitter that sends the parity of the slot; ``fault`` breaks one promise."""

    Config: ClassVar[type[msgspec.Struct]] = LampConfig
    opened = 0

    def __init__(self, fault: str) -> None:
        self.identity = DeviceIdentity("lamp", "L-1")
        self._fault = fault
        self._asked = itertools.count(1)
        self._returned = np.zeros(1000, np.uint8)

    @classmethod
    @asynccontextmanager
    async def open(cls, config: LampConfig) -> "AsyncIterator[Lamp]":
        cls.opened += 1
        yield cls(config.fault)

    async def runs(self) -> AsyncGenerator[EmissionRun, None]:
        started_at_s = 500.0 if self._fault == "since boot" else NOW_S
        yield EmissionRun(run_id=2**63 if self._fault == "wide" else 17, started_at_s=started_at_s)
        if self._fault == "repeats":
            yield EmissionRun(run_id=17, started_at_s=NOW_S)
        if self._fault != "ends":
            await trio.sleep_forever()

    def symbols(self, run_id: int, slots: Slots) -> Codes:
        asked = next(self._asked)  # two threads ask at once
        sent = (slots % 2).astype(np.uint8)
        if self._fault == "forgetful":
            sent = ((slots + asked) % 2).astype(np.uint8)
        if self._fault == "run id again":
            sent = ((slots + (type(self).opened > 1)) % 2).astype(np.uint8)
        if self._fault == "liar":
            return sent
        if self._fault == "unheard of":
            sent += np.uint8(8)
        unknown = (slots < 0) | (slots > 10**9) | ((run_id != 17) & (self._fault != "any run"))
        codes = np.where(unknown, np.uint8(UNKNOWN_SYMBOL), sent)
        if self._fault == "changes slots":
            slots.sort()
        if self._fault == "reuses" and slots.size == 1000:
            self._returned[:] = codes
            return self._returned
        if self._fault == "short":
            return codes[:-1]
        return codes.astype(np.int64) if self._fault == "wide codes" else codes


async def test_a_good_transmitter_conforms() -> None:
    await check_driver(Lamp, {})


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("wide", "run_id is 9223372036854775808"),
        ("since boot", "started_at_s is 500, before 2020 or in the future: it is the Unix time"),
        ("repeats", r"runs\(\) yielded run_id 17 again: draw a new random one"),
        ("ends", r"runs\(\) ended: the node would think that the emission has"),
        ("forgetful", "a slot has another symbol when it is looked up again"),
        ("run id again", "a slot has another symbol in a later opening: a run that begins again needs a new"),
        ("liar", r"symbols\(\) knows slots that were never sent"),
        ("any run", r"symbols\(\) knows slots of a run that never was"),
        ("unheard of", r"symbols\(\) returned codes that are no symbols"),
        ("changes slots", r"symbols\(\) has changed the slots"),
        ("reuses", r"symbols\(\) used the array that it returned before"),
        ("short", r"symbols\(\) returned 999 symbols for 1000 slots"),
        ("wide codes", "an array of int64, expected a numpy array of uint8"),
    ],
)
async def test_a_transmitter_that_breaks_a_promise_is_caught(fault: str, promise: str) -> None:
    Lamp.opened = 0
    with pytest.raises(AssertionError, match=promise):
        await check_driver(Lamp, {"fault": fault})
