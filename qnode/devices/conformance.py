"""What every driver must do: a kit that a driver's own test calls with a table that opens its device.

    async def test_my_driver_conforms():
        await check_driver(MyTdc, {"port": emulator.port})

It fails with an AssertionError that says which promise was broken. It needs no test framework, so that a
driver shipped apart from this project can be checked the same way.
"""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import trio

from qnode.devices.protocols import DeviceIdentity, EmissionRun, Sensor, TagSource, Transmitter
from qnode.devices.registry import DriverClass, driver_config
from qnode.errors import ConfigError
from qnode.tags.tag_time import signed_64
from qnode.tags.types import DECOY, UNKNOWN_SYMBOL, X_CHANNEL, X_PLUS, Z_CHANNEL, Z_EARLY, Z_LATE, TagBlock

OPENING_LIMIT_S = 30.0
ANSWER_LIMIT_S = 30.0
LEAVING_LIMIT_S = 5.0
BLOCKS_AFTER_CANCELLATION = 100  # what may still be buffered when the wish to leave arrives

T = TypeVar("T")

_SYMBOLS = (Z_EARLY, Z_LATE, X_PLUS, Z_EARLY | DECOY, Z_LATE | DECOY, X_PLUS | DECOY, UNKNOWN_SYMBOL)


async def check_driver(
    driver_class: DriverClass,
    table: dict[str, Any],
    *,
    tag_blocks: int = 5,
    disorder_ps: int = 10_000_000,
) -> None:
    """Open the device of ``table``, hold it to all promises, cancel it in mid-use, and open it again.

    ``tag_blocks``: how many blocks a `TagSource` must yield while it is watched. ``disorder_ps``: how much
    later than its ``until_ps`` promised a tag may still come.

    Raises:
        AssertionError: naming the first broken promise.
    """
    config = check_config(driver_class, table)
    first = await _check_opened(driver_class, config, tag_blocks, disorder_ps)
    again = await _check_opened(driver_class, config, 1, disorder_ps)
    assert again == first, f"opened again, the device says it is {again}; before it was {first}"


def check_config(driver_class: DriverClass, table: dict[str, Any]) -> msgspec.Struct:
    """Check that the driver's ``Config`` takes ``table``, is frozen, and refuses unknown keys by name."""
    name = driver_class.__name__
    config = driver_config(driver_class, table, "conformance")
    assert driver_class.Config.__struct_config__.frozen, f"{name}.Config is not frozen"
    unknown, refusal = "no_driver_has_this_key", ""
    try:
        driver_config(driver_class, {**table, unknown: 1}, "conformance")
    except ConfigError as error:
        refusal = str(error)
    assert unknown in refusal, f"{name}.Config takes unknown keys, or does not name them when it refuses"
    return config


class _Visit:
    """One opening of the device: what is being waited for, and when the device was asked to let go."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.cancelled_at: float | None = None
        self.awaited = ""
        self.expect("opening", OPENING_LIMIT_S)

    def expect(self, awaited: str, limit_s: float) -> None:
        """Give the next step ``limit_s`` seconds."""
        self.awaited = f"{awaited}: nothing within {limit_s:g} s"
        self.scope.deadline = trio.current_time() + limit_s

    def cancel(self) -> None:
        """Cancel the use of the device, once."""
        if self.cancelled_at is None:
            self.cancelled_at = trio.current_time()
            self.scope.cancel()


async def _check_opened(
    driver_class: DriverClass, config: msgspec.Struct, tag_blocks: int, disorder_ps: int
) -> DeviceIdentity:
    """Open the device, check what it can do, cancel while it is in use, and time how it is left."""
    identity = DeviceIdentity(model="", serial="")
    broken: AssertionError | None = None
    visit = _Visit()
    with visit.scope:
        async with driver_class.open(config) as device:
            try:
                identity = device.identity
                assert identity.model, "the device does not name its model"
                assert identity.serial, "the device does not name its serial number"
                if isinstance(device, Sensor):
                    visit.expect("readings", ANSWER_LIMIT_S)
                    check_readings(await device.readings())
                assert device.identity == identity, "the identity changed while the device was open"
                if isinstance(device, TagSource):
                    await _check_tags(device, visit, tag_blocks, disorder_ps)
                elif isinstance(device, Transmitter):
                    await _check_runs(device, visit)
                else:
                    assert isinstance(device, Sensor), (
                        f"{type(device).__name__} has no capability that is known"
                    )
            except AssertionError as error:
                broken = error  # raised below: on its way out a driver's nursery would put a group around it
            visit.cancel()
            await trio.sleep_forever()
    if broken is not None:
        raise broken
    assert visit.cancelled_at is not None, visit.awaited
    took_s = trio.current_time() - visit.cancelled_at
    assert took_s <= LEAVING_LIMIT_S, f"cancelled, the device took {took_s:.1f} s to be left"
    return identity


@asynccontextmanager
async def _closing(items: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close an iterator that is a generator; when a check fails it would be left to the garbage collector."""
    try:
        yield items
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


