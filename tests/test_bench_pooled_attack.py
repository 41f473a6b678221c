"""The attack on the pooled asymmetry is physics, is not seen by rho and t2 together, and gives key."""

import math

import numpy as np
import pytest

from qnode.bench.pooled_attack import _damped, _filtered, attack
from qnode.config import LinkParameters, SourceParameters
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import Pair, XCounts
from qnode.distill.plausibility import examine

ZERO, ONE = np.array([1.0, 0.0]), np.array([0.0, 1.0])
PLUS, MINUS = (ZERO + ONE) / math.sqrt(2), (ZERO - ONE) / math.sqrt(2)
WRONG_PORT = 0.025
WEAK = (Pair(0.15, 0.05), Pair(0.6, 0.4))


def seen(operators: list[np.ndarray], state: np.ndarray) -> tuple[float, np.ndarray]:
    """Return how likely light arrives, and the (unnormalised) state of its first photon."""
    density = sum(k @ np.outer(state, state) @ k.T for k in operators)
    if density.shape == (4, 4):
        density = density.reshape(2, 2, 2, 2).trace(axis1=1, axis2=3)
    return float(np.trace(density)), density


def minus_port(density: np.ndarray) -> float:
    at_minus = float(MINUS @ density @ MINUS)
    return (1 - 2 * WRONG_PORT) * at_minus + WRONG_PORT * float(np.trace(density))


def figures(operators: list[np.ndarray], copies: int) -> tuple[float, float, float, float]:
    """Return rho, t1, t2 and the bit error rate of a channel, from its operators and linear algebra alone."""
    states = [np.kron(s, s) if copies == 2 else s for s in (ZERO, ONE, PLUS)]
    (zero, at_zero), (one, at_one), (plus, at_plus) = (seen(operators, state) for state in states)
    total = zero + one
    bit_error = (float(ONE @ at_zero @ ONE) + float(ZERO @ at_one @ ZERO)) / total
    t2 = (minus_port(at_zero) + minus_port(at_one)) / total
    return plus / total, minus_port(at_plus) / total, t2, bit_error


@pytest.mark.parametrize("damping", [0.0, 0.06, 0.3])
def test_the_damping_of_one_photon_is_that_of_its_operators(damping: float) -> None:
    kept = np.outer(PLUS, PLUS) + math.sqrt(1 - damping) * np.outer(MINUS, MINUS)
    moved = math.sqrt(damping) * np.outer(PLUS, MINUS)
    light = _damped(damping, WRONG_PORT)
    found = (light.rho, light.t1, light.t2, light.bit_error)
    assert found == pytest.approx(figures([kept, moved], 1), abs=1e-12)


@pytest.mark.parametrize("hidden", [0.0, 0.1, 0.4])
def test_the_filter_of_two_photons_is_that_of_its_operator(hidden: float) -> None:
    through = 0.25 / (0.25 + hidden)
    same = np.diag([1.0, 0.0, 0.0, 1.0])
    filtering = np.eye(4) + (math.sqrt(through) - 1) * same
    assert np.linalg.norm(filtering, 2) <= 1 + 1e-12
    light = _filtered(hidden, WRONG_PORT)
    found = (light.rho, light.t1, light.t2, light.bit_error)
    assert found == pytest.approx(figures([filtering], 2), abs=1e-12)
    assert 1 - light.rho - light.t2 == pytest.approx(-hidden)


def test_without_damping_the_node_claims_less_than_is_right() -> None:
    honest = attack(*WEAK, 1e8, 0.0)
    assert honest.claimed.length < honest.true_bits
    assert honest.claimed.phi_z_upper > honest.true_phase_error
    assert honest.rho_by_intensity[2] == pytest.approx(0.0, abs=1e-6)


def test_the_pooled_asymmetry_misses_the_attack_and_the_two_intensities_show_it() -> None:
    found = attack(*WEAK, 1e8, 0.06)
    assert found.claimed.shares is not None
    assert found.claimed.shares.asymmetry == pytest.approx(0.0, abs=1e-3)
    assert found.claimed.phi_z_upper < found.true_phase_error
    assert found.claimed.length > found.true_bits
    assert found.rho_by_intensity[2] > 50


@pytest.mark.parametrize(("n_z", "damping"), [(1e7, 0.12), (1e8, 0.06)])
def test_a_block_of_which_the_attack_makes_the_node_claim_too_much_is_not_plausible(
    n_z: float, damping: float
) -> None:
    found = attack(*WEAK, n_z, damping)
    assert found.claimed.length > found.true_bits
    inputs, none = found.inputs, Pair(0.0, 0.0)
    counts = BlockCounts(
        n_z=inputs.n_z,
        m_z=inputs.m_z,
        x=XCounts(c_plus=inputs.m_x, c_z=inputs.n_x, e_same=none, e_plus=none, e_dark=none),
        alice_parities=0,
        reconciliation_leak_bits=0,
        n_z_plus=inputs.n_z_plus,
        boundary=inputs.boundary,
        n_slots=1e12,
    )
    source = SourceParameters(mu=(0.15, 0.05), p=(0.6, 0.4))
    failed = {one.check for one in examine(counts, LinkParameters(source=source)) if not one.plausible}
    assert "intensity_plus" in failed


def test_a_filter_that_leaves_no_light_is_refused() -> None:
    with pytest.raises(ValueError, match="hardly any light"):
        attack(Pair(0.01, 0.005), Pair(0.5, 0.5), 1e6, 0.3)
