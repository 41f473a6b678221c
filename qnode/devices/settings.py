"""Setting a value of a device: within its limits, read back, and safe on every way out."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog
import trio

from qnode.errors import DeviceError, DeviceGone, TransientDeviceError

READ_BACK_PERIOD_S: Final = 0.1
MARGIN: Final = 0.1
LEAVING_S: Final = 4.0  # a driver is left within 5 s

log = structlog.get_logger()


def check_within(device: str, what: str, value: float, limits: tuple[float, float]) -> None:
    """Refuse a value outside ``limits`` (NaN too); ``what`` names it and ends with its unit.

    Raises:
        DeviceError: naming device, limits and value.
    """
    least, most = limits
    if not least <= value <= most:
        raise DeviceError(f"{device}: expected {what} of {least:g} to {most:g}, got {value:g}: not set")


def check_plausible(device: str, what: str, value: float, limits: tuple[float, float]) -> float:
    """Return a value that was read, if it is not farther outside of ``limits`` than a tenth of their range.

    Raises:
        TransientDeviceError: it is; an answer was garbled, or another device gave it.
    """
    least, most = limits
    if not least - MARGIN * (most - least) <= value <= most + MARGIN * (most - least):
        raise TransientDeviceError(
            f"{device}: expected {what} of {least:g} to {most:g}, {value:g} came: is it garbled, or are the "
            "limits of the configuration wrong?"
        )
    return value


async def confirm(
    device: str,
    what: str,
    wanted: float,
    read: Callable[[], Awaitable[float]],
    *,
    near: float,
    limit_s: float,
) -> None:
    """Read a setting back until it is ``wanted``, within ``near``.

    Raises:
        DeviceError: it still differs after ``limit_s`` seconds.
    """
    deadline = trio.current_time() + limit_s
    while not abs((found := await read()) - wanted) <= near:
        if trio.current_time() >= deadline:
            raise DeviceError(
                f"{device}: {what} was set to {wanted:g} and reads back as {found:g} after {limit_s:g} s, "
                f"expected a difference of {near:g} or less: is it in local mode, or has it a lower limit?"
            )
        await trio.sleep(READ_BACK_PERIOD_S)


@asynccontextmanager
async def kept_safe(
    device: str, make_safe: Callable[[], Awaitable[None]], *, leaving_s: float = LEAVING_S
) -> AsyncIterator[None]:
    """Make the hardware safe now, and again on every way out, also when this is cancelled.

    On the way out it is tried twice, for ``leaving_s`` in all: the answer to an interrupted question may
    still come. What cannot be made safe then is logged as `device.not_left_safe`; it hides no other error.

    Raises:
        DeviceError: ``make_safe`` failed at the beginning.
    """
    try:
        await make_safe()
        yield
    finally:
        because = f"not confirmed within {leaving_s:g} s"
        done = False
        with trio.CancelScope(shield=True, deadline=trio.current_time() + leaving_s):
            for _ in range(2):
                try:
                    await make_safe()
                except DeviceGone as gone:
                    because = str(gone)
                    break
                except DeviceError as error:
                    because = str(error)
                else:
                    done = True
                    break
        if not done:
            log.error("device.not_left_safe", device=device, because=because)


def figure(device: str, question: str, text: str) -> float:
    """Return the number in an answer; SCPI writes 9.91E37 for none and 9.9E37 beyond the range.

    Raises:
        DeviceError: the device has no value, or is beyond its range.
        TransientDeviceError: the text is no number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value) and text.strip().lower().lstrip("+-") != "nan":
        raise TransientDeviceError(
            f"{device}: expected a number as answer to {question}, {text[:60]!r} came: is it another device?"
        )
    if not abs(value) < 9e37:
        raise DeviceError(f"{device}: {question} gave {text.strip()}: no value, or beyond its range")
    return value
