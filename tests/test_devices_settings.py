"""Settings within limits, read back, and safe on every way out; numbers in answers."""

import math

import pytest
import structlog
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from qnode.devices.settings import check_plausible, check_within, confirm, figure, kept_safe
from qnode.errors import DeviceError, DeviceGone, TransientDeviceError


@pytest.fixture(autouse=True)
def _structlog() -> None:
    structlog.reset_defaults()


@pytest.mark.parametrize("value", [-0.1, 60.1, math.nan, math.inf])
def test_a_value_outside_the_limits_names_device_limits_and_value(value: float) -> None:
    check_within("voa", "an attenuation in dB", 60.0, (0.0, 60.0))
    with pytest.raises(DeviceError, match=rf"^voa: expected an attenuation in dB of 0 to 60, got {value:g}"):
        check_within("voa", "an attenuation in dB", value, (0.0, 60.0))


@pytest.mark.parametrize("value", [-6.1, 66.1, math.nan, 1e9])
def test_a_value_that_no_device_within_its_limits_has_was_garbled(value: float) -> None:
    assert check_plausible("voa", "an attenuation in dB", 60.4, (0.0, 60.0)) == 60.4
    with pytest.raises(TransientDeviceError, match=r"of 0 to 60, .* came: is it garbled"):
        check_plausible("voa", "an attenuation in dB", value, (0.0, 60.0))


async def test_a_setting_is_read_until_it_is_reached(autojump_clock: MockClock) -> None:
    async def moving() -> float:
        return min(trio.current_time() - began, 3.0)

    began = trio.current_time()
    await confirm("voa", "attenuation_db", 3.0, moving, near=0.05, limit_s=5)
    assert trio.current_time() - began == pytest.approx(3, abs=0.1)
    with pytest.raises(
        DeviceError, match="was set to 4 and reads back as 3 after 5 s, expected a difference"
    ):
        await confirm("voa", "attenuation_db", 4.0, moving, near=0.05, limit_s=5)


async def test_a_figure_that_is_no_number_never_confirms_a_setting(autojump_clock: MockClock) -> None:
    async def nothing() -> float:
        return math.nan

    with pytest.raises(DeviceError, match="reads back as nan"):
        await confirm("voa", "attenuation_db", 4.0, nothing, near=0.05, limit_s=5)


class Shutter:
    """What is made safe; ``faults`` come first."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.safe = 0

    async def close(self) -> None:
        await trio.sleep(0.5)
        if self.faults:
            raise self.faults.pop(0)
        self.safe += 1


async def test_hardware_is_safe_before_its_use_and_after_it(autojump_clock: MockClock) -> None:
    shutter = Shutter()
    async with kept_safe("shutter", shutter.close):
        assert shutter.safe == 1
    assert shutter.safe == 2


async def test_hardware_is_safe_after_an_error_and_a_cancellation_at_any_time(
    autojump_clock: MockClock,
) -> None:
    shutter = Shutter()
    with pytest.raises(ZeroDivisionError):
        async with kept_safe("shutter", shutter.close):
            raise ZeroDivisionError
    assert shutter.safe == 2
    for cancelled_after_s in (0.0, 0.2, 0.7):
        shutter = Shutter()
        with trio.move_on_after(cancelled_after_s) as scope:
            async with kept_safe("shutter", shutter.close):
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert shutter.safe == 1 + (cancelled_after_s > 0.5)


async def test_a_late_answer_does_not_keep_hardware_from_being_made_safe(autojump_clock: MockClock) -> None:
    shutter = Shutter()
    with capture_logs() as events:
        async with kept_safe("shutter", shutter.close):
            shutter.faults = [TransientDeviceError("an answer to another question")]
    assert shutter.safe == 2
    assert events == []


@pytest.mark.parametrize("fault", [DeviceGone("unplugged"), DeviceError("its motor is stuck"), None])
async def test_hardware_that_cannot_be_made_safe_is_logged_and_hides_no_error(
    fault: Exception | None, autojump_clock: MockClock
) -> None:
    shutter, silent = Shutter(), trio.Event()

    async def close() -> None:
        if silent.is_set():
            await trio.sleep_forever()
        await shutter.close()

    async def use() -> None:
        async with kept_safe("shutter", close):
            if fault is None:
                silent.set()
            else:
                shutter.faults = [fault, fault]
            raise ZeroDivisionError

    with capture_logs() as events, pytest.raises(ZeroDivisionError):
        await use()
    assert [(event["event"], event["device"], event["because"]) for event in events] == [
        ("device.not_left_safe", "shutter", str(fault or "not confirmed within 4 s"))
    ]


@pytest.mark.parametrize(("text", "value"), [("+2.50000000E+000", 2.5), (" -3.000 ", -3.0), ("14", 14.0)])
def test_a_number_is_read_as_instruments_write_it(text: str, value: float) -> None:
    assert figure("meter", "READ?", text) == value


def test_no_value_and_a_value_beyond_the_range_are_no_figures() -> None:
    for text in ("9.91E37", "+9.90000000E+37", "-9.9E37", "nan", "inf"):
        with pytest.raises(DeviceError, match=r"READ\? gave .*: no value, or beyond its range"):
            figure("meter", "READ?", text)


def test_text_instead_of_a_number_may_be_another_device() -> None:
    with pytest.raises(TransientDeviceError, match=r"expected a number as answer to READ\?, 'hello' came"):
        figure("meter", "READ?", "hello")
