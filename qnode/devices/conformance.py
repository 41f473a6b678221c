"""The conformance kit for drivers. A driver's own test calls it with the table that opens its device.

    async def test_my_driver_conforms():
        await check_driver(MyTdc, {"port": emulator.port})

It fails with an AssertionError that names the broken promise, the place and the remedy. It needs no test
framework, so drivers outside this project can use it too. docs/drivers.md lists the promises.
"""

import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np
import trio

from qnode.config import ReceiverParameters
from qnode.devices.capabilities import capabilities_of
from qnode.devices.conformance_capabilities import ANSWER_LIMIT_S, answer, check_abilities, disturb
from qnode.devices.conformance_checks import (
    TagWatch,
    check_capabilities,
    check_emission_run,
    check_identity,
    check_same,
    check_symbols,
    missing_of_generator,
    promise,
    sound,
)
from qnode.devices.contract import LONGEST_SILENCE_S, readings_fault, symbols_fault
from qnode.devices.protocols import Device, DeviceIdentity, EmissionRun, Sensor, TagSource, Transmitter
from qnode.devices.registry import DriverClass, driver_config
from qnode.devices.supervisor import OPENING_LIMIT_S
from qnode.errors import ConfigError
from qnode.tags.types import UNKNOWN_SYMBOL, Codes, Slots

LEAVING_LIMIT_S = 5.0
BLOCKS_AFTER_CANCELLATION = 100  # blocks that may still be buffered when the cancellation comes
SHIPPED_ORDER_WINDOW_PS = ReceiverParameters().order_window_ps


async def check_driver(
    driver_class: DriverClass,
    table: dict[str, Any],
    *,
    tag_blocks: int = 5,
    order_window_ps: int = SHIPPED_ORDER_WINDOW_PS,
    is_safe: Callable[[], bool] | None = None,
    told: Callable[[str], None] = lambda promise: None,
) -> None:
    """Open the device of ``table``, check all promises, and open it again after each end of its use.

    The use is cancelled, the user fails, and the opening is cancelled. ``tag_blocks``: the number of blocks
    that a `TagSource` must yield. ``order_window_ps``: the value of ``[link.receiver]`` in the site file.
    ``is_safe``: whether the hardware, or its emulator, is safe; called after every close of the device, and
    after every opening of a laser or attenuator. The kit sets what can be set, within its limits: a laser
    goes on, a bias moves. ``told`` is called with each promise once it is seen to be kept.

    Raises:
        AssertionError: naming the driver and the first broken promise.
    """
    try:
        config = check_config(driver_class, table)
        told("Config accepts the table, is frozen, and refuses an unknown key by name")
        kit = _Kit(driver_class, config, order_window_ps, is_safe, told)
        first = await kit.cancel_in_use(tag_blocks)
        told("cancelled in use: left within 5 s, the cancellation was not hidden")
        await kit.fail_in_use()
        told("left by an error of its user: within 5 s, the error was not hidden")
        await kit.cancel_while_opening(0.0)
        await kit.cancel_while_opening(kit.opening_s / 2)
        told("cancelled while opening, at once and half-way: left within 5 s")
        kit.told = lambda promise: None  # it has told what an opening shows
        again = await kit.cancel_in_use(1)
        promise(again == first, f"opened again, the device says it is {again}; before it was {first}")
        told("opened again: it is the same device")
    except AssertionError as broken:
        raise AssertionError(f"{driver_class.__name__}: {broken}") from broken


def check_config(driver_class: DriverClass, table: dict[str, Any]) -> msgspec.Struct:
    """Check that the driver's ``Config`` accepts ``table``, is frozen, and refuses unknown keys by name."""
    config = driver_config(driver_class, table, "conformance")
    promise(driver_class.Config.__struct_config__.frozen, "Config is not frozen: declare it with frozen=True")
    unknown, refusal = "no_driver_has_this_key", ""
    try:
        driver_config(driver_class, {**table, unknown: 1}, "conformance")
    except ConfigError as error:
        refusal = str(error)
    promise(unknown in refusal, "Config takes unknown keys, or does not name them when it refuses")
    return config


class _Failure(Exception):
    """A failure of the device's user."""


