"""Exact tails and limits: closed forms, brute-force sums, coverage."""

import math
from fractions import Fraction

import numpy as np
import pytest

from qnode.distill.counts import Pair
from qnode.distill.keylength.coin import coin_trials_upper
from qnode.distill.keylength.limits import exact_limits, exact_upper, hoeffding_limits
from qnode.distill.keylength.sampling import (
    exact_phase_error,
    gamma_phase_error,
    serfling_phase_error,
)
from qnode.distill.keylength.tails import (
    binomial_upper_probability,
    log_binomial,
    log_hypergeometric_lower_tail,
    log_incomplete_beta,
)


def binomial_lower_tail(x: int, n: int, p: Fraction) -> Fraction:
    return sum((math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(x + 1)), Fraction(0))


def hypergeometric_lower_tail(v: int, marked: int, drawn: int, population: int) -> Fraction:
    ways = sum(
        math.comb(marked, j) * math.comb(population - marked, drawn - j) for j in range(min(v, drawn) + 1)
    )
    return Fraction(ways, math.comb(population, drawn))


def test_incomplete_beta_has_its_closed_forms() -> None:
    for x in (1e-12, 0.01, 0.3, 0.5, 0.9, 0.999):
        for a in (0.5, 1.0, 7.0, 1000.0):
            assert log_incomplete_beta(x, 1 - x, a, 1.0) == pytest.approx(
                a * math.log(x), rel=1e-11, abs=1e-13
            )
            expected = -math.expm1(a * math.log1p(-x))
            assert math.exp(log_incomplete_beta(x, 1 - x, 1.0, a)) == pytest.approx(expected, rel=1e-10)
        arcsine = 2 / math.pi * math.asin(math.sqrt(x))
        assert math.exp(log_incomplete_beta(x, 1 - x, 0.5, 0.5)) == pytest.approx(arcsine, rel=1e-10)
    for a in (0.7, 12.0, 1e4, 1e8):
        assert math.exp(log_incomplete_beta(0.5, 0.5, a, a)) == pytest.approx(0.5, rel=1e-9)


