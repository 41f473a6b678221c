"""Exact tails of the binomial and hypergeometric laws, in logarithms, at any size of block.

Probabilities are written in the saddle-point form of C. Loader, "Fast and accurate computation of binomial
probabilities" (2000): the logarithm of a probability is a sum of small terms there, where a difference of
log-gamma functions of 1e9 would already have lost six digits.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

_FRACTION_STEPS: Final = 100_000
_RELATIVE: Final = 1e-15
_SUM_CHUNK: Final = 1 << 12
_SUM_TERMS: Final = 1 << 20


def _stirling_error(n: float) -> float:
    """Return log(n!) - log(sqrt(2 pi n) (n/e)^n) for n > 0."""
    if n < 16.0:
        return math.lgamma(n + 1.0) - (n + 0.5) * math.log(n) + n - 0.5 * math.log(2.0 * math.pi)
    square = n * n
    series = 1 / 1680 - (1 / 1188) / square
    for coefficient in (1 / 1260, 1 / 360, 1 / 12):
        series = coefficient - series / square
    return series / n


def _deviance(x: float, mean: float) -> float:
    """Return x log(x/mean) + mean - x without cancellation (Loader's bd0)."""
    difference = x - mean
    if abs(difference) >= 0.1 * (x + mean):
        return x * math.log(x / mean) + mean - x
    v = difference / (x + mean)
    total = difference * v
    power = 2.0 * x * v
    for odd in range(3, 1000, 2):
        power *= v * v
        increased = total + power / odd
        if increased == total:
            break
        total = increased
    return total


def log_binomial(x: float, n: float, p: float, q: float) -> float:
    """Return log Pr[Binomial(n, p) = x] with q = 1 - p; x and n may be real, 0 <= x <= n, 0 < p < 1."""
    if x == 0.0:
        return n * (math.log1p(-p) if p < q else math.log(q))
    if x == n:
        return n * (math.log1p(-q) if q < p else math.log(p))
    return (
        _stirling_error(n)
        - _stirling_error(x)
        - _stirling_error(n - x)
        - _deviance(x, n * p)
        - _deviance(n - x, n * q)
        + 0.5 * math.log(n / (2.0 * math.pi * x * (n - x)))
    )


def log_incomplete_beta(x: float, y: float, a: float, b: float) -> float:
    """Return log I_x(a, b), the regularised incomplete beta function, with y = 1 - x; a, b > 0, 0 < x < 1.

    The continued fraction is DLMF 8.17.22, evaluated by the modified Lentz method.
    """
    if x > (a + 1.0) / (a + b + 2.0):
        other = log_incomplete_beta(y, x, b, a)
        return math.log1p(-math.exp(other)) if other < 0.0 else -math.inf
    front = log_binomial(a, a + b, x, y) + math.log(b / (a + b))
    return front + math.log(_beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c = 1.0
    d = 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0), tiny)
    value = d
    for m in range(1, _FRACTION_STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        step = 1.0
        for coefficient in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + coefficient * d, tiny)
            c = _away_from_zero(1.0 + coefficient / c, tiny)
            step *= c * d
        value *= step
        if abs(step - 1.0) < _RELATIVE:
            return value
    raise ArithmeticError(f"incomplete beta function did not converge at x={x}, a={a}, b={b}")


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def binomial_upper_probability(x: float, n: float, log_e: float) -> float:
    """Return the p at which Pr[Binomial(n, p) <= x] = e: the quantile 1-e of Beta(x + 1, n - x).

    ``log_e`` is the natural logarithm of e < 1; 0 <= x < n. Works on 1 - I_p through its logarithm, so that
    an e far below the floating-point spacing at one is no difficulty.
    """
    if x == 0.0:
        return -math.expm1(log_e / n)
    low, high = 0.0, 1.0
    p = _hoeffding_guess(x, n, log_e)
    for _ in range(200):
        q = 1.0 - p
        log_tail = log_incomplete_beta(q, p, n - x, x + 1.0)
        if log_tail > log_e:
            low = p
        else:
            high = p
        # Newton on the logarithm: d tail / d p is minus the density of Beta(x + 1, n - x).
        log_density = log_binomial(x, n, p, q) + math.log((n - x) / q)
        step = (log_tail - log_e) * math.exp(min(log_tail - log_density, 700.0))
        newton = p + step
        following = newton if low < newton < high else 0.5 * (low + high)
        # A Newton step squares the error, so one this small leaves nothing for another.
        small = 1e-9 * min(p, q) if following == newton else 4e-16 * p
        if abs(following - p) <= small or following in (low, high):
            return following
        p = following
    return high


def _hoeffding_guess(x: float, n: float, log_e: float) -> float:
    fraction = x / n
    spread = math.sqrt(-2.0 * log_e * max(fraction * (1.0 - fraction), 1.0 / n) / n)
    return min(fraction + spread, 0.5 * (1.0 + fraction))


def log_hypergeometric(j: int, marked: int, drawn: int, population: int) -> float:
    """Return log Pr[j marked among ``drawn`` of ``population`` that holds ``marked``]; j must be possible."""
    p = drawn / population
    q = (population - drawn) / population
    if q == 0.0:
        return 0.0
    return (
        log_binomial(j, marked, p, q)
        + log_binomial(drawn - j, population - marked, p, q)
        - log_binomial(drawn, population, p, q)
    )


def log_hypergeometric_lower_tail(v: int, marked: int, drawn: int, population: int) -> float:
    """Return log Pr[Hypergeometric(population, marked, drawn) <= v], the largest term times a sum of ratios.

    Above the mode the complement is summed. After 2^20 terms the remainder is replaced by its geometric upper
    bound (0 in the complement), so that the result is never too small and the time is bounded.
    """
    if v < max(0, drawn - (population - marked)):
        return -math.inf
    if v >= min(marked, drawn):
        return 0.0
    if v >= (drawn + 1) * (marked + 1) // (population + 2):
        above = _sum_downwards(drawn - v - 1, population - marked, drawn, population)
        log_above = above.log_first + math.log(above.total)
        return math.log1p(-math.exp(log_above)) if log_above < 0.0 else 0.0
    below = _sum_downwards(v, marked, drawn, population)
    return min(0.0, below.log_first + math.log(below.total + below.remainder))


@dataclass(frozen=True)
class _TailSum:
    """A tail as its largest term times ``total``, with an upper bound on what was left out of ``total``."""

    log_first: float
    total: float
    remainder: float


def _sum_downwards(v: int, marked: int, drawn: int, population: int) -> _TailSum:
    """Sum Pr[j] / Pr[v] for j = v, v - 1, ...; v lies below the mode, so that every ratio is below one."""
    smallest = max(0, drawn - (population - marked))
    unmarked_rest = float(population - marked - drawn)
    total, term, remainder, j = 1.0, 1.0, 0.0, v
    while j > smallest:
        steps = np.arange(j, max(smallest, j - _SUM_CHUNK), -1, dtype=np.float64)
        ratios = steps * (unmarked_rest + steps) / ((marked - steps + 1.0) * (drawn - steps + 1.0))
        terms = term * np.cumprod(ratios)
        total += float(terms.sum())
        term, ratio = float(terms[-1]), float(ratios[-1])
        j -= steps.shape[0]
        # The ratios fall with j, so a geometric series bounds what is left.
        remainder = term * ratio / (1.0 - ratio) if j > smallest else 0.0
        if remainder < _RELATIVE * total or v - j >= _SUM_TERMS:
            break
    return _TailSum(log_hypergeometric(v, marked, drawn, population), total, remainder)
