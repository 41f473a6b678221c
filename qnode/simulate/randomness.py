"""Random numbers of the simulation: 64-bit counters, hashed (SplitMix64). Nothing here is cryptographic.

Every draw adds `GOLDEN` to a counter, so no draw waits for another, and loops over draws become vector
instructions. The whole state of a stream is one integer.
"""

import numpy as np

from qnode.kernels import inline_kernel

U = np.uint64
GOLDEN = U(0x9E3779B97F4A7C15)
_FIRST, _SECOND = U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_11, _SHIFT_52, _ONE = U(30), U(27), U(31), U(11), U(52), U(1)
_UNIT_53 = 2.0**-53
_LN_2 = 0.6931471805599453
_MANTISSA = U((1 << 52) - 1)
_ROOT_HALF = U(0x3FE6A09E667F3BCD)  # the bits of sqrt(1/2) as a double


@inline_kernel
def mixed(x: np.uint64) -> np.uint64:
    """Return the SplitMix64 finaliser of ``x`` (a bijection of 64 bits)."""
    x ^= x >> _SHIFT_30
    x *= _FIRST
    x ^= x >> _SHIFT_27
    x *= _SECOND
    return x ^ (x >> _SHIFT_31)


@inline_kernel
def unit(bits: np.uint64) -> float:
    """Return the upper 53 bits as a number from 0 to 1, 1 excluded."""
    return np.float64(np.int64(bits >> _SHIFT_11)) * _UNIT_53


@inline_kernel
def exponential(bits: np.uint64) -> float:
    """Return an Exp(1) variable from the upper 53 bits: -ln of the odd multiple of 2^-53 next to them.

    The logarithm is 2 artanh((m - 1)/(m + 1)) with m within a factor sqrt(2) of 1, to a relative error below
    2e-12, without a branch or a table.
    """
    uniform = np.float64(np.int64((bits >> _SHIFT_11) | _ONE))
    above = uniform.view(np.uint64) - _ROOT_HALF
    exponent = np.float64(np.int64(above >> _SHIFT_52))
    m = U((above & _MANTISSA) + _ROOT_HALF).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = 2 / 7 + z * (2 / 9 + z * (2 / 11 + z * (2 / 13)))
    return (53.0 - exponent) * _LN_2 - s * (2.0 + z * (2 / 3 + z * (2 / 5 + z * series)))
