"""The clock for the age of keys: it reads the wall clock once, and then uses time that nobody can set.

A wall clock that is 8 days ahead for a minute must not destroy the waiting keys. So the age continues by the
time since the boot of the machine, also across restarts of the daemon, which are recorded (`AgeMark`). Only
wall clocks show how long the machine was off. This time is counted after the peer has sent its wall clock, by
the earlier one of both. If a clock is wrong, keys live longer, never shorter.
"""

import time
from collections.abc import Callable
from pathlib import Path

from qnode.keys import AgeMark

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return the identity of the machine's present boot; '' if the kernel has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def since_boot_s() -> float:
    """Return the seconds since the boot of the machine, including sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class KeyClock:
    """A clock that never goes back. ``mark``: its last recorded state; None for a store without one."""

    def __init__(
        self,
        mark: AgeMark | None,
        *,
        boot: str | None = None,
        time_of_day: Callable[[], float] = lambda: time.time(),
        since_boot: Callable[[], float] = since_boot_s,
    ) -> None:
        self._boot = boot_id() if boot is None else boot
        self._time_of_day, self._since_boot = time_of_day, since_boot
        self._began = since_boot()
        self._off_since_s: float | None = None
        self._peer_at_boot_s: float | None = None
        if mark is None:
            self._age_s = time_of_day()
        elif mark.boot_id == self._boot != "":
            self._age_s = mark.age_s + max(0.0, self._began - mark.since_boot_s)
        else:
            self._age_s, self._off_since_s = mark.age_s, mark.time_of_day_s

    def now(self) -> float:
        """Return the time used by assignments: near the wall clock, if that was never wrong."""
        return self._age_s + self._since_boot() - self._began

    @property
    def uncounted_s(self) -> float:
        """The time that the machine was off by its own clock, until that is counted."""
        if self._off_since_s is None:
            return 0.0
        began_s = self._time_of_day() - (self._since_boot() - self._began)
        return max(0.0, began_s - self._off_since_s)

    def hear_peer(self, peer_time_of_day_s: float | None) -> None:
        """Use the proven peer's wall clock (None: it sends none), which ends the uncertainty."""
        ours, now = self._time_of_day(), self._since_boot()
        theirs = ours if peer_time_of_day_s is None else peer_time_of_day_s
        self._peer_at_boot_s = None if peer_time_of_day_s is None else theirs - now
        if self._off_since_s is not None:
            began_s = min(ours, theirs) - (now - self._began)
            self._age_s += max(0.0, began_s - self._off_since_s)
            self._off_since_s = None

    def mark(self) -> AgeMark | None:
        """Return the state of the clock for recording; None while the time off is not known."""
        if self._off_since_s is not None:
            return None
        now, time_of_day = self._since_boot(), self._time_of_day()
        if self._peer_at_boot_s is not None:  # the later of both, so that the next time off counts as shorter
            time_of_day = max(time_of_day, self._peer_at_boot_s + now)
        return AgeMark(age_s=self.now(), boot_id=self._boot, since_boot_s=now, time_of_day_s=time_of_day)
