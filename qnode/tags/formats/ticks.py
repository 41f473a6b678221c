"""Clock ticks of a device in whole picoseconds, each rounded from the exact product: nothing adds up."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np

from qnode.kernels import kernel
from qnode.tags.types import Times

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

    def fixed_point(self, bits: int, times: int = 1) -> tuple[np.int64, np.uint64]:
        """Return so many units as whole picoseconds and so many bits of fraction."""
        whole, fraction = divmod(round(self.ps * times * 2**bits), 2**bits)
        return np.int64(whole), np.uint64(fraction)


def ticks_to_ps(ticks: Times, unit: Unit) -> None:
    """Replace ticks from 0 on by picoseconds, modulo 2^64."""
    whole, fraction = unit.fixed_point(64)
    _ticks_to_ps(ticks, whole, fraction >> np.uint64(32), fraction & np.uint64(0xFFFF_FFFF))


@kernel
def _ticks_to_ps(ticks: Times, whole: np.int64, high: np.uint64, low: np.uint64) -> None:
    """Multiply by whole + high / 2^32 + low / 2^64."""
    limb, bits = np.uint64(0xFFFF_FFFF), np.uint64(32)
    for i in range(ticks.shape[0]):
        upper, lower = np.uint64(ticks[i]) >> bits, np.uint64(ticks[i]) & limb
        first, second = lower * high, upper * low
        carried = ((lower * low) >> bits) + (first & limb) + (second & limb) + np.uint64(0x8000_0000)
        fraction = upper * high + (first >> bits) + (second >> bits) + (carried >> bits)
        ticks[i] = ticks[i] * whole + np.int64(fraction)
