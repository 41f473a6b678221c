"""Tails of the binomial and hypergeometric laws to 50 digits, by other ways than the node's own code.

The binomial tail is an integral of the Beta density, by Gauss-Legendre in pieces that follow its decay. The
hypergeometric tail is the sum of ratios in exact integers, or the Euler-Maclaurin formula where it is long.
"""

from functools import cache, lru_cache
from typing import Any

from mpmath import mp, mpf
from mpmath.calculus.quadrature import GaussLegendre

mp.dps = 50
# Mantissas of 50 digits, and what differences of log-gamma functions of 1e15 lose.
GUARD_DIGITS = 20
FIXED_POINT_BITS = 240
LONGEST_SUM = 30_000


@cache
def _nodes() -> list[tuple[Any, Any]]:
    return [(x, w) for x, w in GaussLegendre(mp).calc_nodes(5, mp.prec + 20)]


@lru_cache(maxsize=256)
def _log_beta(a: Any, b: Any) -> Any:
    with mp.extradps(GUARD_DIGITS):
        return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)


def log_binomial_lower_tail(x: Any, n: Any, p: Any) -> tuple[Any, Any]:
    """Return log Pr[Bin(n, p) <= x] and its derivative by p, for real 0 <= x < n and p above x/n.

    That is the integral of t^x (1-t)^(n-x-1) / B(x+1, n-x) from p to 1.
    """
    x, n, p = mpf(x), mpf(n), mpf(p)
    one_minus = 1 - p
    power = n - x - 1
    log_density = x * mp.log(p) + power * mp.log(one_minus) - _log_beta(x + 1, n - x)
    rate = power / one_minus - x / p
    curvature = mp.sqrt(abs(power) / one_minus**2 + x / p**2)
    piece = one_minus
    if rate > 0:
        piece = min(piece, 20 / rate)
    if curvature > 0:
        piece = min(piece, 6 / curvature)
    total, start, last = mpf(0), mpf(0), mpf(0)
    while start < one_minus and last > -150:
        end = min(start + piece, one_minus)
        half, middle = (end - start) / 2, (end + start) / 2
        part = mpf(0)
        for node, weight in _nodes():
            u = middle + half * node
            part += weight * mp.exp(x * mp.log1p(u / p) + power * mp.log1p(-u / one_minus))
        total += half * part
        start = end
        if end < one_minus:
            last = x * mp.log1p(end / p) + power * mp.log1p(-end / one_minus)
    log_tail = log_density + mp.log(total)
    return log_tail, -mp.exp(log_density - log_tail)


@lru_cache(maxsize=512)
def binomial_upper(x: Any, n: Any, log_inverse: Any) -> Any:
    """Return p with Pr[Bin(n, p) <= x] = exp(-log_inverse), real x, 0 <= x < n."""
    x, n = mpf(x), mpf(n)
    if x == 0:
        return -mp.expm1(-log_inverse / n)
    if n - x <= 1 or log_inverse > 40 * (n - x):
        # The limit is so near to one that only its distance from one can be told.
        return _near_one(x, n, log_inverse)
    mean = x / n
    low, high = mean, mpf(1)
    # Chernoff's bound gives a p that is too large; the tail is never larger than exp(-n KL).
    a, b = mean, mpf(1)
    for _ in range(60):
        middle = (a + b) / 2
        kl = mean * mp.log(mean / middle) + (1 - mean) * mp.log((1 - mean) / (1 - middle))
        a, b = (a, middle) if n * kl > log_inverse else (middle, b)
    p = (a + b) / 2
    for _ in range(400):
        log_tail, slope = log_binomial_lower_tail(x, n, p)
        if log_tail > -log_inverse:
            low = p
        else:
            high = p
        following = p - (log_tail + log_inverse) / slope
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - p) < mpf(10) ** -28 * min(p, 1 - p):
            return following
        p = following
    raise ArithmeticError(f"no quantile of x={x}, n={n}")


def _near_one(x: Any, n: Any, log_inverse: Any) -> Any:
    b = n - x

    def log_tail(q: Any) -> Any:
        return mp.log(mp.betainc(b, x + 1, 0, q, regularized=True))

    low, high = mpf(0), mpf(1)  # of log q, in units of what b needs
    scale = -(log_inverse + abs(_log_beta(x + 1, b)) + 200) / b
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if log_tail(mp.exp(scale * middle)) < -log_inverse else (middle, high)
    return 1 - mp.exp(scale * low)


