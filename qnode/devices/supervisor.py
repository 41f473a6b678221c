"""Keeps one device in operation: opens it, uses it, and starts again when it fails.

One of the three places that catch all exceptions: a fault in a driver must not end the node. The supervisor
logs it with its traceback, shows it in the status, and opens the device again.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import AbstractAsyncContextManager, contextmanager

import structlog
import trio
from msgspec.structs import replace

from qnode.choices import DeviceState
from qnode.config import DeviceSection
from qnode.devices.contract import readings_fault
from qnode.devices.protocols import Device
from qnode.devices.readings import has_readings, read
from qnode.devices.registry import device_opener, driver_config, load_driver
from qnode.devices.status import DeviceStatus, State
from qnode.devices.transport.transcript import PRESENT, Transcript
from qnode.errors import ConfigError, DeviceError, DeviceGone, QnodeError, TransientDeviceError

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
LONGEST_WAIT_GONE_S = 2.0  # an unplugged device is used again within 5 s of its return
STEADY_S = 60.0  # after a run this long, the next failure starts with the shortest wait
OPENING_LIMIT_S = 150.0  # the slowest known device, a bias controller, settles for about 90 s
READING_PERIOD_S = 5.0
MAKING_SAFE_LIMIT_S = 10.0

log = structlog.get_logger()


class SilenceLimit:
    """A deadline that every sign of life extends; made by `silence_limit`."""

    def __init__(self, scope: trio.CancelScope, limit_s: float) -> None:
        self._scope = scope
        self._limit_s = limit_s

    def heard(self) -> None:
        """Note a sign of life: the device may be silent for the full limit again."""
        self._scope.deadline = trio.current_time() + self._limit_s

    def hold(self) -> None:
        """Stop the clock until the next `heard`, for example while the pipeline is full."""
        self._scope.deadline = math.inf


@contextmanager
def silence_limit(limit_s: float) -> Iterator[SilenceLimit]:
    """Cancel the block when its device is silent for ``limit_s`` seconds.

    Raises:
        TransientDeviceError: at the end of the block, if the limit passed.
    """
    with trio.CancelScope(deadline=trio.current_time() + limit_s) as scope:
        yield SilenceLimit(scope, limit_s)
    if scope.cancelled_caught:
        raise TransientDeviceError(f"silent for {limit_s:g} s (silence_limit_s)")


def check_devices(sections: MutableMapping[str, DeviceSection]) -> None:
    """Load every driver and check its table, so that a wrong file is refused before any device is opened.

    Raises:
        ConfigError: the first fault, naming the device.
    """
    for name, section in sections.items():
        try:
            driver_class = load_driver(section.driver)
        except ConfigError as error:
            raise ConfigError(f"[devices.{name}] {error}") from error
        driver_config(driver_class, section.config, f"[devices.{name}.config]")


async def make_safe(
    name: str, section: DeviceSection, *, is_serious: bool, limit_s: float = MAKING_SAFE_LIMIT_S
) -> None:
    """Open the device ``name`` and leave it at once, which makes its hardware safe.

    For a node that cannot run: an earlier one may have been killed while the light was on. What fails is
    logged, as a warning if it ``is_serious``.
    """
    because = f"not done within {limit_s:g} s"
    with trio.move_on_after(limit_s):
        try:
            async with device_opener(name, section, allow_simulated=True)():
                pass
            because = ""
        except* Exception as errors:  # noqa: BLE001 (a fault in a driver must not keep the others from it)
            because = _describe(_leaves(errors))
    if because:
        level = logging.WARNING if is_serious else logging.DEBUG
        log.log(level, "device.not_left_safe", device=name, because=because)


async def supervise(
    name: str,
    section: DeviceSection,
    use: Callable[[Device], Awaitable[None]],
    *,
    board: MutableMapping[str, DeviceStatus],
    allow_simulated: bool,
    now: Callable[[], float] = time.time,
    on_readings: Callable[[dict[str, float]], None] = lambda readings: None,
    transcripts: MutableMapping[str, Transcript] | None = None,
) -> None:
    """Open the device ``name`` and run ``use(device)``; after a failure, pause and start again.

    Returns when ``use`` returns (a source that ended). ``board[name]`` always holds the device's status;
    ``now`` gives unix seconds. Meanwhile what the device's capabilities report is read every few seconds; a
    device that does not answer within the section's ``silence_limit_s`` is opened again. ``on_readings`` is
    called with all sound readings. ``transcripts[name]`` has the last bytes of its transport, also of
    earlier openings.

    Raises:
        ConfigError: unknown driver, wrong table, or a simulated device that is not allowed.
        QnodeError: an error of another part (a store or link error from ``use``) passes through, without a
            group around it.
    """
    transcript = Transcript(now)
    if transcripts is not None:
        transcripts[name] = transcript
    token = PRESENT.set(transcript)
    try:
        await _supervise(name, section, use, board, on_readings, allow_simulated, now)
    finally:
        PRESENT.reset(token)


async def _supervise(
    name: str,
    section: DeviceSection,
    use: Callable[[Device], Awaitable[None]],
    board: MutableMapping[str, DeviceStatus],
    on_readings: Callable[[dict[str, float]], None],
    allow_simulated: bool,
    now: Callable[[], float],
) -> None:
    board[name] = DeviceStatus(
        name=name, driver=section.driver, state=State(DeviceState.STARTING, now(), "opening")
    )
    opener = device_opener(name, section, allow_simulated=allow_simulated)

    def note(state: DeviceState, because: str = "", *, retry_at: float | None = None) -> None:
        status = board[name]
        board[name] = replace(status, state=status.state.to(state, because, at=now()), retry_at=retry_at)

    wait_s, told = FIRST_WAIT_S, ""
    while True:
        attempt_at = trio.current_time()
        try:
            await _attempt(name, section, opener, use, board, note, on_readings)
        except (Exception, BaseExceptionGroup) as error:
            # Cancellation from outside may come together with a failure; the wait below notices it.
            faults = _leaves(error)
            foreign = [fault for fault in faults if not _is_devices(fault)]
            if isinstance(error, BaseExceptionGroup) and len(foreign) == 1:
                raise foreign[0] from foreign[0].__cause__
            if foreign or not faults:
                raise
            because = _describe(faults)
            known = all(isinstance(fault, DeviceError) for fault in faults)
            is_gone = any(isinstance(fault, DeviceGone) for fault in faults)
            if board[name].failing_since is None:
                told = ""
                board[name] = replace(board[name], failing_since=now())
            # An unplugged device is looked for every two seconds: once is enough in the log.
            level = logging.DEBUG if is_gone and because == told else logging.WARNING
            log.log(level, "device.failed", device=name, because=because, exc_info=None if known else error)
            told = because
        else:
            note(DeviceState.FINISHED, "the source ended")
            log.info("device.finished", device=name)
            return
        if trio.current_time() - attempt_at >= STEADY_S:
            wait_s = FIRST_WAIT_S
        if is_gone:
            wait_s = min(wait_s, LONGEST_WAIT_GONE_S)
        note(DeviceState.WAITING, because, retry_at=now() + wait_s)
        await trio.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        board[name] = replace(board[name], restarts=board[name].restarts + 1, readings={})
        note(DeviceState.STARTING, f"again, after: {because}")


async def _attempt(
    name: str,
    section: DeviceSection,
    opener: Callable[[], AbstractAsyncContextManager[Device]],
    use: Callable[[Device], Awaitable[None]],
    board: MutableMapping[str, DeviceStatus],
    note: Callable[[DeviceState], None],
    on_readings: Callable[[dict[str, float]], None],
) -> None:
    """Open and use the device once; cancel a driver that takes too long to open."""
    with trio.CancelScope(deadline=trio.current_time() + OPENING_LIMIT_S) as scope:
        async with opener() as device:
            scope.deadline = math.inf
            identity = device.identity
            board[name] = replace(
                board[name],
                model=identity.model,
                serial=identity.serial,
                simulated=identity.simulated,
                failing_since=None,
            )
            note(DeviceState.RUNNING)
            log.info("device.opened", device=name, model=identity.model, serial=identity.serial)
            async with trio.open_nursery() as nursery:
                if has_readings(device):
                    nursery.start_soon(_read, name, device, section.silence_limit_s, board, on_readings)
                await use(device)
                nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        raise TransientDeviceError(f"did not open within {OPENING_LIMIT_S:g} s")


async def _read(
    name: str,
    device: Device,
    limit_s: float,
    board: MutableMapping[str, DeviceStatus],
    on_readings: Callable[[dict[str, float]], None],
) -> None:
    """Keep the device's readings on the board; none while one of them is no figure."""
    told = ""
    while True:
        with silence_limit(limit_s):
            readings = await read(device)
        fault = readings_fault(readings)
        if fault and fault != told:  # no reason to do without its tags
            log.warning("device.readings_refused", device=name, because=fault)
        told = fault
        board[name] = replace(board[name], readings={} if fault else readings)
        if not fault:
            on_readings(readings)
        await trio.sleep(READING_PERIOD_S)


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the errors inside nested groups, without the groups and without cancellations."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [] if isinstance(error, trio.Cancelled) else [error]


def _is_devices(fault: BaseException) -> bool:
    """Say whether a fault is the device's or its driver's: anything but our other errors.

    A `StoreError` or `LinkError` that surfaces here belongs to somebody who must act on it.
    """
    return isinstance(fault, DeviceError) or (
        isinstance(fault, Exception) and not isinstance(fault, QnodeError)
    )


def _describe(faults: list[BaseException]) -> str:
    """Return one line for the status: what happened, and the type of a fault in the driver."""
    texts = []
    for fault in faults:
        text = (str(fault).strip().splitlines() or [""])[0]
        is_clear = isinstance(fault, DeviceError) and text
        texts.append(text if is_clear else f"{type(fault).__name__}{': ' if text else ''}{text}")
    return "; ".join(dict.fromkeys(texts))
