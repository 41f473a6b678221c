"""The times during which a monitor was outside its limits or blind, and the first of them in a block."""

from collections import deque
from collections.abc import Mapping
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

    It lasts from the last reading before to the first one after it, because the value may have changed just
    after the one, and just before the other.
    """

    reason: str
    place: str
    detail: str
    from_s: float
    until_s: float


class TripLog:
    """The trips of the monitors at the places of ``longest_gaps_s``; times are those of one monotonic clock.

    A place without a reading for longer than its gap is blind, from its last reading to the next.
    """

    def __init__(self, longest_gaps_s: Mapping[str, float], now_s: float) -> None:
        self._longest_gaps_s = longest_gaps_s
        self._read_s = dict.fromkeys(longest_gaps_s, now_s)
        self._trips = deque[Trip](maxlen=MOST_TRIPS)
        self.findings: dict[str, Finding] = {}

    def note(self, place: str, at_s: float, finding: Finding) -> None:
        """Note a reading at ``at_s``."""
        lasting = self._lasting(place, at_s)
        last_s, self._read_s[place] = self._read_s[place], at_s
        self.findings[place] = finding
        if lasting is not None:
            self._add(lasting)
        if self._is_gap(place, last_s, at_s):
            self._add(self._gap(place, last_s, at_s))
        if not finding.plausible:
            self._add(Trip(finding.check, place, f"{place}: {finding}", last_s, at_s))

    def blind(self, now_s: float) -> list[str]:
        """Return the places that have had no reading for too long."""
        return [place for place, at_s in self._read_s.items() if self._is_gap(place, at_s, now_s)]

    def complete(self, until_s: float, now_s: float) -> bool:
        """Return whether every place was read at ``until_s`` or later, or is blind."""
        waiting = ((place, at_s) for place, at_s in self._read_s.items() if at_s < until_s)
        return all(self._is_gap(place, at_s, now_s) for place, at_s in waiting)

    def first(self, from_s: float, until_s: float, now_s: float) -> Trip | None:
        """Return the first trip that overlaps the time from ``from_s`` to ``until_s``, or None."""
        blind = [self._gap(place, self._read_s[place], now_s) for place in self.blind(now_s)]
        lasting = [trip for place in self._read_s if (trip := self._lasting(place, now_s)) is not None]
        for trip in (*self._trips, *lasting, *blind):
            if trip.from_s <= until_s and trip.until_s >= from_s:
                return trip
        return None

    def _lasting(self, place: str, until_s: float) -> Trip | None:
        """Return the trip since the latest reading, which was outside its limits; None if it was within."""
        latest = self.findings.get(place)
        if latest is None or latest.plausible:
            return None
        return Trip(latest.check, place, f"{place}: {latest}", self._read_s[place], until_s)

    def _is_gap(self, place: str, from_s: float, until_s: float) -> bool:
        return until_s - from_s > self._longest_gaps_s[place]

    def _gap(self, place: str, from_s: float, until_s: float) -> Trip:
        limit_s = self._longest_gaps_s[place]
        detail = f"{place}: no reading for {until_s - from_s:.0f} s (longest gap {limit_s:g} s)"
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
