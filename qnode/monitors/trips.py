"""The times during which a monitor was outside its limits or blind, and the first of them in a block."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from qnode.distill.check_table import Finding

UNWATCHED: Final = "unwatched"
"""The reason of a trip because a monitored reading was missing."""
# A trip that lasts is one entry, so this covers days even if a monitor trips every minute.
MOST_TRIPS: Final = 10_000


@dataclass(frozen=True)
class Trip:
    """A monitor was outside its limits between two times; ``reason``: its name, or `UNWATCHED`.

    It begins at the last reading before, because the value may have changed just after it.
    """

    reason: str
    place: str
    detail: str
    from_s: float
    until_s: float


class TripLog:
    """The trips of the monitors at ``places``; times are those of one monotonic clock.

    A place without a reading for longer than ``longest_gap_s`` is blind, from its last reading to the next.
    """

    def __init__(self, places: Iterable[str], longest_gap_s: float, now_s: float) -> None:
        self._longest_gap_s = longest_gap_s
        self._read_s = dict.fromkeys(places, now_s)
        self._trips = deque[Trip](maxlen=MOST_TRIPS)
        self.findings: dict[str, Finding] = {}

    def note(self, place: str, at_s: float, finding: Finding) -> None:
        """Note a reading at ``at_s``."""
        last_s, self._read_s[place] = self._read_s[place], at_s
        self.findings[place] = finding
        if at_s - last_s > self._longest_gap_s:
            self._add(self._gap(place, last_s, at_s))
        if not finding.plausible:
            self._add(Trip(finding.check, place, f"{place}: {finding}", last_s, at_s))

    def blind(self, now_s: float) -> list[str]:
        """Return the places that have had no reading for too long."""
        return [place for place, at_s in self._read_s.items() if now_s - at_s > self._longest_gap_s]

    def complete(self, until_s: float, now_s: float) -> bool:
        """Return whether every place was read at ``until_s`` or later, or is blind."""
        waiting = (at_s for at_s in self._read_s.values() if at_s < until_s)
        return all(now_s - at_s > self._longest_gap_s for at_s in waiting)

    def first(self, from_s: float, until_s: float, now_s: float) -> Trip | None:
        """Return the first trip that overlaps the time from ``from_s`` to ``until_s``, or None."""
        blind = [self._gap(place, self._read_s[place], now_s) for place in self.blind(now_s)]
        for trip in (*self._trips, *blind):
            if trip.from_s <= until_s and trip.until_s >= from_s:
                return trip
        return None

    def _gap(self, place: str, from_s: float, until_s: float) -> Trip:
        detail = f"{place}: no reading for {until_s - from_s:.0f} s (longest_gap_s {self._longest_gap_s:g})"
        return Trip(UNWATCHED, place, detail, from_s, until_s)

    def _add(self, trip: Trip) -> None:
        """Add a trip, or extend the one that it continues."""
        for number in range(len(self._trips) - 1, -1, -1):
            before = self._trips[number]
            if before.place == trip.place:
                if before.reason == trip.reason and before.until_s >= trip.from_s:
                    self._trips[number] = replace(before, until_s=trip.until_s)
                    return
                break
        self._trips.append(trip)