def test_incomplete_beta_is_the_binomial_sum() -> None:
    for n in (1, 5, 30, 200):
        for x in range(0, n, max(1, n // 7)):
            for p in (Fraction(1, 100), Fraction(1, 3), Fraction(9, 10)):
                exact = binomial_lower_tail(x, n, p)
                log_exact = math.log(exact.numerator) - math.log(exact.denominator)
                assert log_incomplete_beta(float(1 - p), float(p), n - x, x + 1.0) == pytest.approx(
                    log_exact, rel=1e-11, abs=1e-12
                )


def test_saddle_point_binomial_is_exact_at_sizes_where_log_gamma_is_not() -> None:
    n, p = 10**9, 0.1
    at_mean = log_binomial(n * p, n, p, 1 - p)
    assert at_mean == pytest.approx(-0.5 * math.log(2 * math.pi * n * p * (1 - p)), abs=1e-8)
    assert math.exp(log_binomial(3, 10, 0.25, 0.75)) == pytest.approx(120 * 0.25**3 * 0.75**7, rel=1e-13)


@pytest.mark.parametrize("log_e", [math.log(0.05), math.log(1e-9), math.log(7e-33)])
def test_clopper_pearson_quantile_solves_the_binomial_tail(log_e: float) -> None:
    for n in (1, 10, 100, 150):
        for x in range(0, n, max(1, n // 9)):
            p = binomial_upper_probability(x, n, log_e)
            if p == 1.0:
                continue  # the root lies above the last float below one: the limit is n
            tail = binomial_lower_tail(x, n, Fraction(p))
            slack = 1e-9 + 1e-14 / max(1.0 - p, 1e-300)  # one rounding of p moves the tail by this
            assert math.log(tail.numerator) - math.log(tail.denominator) == pytest.approx(
                log_e, abs=50 * slack
            )


def test_clopper_pearson_has_its_closed_forms_at_the_edges() -> None:
    log_inverse = 46.0
    for n in (10, 10**4, 10**9):
        assert exact_upper(0, n, log_inverse) == pytest.approx(
            max(1.0, -n * math.expm1(-log_inverse / n)), rel=1e-12
        )
        assert exact_upper(n, n, log_inverse) == n
    # x = n - 1: the tail is 1 - p^n.
    p = binomial_upper_probability(9, 10, -1.0)
    assert p == pytest.approx((1 - math.exp(-1.0)) ** 0.1, rel=1e-12)


def test_exact_limits_cover_with_the_promised_probability_for_unequal_coins() -> None:
    rng = np.random.default_rng(5)
    eps = 0.02
    means = rng.uniform(0.02, 0.4, 60)
    counts = (rng.random((10_000, 60)) < means).sum(axis=1)
    limits = {x: exact_limits(Pair(x, 60 - x), -math.log(eps)) for x in set(counts.tolist())}
    above = np.mean([means.sum() > limits[x].signal_upper for x in counts.tolist()])
    below = np.mean([means.sum() < limits[x].signal_lower for x in counts.tolist()])
    assert above <= eps
    assert below <= eps
    assert above + below > 0  # not vacuous


def test_exact_limits_never_exceed_probability_e_for_the_binomial_itself() -> None:
    n, eps = 40, 0.03
    for p in np.linspace(0.01, 0.99, 30):
        law = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        missed = sum(law[x] for x in range(n + 1) if n * p > exact_upper(x, n, -math.log(eps)) + 1e-9)
        assert missed <= eps


def test_exact_limits_lie_inside_hoeffdings_and_on_both_sides_of_the_count() -> None:
    for counts in (Pair(70_000, 30_000), Pair(9_900, 100), Pair(5, 3)):
        exact, wide = exact_limits(counts, 46.0), hoeffding_limits(counts, 46.0)
        assert (
            wide.signal_lower
            <= exact.signal_lower
            <= counts.signal
            <= exact.signal_upper
            <= wide.signal_upper
        )
        assert exact.signal_upper + exact.decoy_lower == pytest.approx(counts.total)


def test_hypergeometric_tail_is_the_sum_of_exact_fractions() -> None:
    for population, drawn in ((20, 7), (60, 25), (400, 120)):
        for marked in range(0, population + 1, population // 10):
            for v in range(0, drawn + 1, max(1, drawn // 6)):
                exact = hypergeometric_lower_tail(v, marked, drawn, population)
                got = log_hypergeometric_lower_tail(v, marked, drawn, population)
                if exact == 0:
                    assert got == -math.inf
                else:
                    log_exact = math.log(exact.numerator) - math.log(exact.denominator)
                    assert got == pytest.approx(log_exact, rel=1e-10, abs=1e-10)


def test_exact_phase_error_is_the_largest_population_that_is_not_excluded() -> None:
    eps = 1e-6
    for c, d, v in ((60, 40, 2), (200, 150, 0), (100, 300, 11), (500, 80, 3)):
        kept = [
            marked
            for marked in range(v, v + c + 1)
            if hypergeometric_lower_tail(v, marked, d, c + d) > Fraction(eps)
        ]
        assert exact_phase_error(v, c, d, -math.log(eps)) == pytest.approx(min(0.5, (max(kept) - v) / c))


def test_exact_phase_error_rounds_towards_safety_and_ends_at_one_half() -> None:
    assert exact_phase_error(2.1, 200.9, 150.9, 20.0) == exact_phase_error(3, 200, 150, 20.0)
    assert exact_phase_error(0, 0.5, 100, 20.0) == 0.5
    assert exact_phase_error(0, 100, 0.5, 20.0) == 0.5
    assert exact_phase_error(80, 100, 100, 20.0) == 0.5


def test_exact_phase_error_lies_below_serflings_for_large_samples() -> None:
    for c, d, v in ((5e6, 1e5, 3000), (1e7, 1e6, 20_000), (1e12, 1e9, 1e7)):
        exact = exact_phase_error(v, c, d, 46.0)
        assert v / d < exact < serfling_phase_error(v / d, c, d, 46.0)


def test_gamma_tail_matches_the_reference_table() -> None:
    # Section 2.8: the tail that gamma really reaches at eps_sec = 1e-9, c = 5e6, d = 1e5.
    for b, expected in ((0.0005, -11.7), (0.01, -16.7), (0.07, -17.7)):
        c, d = 5_000_000, 100_000
        phi = gamma_phase_error(b, c, d, 1e-9 / 19)
        v = round(b * d)
        tail = log_hypergeometric_lower_tail(v, v + math.ceil(phi * c), d, c + d) / math.log(10)
        assert tail == pytest.approx(expected, abs=0.1)


def test_gamma_grows_with_the_error_rate_even_outside_its_range() -> None:
    for eps in (1e-10, 1e-3, 0.5):
        values = [gamma_phase_error(b, 1e9, 1e9, eps) for b in (0.0, 1e-6, 0.01, 0.1, 0.3, 0.5)]
        assert values == sorted(values)


def test_coin_inversion_is_its_own_inverse_and_covers() -> None:
    log_inverse = 20.0
    for p, successes in ((0.5, 0.0), (0.5, 1000.0), (0.1, 50.0)):
        trials = coin_trials_upper(successes, p, log_inverse)
        assert trials * p - math.sqrt(0.5 * trials * log_inverse) == pytest.approx(successes, abs=1e-6)
    # The closed form of the reference for a fair coin.
    c = math.sqrt(0.5 * log_inverse)
    assert coin_trials_upper(77.0, 0.5, log_inverse) == pytest.approx((c + math.sqrt(c * c + 154.0)) ** 2)
