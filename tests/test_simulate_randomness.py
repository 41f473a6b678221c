"""Draws of the simulation: as exact as the logarithm they stand for."""

import math

import numpy as np
import pytest

from qnode.simulate.randomness import GOLDEN, exponential, mixed, unit

ODD_UNIT = 2.0**-53


def exact(bits: int) -> float:
    return -math.log((bits >> 11 | 1) * ODD_UNIT)


def hashed_counter(number: int) -> int:
    return int(mixed(np.uint64(number * int(GOLDEN) % 2**64)))


def test_exponential_variables_are_logarithms() -> None:
    edges = [0, 1, 2**11, 2**63, 2**63 - 1, 2**64 - 1, 2**64 - 2**11, int(2**64 / math.sqrt(2))]
    hashed = [hashed_counter(i) for i in range(2000)]
    for bits in edges + hashed:
        assert exponential(np.uint64(bits)) == pytest.approx(exact(bits), rel=3e-12, abs=2e-16)


def test_draws_are_uniform() -> None:
    draws = np.array([unit(np.uint64(hashed_counter(i))) for i in range(20_000)])
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    counts = np.histogram(draws, 20, (0.0, 1.0))[0]
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < 50.0  # chi squared, 19 degrees of freedom
