"""Supervision: back-off, faults of drivers and of others, silence, cancellation. Time is simulated."""

import math
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import EntryPoint

import pytest
import structlog
import trio
import trio.testing
from devices_support import Metronome, fresh_metronome
from structlog.testing import capture_logs

from qnode.config import DeviceSection
from qnode.devices import registry, supervisor
from qnode.devices.protocols import Device
from qnode.devices.status import DeviceStatus
from qnode.devices.supervisor import silence_limit, supervise
from qnode.devices.transport.transcript import PRESENT, Transcript
from qnode.errors import ConfigError, DeviceError, DeviceGone, StoreUnusable, TransientDeviceError

SECTION = DeviceSection(driver="metronome")
Use = Callable[[Device], Awaitable[None]]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> type[Metronome]:
    """Install the test's driver under the name `metronome`."""
    made = fresh_metronome()

    class Found(EntryPoint):
        def load(self) -> type[Metronome]:
            return made

    entry = Found("metronome", "devices_support:Metronome", "qnode.drivers")
    monkeypatch.setattr(registry, "entry_points", lambda **_: [entry])
    return made


@pytest.fixture(autouse=True)
def _structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class Failing:
    """A use of the device that fails at its first ``failures`` attempts and then goes on for ever."""

    def __init__(
        self, error: Callable[[], BaseException], failures: float = math.inf, after_s: float = 0
    ) -> None:
        self.error, self.failures, self.after_s = error, failures, after_s
        self.began_at: list[float] = []

    async def __call__(self, device: Device) -> None:
        self.began_at.append(trio.current_time())
        await trio.sleep(self.after_s)
        if len(self.began_at) <= self.failures:
            raise self.error()
        await trio.sleep_forever()


async def supervised(use: Use, for_s: float, section: DeviceSection = SECTION) -> DeviceStatus:
    """Supervise for a while of simulated time, and return the status at the end."""

    def now() -> float:
        return 1000 + trio.current_time()

    board: dict[str, DeviceStatus] = {}
    last: list[DeviceStatus] = []
    with trio.move_on_after(for_s):
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                await trio.sleep(for_s - 0.001)
                last.append(board["tdc"])

            nursery.start_soon(look)
            await supervise(
                "tdc",
                section,
                use,
                board=board,
                allow_simulated=False,
                now=lambda: 1000 + trio.current_time(),
            )
            nursery.cancel_scope.cancel()
    return last[0] if last else board["tdc"]


async def test_a_device_that_works_is_running_with_identity_and_readings(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    status = await supervised(Failing(DeviceGone, failures=0), 5)
    assert (status.state.state, status.state.since, status.restarts) == ("running", 1000.0, 0)
    assert (status.model, status.serial, status.simulated) == ("metronome", "M-1", False)
    assert status.readings == {"temperature_celsius": 21.5}
    assert status.well
    assert (driver.opened, driver.left_safe) == (1, 1)


async def test_failures_are_retried_with_doubling_waits_up_to_thirty_seconds(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    use = Failing(lambda: TransientDeviceError("silent"))
    status = await supervised(use, 150)
    waits = [later - earlier for earlier, later in zip(use.began_at, use.began_at[1:], strict=False)]
    assert waits == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30])
    assert (status.state.state, status.state.because) == ("waiting", "silent")
    assert status.retry_at == pytest.approx(1000 + use.began_at[-1] + 30)
    assert status.failing_since == 1000.0 + use.began_at[-1]  # it runs for a moment each time
    assert status.restarts == len(use.began_at) - 1
    assert not status.well
    assert driver.opened == driver.left_safe == len(use.began_at)


