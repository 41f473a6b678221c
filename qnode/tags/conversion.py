"""Conversions between float64 and int64 in kernels, vectorised on any processor.

Only AVX-512 has vector instructions for them. Between 2^52 and 2^53 a float64 is a whole number:
adding 1.5 * 2^52 rounds to a whole number and leaves it in the low bits.
"""

from typing import Final

import numpy as np

from qnode.kernels import inline_kernel

_SHIFT: Final = 1.5 * 2.0**52
_SHIFT_BITS: Final = 0x4338_0000_0000_0000


@inline_kernel
def as_float(number: np.int64) -> np.float64:
    """Return ``number`` as float64; exact, for magnitudes below 2^51."""
    return np.int64(number + _SHIFT_BITS).view(np.float64) - _SHIFT


@inline_kernel
def nearest_integer(number: float) -> np.int64:
    """Return the integer nearest to ``number``, for magnitudes below 2^51."""
    return np.float64(number + _SHIFT).view(np.int64) - _SHIFT_BITS
