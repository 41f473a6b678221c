"""The search windows for the alignment of Bob's probes: Alice searches one window of offsets after another.

The first window is the offset predicted by the wall clocks, or by the last lock. Both may be wrong: a tag
clock may jump, and Alice's oscillator drifts against wall-clock time, at one part in a million by ten
milliseconds in three hours. So every other attempt uses another window. The next one is the offset predicted
by Bob's own clock from the last known offset. Then the window widens around the first one, up to ±0.32 s. If
none of these succeeds, the wall clock was wrong at the opening of the tag source, or became wrong later; then
the source must be opened again.

In a running link each attempt has one window. In a recording Alice's answers are available at once, so each
probe is searched in all windows (`qnode.offline.synchronise`).
"""

from dataclasses import dataclass, replace
from typing import Final

from qnode.errors import TransientDeviceError
from qnode.tags.alignment import Alignment, AlignmentProbe, offset_window
from qnode.units import PS_PER_S

FURTHEST_S: Final = 0.32
ARRIVAL_S: Final = 0.1  # the largest variation of the arrival of tags
LONGEST_UNALIGNED_S: Final = 30.0
# For the many other windows; this number of clicks finds the offset on all but the worst links.
_MOST_CLICKS_ELSEWHERE: Final = 1024
# Alice's record of symbols reaches back a second: the look-up must end before, even if the site is busy.
_MOST_OFFSETS_ELSEWHERE: Final = 1 << 26


@dataclass(frozen=True)
class Attempt:
    """The probe to send, the offsets to ask for, and those that the times of day, or the last lock, allow."""

    probe: AlignmentProbe
    offsets: range
    by_times_of_day: range

    def astray_s(self, found: Alignment, qubit_rate_hz: int) -> float | None:
        """Return how far slots are from where the times of day put them; None within their uncertainty.

        None also where these were not asked: there was a lock before.
        """
        if self.probe.expected_offset is not None or found.offset in self.by_times_of_day:
            return None
        middle = (self.by_times_of_day.start + self.by_times_of_day.stop) // 2
        return (found.offset - middle) / (2 * qubit_rate_hz)


@dataclass(frozen=True)
class _Known:
    """At ``at_s`` of our own clock, Alice's slots below ``slot`` had come."""

    run_id: int
    slot: int
    at_s: float


class OffsetSearch:
    """The search of one receiver; it outlives openings of the tag source.

    ``uncertainty_s``: of the sites' times of day. Times ``now_s`` are of a clock that never jumps.
    """

    def __init__(self, uncertainty_s: float, qubit_rate_hz: int) -> None:
        self._uncertainty_s = uncertainty_s
        self._qubit_rate_hz = qubit_rate_hz
        self._run_id: int | None = None
        self._failures = 0
        self._failing_since_s = 0.0
        self._round = 0  # after so many failures all places have been asked for
        self._known: _Known | None = None

    def note(self, run_id: int, slot: int, now_s: float) -> None:
        """Take note of where Alice's count is; what does not fit is not believed before the next answer."""
        known = self._known
        if known is not None and known.run_id == run_id:
            expected = known.slot + (now_s - known.at_s) * self._qubit_rate_hz
            if abs(slot - expected) > ARRIVAL_S * self._qubit_rate_hz:
                return
        self._known = _Known(run_id, slot, now_s)

    def answered(self, now_s: float, *, found: bool) -> None:
        """Note Alice's answer.

        Raises:
            TransientDeviceError: for half a minute no search has succeeded.
        """
        if found:
            self._failures, self._known = 0, None
            return
        if self._failures == 0:
            self._failing_since_s = now_s
        self._failures += 1
        if self._failures >= self._round and now_s - self._failing_since_s >= LONGEST_UNALIGNED_S:
            self._failures = 0
            raise TransientDeviceError(
                f"no alignment for {LONGEST_UNALIGNED_S:g} s: its clock has jumped, or the sites' times of "
                f"day differ by more than {FURTHEST_S:g} s"
            )

    def next(
        self, probe: AlignmentProbe, run_id: int, into_run_s: float, until_ps: int, now_s: float
    ) -> Attempt:
        """Return what to ask for next.

        By the times of day the probe began ``into_run_s`` into the run; the tags up to ``until_ps`` of tag
        time came at ``now_s``.
        """
        if run_id != self._run_id:  # of which the times of day may be right again
            self._run_id, self._failures = run_id, 0
        first, *elsewhere = self.everywhere(probe, run_id, into_run_s, until_ps, now_s)
        if self._failures % 2 == 0:
            return first
        self._round = 2 * len(elsewhere)
        return elsewhere[self._failures // 2 % len(elsewhere)]

    def everywhere(
        self, probe: AlignmentProbe, run_id: int, into_run_s: float, until_ps: int, now_s: float
    ) -> list[Attempt]:
        """Return all that can be asked for, the likeliest first; parameters are those of `next`."""
        first = offset_window(probe, into_run_s, self._uncertainty_s, self._qubit_rate_hz)
        elsewhere = self._around(first, FURTHEST_S)
        known = self._known
        if known is not None and known.run_id == run_id:
            passed_s = now_s - known.at_s - (until_ps - probe.start_ps) / PS_PER_S
            centre = 2 * known.slot + round(2 * self._qubit_rate_hz * passed_s)
            reach = min(len(first), _MOST_OFFSETS_ELSEWHERE) // 2
            near = range(centre - reach, centre + reach + 1)
            elsewhere = [near, *self._around(near, ARRIVAL_S), *elsewhere]
        short = replace(probe, ticks=probe.ticks[:_MOST_CLICKS_ELSEWHERE])
        return [
            Attempt(probe, first, first),
            *(Attempt(short, offsets, first) for offsets in elsewhere),
        ]

    def _around(self, inner: range, reach_s: float) -> list[range]:
        """Return windows after and before ``inner`` in turn, each pair twice as wide as the one before."""
        windows = list[range]()
        furthest = inner.stop + round(2 * self._qubit_rate_hz * reach_s)
        after, before, width = inner.stop, inner.start, max(1, len(inner) // 2)
        while after < furthest:
            width = min(width, _MOST_OFFSETS_ELSEWHERE)
            windows += [range(after, after + width), range(before - width, before)]
            after, before, width = after + width, before - width, 2 * width
        return windows
