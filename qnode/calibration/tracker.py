"""A tracker holds a periodic setting at the extremum of a signal, by small steps to either side of it.

The interferometer's phase and the bias of an intensity modulator have the same form. The signal is
``s0 - k cos(x + u)``: u is the setting, x drifts, and the best u is -x. At the extremum the signal says
nothing about small errors, so the tracker dithers: stretches at -x + d and -x - d follow one another. The
difference of their signals is ``2 k sin(error) sin(d)``, whatever s0 is.

x and its rate are the two states of a Kalman filter. So a steady drift leaves no lag, and the gain
follows from the noise of the signal. Far away the difference says only on which side the extremum lies. If
the signal itself also says how far, by the cosine of the error, the tracker goes there at once.
"""

import math

from msgspec import Struct

_TURN = 2.0 * math.pi
# A phase about which nothing is known has the variance of a uniform one.
_UNKNOWN = math.pi**2 / 3.0
# Beyond this many deviations the state was wrong (a jump), and the correction counts fully.
_JUMP_SIGMAS = 4.0
# With a smaller cosine the error is taken from the cosine, within about `_FAR_VARIANCE`.
_FAR_COSINE = 0.5
_FAR_VARIANCE = 0.1


class Shape(Struct, frozen=True, kw_only=True):
    """The signal and the drift that a tracker expects; all phases in radians.

    ``slope``: k. ``limits_rad``: of the setting, at least 2 π + 2 ``dither_rad`` apart for a setting that
    must follow a drift without end. ``walk_rad_per_root_s``: random walk of x. ``rate_rad_per_s``: the
    largest usual drift. ``rate_walk``: random walk of the drift, in rad/s per √s.
    """

    slope: float
    dither_rad: float
    limits_rad: tuple[float, float]
    walk_rad_per_root_s: float = 4e-3
    rate_rad_per_s: float = 5e-3
    rate_walk: float = 2e-5


class Stretch(Struct, frozen=True, kw_only=True):
    """The mean signal of a stretch at one setting; ``at_s``: its middle. ``variance``: of ``signal``.

    ``cosine``: of the error, as far as the signal says; 1 if it does not.
    """

    signal: float
    variance: float
    at_s: float
    cosine: float = 1.0