class _Visit:
    """One opening of the device: the awaited step, and the time of the request to close."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.cancelled_at: float | None = None
        self.broken: AssertionError | None = None
        self.awaited = ""
        self.expect("open()", OPENING_LIMIT_S)

    def expect(self, awaited: str, limit_s: float) -> None:
        """Give the next step ``limit_s`` seconds."""
        self.awaited = f"{awaited}: nothing within {limit_s:g} s"
        self.scope.deadline = trio.current_time() + limit_s

    def cancel(self) -> None:
        """Cancel the use of the device, once."""
        if self.cancelled_at is None:
            self.cancelled_at = trio.current_time()
            self.scope.cancel()

    async def note(self, check: Callable[[], Awaitable[None]]) -> None:
        """Make a check. A broken promise ends the visit and is reported after it.

        Within the visit, a driver's nursery would put the error into a group.
        """
        try:
            await check()
        except AssertionError as broken:
            self.broken = self.broken or broken
            self.cancel()


@dataclass
class _Kit:
    """The knowledge about one driver over all openings of its device."""

    driver_class: DriverClass
    config: msgspec.Struct
    order_window_ps: int
    is_safe: Callable[[], bool] | None
    told: Callable[[str], None]
    opening_s: float = 0.0
    identity: DeviceIdentity = field(default_factory=lambda: DeviceIdentity(model="", serial=""))
    symbols_by_run: dict[int, Codes] = field(default_factory=dict)

    async def cancel_in_use(self, tag_blocks: int) -> DeviceIdentity:
        """Open the device, check its abilities, and cancel while it is in use."""
        visit, began = _Visit(), trio.current_time()
        with visit.scope:
            async with self.driver_class.open(self.config) as device:
                self.opening_s = trio.current_time() - began
                await visit.note(partial(self._check_device, device))
                if visit.broken is None:
                    await visit.note(partial(self._check_abilities, device, visit))
                if visit.broken is None:
                    await self._use(device, visit, tag_blocks)
                visit.cancel()
                await trio.sleep_forever()
        if visit.broken is not None:
            raise visit.broken
        promise(visit.cancelled_at is not None, visit.awaited)
        promise(
            visit.scope.cancelled_caught, "open() hid the cancellation: do not catch trio.Cancelled for good"
        )
        self._check_left("cancelled in use", visit.cancelled_at or 0.0)
        return self.identity

    async def fail_in_use(self) -> None:
        """Open the device and raise an error in its user."""
        failed_at, came_out = math.nan, False
        with trio.move_on_after(OPENING_LIMIT_S) as limit:
            try:
                async with self.driver_class.open(self.config) as device:
                    limit.deadline = math.inf
                    await disturb(device)
                    failed_at = trio.current_time()
                    limit.deadline = failed_at + 2 * LEAVING_LIMIT_S
                    raise _Failure
            except* _Failure:
                came_out = True
        promise(not math.isnan(failed_at), f"open(), again: nothing within {OPENING_LIMIT_S:g} s")
        self._check_left("left by an error", failed_at)
        promise(
            came_out,
            "open() hid an error of its user: the node would think that all is well, use try and finally",
        )

    async def cancel_while_opening(self, after_s: float) -> None:
        """Cancel the opening of the device after a while."""
        with trio.move_on_after(after_s) as scope:
            async with self.driver_class.open(self.config):
                await trio.sleep_forever()
        promise(scope.cancelled_caught, "open() hid a cancellation that came while it was opening")
        self._check_left("cancelled while opening", scope.deadline)

    def _check_left(self, how: str, since: float) -> None:
        took_s = trio.current_time() - since
        promise(
            took_s <= LEAVING_LIMIT_S,
            f"{how}, the device took {took_s:.1f} s to be left, expected at most {LEAVING_LIMIT_S:g} s",
        )
        promise(
            self.is_safe is None or self.is_safe(),
            f"{how}, the hardware was not left safe: make it so in a finally of open()",
        )

    async def _check_device(self, device: Device) -> None:
        check_identity(device.identity)
        self.identity = device.identity
        check_capabilities(device)
        kinds = [one.__name__ for one in (TagSource, Transmitter, Sensor) if isinstance(device, one)]
        abilities = ", ".join([*kinds, *capabilities_of(device)])
        self.told(f"opened in {self.opening_s:.1f} s: {self.identity.model}, serial {self.identity.serial}")
        self.told(f"its capabilities are whole: {abilities}")

    async def _check_abilities(self, device: Device, visit: _Visit) -> None:
        visit.scope.deadline = math.inf  # each answer has a limit of its own
        await check_abilities(device, self.is_safe)
        self._check_unchanged(device)
        if names := capabilities_of(device):
            self.told(f"{', '.join(names)}: settings are reached, read back, and refused beyond their limits")

    def _check_unchanged(self, device: Device) -> None:
        promise(device.identity == self.identity, "the identity changed while the device was open")

    async def _use(self, device: Device, visit: _Visit, tag_blocks: int) -> None:
        """Use the device as the node does: a sensor is read while tags or runs are awaited."""
        async with trio.open_nursery() as nursery:
            if isinstance(device, TagSource):
                watch = partial(self._watch_tags, device, visit, tag_blocks)
                nursery.start_soon(visit.note, watch)
            elif isinstance(device, Transmitter):
                watch = partial(self._watch_runs, device, visit)
                nursery.start_soon(visit.note, watch)
            if isinstance(device, Sensor):
                nursery.start_soon(visit.note, partial(self._read, device))

    async def _read(self, sensor: Sensor) -> None:
        for _ in range(2):
            sound(readings_fault(await answer("readings()", sensor.readings)))
        self._check_unchanged(sensor)
        self.told("readings: finite figures by name")

    async def _watch_tags(self, source: TagSource, visit: _Visit, wanted: int) -> None:
        """Check ``wanted`` blocks, then cancel while the next one is awaited."""
        watch = TagWatch(source, self.order_window_ps, simulated=self.identity.simulated)
        limit_s = LONGEST_SILENCE_S if source.paced else ANSWER_LIMIT_S
        visit.expect("tags()", ANSWER_LIMIT_S)
        async with _generator("tags()", source.tags()) as blocks:
            async for block in blocks:
                where = f"tags(), block {watch.blocks + 1}"
                try:
                    watch.see(block)
                    self._check_unchanged(source)
                except AssertionError as broken:
                    raise AssertionError(f"{where}: {broken}") from broken
                promise(
                    watch.blocks < wanted + BLOCKS_AFTER_CANCELLATION, "cancelled, tags() goes on yielding"
                )
                if watch.blocks < wanted:
                    visit.expect(f"{where}, the next one", limit_s)
                elif visit.cancelled_at is None:
                    watch.check_progress()
                    self.told(f"{watch.blocks} blocks of tags: types, order, progress and times are sound")
                    visit.cancel()
        promise(watch.blocks, "tags() ended without a single block")
        promise(
            self.identity.simulated or not source.paced,
            "tags() ended: the node would not open the device again, raise DeviceGone when it is gone",
        )

    async def _watch_runs(self, transmitter: Transmitter, visit: _Visit) -> None:
        """Check the present emission run, then cancel while a later one is awaited."""
        seen = set[int]()
        visit.expect("runs()", ANSWER_LIMIT_S)
        async with _generator("runs()", transmitter.runs()) as runs:
            async for run in runs:
                check_emission_run(run, simulated=self.identity.simulated)
                promise(
                    run.run_id not in seen,
                    f"runs() yielded run_id {run.run_id} again: draw a new random one for each run",
                )
                seen.add(run.run_id)
                promise(len(seen) <= BLOCKS_AFTER_CANCELLATION, "cancelled, runs() goes on yielding")
                if visit.cancelled_at is None:
                    await self._check_record(transmitter, run)
                    self._check_unchanged(transmitter)
                    self.told("symbols: the same in any order and thread, unknown where there are none")
                visit.cancel()
        promise(
            False, "runs() ended: the node would think that the emission has, wait for the next run instead"
        )

    async def _check_record(self, transmitter: Transmitter, run: EmissionRun) -> None:
        """Check look-ups of symbols in threads, their repetition, and the answer for unknown slots."""

        async def lookup(run_id: int, slots: Slots) -> Codes:
            asked = slots.copy()
            symbols = await trio.to_thread.run_sync(transmitter.symbols, run_id, slots)
            promise(np.array_equal(slots, asked), "symbols() has changed the slots that it was asked for")
            sound(symbols_fault(slots, symbols))
            check_symbols(symbols)
            return symbols

        slots: Slots = np.arange(1000, dtype=np.int64)
        first = await lookup(run.run_id, slots)
        kept = first.copy()
        again: list[Codes] = []

        async def look_again() -> None:
            again.append((await lookup(run.run_id, slots[::-1].copy()))[::-1])

        visit = _Visit()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(visit.note, look_again)
        if visit.broken is not None:
            raise visit.broken
        for other in again:
            check_same(
                kept, other, "when it is looked up again: symbols() must be the same in any thread and order"
            )
        promise(
            np.array_equal(first, kept), "symbols() used the array that it returned before: return a new one"
        )
        earlier = self.symbols_by_run.setdefault(run.run_id, kept)
        check_same(earlier, kept, "in a later opening: a run that begins again needs a new run_id")
        never_sent: Slots = np.array([-1, 2**62], dtype=np.int64)
        answer = await lookup(run.run_id, never_sent)
        promise((answer == UNKNOWN_SYMBOL).all(), "symbols() knows slots that were never sent")
        answer = await lookup((run.run_id + 1) % 2**63, slots)
        promise((answer == UNKNOWN_SYMBOL).all(), "symbols() knows slots of a run that never was")
        await lookup(run.run_id, slots[:0])


@asynccontextmanager
async def _generator(name: str, items: Any) -> AsyncIterator[Any]:
    """Close an async generator, as the node does, whatever happens inside."""
    if inspect.iscoroutine(items):
        items.close()  # otherwise Python warns that it was never awaited
    missing = missing_of_generator(items)
    promise(
        not missing,
        f"{name} returned a {type(items).__name__}, which has no {missing}: write it as an async generator "
        "(async def with yield), which the node closes",
    )
    try:
        yield items
    finally:
        await items.aclose()