async def test_an_unplugged_device_is_looked_for_every_two_seconds_and_logged_once(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    def absent() -> None:
        if 0.1 < trio.current_time() < 3600:
            raise DeviceGone("no such line")

    driver.on_open = absent
    use = Failing(lambda: DeviceGone("unplugged"), failures=1, after_s=1)
    with capture_logs() as events:
        status = await supervised(use, 3600 + 5)
    assert use.began_at[1] - 3600 <= 2.0
    assert (status.state.state, status.failing_since) == ("running", None)
    failed = [one for one in events if one["event"] == "device.failed"]
    told = [one["because"] for one in failed if one["log_level"] != "debug"]
    assert told == ["unplugged", "no such line"]
    assert len(failed) > 1000


async def test_a_failing_device_says_since_when(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    def absent() -> None:
        raise DeviceGone("no such line")

    driver.on_open = absent
    status = await supervised(Failing(DeviceGone), 100)
    assert status.failing_since == 1000.0
    assert status.retry_at is not None


async def test_another_device_in_its_place_is_refused_with_both_serial_numbers(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    section = DeviceSection(driver="metronome", serial_number="M-2")
    use = Failing(DeviceGone)
    status = await supervised(use, 10, section)
    assert status.state.because == (
        "expected serial number M-2, found M-1 (metronome): connect the right device, or "
        "correct serial_number"
    )
    assert use.began_at == []
    assert driver.opened == driver.left_safe
    right = DeviceSection(driver="metronome", serial_number="M-1")
    assert (await supervised(Failing(DeviceGone, failures=0), 10, right)).well


async def test_a_package_that_is_exchanged_below_a_running_node_ends_no_device(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.on_open = lambda: monkeypatch.setattr(registry, "entry_points", lambda **_: [])
    status = await supervised(Failing(DeviceGone, failures=1), 10)
    assert (status.state.state, status.restarts) == ("running", 1)


async def test_the_last_bytes_outlive_the_openings_of_a_device(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    transcripts: dict[str, Transcript] = {}

    def note() -> None:
        record = PRESENT.get()
        assert record is transcripts["tdc"]
        record.note_sent(b"*IDN?")

    driver.on_open = note
    with trio.move_on_after(5):
        await supervise(
            "tdc", SECTION, Failing(DeviceGone), board={}, allow_simulated=False, transcripts=transcripts
        )
    assert [one.data for one in transcripts["tdc"].exchanges()] == [b"*IDN?"] * driver.opened
    assert driver.opened > 1
    assert PRESENT.get() is None


async def test_a_device_that_ran_long_begins_again_with_the_shortest_wait(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    use = Failing(DeviceGone, after_s=100)
    await supervised(use, 450)
    waits = [later - earlier - 100 for earlier, later in zip(use.began_at, use.began_at[1:], strict=False)]
    assert waits == pytest.approx([0.5] * len(waits))


async def test_after_the_fault_heals_the_device_runs_by_itself(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    status = await supervised(Failing(lambda: DeviceError("garbage"), failures=3), 60)
    assert (status.state.state, status.restarts, status.retry_at) == ("running", 3, None)
    assert status.readings


async def test_a_reading_that_is_no_number_is_refused_once_and_the_device_goes_on(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    async def readings(self: Metronome) -> dict[str, float]:
        return {"temperature_celsius": math.nan}

    driver.readings = readings  # type: ignore[method-assign]
    with capture_logs() as events:
        status = await supervised(Failing(DeviceGone, failures=0), 30)
    assert (status.state.state, status.readings, status.restarts) == ("running", {}, 0)
    refused = [event for event in events if event["event"] == "device.readings_refused"]
    assert [event["because"] for event in refused] == [
        "reading temperature_celsius is nan (float), expected a finite float; leave out what is not known"
    ]


@pytest.mark.parametrize(
    "error",
    [
        lambda: ZeroDivisionError("division by zero"),
        lambda: ExceptionGroup("both", [DeviceGone("unplugged"), ZeroDivisionError("division by zero")]),
        lambda: OSError(5, "Input/output error"),
    ],
)
async def test_a_fault_of_the_driver_is_logged_with_its_traceback_and_restarted(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock, error: Callable[[], Exception]
) -> None:
    with capture_logs() as events:
        status = await supervised(Failing(error, failures=1), 10)
    failed = [event for event in events if event["event"] == "device.failed"]
    assert [event["device"] for event in failed] == ["tdc"]
    assert isinstance(failed[0]["exc_info"], Exception)
    assert type(failed[0]["exc_info"]).__name__ in {"ZeroDivisionError", "OSError", "ExceptionGroup"}
    assert (status.state.state, status.restarts) == ("running", 1)


async def test_an_expected_failure_is_logged_without_traceback(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    both = [DeviceGone("unplugged"), DeviceGone("unplugged"), DeviceError("garbage")]
    with capture_logs() as events:
        await supervised(Failing(lambda: ExceptionGroup("", both), failures=1), 10)
    failed = [event for event in events if event["event"] == "device.failed"]
    assert [(event["because"], event["exc_info"]) for event in failed] == [("unplugged; garbage", None)]


async def test_an_error_that_is_not_the_devices_passes_through_alone(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    for error in (StoreUnusable("damaged"), ExceptionGroup("", [DeviceGone(), StoreUnusable("damaged")])):
        with pytest.RaisesGroup(pytest.RaisesExc(StoreUnusable, match="damaged")):
            await supervised(Failing(lambda error=error: error), 10)  # type: ignore[misc]
    assert driver.opened == driver.left_safe == 2


async def test_a_failure_while_opening_is_retried(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    def fail_twice() -> None:
        if driver.opened <= 2:
            raise TransientDeviceError("port is busy")

    driver.on_open = staticmethod(fail_twice)
    status = await supervised(Failing(DeviceGone, failures=0), 10)
    assert (status.state.state, status.restarts) == ("running", 2)


async def test_a_simulated_device_is_refused_and_not_retried(driver: type[Metronome]) -> None:
    section = DeviceSection(driver="metronome", config={"simulated": True})
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="allow_simulated = true")):
        await supervised(Failing(DeviceGone), 10, section)
    assert driver.opened == driver.left_safe == 1


async def test_an_unknown_driver_or_a_wrong_table_is_not_retried(driver: type[Metronome]) -> None:
    section = DeviceSection(driver="metronome", config={"perod_s": 1})
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="did you mean period_s")):
        await supervised(Failing(DeviceGone), 10, section)
    assert driver.opened == 0


async def test_a_source_that_ends_is_finished_and_not_well(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    async def use(device: Device) -> None:
        await trio.sleep(3)

    status = await supervised(use, 100)
    assert (status.state.state, status.well, driver.left_safe) == ("finished", False, 1)


async def test_cancellation_ends_supervision_even_together_with_a_failure(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    async def fails_when_cancelled(device: Device) -> None:
        async def clumsy() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise DeviceGone("unplugged while leaving")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(clumsy)
            nursery.start_soon(trio.sleep_forever)

    with trio.fail_after(100):
        await supervised(fails_when_cancelled, 5)
    assert driver.opened == driver.left_safe == 1


async def test_a_silent_device_is_restarted_at_its_limit(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    heard_at = []

    async def use(device: Device) -> None:
        with silence_limit(10.0) as silence:
            for _ in range(2):
                silence.hold()
                await trio.sleep(25)  # the pipeline takes its time: that is not the device's silence
                silence.heard()
                heard_at.append(trio.current_time())
            await trio.sleep_forever()

    status = await supervised(use, 60.3)
    assert len(heard_at) == 2
    assert status.state.because == "silent for 10 s (silence_limit_s)"
    assert status.state.since == pytest.approx(1000 + heard_at[-1] + 10)


async def test_a_sensor_that_does_not_answer_is_restarted(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    async def never(self: Metronome) -> dict[str, float]:
        await trio.sleep_forever()
        raise AssertionError

    driver.readings = never  # type: ignore[method-assign]
    section = DeviceSection(driver="metronome", silence_limit_s=10)
    status = await supervised(Failing(DeviceGone, failures=0), 10.2, section)
    assert (status.state.state, status.state.because) == ("waiting", "silent for 10 s (silence_limit_s)")


async def test_a_device_that_never_opens_is_given_up_and_tried_again(
    driver: type[Metronome], autojump_clock: trio.testing.MockClock
) -> None:
    opened = 0

    class Stuck:
        async def __aenter__(self) -> Device:
            nonlocal opened
            opened += 1
            await trio.sleep_forever()
            raise AssertionError

        async def __aexit__(self, *_: object) -> None:
            raise AssertionError

    driver.open = staticmethod(lambda config: Stuck())  # type: ignore[method-assign,assignment]
    status = await supervised(Failing(DeviceGone), supervisor.OPENING_LIMIT_S + 10)
    assert opened == 2
    assert status.state.because == "again, after: did not open within 150 s"
