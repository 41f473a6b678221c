"""The monitors of one link over the readings of its devices: they raise an alarm, and discard blocks."""

from collections.abc import Callable, Mapping
from typing import Final, Never

import numpy as np
import structlog
import trio

from qnode.block.outcome import BlockLost
from qnode.config import MonitorsSection, PhotocurrentMonitor
from qnode.devices.supervisor import READING_PERIOD_S
from qnode.distill.check_table import Finding
from qnode.monitors.readings import deviations_allowed, photocurrent, reading
from qnode.monitors.trips import TripLog
from qnode.tags.tag_time import signed_64
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S

log = structlog.get_logger()

# The first clicks of a block may have been sent and detected this long before a site sees them announced.
LEAD_S: Final = 5.0
LOOK_PERIOD_S: Final = 1.0


class TagCounter:
    """The tags of the detectors on ``channels``, as the tag source yields them, without regard to gates."""

    def __init__(self, channels: frozenset[int]) -> None:
        self._counts = dict.fromkeys(channels, 0)
        self._opening = 0
        self._until_ps = 0

    def begin(self) -> None:
        """Note that a source was opened: its times have no relation to those before."""
        self._opening += 1
        self._counts = dict.fromkeys(self._counts, 0)

    def see(self, block: TagBlock) -> None:
        """Count the tags of a block."""
        self._until_ps = block.until_ps
        for channel in self._counts:
            self._counts[channel] += int(np.count_nonzero(block.channels == channel))

    def at(self, channel: int) -> tuple[int, int, int]:
        """Return the opening, the tags of ``channel`` in it so far, and the tag time that was reached."""
        return self._opening, self._counts[channel], self._until_ps


class MonitorWatch:
    """``alarm`` is called with the present trips in words, or None; times are those of trio's clock."""

    def __init__(
        self, settings: MonitorsSection, alarm: Callable[[str | None], None] = lambda text: None
    ) -> None:
        self._settings = settings
        self._tables = settings.tables()
        self._alarm = alarm
        self._deviations = deviations_allowed(settings, READING_PERIOD_S)
        self._longest_gaps_s = dict.fromkeys(self._tables, settings.longest_gap_s)
        self._trips: TripLog | None = None
        self._counted: dict[str, tuple[int, int, int]] = {}
        self._news = trio.Event()
        self.tags = TagCounter(frozenset(one.channel for one in settings.photocurrents.values()))

    @property
    def findings(self) -> dict[str, Finding]:
        """The result of the last reading of each monitor, by the name of its table."""
        return {} if self._trips is None else dict(self._trips.findings)

    async def run(self) -> Never:
        """Look for missing readings until cancelled; from here on, readings are due."""
        while True:
            self._look()
            await trio.sleep(LOOK_PERIOD_S)

    def note(self, device: str, readings: Mapping[str, float]) -> None:
        """Judge the readings of ``device``."""
        for place, one in self._tables.items():
            if one.device != device or one.reading not in readings:
                continue
            value = readings[one.reading]
            if isinstance(one, PhotocurrentMonitor):
                finding = self._judge_current(place, value, one)
            else:
                finding = reading(value, one, self._deviations)
            if finding is not None:
                self._see(place, finding)
        self._look()

    def add(self, place: str, longest_gap_s: float) -> None:
        """Watch what a part of this site measures itself, too; before the first reading of all."""
        self._longest_gaps_s[place] = max(longest_gap_s, self._settings.longest_gap_s)

    def see(self, place: str, finding: Finding) -> None:
        """Take a reading of an added place; a finding beyond its limits discards blocks as any other."""
        self._see(place, finding)
        self._look()

    def _see(self, place: str, finding: Finding) -> None:
        trips = self._log()
        before = trips.findings.get(place)
        trips.note(place, trio.current_time(), finding)
        if not finding.plausible and (before is None or before.plausible):
            log.warning("monitor.tripped", monitor=finding.check, place=place, reading=str(finding))

    def _judge_current(self, place: str, current_a: float, one: PhotocurrentMonitor) -> Finding | None:
        """Judge a photocurrent by the tags since the last reading; None without tags to compare it with."""
        opening, tags, until_ps = now = self.tags.at(one.channel)
        before = self._counted.get(place)
        self._counted[place] = now
        if before is None or before[0] != opening:
            return None
        counted_s = signed_64(until_ps - before[2]) / PS_PER_S
        if counted_s <= 0.0:
            return None
        return photocurrent(current_a, tags - before[1], counted_s, one, self._deviations)

    def check_now(self, from_s: float) -> None:
        """Refuse a block that was announced from ``from_s`` on, if a monitor is known to have tripped.

        Raises:
            BlockLost: with the name of the monitor as reason.
        """
        self._check(from_s, trio.current_time())

    async def check(self, from_s: float, until_s: float) -> None:
        """Refuse a block that was announced from ``from_s`` to ``until_s``, after readings since its end.

        Raises:
            BlockLost: with the name of the monitor as reason.
        """
        while not self._log().complete(until_s, trio.current_time()):
            await self._news.wait()
        self._check(from_s, until_s)

    def _check(self, from_s: float, until_s: float) -> None:
        trip = self._log().first(from_s - LEAD_S, until_s, trio.current_time())
        if trip is not None:
            raise BlockLost(trip.reason, trip.detail)

    def _log(self) -> TripLog:
        if self._trips is None:
            self._trips = TripLog(self._longest_gaps_s, trio.current_time())
        return self._trips

    def _look(self) -> None:
        """Show what is wrong at present, and wake the blocks that wait for readings."""
        trips = self._log()
        blind = trips.blind(trio.current_time())
        told = [f"{place}: no reading" for place in blind]
        told += [
            f"{place}: {finding}"
            for place, finding in trips.findings.items()
            if place not in blind and not finding.plausible
        ]
        self._alarm("; ".join(told) or None)
        self._news.set()
        self._news = trio.Event()
