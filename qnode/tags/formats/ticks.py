"""Clock ticks of a device in whole picoseconds, each rounded from the exact product: nothing adds up."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.kernels import kernel
from qnode.tags.types import Times

Dtimes = npt.NDArray[np.uint16]

_HALF_WORD: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000  # of a picosecond, in 32 bits of fraction
# Between a float64 and the decimal number that it stands for.
_NOISE: Final = 4 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Unit:
    """A unit of time of ``ps`` picoseconds."""

    ps: Fraction

    @classmethod
    def of_seconds(cls, seconds: float) -> "Unit":
        """Return the unit; of whole picoseconds if it is so but for the noise of a float64."""
        ps = Fraction(seconds) * 10**12
        whole = round(ps)
        return cls(Fraction(whole) if whole and abs(ps - whole) <= _NOISE * whole else ps)

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole number of picoseconds."""
        return self.ps.denominator == 1

    @property
    def fixed_point(self) -> tuple[np.uint64, np.uint64, np.uint64]:
        """Whole picoseconds, and a fraction of 64 bits in two halves. Whole units are below 2^32."""
        whole, fraction = divmod(round(self.ps * 2**64), 2**64)
        return np.uint64(whole), np.uint64(fraction >> 32), np.uint64(fraction & _HALF_WORD)


def to_ps(ticks: Times, unit: Unit, dtimes: Dtimes | None = None, dtime_unit: Unit | None = None) -> None:
    """Replace ticks from 0 on, with a finer count beside each if there is one, by picoseconds modulo 2^64."""
    if dtimes is None or dtime_unit is None:
        dtimes, dtime_unit = np.zeros(ticks.shape[0], np.uint16), Unit(Fraction(0))
    _to_ps(ticks, *unit.fixed_point, dtimes, *dtime_unit.fixed_point[:2])


@kernel
def _to_ps(
    ticks: Times,
    whole: np.uint64,
    high: np.uint64,
    low: np.uint64,
    dtimes: Dtimes,
    dtime_whole: np.uint64,
    dtime_high: np.uint64,
) -> None:
    """Multiply, add and round. Factors are half words: processors have vectors for their products."""
    u, mask, bits = np.uint64, np.uint64(_HALF_WORD), np.uint64(32)
    whole, high, low = whole & mask, high & mask, low & mask
    dtime_whole, dtime_high = dtime_whole & mask, dtime_high & mask
    for i in range(u(ticks.shape[0])):
        upper, lower, dtime = u(ticks[i]) >> bits, u(ticks[i]) & mask, u(dtimes[i])
        first, second = lower * high, upper * low
        parts = ((lower * low) >> bits) + (first & mask) + (second & mask) + dtime * dtime_high + u(_HALF)
        fraction = upper * high + (first >> bits) + (second >> bits) + (parts >> bits)
        ticks[i] = np.int64(lower * whole + ((upper * whole) << bits) + dtime * dtime_whole + fraction)
