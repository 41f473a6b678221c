"""What a stream of time tags is like, from one pass in constant memory: rates, order, gaps, intervals.

Channels are numbered as in the file (sync 0, input n is n). Times are picoseconds in any order, modulo 2^64
(`qnode.tags.tag_time`): they are counted from the first tag.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.kernels import kernel
from qnode.tags.tag_time import signed_64
from qnode.tags.types import Times
from qnode.units import PS_PER_S

FileChannels = npt.NDArray[np.int16]
Counts = npt.NDArray[np.int64]

MOST_CHANNELS: Final = 128
SAMPLE_TAGS: Final = 1 << 16  # the first tags of each channel are kept, to find its period
RATE_BINS: Final = 1 << 10
GAPS_KEPT: Final = 16
_STEP_BITS: Final = 4
_STEPS: Final = 1 << _STEP_BITS  # bins of intervals in an octave
_INTERVAL_BINS: Final = 63 * _STEPS
_FIRST_SHIFT: Final = 20  # the first bins of the rates are 2^20 ps
_LAST_SHIFT: Final = 52
_NEVER: Final = -(2**63)
_CHANNEL_NUMBERS: Final = 1 << 16

# Of the state of the scan: indices of its figures.
_RECORDS, _BACKWARD, _STEP_BACK, _DISORDER, _LATEST, _BEFORE, _UNCOUNTED = range(7)

# A gap is reported where chance would leave one so long in one file of a million, at a quarter of the rate.
_GAP_CHANCE: Final = 1e-6
_SLACK: Final = 4.0
# The dead time: up to it at most this share of the intervals is seen that light without it would show,
# and light without it would show at least so many.
_DEAD_SHARE: Final = 0.05
_FEWEST_EXPECTED: Final = 20.0


@dataclass(frozen=True)
class Gap:
    """A silence of all channels: it began ``at_s`` after the first tag."""

    at_s: float
    seconds: float


@dataclass(frozen=True, eq=False)
class ChannelFigures:
    """One channel: ``rate_hz`` is the mean over the whole file.

    ``shortest_interval_ps``: between two tags of the channel; None below two tags. ``dead_time_ps``: up to
    this interval the channel has next to no second tags although its rate would give some; None if no dead
    time shows. ``intervals``: their number in each bin of `interval_edges_ps`. ``rate_bins``: tags in each
    bin of time. ``sample_ps``: the first tags, from
    the first of the file.
    """

    channel: int
    tags: int
    rate_hz: float
    shortest_interval_ps: int | None
    dead_time_ps: float | None
    intervals: Counts
    rate_bins: Counts
    sample_ps: Times


@dataclass(frozen=True, eq=False)
class Inspected:
    """All figures of a stream.

    ``first_ps``: the earliest time; ``duration_s``: from there to the latest.
    ``backward_steps``: tags earlier than the tag just before, by at most ``largest_step_back_ps``.
    ``disorder_ps``: how far a tag is earlier than any before it, which an order window has to cover.
    ``gaps``: silences longer than chance explains, the longest first. ``bin_s``: the width of
    `ChannelFigures.rate_bins`. ``channels_left_out``: tags on channels beyond the first `MOST_CHANNELS`.
    """

    tags: int
    first_ps: int
    duration_s: float
    backward_steps: int
    largest_step_back_ps: int
    disorder_ps: int
    longest_gap_s: float
    gaps: tuple[Gap, ...]
    bin_s: float
    channels: tuple[ChannelFigures, ...]
    channels_left_out: int


def interval_edges_ps() -> npt.NDArray[np.float64]:
    """Return the edges of the bins of intervals, sixteen to an octave, from 1 ps up."""
    octaves = np.arange(_INTERVAL_BINS + 1) / _STEPS
    whole = np.floor(octaves)
    return np.asarray(2.0**whole * (1.0 + octaves - whole), np.float64)


class Inspection:
    """Feed it every block of tags in file order, then ask for `figures`."""

    def __init__(self) -> None:
        self._rows = np.full(_CHANNEL_NUMBERS, -1, np.int16)
        self._numbers: list[int] = []
        self._state = np.zeros(7, np.int64)
        self._gaps = np.zeros((GAPS_KEPT, 2), np.int64)  # length, place of its beginning
        self._counts = np.zeros(MOST_CHANNELS, np.int64)
        self._last = np.full(MOST_CHANNELS, _NEVER, np.int64)
        self._shortest = np.full(MOST_CHANNELS, 2**63 - 1, np.int64)
        self._intervals = np.zeros((MOST_CHANNELS, _INTERVAL_BINS), np.int64)
        self._bins = np.zeros((MOST_CHANNELS, RATE_BINS), np.int64)
        # Not touched before it is used, so only what is used takes memory.
        self._samples = np.empty((MOST_CHANNELS, SAMPLE_TAGS), np.int64)
        self._shift = _FIRST_SHIFT
        self._origin_ps = 0  # from here on, times are counted from the first tag
        self._earliest = self._newest = 0

    def see(self, times_ps: Times, channels: FileChannels) -> None:
        """Take the next tags, in file order."""
        if not times_ps.shape[0]:
            return
        if not self._state[_RECORDS]:
            self._origin_ps = int(times_ps[0])
        times = times_ps - np.int64(self._origin_ps)  # wraps like the counter
        self._earliest = min(self._earliest, int(times.min()))
        self._newest = max(self._newest, int(times.max()))
        while self._newest >> self._shift >= RATE_BINS and self._shift < _LAST_SHIFT:
            self._double_bins()
        for number in np.flatnonzero(np.bincount(channels.view(np.uint16))):
            if self._rows[number] < 0 and len(self._numbers) < MOST_CHANNELS:
                self._rows[number] = len(self._numbers)
                self._numbers.append(int(np.uint16(number).view(np.int16)))
        _scan(
            times,
            np.ascontiguousarray(channels).view(np.uint16),
            self._rows,
            self._state,
            self._gaps,
            self._counts,
            self._last,
            self._shortest,
            self._intervals,
            self._bins,
            self._samples,
            self._shift,
        )

    def figures(self) -> Inspected:
        """Return the figures of all tags so far."""
        tags = int(self._state[_RECORDS])
        duration_s = (self._newest - self._earliest) / PS_PER_S
        gaps = tuple(
            Gap(int(place) / PS_PER_S, int(length) / PS_PER_S)
            for length, place in self._gaps[np.argsort(-self._gaps[:, 0])]
            if length > 0
        )
        chance_s = _SLACK * duration_s / max(1, tags) * (np.log(max(1, tags)) - np.log(_GAP_CHANCE))
        return Inspected(
            tags=tags,
            first_ps=signed_64(self._origin_ps + self._earliest),
            duration_s=duration_s,
            backward_steps=int(self._state[_BACKWARD]),
            largest_step_back_ps=int(self._state[_STEP_BACK]),
            disorder_ps=int(self._state[_DISORDER]),
            longest_gap_s=gaps[0].seconds if gaps else 0.0,
            gaps=tuple(gap for gap in gaps if gap.seconds > chance_s),
            bin_s=2.0**self._shift / PS_PER_S,
            channels=tuple(
                self._channel(row, duration_s) for row in np.argsort(self._numbers, kind="stable")
            ),
            channels_left_out=int(self._state[_UNCOUNTED]),
        )

    def _channel(self, row: int, duration_s: float) -> ChannelFigures:
        tags = int(self._counts[row])
        rate_hz = tags / duration_s if duration_s > 0.0 else 0.0
        shortest = int(self._shortest[row])
        used = (self._newest >> self._shift) + 1
        return ChannelFigures(
            channel=self._numbers[row],
            tags=tags,
            rate_hz=rate_hz,
            shortest_interval_ps=shortest if shortest < 2**63 - 1 else None,
            dead_time_ps=_dead_time_ps(self._intervals[row], rate_hz, shortest),
            intervals=self._intervals[row].copy(),
            rate_bins=self._bins[row, : max(1, min(used, RATE_BINS))].copy(),
            sample_ps=self._samples[row, : min(tags, SAMPLE_TAGS)].copy(),
        )

    def _double_bins(self) -> None:
        pairs = self._bins.reshape(MOST_CHANNELS, RATE_BINS // 2, 2).sum(axis=2)
        self._bins[:] = 0
        self._bins[:, : RATE_BINS // 2] = pairs
        self._shift += 1


def _dead_time_ps(intervals: Counts, rate_hz: float, shortest_ps: int) -> float | None:
    """Return the longest interval up to which tags are missing that light of this rate would give.

    Single short intervals (afterpulses, glitches, crosstalk) do not hide the dead time.
    """
    n = int(intervals.sum())
    edges = interval_edges_ps()[1:]
    expected = -np.expm1(-rate_hz * edges / PS_PER_S) * n
    dead = (np.cumsum(intervals) <= _DEAD_SHARE * expected) & (expected >= _FEWEST_EXPECTED)
    places = np.flatnonzero(dead)
    return max(float(edges[places[-1]]), float(shortest_ps)) if places.size else None


@kernel
def _scan(
    times: Times,
    channels: npt.NDArray[np.uint16],
    rows: FileChannels,
    state: Counts,
    gaps: Counts,
    counts: Counts,
    last: Counts,
    shortest: Counts,
    intervals: Counts,
    bins: Counts,
    samples: Counts,
    shift: int,
) -> None:
    """Add tags, with times from the first tag on, to all figures."""
    latest, before = state[_LATEST], state[_BEFORE]
    least_gap = gaps[:, 0].min()
    for i in range(times.size):
        time = times[i]
        step = time - before
        if step < 0:
            state[_BACKWARD] += 1
            state[_STEP_BACK] = max(state[_STEP_BACK], -step)
        before = time
        silence = time - latest
        if silence < 0:
            state[_DISORDER] = max(state[_DISORDER], -silence)
        else:
            if silence > least_gap:
                k = gaps[:, 0].argmin()
                gaps[k, 0], gaps[k, 1] = silence, latest
                least_gap = gaps[:, 0].min()
            latest = time
        row = rows[channels[i]]
        if row < 0:
            state[_UNCOUNTED] += 1
            continue
        n = counts[row]
        if n < SAMPLE_TAGS:
            samples[row, n] = time
        counts[row] = n + 1
        bins[row, min(max(time >> shift, 0), RATE_BINS - 1)] += 1
        interval = time - last[row]
        if n > 0 and interval >= 0:
            shortest[row] = min(shortest[row], interval)
            # The exponent and the first bits of the fraction of a float number the bins.
            number = int(np.float64(max(interval, 1)).view(np.int64) >> (52 - _STEP_BITS)) - (
                1023 << _STEP_BITS
            )
            if number >= _INTERVAL_BINS:  # rounded up to 2^63
                number = _INTERVAL_BINS - 1
            intervals[row, number] += 1
        last[row] = max(last[row], time)
    state[_RECORDS] += times.size
    state[_LATEST], state[_BEFORE] = latest, before
