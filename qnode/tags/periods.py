"""Periods that nobody named: the clock of a pulsed source, found in tags alone.

The distances between tags of one channel are multiples of the period, give or take the jitter. Their
histogram up to 0.1 ms has a spectrum with a peak at the clock's frequency, exact to some kilohertz. From
there `qnode.tags.clock` takes over, on ever longer stretches, as long as the clock keeps its phase.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.tags.clock import FEWEST_TAGS, RecoveredClock, recover_clock, residuals_ps
from qnode.tags.types import Times
from qnode.units import PS_PER_S

LOWEST_HZ: Final = 0.5e6  # below, blinking and dead time look like clocks
HIGHEST_HZ: Final = 5e9
LEAST_SIGNIFICANCE: Final = 6.0  # -log10 of the probability that noise shows such a clock
_OF_SEARCH: Final = 6.0  # log10 of the number of frequencies among which a channel's own are sought
FOLD_BINS: Final = 200

_MOST_PS: Final = 1 << 61  # later times are broken records, and their differences would wrap
_BIN_PS: Final = 50
_LAG_BINS: Final = 1 << 21
_MOST_NEIGHBOURS: Final = 64
_CANDIDATES: Final = 4
_DIVISORS: Final = (2, 3, 5, 7, 11, 13)
_OF_FULL: Final = 0.5  # of the strength of a multiple, in a channel that ticks at the lower rate
_SAME: Final = 3e-6  # one clock, seen by one tagger in different stretches
_BAND: Final = 1.0  # of the resolution, to either side of a coarse peak
_FIRST_TAGS: Final = 2048
_GROWTH: Final = 4
_STRENGTH_KEPT: Final = 0.8
_WIDTH_KEPT: Final = 2.0
_WIDTH_FLOOR: Final = 0.002
_MOST_SEARCH_BINS: Final = 1 << 19
_SIGMAS: Final = 20.0
_REGULAR: Final = 0.01  # a channel whose intervals differ by less is itself a clock


@dataclass(frozen=True, eq=False)
class ChannelClock:
    """A clock as one channel shows it, over a stretch of ``seconds`` and ``clock.n_tags`` tags.

    ``period_sigma_ps``: of the period: the standard error, or half the difference between the two halves of
    the stretch if the clock wandered by more. ``width_ps``: standard deviation about the ticks, of a Gaussian
    with this vector strength. ``folded``: tags in `FOLD_BINS` bins of the period, ticks in the middle.
    """

    channel: int
    clock: RecoveredClock
    seconds: float
    period_sigma_ps: float
    width_ps: float
    folded: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Period:
    """A period to which a receiver could lock, with the channels that show it, the clearest first."""

    channels: tuple[ChannelClock, ...]

    @property
    def period_ps(self) -> float:
        """The period, in the tagger's picoseconds, by the channel that shows it best."""
        return self.channels[0].clock.period_ps


def find_periods(samples: Mapping[int, Times], unit_ps: float) -> tuple[Period, ...]:
    """Find the clocks in the first tags of some channels, the fastest first.

    ``samples``: int64 times by channel, in any order, from about the first tag of all. ``unit_ps``: the step
    of the times; a clock of less than two steps cannot be told from it.
    """
    ordered = {channel: np.sort(times[np.abs(times) < _MOST_PS]) for channel, times in samples.items()}
    frequencies = list[float]()
    for channel, times in ordered.items():
        for frequency_hz in _own_frequencies(channel, times, unit_ps):
            if all(abs(frequency_hz / other - 1.0) > _SAME for other in frequencies):
                frequencies.append(frequency_hz)
    periods = list[Period]()
    for frequency_hz in sorted(frequencies, reverse=True):
        seen = [
            clock
            for channel, times in ordered.items()
            if (clock := _followed(channel, times, frequency_hz, _SAME * frequency_hz)) is not None
        ]
        if seen:
            periods.append(Period(tuple(sorted(seen, key=lambda one: -one.clock.vector_strength))))
    return tuple(periods)


def _own_frequencies(channel: int, times: Times, unit_ps: float) -> list[float]:
    """Return the frequency of the clearest clock in a channel, and half of it where that shows too."""
    if times.shape[0] < FEWEST_TAGS:
        return []
    seen = [
        clock
        for frequency_hz, band_hz in _candidates(times, unit_ps)
        if (clock := _followed(channel, times, frequency_hz, band_hz)) is not None
        and clock.clock.significance > LEAST_SIGNIFICANCE + _OF_SEARCH
    ]
    if not seen:
        return []
    best = max(seen, key=lambda one: one.clock.vector_strength)
    divided = True
    while divided:  # narrow pulses show every multiple of their rate
        divided = False
        for divisor in _DIVISORS:
            lower = _divided(times, best, divisor)
            if lower is not None and lower.clock.vector_strength > _OF_FULL * best.clock.vector_strength:
                best, divided = lower, True
                break
    half = _divided(times, best, 2)
    return [PS_PER_S / one.clock.period_ps for one in (best, half) if one is not None]


def _divided(times: Times, found: ChannelClock, divisor: int) -> ChannelClock | None:
    """Return the clock at a whole part of a frequency, if that shows at all."""
    frequency_hz = PS_PER_S / found.clock.period_ps / divisor
    return _followed(found.channel, times, frequency_hz, _SAME * frequency_hz)


