"""Exponential and logarithm between two rationals: what a certificate may rest on.

Both are power series in integers with a fixed number of binary places, every step rounded outwards; nothing
depends on a floating-point library.
"""

import math
from fractions import Fraction
from typing import NamedTuple

# Binary places of the integers below: bounds are within about 2^-150 of the truth, relative to the result.
_PLACES = 160
UNITS = 1 << _PLACES
"""In one; integers in this module count units of its inverse."""
_COARSE = 1 << 96


class Enclosure(NamedTuple):
    """Two rationals with the true value between them."""

    lower: Fraction
    upper: Fraction

    def rounded(self) -> "Enclosure":
        """Return it rounded outwards to fewer places, so that sums and products of it stay short."""
        return Enclosure(
            Fraction(math.floor(self.lower * _COARSE), _COARSE),
            Fraction(math.ceil(self.upper * _COARSE), _COARSE),
        )


def exponential(x: Fraction) -> Enclosure:
    """Return e^x for 0 <= x.

    e^x = (e^(x / 2^s))^(2^s), with the Taylor series of an argument of at most 1; its remainder after the
    term t is below t, for the following terms at least halve.

    Raises:
        ValueError: ``x`` is negative.
    """
    if x < 0:
        raise ValueError(f"only for arguments that are not negative, got {x}")
    halvings = max(0, (x.numerator // x.denominator).bit_length())
    small = x / (1 << halvings)
    lower, upper = _taylor(down(small), up=0), _taylor(_up(small), up=1)
    for _ in range(halvings):
        lower, upper = lower * lower >> _PLACES, (upper * upper >> _PLACES) + 1
    return Enclosure(Fraction(lower, UNITS), Fraction(upper, UNITS))


def logarithm(x: Fraction) -> Enclosure:
    """Return ln x for x > 0.

    ln x = k ln 2 + 2 artanh((m - 1)/(m + 1)) with x = m 2^k and 1 <= m < 2.

    Raises:
        ValueError: ``x`` is not positive.
    """
    if x <= 0:
        raise ValueError(f"only of positive numbers, got {x}")
    return Enclosure(Fraction(_logarithm(x, up=0), UNITS), Fraction(_logarithm(x, up=1), UNITS))


def logarithm_down(x: float) -> int:
    """Return ln x for x > 0 in units of 1/`UNITS`, rounded down."""
    return _logarithm(Fraction(x), up=0)


def down(x: Fraction) -> int:
    """Return ``x`` in units of 1/`UNITS`, rounded down."""
    return x.numerator * UNITS // x.denominator


def _logarithm(x: Fraction, *, up: int) -> int:
    """Return ln x rounded down (``up`` 0) or up (1), for x > 0."""
    if x < 1:
        return -_logarithm(1 / x, up=1 - up)
    n, d = x.numerator, x.denominator
    k = (n // d).bit_length() - 1
    d <<= k  # x = n/d 2^k, and z = (n - d)/(n + d)
    z = -((d - n) * UNITS // (n + d)) if up else (n - d) * UNITS // (n + d)
    return 2 * (_artanh(z, up=up) + k * _HALF_LN2[up])


def binary_logarithm(x: Fraction) -> Enclosure:
    """Return log2 x for 0 < x <= 1."""
    natural = logarithm(x)
    return Enclosure(natural.lower / LN2.lower, natural.upper / LN2.upper)


def _up(x: Fraction) -> int:
    return -(-x.numerator * UNITS // x.denominator)


def _taylor(x: int, *, up: int) -> int:
    """Return e^x rounded down (``up`` 0) or up (1), for 0 <= x <= 1."""
    total, term, n = UNITS + x, x, 1
    while term > 1:
        n += 1
        term = (term * x >> _PLACES) // n + up
        total += term
        if n > _PLACES:
            break
    # What is left: below the last term, and below the rounding of the terms that were added.
    return total + up * (term + 1)


def _artanh(z: int, *, up: int) -> int:
    """Return artanh z rounded down (``up`` 0) or up (1), for 0 <= z <= 1/3."""
    total, power, n = z, z, 1
    square = (z * z >> _PLACES) + up
    while power > up:
        n += 2
        power = (power * square >> _PLACES) + up
        total += power // n + up
        if n > 2 * _PLACES:
            break
    # The following terms shrink at least ninefold, so they come to less than an eighth of the last one.
    return total + up * (power + 1)


class _Integers(NamedTuple):
    lower: int
    upper: int


# ln 2 = 2 artanh(1/3)
_HALF_LN2 = _Integers(_artanh(down(Fraction(1, 3)), up=0), _artanh(_up(Fraction(1, 3)), up=1))
LN2 = Enclosure(Fraction(2 * _HALF_LN2.lower, UNITS), Fraction(2 * _HALF_LN2.upper, UNITS))