class Tracker:
    """Give it each stretch; `setting_rad` is where the next one belongs.

    ``setting_rad``: the present setting, where the tracker starts.
    """

    def __init__(self, shape: Shape, setting_rad: float) -> None:
        self._shape = shape
        self._centre_rad = setting_rad
        self._side = 1.0
        self._first: tuple[Stretch, float, float] | None = None  # with its side, and its expected error
        self._at_s: float | None = None
        self._x, self._rate = -setting_rad, 0.0
        self._p_x, self._p_cross, self._p_rate = _UNKNOWN, 0.0, shape.rate_rad_per_s**2
        self.is_limited = False
        """The best setting lies beyond the limits, also in its equivalents."""
        self.error_rad: float | None = None
        """The latest measured error, as its sine."""

    @property
    def setting_rad(self) -> float:
        """The setting of the stretch to come."""
        return self._centre_rad + self._side * self._shape.dither_rad

    @property
    def centre_rad(self) -> float:
        """The best setting, as estimated, without dither."""
        return self._centre_rad

    @property
    def sigma_rad(self) -> float:
        """The standard error of the best setting."""
        return math.sqrt(self._p_x)

    @property
    def rate_rad_per_s(self) -> float:
        """The estimated drift."""
        return self._rate

    def forget_first(self) -> None:
        """Drop a stretch whose partner was lost: the next one begins a pair."""
        self._first = None

    def observe(self, stretch: Stretch, next_s: float) -> float:
        """Take the stretch at `setting_rad`; return the setting for the one with its middle at ``next_s``.

        Times ascend.
        """
        self._predict(stretch.at_s)
        error_rad = _wrapped(self._x + self._centre_rad)
        if self._first is None:
            self._first = (stretch, self._side, error_rad)
            self._side = -self._side
        else:
            first, side, first_error_rad = self._first
            self._correct(first, stretch, side, (first_error_rad + error_rad) / 2.0)
            self._first = None  # the next pair begins on this side, so that a steady drift cancels
        self._centre_rad = self._within_limits(-(self._x + self._rate * (next_s - stretch.at_s)))
        return self.setting_rad

    def _predict(self, at_s: float) -> None:
        elapsed_s = 0.0 if self._at_s is None else max(0.0, at_s - self._at_s)
        self._at_s = at_s
        shape = self._shape
        rate_walk = shape.rate_walk**2
        self._x += self._rate * elapsed_s
        self._p_x += elapsed_s * (
            2.0 * self._p_cross
            + elapsed_s * self._p_rate
            + shape.walk_rad_per_root_s**2
            + rate_walk * elapsed_s**2 / 3.0
        )
        self._p_cross += elapsed_s * (self._p_rate + rate_walk * elapsed_s / 2.0)
        self._p_rate = self._p_rate + rate_walk * elapsed_s
        if self._p_x > _UNKNOWN or self._p_rate > shape.rate_rad_per_s**2:
            self._p_x = min(self._p_x, _UNKNOWN)
            self._p_rate = min(self._p_rate, shape.rate_rad_per_s**2)
            most = math.sqrt(self._p_x * self._p_rate)
            self._p_cross = min(max(self._p_cross, -most), most)

    def _correct(self, first: Stretch, second: Stretch, side: float, expected_rad: float) -> None:
        """Correct the state by a pair of stretches, the first one at ``side``."""
        scale = 2.0 * self._shape.slope * math.sin(self._shape.dither_rad)
        measured = side * (first.signal - second.signal) / scale
        noise = (first.variance + second.variance) / scale**2
        self.error_rad = min(max(measured, -1.0), 1.0)
        cosine = (first.cosine + second.cosine) / 2.0
        if cosine < _FAR_COSINE:
            error_rad = math.copysign(math.acos(max(cosine, -1.0)), measured)
            self._x += _wrapped(error_rad - expected_rad)
            self._p_x, self._p_cross = max(self._p_x, _FAR_VARIANCE), 0.0
            return
        innovation = self.error_rad - math.sin(expected_rad)
        if innovation**2 > _JUMP_SIGMAS**2 * (self._p_x + noise):
            self._p_x = min(self._p_x + innovation**2, _UNKNOWN)
        total = self._p_x + noise
        gain, rate_gain = self._p_x / total, self._p_cross / total
        self._x += gain * innovation
        self._rate += rate_gain * innovation
        most = self._shape.rate_rad_per_s
        self._rate = min(max(self._rate, -most), most)
        self._p_rate = max(self._p_rate - rate_gain * self._p_cross, 0.0)
        self._p_cross *= 1.0 - gain
        self._p_x *= 1.0 - gain

    def _within_limits(self, best_rad: float) -> float:
        """Return the equivalent of ``best_rad`` nearest to the present centre that leaves room to dither.

        Beyond the limits it is the equivalent nearest to their middle, or the limit itself if there is none.
        """
        least, most = self._shape.limits_rad
        least, most = least + self._shape.dither_rad, most - self._shape.dither_rad
        near = self._centre_rad + _wrapped(best_rad - self._centre_rad)
        if not least <= near <= most:
            middle = (least + most) / 2.0
            near = middle + _wrapped(best_rad - middle)
        self.is_limited = not least <= near <= most
        return min(max(near, least), most)


def _wrapped(phase_rad: float) -> float:
    """Return the equivalent of a phase from -π to π."""
    return math.remainder(phase_rad, _TURN)


def central_slope(p_x: float, visibility: float) -> float:
    """Return the `Shape.slope` of the central share of the X arm's clicks.

    ``p_x``: Alice's probability of |+>. The central slot gets 1 - p_x V cos(x), the boundary slots 1.
    """
    contrast = p_x * visibility
    return contrast / (2.0 - contrast) ** 2


def central_cosine(central_share: float, p_x: float, visibility: float) -> float:
    """Return the cosine of the phase error at which the central share is ``central_share``."""
    return (1.0 - 2.0 * central_share) / (p_x * visibility * (1.0 - central_share))


def share(part: int, whole: int) -> tuple[float, float]:
    """Return ``part / whole`` and its variance; ``whole`` is at least 1."""
    value = part / whole
    smoothed = (part + 1.0) / (whole + 2.0)  # never a variance of zero
    return value, smoothed * (1.0 - smoothed) / whole
