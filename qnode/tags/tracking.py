"""Tracking follows the bin clock tag by tag, through jitter, drift and short losses.

The phase and the rate of the clock are the two states of a Kalman filter. The rate has a random walk, and the
measurement of a sub-interval is the direction of its mean phasor. This is a second-order loop. Its gains
follow from the click rate and the stability of the clock, also after acquisition and after a gap. In steady
state at R = phase noise (ps^2 s) and Q = rate walk (ps^2/s^3) its bandwidth is (Q/R)^(1/4).

A sub-interval ends after some hundred tags or 50 ms. It is evaluated as a whole. Without a significant
vector strength it is bad: its tags are cut, and the clock is extrapolated. Tracking ends when ticks may have
been miscounted: when the extrapolated phase is uncertain by an eighth of a tick, or when a significant phase
lies where the clock cannot be.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.kernels import inline_kernel, kernel
from qnode.tags.clock import RecoveredClock
from qnode.tags.conversion import as_float, nearest_integer
from qnode.tags.types import X_CHANNEL, Channels, Times
from qnode.units import PS_PER_S

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

INTERVAL_PS: Final = PS_PER_S // 20
INTERVAL_TAGS: Final = 512

# The ways in which the tracking of a batch ends.
GOES_ON: Final = 0
LOST: Final = 1
JUMPED: Final = 2

# A sub-interval is good if noise gives its strength once in e^12, and if it is at least half as strong as
# usual.
_STRENGTH_NATS: Final = 12.0
_LEAST_STRENGTH: Final = 0.15
_LEAST_OF_USUAL: Final = 0.5
_USUAL_MEMORY: Final = 0.1
_FEWEST_TAGS: Final = 8
# A phase this many deviations, and this part of a tick, from the prediction is a jump.
_JUMP_SIGMAS: Final = 6.0
_JUMP_PART: Final = 1.0 / 16.0
_LOST_PART: Final = 1.0 / 8.0
_LONGEST_COAST_PS: Final = 1000 * PS_PER_S  # no extrapolation is longer, and `as_float` can represent it

# cos(2 pi x) and sin(2 pi x) / x in powers of x^2, for |x| <= 1/2 within 1e-6 (Chebyshev interpolation).
_COSINE: Final = (0.999999, -19.73898, 64.928657, -85.271622, 58.790492, -21.071106)
_SINE: Final = (6.283185, -41.341589, 81.599943, -76.614473, 41.342882, -12.471244)
# Phasors are added in fixed point, so the order does not matter, and several are added at once.
_UNIT: Final = float(1 << 30)

# Indices in the arrays with the state of the filter between batches.
_ANCHOR, _TICK, _START = range(3)
_PHASE, _PERIOD, _P_PHASE, _P_CROSS, _P_RATE, _USUAL = range(6)


@dataclass(frozen=True, eq=False)
class Combs:
    """The clock in each of some sub-intervals; arrays with one entry per sub-interval.

    Tick k is centred on ``anchors_ps + phases_ps + (k - ticks) * periods_ps``. ``ends``: int64 index of the
    tag after the sub-interval's last.
    """

    anchors_ps: Integers
    phases_ps: Floats
    ticks: Integers
    periods_ps: Floats
    ends: Integers

    def n_tags(self, i: int) -> int:
        """Return the number of tags in sub-interval ``i``."""
        return int(self.ends[i]) - (int(self.ends[i - 1]) if i else 0)


@dataclass(frozen=True, eq=False)
class Tracked:
    """The complete sub-intervals; arrays with one entry per sub-interval.

    ``starts_ps`` and ``ends_ps``: start and end; ``good``: the clicks may be used; ``strengths`` and
    ``innovations_ps`` (measured less predicted phase) describe it; ``start_ticks`` and ``end_ticks``: tick
    coordinates, with fraction, of start and end. ``verdict``: `GOES_ON`, or the reason why the last
    sub-interval ended the tracking.
    """

    combs: Combs
    starts_ps: Integers
    ends_ps: Integers
    good: npt.NDArray[np.bool_]
    strengths: Floats
    innovations_ps: Floats
    start_ticks: Floats
    end_ticks: Floats
    verdict: int

    @property
    def n_tags(self) -> int:
        """The number of tags consumed from the front."""
        return int(self.combs.ends[-1]) if self.combs.ends.size else 0


class BinClock:
    """The tracked clock with ``nominal_period_ps`` per tick.

    ``x_offset_ps``: the delay of the mean of X tags behind the mean of Z tags (modulo a tick).
    ``walk_per_root_s``: random walk of the relative rate over one second.
    """

    def __init__(
        self, recovered: RecoveredClock, from_ps: int, *, nominal_period_ps: float, x_offset_ps: float,
        walk_per_root_s: float,
    ) -> None:  # fmt: skip
        self._nominal_period_ps = nominal_period_ps
        self._x_offset_ps = x_offset_ps
        self._walk = (walk_per_root_s * PS_PER_S) ** 2  # ps^2 / s^3
        rate_sigma = recovered.rate_sigma * PS_PER_S
        self._integers = np.array([recovered.anchor_ps, 0, from_ps], np.int64)
        self._floats = np.array(
            [
                recovered.phase_ps, recovered.period_ps, recovered.phase_sigma_ps**2, 0.0, rate_sigma**2,
                recovered.vector_strength,
            ]
        )  # fmt: skip

    @property
    def from_ps(self) -> int:
        """Start of the first incomplete sub-interval; earlier tags are no longer needed."""
        return int(self._integers[_START])

    @property
    def tick(self) -> int:
        """The tick of the last measurement."""
        return int(self._integers[_TICK])

    @property
    def period_ps(self) -> float:
        """Duration of a tick in Bob's time."""
        return float(self._floats[_PERIOD])

    @property
    def offset_ppm(self) -> float:
        """The excess of a tick in Bob's time over its nominal duration."""
        return (self.period_ps / self._nominal_period_ps - 1.0) * 1e6

    @property
    def phase_sigma_ps(self) -> float:
        """Standard error of the phase at its last measurement."""
        return math.sqrt(self._floats[_P_PHASE])

    def time_of(self, tick: int) -> int:
        """Return Bob's time (ps) of the centre of ``tick``, extrapolated from now."""
        # Split, so that hours of ticks keep picosecond precision.
        n = tick - int(self._integers[_TICK])
        return int(self._integers[_ANCHOR]) + round(float(self._floats[_PHASE]) + n * self.period_ps)

    def move(self, by_ps: int) -> int:
        """Count times from an origin ``by_ps`` later, and ticks from the present tick; return that tick."""
        tick = int(self._integers[_TICK])
        self._integers -= np.array([by_ps, tick, by_ps])
        return tick

    def track(self, times_ps: Times, channels: Channels, until_ps: int) -> Tracked:
        """Follow ordered tags, complete up to ``until_ps``; tags before `from_ps` must have been removed.

        Consumes whole sub-intervals: call again with the rest before the next tags. With a verdict other
        than `GOES_ON` the last sub-interval is the one that ended it.
        """
        n = times_ps.shape[0]
        # Without eight tags in each sub-interval the clock is lost after a few of them, however far
        # `until_ps` is.
        most = min(n // INTERVAL_TAGS + max(0, until_ps - self.from_ps) // INTERVAL_PS + 2, n // 8 + 64)
        whole, parts, good = np.empty((5, most), np.int64), np.empty((6, most)), np.empty(most, np.bool_)
        outcome = np.zeros(2, np.int64)
        _track(
            times_ps, channels, until_ps, self._x_offset_ps, self._walk, self._integers, self._floats,
            whole, parts, good, outcome,
        )  # fmt: skip
        m, verdict = int(outcome[0]), int(outcome[1])
        anchors, ticks, ends, starts_ps, ends_ps = whole[:, :m]
        phases, periods, strengths, innovations, start_ticks, end_ticks = parts[:, :m]
        return Tracked(
            Combs(anchors, phases, ticks, periods, ends), starts_ps, ends_ps, good[:m], strengths,
            innovations, start_ticks, end_ticks, verdict,
        )  # fmt: skip


@inline_kernel
def _polynomial(c: tuple[float, ...], x: float) -> float:
    return c[0] + x * (c[1] + x * (c[2] + x * (c[3] + x * (c[4] + x * c[5]))))


@kernel
def _track(
    times: Times, channels: Channels, until_ps: int, x_offset_ps: float, walk: float, integers: Integers,
    floats: Floats, whole: Integers, parts: Floats, good: npt.NDArray[np.bool_], outcome: Integers,
) -> None:  # fmt: skip
    i = 0
    m = 0
    verdict = 0
    while verdict == GOES_ON and m < good.size:
        start_ps = integers[_START]
        end_ps = start_ps + INTERVAL_PS
        j = min(i + INTERVAL_TAGS, times.size)
        if j > i and times[j - 1] >= end_ps:
            j = i + np.searchsorted(times[i:j], end_ps)
        if j - i == INTERVAL_TAGS:
            end_ps = times[j - 1] + 1
        elif until_ps < end_ps:
            break
        anchor = integers[_ANCHOR]
        tick = integers[_TICK]
        phase = floats[_PHASE]
        period = floats[_PERIOD]
        inverse = 1.0 / period
        x_sum = np.int64(0)
        y_sum = np.int64(0)
        elapsed_sum = np.int64(0)
        part, part_channels = times[i:j], channels[i:j]
        for k in range(j - i):
            elapsed = part[k] - anchor
            elapsed_sum += elapsed
            offset = phase + (x_offset_ps if part_channels[k] == X_CHANNEL else 0.0)
            turns = (as_float(elapsed) - offset) * inverse
            turn = turns - np.rint(turns)
            x_sum += nearest_integer(_UNIT * _polynomial(_COSINE, turn * turn))
            y_sum += nearest_integer(_UNIT * turn * _polynomial(_SINE, turn * turn))
        n = j - i
        strength = 0.0
        if n > 0:
            strength = math.hypot(np.float64(x_sum), np.float64(y_sum)) / (n * _UNIT)
        usable = (
            n >= _FEWEST_TAGS
            and n * strength * strength > _STRENGTH_NATS
            and strength > _LEAST_STRENGTH
            and strength > _LEAST_OF_USUAL * floats[_USUAL]
        )
        # Extrapolate the state to the middle of the tags, or to the end if there is nothing to measure.
        ahead = (np.float64(elapsed_sum) / n if usable else np.float64(end_ps - anchor)) - phase
        steps = np.int64(np.rint(ahead * inverse))
        dt = np.float64(steps) * period / PS_PER_S
        p_phase, p_cross, p_rate = floats[_P_PHASE], floats[_P_CROSS], floats[_P_RATE]
        span = abs(dt)
        p_phase = p_phase + 2.0 * dt * p_cross + dt * dt * p_rate + walk * span * span * span / 3.0
        p_cross = p_cross + dt * p_rate + walk * span * dt / 2.0
        p_rate = p_rate + walk * span
        innovation = 0.0
        if usable:
            innovation = math.atan2(np.float64(y_sum), np.float64(x_sum)) / (2.0 * math.pi) * period
            noise = (period / (2.0 * math.pi)) ** 2 / (2.0 * n * strength * strength)
            total = p_phase + noise
            if abs(innovation) > max(_JUMP_SIGMAS * math.sqrt(total), _JUMP_PART * period):
                verdict = JUMPED
                usable = False
                # The new phase is good, but the count of ticks is not: start again from the new phase.
                gain_phase, gain_rate = 1.0, 0.0
                p_phase, p_cross = noise, 0.0
            else:
                gain_phase, gain_rate = p_phase / total, p_cross / total
                p_rate -= gain_rate * p_cross
                p_cross *= 1.0 - gain_phase
                p_phase *= 1.0 - gain_phase
            moved = phase + np.float64(steps) * period + gain_phase * innovation
            period *= 1.0 + gain_rate * innovation / PS_PER_S
            tick += steps
            shift = np.int64(np.floor(moved))
            anchor += shift
            phase = moved - np.float64(shift)
            floats[_P_PHASE], floats[_P_CROSS], floats[_P_RATE] = p_phase, p_cross, p_rate
            floats[_USUAL] += _USUAL_MEMORY * (strength - floats[_USUAL])
            integers[_ANCHOR], integers[_TICK] = anchor, tick
            floats[_PHASE], floats[_PERIOD] = phase, period
        elif math.sqrt(p_phase) > _LOST_PART * period or end_ps - anchor > _LONGEST_COAST_PS:
            verdict = LOST
        inverse = 1.0 / period
        whole[0, m], whole[1, m], whole[2, m], whole[3, m], whole[4, m] = anchor, tick, j, start_ps, end_ps
        parts[0, m], parts[1, m], parts[2, m], parts[3, m] = phase, period, strength, innovation
        # The whole part is exact: `move` resets the count before the ticks leave no room for a fraction.
        parts[4, m] = np.float64(tick) + (np.float64(start_ps - anchor) - phase) * inverse
        parts[5, m] = np.float64(tick) + (np.float64(end_ps - anchor) - phase) * inverse
        good[m] = usable
        integers[_START] = end_ps
        m += 1
        i = j
    outcome[0] = m
    outcome[1] = verdict
