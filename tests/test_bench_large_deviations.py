"""Importance sampling finds the probabilities that exact enumeration gives, down to 1e-40."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from qnode.bench.large_deviations import (
    Binomial,
    Law,
    Poisson,
    Rare,
    border_tilts,
    log_hypergeometric_at_most,
    probability,
    sum_at_least,
    sum_at_most,
)

SAMPLES = 20_000


def pmf(law: Law, most: int) -> list[float]:
    if isinstance(law, Binomial):
        return [
            math.comb(law.n, x) * law.p**x * (1 - law.p) ** (law.n - x) for x in range(min(most, law.n) + 1)
        ]
    return [math.exp(-law.mean + x * math.log(law.mean) - math.lgamma(x + 1)) for x in range(most + 1)]


def enumerated(laws: list[Law], most: int) -> np.ndarray:
    """Return the probabilities of each sum up to ``most``."""
    total = np.array([1.0])
    for law in laws:
        total = np.convolve(total, pmf(law, most))[: most + 1]
    return total


LAWS: list[list[Law]] = [
    [Binomial(400, 0.3)],
    [Binomial(200, 0.7), Binomial(150, 0.9), Binomial(80, 0.5)],
    [Poisson(120.0), Poisson(80.0)],
]


@pytest.mark.parametrize("laws", LAWS, ids=["one binomial", "unequal chances", "Poisson"])
@pytest.mark.parametrize("sigmas", [2, 6, 10])
def test_importance_sampling_agrees_with_enumeration_of_sums(laws: list[Law], sigmas: int) -> None:
    mean = sum(law.mean for law in laws)
    spread = math.sqrt(sum(law.mean * (1 - law.p if isinstance(law, Binomial) else 1) for law in laws))
    exact = enumerated(laws, 600)
    rng = np.random.default_rng(sigmas)
    low, high = math.floor(mean - sigmas * spread), math.ceil(mean + sigmas * spread)
    cases = [(sum_at_least(laws, high, rng, SAMPLES), float(exact[high:].sum()))]
    cases += [(sum_at_most(laws, low, rng, SAMPLES), float(exact[: low + 1].sum()))] * (low >= 0)
    for found, truth in cases:
        assert 0 < found.relative_error < 0.03
        assert found.probability == pytest.approx(truth, rel=5 * found.relative_error)


def test_the_most_likely_way_to_fail_is_found_for_several_counts() -> None:
    # A ratio of two counts that is too large by chance, 1e-14: not linear, enumerated over both counts.
    laws: list[Law] = [Poisson(60.0), Poisson(90.0)]

    def margin(counts: Sequence[float]) -> float:
        return 3.0 - counts[0] / max(counts[1], 1e-9)

    first, second = pmf(laws[0], 300), pmf(laws[1], 300)
    truth = sum(first[a] * second[b] for a, b in product(range(301), repeat=2) if a >= 3 * max(b, 1e-9))
    rng = np.random.default_rng(3)
    found = probability(
        laws, border_tilts(laws, margin), lambda x: x[:, 0] >= 3 * np.maximum(x[:, 1], 1e-9), rng, SAMPLES
    )
    assert truth < 1e-10
    assert 0 < found.relative_error < 0.05
    assert found.probability == pytest.approx(truth, rel=5 * found.relative_error)


def test_any_tilt_gives_the_same_probability() -> None:
    rng = np.random.default_rng(4)
    found = [
        probability([Binomial(50, 0.5)], [tilt], lambda x: x[:, 0] <= 15, rng, 200_000)
        for tilt in (0.0, -0.4, -0.8)
    ]
    truth = float(enumerated([Binomial(50, 0.5)], 15).sum())
    for one in found:
        assert one.probability == pytest.approx(truth, rel=5 * one.relative_error)


def test_what_never_fails_has_no_known_error() -> None:
    rng = np.random.default_rng(5)
    found = probability([Poisson(3.0)], [0.0], lambda x: x[:, 0] < 0, rng, 100)
    assert found == Rare(0.0, math.inf)
    assert sum_at_most([Poisson(3.0)], -1, rng, 100).probability == 0.0
    assert sum_at_least([Binomial(3, 0.5)], 4, rng, 100).probability == 0.0


def test_hypergeometric_tails_are_those_of_counting() -> None:
    population, marked, drawn = 60, 22, 25
    for most in (0, 2, 5, 8):
        ways = sum(math.comb(marked, j) * math.comb(population - marked, drawn - j) for j in range(most + 1))
        exact = math.log(ways) - math.log(math.comb(population, drawn))
        assert log_hypergeometric_at_most(most, marked, drawn, population) == pytest.approx(exact, rel=1e-12)
    assert log_hypergeometric_at_most(1, 50, 25, 60) == -math.inf
