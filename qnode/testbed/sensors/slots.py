"""The fixed grid of times at which the meter is polled, and which of them were missed."""

import time
from typing import NamedTuple

from qnode.testbed.sensors.record import Reason


class Outcome(NamedTuple):
    """What became of the poll of one slot: ``values``, or the ``reason`` why there are none.

    A slot is the number of polling periods since the start of Unix time.
    """

    slot: int
    values: tuple[float, ...] = ()
    reason: Reason | None = None


class PollFailed(Exception):
    """A poll brought no reading; ``reason`` says why, the message in the words of whoever failed."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StampClock:
    """Unix time that never jumps while the process runs, and begins no earlier than ``not_before_ms``."""

    def __init__(self, not_before_ms: float) -> None:
        now_ms = time.time() * 1000
        self.behind_ms = max(0.0, not_before_ms - now_ms)
        self._offset_ms = now_ms + self.behind_ms - _since_boot_ms()

    def now_ms(self) -> float:
        """Return the present time in milliseconds."""
        return _since_boot_ms() + self._offset_ms


def _since_boot_ms() -> float:
    """Return the time since the boot, that of sleeping included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) * 1000


def missed_between(last: int | None, slot: int) -> range:
    """Return the slots without an outcome after the slot ``last`` (None: there was none before)."""
    return range(slot, slot) if last is None else range(last + 1, slot)