def _candidates(times: Times, unit_ps: float) -> list[tuple[float, float]]:
    """Return frequencies to look at, each with the half-width of its band, Hz."""
    intervals = np.diff(times)
    middle = float(np.median(intervals))
    low, high = np.percentile(intervals, (5.0, 95.0))
    if middle > 0.0 and high - low < _REGULAR * middle:
        frequency_hz = PS_PER_S / float(np.mean(intervals[(intervals >= low) & (intervals <= high)]))
        return [(frequency_hz, frequency_hz * (high - low) / middle + 1e-5 * frequency_hz)]
    spectrum, resolution_hz = _lag_spectrum(times)
    highest = min(HIGHEST_HZ, PS_PER_S / (2.5 * unit_ps), spectrum.shape[0] * resolution_hz)
    first, end = math.ceil(LOWEST_HZ / resolution_hz), int(highest / resolution_hz)
    spectrum[:first], spectrum[end:] = 0.0, 0.0
    found = list[tuple[float, float]]()
    while len(found) < _CANDIDATES and (peak := int(np.argmax(spectrum))) and spectrum[peak] > 0.0:
        found.append((peak * resolution_hz, _BAND * resolution_hz))
        spectrum[max(0, peak - 3) : peak + 4] = 0.0
    return found


def _lag_spectrum(times: Times) -> tuple[npt.NDArray[np.float64], float]:
    """Return the spectrum of the distances between tags up to 0.1 ms, and its resolution in Hz."""
    histogram = np.zeros(_LAG_BINS)
    for neighbour in range(1, min(_MOST_NEIGHBOURS, times.shape[0] - 1) + 1):
        lags = (times[neighbour:] - times[:-neighbour]) // _BIN_PS
        lags = lags[lags < _LAG_BINS]
        if not lags.shape[0]:
            break
        histogram += np.bincount(lags, minlength=_LAG_BINS)
    return np.abs(np.fft.rfft(histogram)), PS_PER_S / (_BIN_PS * _LAG_BINS)


def _followed(channel: int, times: Times, frequency_hz: float, band_hz: float) -> ChannelClock | None:
    """Recover the clock near ``frequency_hz`` on ever longer stretches, while it keeps its phase."""
    best: RecoveredClock | None = None
    stretch = times[:0]
    n = _FIRST_TAGS
    while True:
        first = times[:n]
        longest_ps = _MOST_SEARCH_BINS / (8.0 * band_hz) * PS_PER_S
        first = first[: int(np.searchsorted(first, first[0] + longest_ps))]
        if best is not None and first.shape[0] <= stretch.shape[0]:
            break
        clock = recover_clock(first, PS_PER_S / frequency_hz, range_ppm=1e6 * band_hz / frequency_hz)
        if clock is None or clock.significance < LEAST_SIGNIFICANCE:
            if best is not None or n >= times.shape[0]:
                break
            n *= _GROWTH  # too few tags to see a weak clock
            continue
        if best is not None and _has_strayed(clock, best):
            break
        best, stretch = clock, first
        frequency_hz = PS_PER_S / clock.period_ps
        band_hz = max(_SIGMAS * clock.rate_sigma * frequency_hz, 1e-9 * frequency_hz)
        if n >= times.shape[0]:
            break
        n *= _GROWTH
    if best is None:
        return None
    folded = residuals_ps(stretch, best) / best.period_ps + 0.5
    places = np.minimum((folded * FOLD_BINS).astype(np.int64), FOLD_BINS - 1)
    return ChannelClock(
        channel=channel,
        clock=best,
        seconds=(int(stretch[-1]) - int(stretch[0])) / PS_PER_S,
        period_sigma_ps=_period_sigma_ps(stretch, best),
        width_ps=_width_ps(best),
        folded=np.bincount(places, minlength=FOLD_BINS).astype(np.int64),
    )


def _has_strayed(clock: RecoveredClock, before: RecoveredClock) -> bool:
    """Return whether a longer stretch shows the clock so much less sharply that it did not keep its phase."""
    least_ps = _WIDTH_KEPT * _width_ps(before) + _WIDTH_FLOOR * before.period_ps
    return clock.vector_strength < _STRENGTH_KEPT * before.vector_strength or _width_ps(clock) > least_ps


def _width_ps(clock: RecoveredClock) -> float:
    strength = min(clock.vector_strength, 1.0 - 1e-12)
    return clock.period_ps / (2.0 * math.pi) * math.sqrt(-2.0 * math.log(strength))


def _period_sigma_ps(stretch: Times, clock: RecoveredClock) -> float:
    middle = stretch.shape[0] // 2
    range_ppm = 1e6 * max(_SIGMAS * clock.rate_sigma, 1e-9)
    halves = [
        recover_clock(part, clock.period_ps, range_ppm=range_ppm)
        for part in (stretch[:middle], stretch[middle:])
    ]
    periods_ps = [one.period_ps for one in halves if one is not None]
    wander_ps = abs(periods_ps[0] - periods_ps[1]) / 2.0 if len(periods_ps) == 2 else 0.0
    return max(clock.period_ps * clock.rate_sigma, wander_ps)