async def _check_tags(source: TagSource, visit: _Visit, wanted: int, disorder_ps: int) -> None:
    """Check ``wanted`` blocks, then cancel while the next one is awaited."""
    assert isinstance(source.paced, bool), "paced is no bool"
    assert math.isfinite(source.origin_s), "origin_s is no time"
    until_ps: int | None = None
    number = 0
    visit.expect("tags", ANSWER_LIMIT_S)
    async with _closing(source.tags()) as blocks:
        async for block in blocks:
            check_tag_block(block, earlier_until_ps=until_ps, disorder_ps=disorder_ps)
            until_ps, number = block.until_ps, number + 1
            assert number < wanted + BLOCKS_AFTER_CANCELLATION, "cancelled, the source goes on yielding"
            if number < wanted:
                visit.expect("tags", ANSWER_LIMIT_S)
            else:
                visit.cancel()
    assert number > 0, "the source ended without a single block"


async def _check_runs(transmitter: Transmitter, visit: _Visit) -> None:
    """Check the present emission run, then cancel while a later one is awaited."""
    seen: set[int] = set()
    visit.expect("emission run", ANSWER_LIMIT_S)
    async with _closing(transmitter.runs()) as runs:
        async for run in runs:
            assert run.run_id not in seen, "a later emission run has the number of an earlier one"
            seen.add(run.run_id)
            assert len(seen) <= BLOCKS_AFTER_CANCELLATION, "cancelled, the transmitter goes on yielding runs"
            await check_run(transmitter, run)
            visit.cancel()
    assert seen, "the transmitter named no emission run"


def check_tag_block(block: TagBlock, *, earlier_until_ps: int | None, disorder_ps: int) -> None:
    """Check one block's types and shapes, and that time goes on.

    ``earlier_until_ps``: the block before it promised that all earlier tags had been yielded; None: there was
    none before.
    """
    times, channels = block.times_ps, block.channels
    assert times.dtype == np.int64, f"times_ps is {times.dtype}, not int64"
    assert channels.dtype == np.int8, f"channels is {channels.dtype}, not int8"
    assert times.ndim == 1, f"times_ps has {times.ndim} dimensions"
    assert times.shape == channels.shape, f"{times.shape} times, {channels.shape} channels"
    assert np.isin(channels, (Z_CHANNEL, X_CHANNEL)).all(), "a channel that is neither Z nor X"
    assert isinstance(block.until_ps, int), "until_ps is no int"
    assert earlier_until_ps is None or signed_64(block.until_ps - earlier_until_ps) >= 0, "until_ps went back"
    assert block.lost >= 0, "a negative number of lost tags"
    if times.size:
        times = times - np.int64(signed_64(block.until_ps))  # a counter may wrap
        if earlier_until_ps is not None:
            late_ps = signed_64(earlier_until_ps - block.until_ps) - int(times.min())
            assert late_ps <= disorder_ps, f"a tag came {late_ps} ps after its time was said to be complete"
        late_ps = int(np.max(np.maximum.accumulate(times) - times))
        assert late_ps <= disorder_ps, f"a tag lies {late_ps} ps behind one before it"


async def check_run(transmitter: Transmitter, run: EmissionRun) -> None:
    """Check that symbols can be looked up in a thread, again and again, and that the unknown is said so."""
    assert 0 <= run.run_id < 2**63, "run_id has more than 63 bits"
    assert math.isfinite(run.started_at_s), "started_at_s is no time"
    slots: npt.NDArray[np.int64] = np.arange(1000, dtype=np.int64)
    symbols = await trio.to_thread.run_sync(transmitter.symbols, run.run_id, slots)
    assert symbols.dtype == np.uint8, f"symbols are {symbols.dtype}, not uint8"
    assert symbols.shape == slots.shape, f"{slots.shape} slots, {symbols.shape} symbols"
    assert np.isin(symbols, _SYMBOLS).all(), "a symbol that is none"
    again = await trio.to_thread.run_sync(transmitter.symbols, run.run_id, slots[::-1].copy())
    both = (symbols != UNKNOWN_SYMBOL) & (again[::-1] != UNKNOWN_SYMBOL)
    assert (symbols == again[::-1])[both].all(), "looked up again, a slot has another symbol"
    never_sent = np.array([-1, 2**62], dtype=np.int64)
    answer = await trio.to_thread.run_sync(transmitter.symbols, run.run_id, never_sent)
    assert (answer == UNKNOWN_SYMBOL).all(), "a symbol for a slot that was never sent"
    other_run = (run.run_id + 1) % 2**63
    answer = await trio.to_thread.run_sync(transmitter.symbols, other_run, slots)
    assert (answer == UNKNOWN_SYMBOL).all(), "symbols for a run that never was"
    empty = await trio.to_thread.run_sync(transmitter.symbols, run.run_id, slots[:0])
    assert empty.shape == (0,), "no slots asked, symbols answered"


def check_readings(readings: dict[str, float]) -> None:
    """Check that readings are finite figures with names."""
    assert readings, "a sensor without readings"
    for name, value in readings.items():
        assert name.isidentifier(), f"reading {name!r}: names are identifiers that end in a unit"
        assert math.isfinite(value), f"reading {name} is {value}"
