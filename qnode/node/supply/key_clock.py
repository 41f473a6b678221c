"""The clock by which keys age: the time of day once, and from then on time that nobody can set.

A time of day 8 days ahead for a minute must not destroy the keys that wait. So the age goes on by the time
since the machine's boot, also over restarts of the daemon, which are written down (`AgeMark`). How long the
machine was off only times of day can tell: it is counted once the peer has said his, by the earlier of both.
Where a clock is wrong, keys live longer, never shorter.
"""

import time
from collections.abc import Callable
from pathlib import Path

from qnode.keys import AgeMark

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return what names the machine's present boot; '' where the kernel does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def since_boot_s() -> float:
    """Return the seconds since the machine was started, those of its sleep too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class KeyClock:
    """Seconds that only pass. ``mark``: where the clock was left, None for a store that has none yet."""

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
        """Return the time that assignments bear: near the time of day, where that was never wrong."""
        return self._age_s + self._since_boot() - self._began

    @property
    def uncounted_s(self) -> float:
        """How long the machine was off by its own clock, while that is not counted yet."""
        if self._off_since_s is None:
            return 0.0
        began_s = self._time_of_day() - (self._since_boot() - self._began)
        return max(0.0, began_s - self._off_since_s)

    def hear_peer(self, peer_time_of_day_s: float | None) -> None:
        """Take note of the proven peer's time of day (None: he does not say it), which ends a doubt."""
        ours, now = self._time_of_day(), self._since_boot()
        theirs = ours if peer_time_of_day_s is None else peer_time_of_day_s
        self._peer_at_boot_s = None if peer_time_of_day_s is None else theirs - now
        if self._off_since_s is not None:
            began_s = min(ours, theirs) - (now - self._began)
            self._age_s += max(0.0, began_s - self._off_since_s)
            self._off_since_s = None

    def mark(self) -> AgeMark | None:
        """Return where the clock is, to be written down; None while it is not known how long it was off."""
        if self._off_since_s is not None:
            return None
        now, time_of_day = self._since_boot(), self._time_of_day()
        if self._peer_at_boot_s is not None:  # the later of both: the next time off then counts as shorter
            time_of_day = max(time_of_day, self._peer_at_boot_s + now)
        return AgeMark(age_s=self.now(), boot_id=self._boot, since_boot_s=now, time_of_day_s=time_of_day)