def hypergeometric_lower_tail(v: int, marked: int, drawn: int, population: int) -> Any:
    """Return log Pr[at most v of ``marked`` among ``drawn`` of ``population``]; 0 beyond the mode."""
    smallest = max(0, drawn - (population - marked))
    if v < smallest:
        return mpf("-inf")
    if v >= min(marked, drawn):
        return mpf(0)
    rest = population - marked - drawn
    ratio = mpf(v) * (rest + v) / (mpf(marked - v + 1) * (drawn - v + 1))
    if ratio >= 1:
        return mpf(0)  # beyond the mode the tail is above every epsilon that is asked for here
    log_first = _log_hypergeometric(v, marked, drawn, population)
    if 115 / (1 - ratio) < LONGEST_SUM or v - smallest < LONGEST_SUM:
        one = 1 << FIXED_POINT_BITS
        total = term = one
        j = v
        while j > smallest and term:
            term = term * j * (rest + j) // ((marked - j + 1) * (drawn - j + 1))
            total += term
            j -= 1
        return log_first + mp.log(mpf(total) / one)
    return log_first + mp.log(_euler_maclaurin(v, marked, drawn, population, smallest, ratio))


def _log_factorial(n: Any) -> Any:
    return mp.loggamma(mpf(n) + 1)


def _log_hypergeometric(j: Any, marked: int, drawn: int, population: int) -> Any:
    def choose(n: Any, k: Any) -> Any:
        return _log_factorial(n) - _log_factorial(k) - _log_factorial(n - k)

    with mp.extradps(GUARD_DIGITS):
        return choose(marked, j) + choose(population - marked, drawn - j) - choose(population, drawn)


def _euler_maclaurin(v: int, marked: int, drawn: int, population: int, smallest: int, ratio: Any) -> Any:
    """Return the sum of Pr[j] / Pr[v] over j <= v, whose terms fall slowly: integral, half a term, slopes."""
    at_v = _log_hypergeometric(v, marked, drawn, population)
    spread = mp.sqrt(mpf(v + 1))
    piece = min(20 / (1 - ratio), 6 * spread)
    total, start, last = mpf(0), mpf(0), mpf(0)
    end_of_all = mpf(v - smallest)
    while start < end_of_all and last > -130:
        end = min(start + piece, end_of_all)
        half, middle = (end - start) / 2, (end + start) / 2
        part = mpf(0)
        for node, weight in _nodes():
            u = middle + half * node
            part += weight * mp.exp(_log_hypergeometric(v - u, marked, drawn, population) - at_v)
        total += half * part
        start = end
        last = _log_hypergeometric(v - end, marked, drawn, population) - at_v
    # Slope and third derivative of the logarithm of the term at v, by j.
    rest = population - marked - drawn
    signs = ((-1, v), (1, marked - v), (1, drawn - v), (-1, rest + v))
    slope = sum(sign * mp.digamma(mpf(n) + 1) for sign, n in signs)
    # log term(j): -log j! - log (K-j)! - ..., whose derivatives by j alternate for K - j.
    second = -sum(mp.polygamma(1, mpf(n) + 1) for _, n in signs)
    third = sum(sign * mp.polygamma(2, mpf(n) + 1) for sign, n in signs)
    first_derivative = -slope  # by u = v - j
    third_derivative = -(third + 3 * slope * second + slope**3)
    return total + mpf(1) / 2 - first_derivative / 12 + third_derivative / 720


@lru_cache(maxsize=512)
def sampling_bound(v: Any, c: Any, d: Any, log_inverse: Any) -> Any:
    """Return the largest (K - v)/c whose tail exceeds exp(-log_inverse), at most 1/2 (reference 4.3)."""
    unseen, sample, errors = int(mp.floor(c)), int(mp.floor(d)), int(mp.ceil(v))
    if unseen < 1 or sample < 1 or errors >= sample:
        return mpf("0.5")
    population = unseen + sample

    def excess(marked: int) -> Any:
        return hypergeometric_lower_tail(errors, marked, sample, population) + log_inverse

    high = errors + (unseen + 1) // 2
    if high == errors:
        return mpf(0)
    at_high = excess(high)
    if at_high > 0:
        return mpf("0.5")
    low, at_low = errors, log_inverse
    # Start where the normal law would have it, go on by secants inside the bracket.
    spread = mp.sqrt(2 * log_inverse * (mpf(errors) + log_inverse)) * population / sample
    guess = errors + int(unseen * mpf(errors) / sample + spread)
    previous = (mpf(low), at_low)
    for turn in range(400):
        if high - low <= 1:
            break
        marked = min(max(guess, low + 1), high - 1)
        found = excess(marked)
        if found > 0:
            low, at_low = marked, found
        else:
            high, at_high = marked, found
        slope = (found - previous[1]) / (marked - previous[0]) if marked != previous[0] else mpf(0)
        previous = (mpf(marked), found)
        if mp.isfinite(slope) and slope < 0 and turn % 12 != 11:
            guess = int(mp.floor(marked - found / slope))
            if guess == low:
                guess = low + 1
        else:
            guess = (low + high) // 2
    return min(mpf("0.5"), mpf(low - errors) / unseen)
