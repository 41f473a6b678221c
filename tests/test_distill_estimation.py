"""From X classes to estimator inputs, and the exact relation for one photon."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qnode.distill.counts import Pair, XCounts
from qnode.distill.estimation import boundary_terms, inputs_from_block, visibility_error
from qnode.distill.keylength import asymmetry_terms, shares_of
from qnode.errors import FieldError

X = XCounts(
    c_plus=Pair(300, 40),
    c_z=Pair(6000, 700),
    e_same=Pair(3000, 350),
    e_plus=Pair(1500, 170),
    e_dark=Pair(20, 4),
)


def test_block_counts_map_to_one_detector_inputs() -> None:
    inputs = inputs_from_block(
        Pair(90_000, 10_000),
        Pair(900, 150),
        X,
        mu=Pair(0.5, 0.2),
        p=Pair(0.7, 0.3),
        p_z=0.8,
        lambda_ec=10_000,
        mu_uncertainty=Pair(0.02, 0.03),
    )
    assert inputs.mu_uncertainty == Pair(0.02, 0.03)
    assert inputs.m_x == X.c_plus
    assert inputs.n_x == X.c_z
    assert inputs.x_scale == pytest.approx(2 * 0.2 / 0.8)
    assert inputs.charged == "joint"
    assert inputs.one_x_detector
    assert inputs.p_x == pytest.approx(0.2)
    assert (inputs.eps_sec, inputs.eps_cor) == (1e-10, 1e-15)


def test_impossible_basis_probability_is_refused_by_name() -> None:
    for p_z in (0.0, 1.0, 1.5):
        with pytest.raises(FieldError) as refused:
            inputs_from_block(
                Pair(9, 1), Pair(0, 0), X, mu=Pair(0.5, 0.2), p=Pair(0.7, 0.3), p_z=p_z, lambda_ec=0
            )
        assert refused.value.field == "p_z"


def test_visibility_error_is_t1_over_t2() -> None:
    terms = boundary_terms(X, 0.8)
    assert terms.t1 is not None
    assert terms.t2 is not None
    assert visibility_error(X, 0.8) == pytest.approx(terms.t1 / terms.t2)
    assert visibility_error(X, 0.5) == pytest.approx(340 / 6700 / 2)


def test_empty_boundary_slots_leave_the_asymmetry_unknown() -> None:
    nothing = Pair(0, 0)
    empty = XCounts(c_plus=nothing, c_z=nothing, e_same=nothing, e_plus=nothing, e_dark=nothing)
    terms = boundary_terms(empty, 0.5)
    assert terms.asymmetry is None
    assert terms.asymmetry_upper is None
    assert terms.phase_error is None
    assert terms.widen(0.01) == 0.5
    assert visibility_error(empty, 0.5) is None


EARLY, LATE = np.array([1, 0], complex), np.array([0, 1], complex)
PLUS, MINUS = (EARLY + LATE) / np.sqrt(2), (EARLY - LATE) / np.sqrt(2)


def yields(kraus: npt.NDArray[np.complex128], outcome: npt.NDArray[Any], sent: npt.NDArray[Any]) -> float:
    return float(sum(abs(outcome.conj() @ operator @ sent) ** 2 for operator in kraus))


def one_photon_counts(kraus: npt.NDArray[np.complex128], p_z: float) -> XCounts:
    """Return the expected X classes of one-photon qubits: centre one half, each boundary slot a quarter."""
    n, p_x, pair = 1e12, 1 - p_z, (p_z / 2) ** 2

    def seen(outcome: npt.NDArray[Any], *sent: npt.NDArray[Any]) -> float:
        return sum(yields(kraus, outcome, state) for state in sent)

    return XCounts(
        c_plus=Pair(n * p_x * seen(MINUS, PLUS) / 2, 0),
        c_z=Pair(n * p_z / 2 * seen(MINUS, EARLY, LATE) / 2, 0),
        e_same=Pair(n * pair * (seen(EARLY, EARLY, LATE) + seen(LATE, EARLY, LATE)) / 4, 0),
        e_plus=Pair(n * p_z / 2 * p_x * (seen(EARLY, PLUS, LATE) + seen(LATE, PLUS, EARLY)) / 4, 0),
        e_dark=Pair(n * pair * (seen(LATE, EARLY) + seen(EARLY, LATE)) / 4, 0),
    )


@pytest.mark.parametrize("seed", range(5))
def test_bracket_is_the_true_phase_error_for_random_lossy_channels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kraus = rng.normal(size=(3, 2, 2)) + 1j * rng.normal(size=(3, 2, 2))
    kraus /= 1.5 * np.sqrt(np.linalg.norm(sum(k.conj().T @ k for k in kraus), 2))
    flipped = yields(kraus, MINUS, PLUS) + yields(kraus, PLUS, MINUS)
    arrived = sum(yields(kraus, outcome, sent) for outcome in (EARLY, LATE) for sent in (EARLY, LATE))
    terms = boundary_terms(one_photon_counts(kraus, 0.7), 0.7)
    assert terms.bracket is not None
    assert terms.t1 is not None
    assert terms.bracket + terms.t1 == pytest.approx(flipped / arrived, abs=1e-9)


def one_photon_shares(kraus: npt.NDArray[np.complex128], p_z: float) -> tuple[Pair, Pair, float]:
    """Return the expected n_Z, N_Z+ and all boundary clicks of the same qubits, the arms alike."""
    n, p_x = 1e12, 1 - p_z

    def arrived(*sent: npt.NDArray[Any]) -> float:
        return sum(yields(kraus, outcome, state) for outcome in (EARLY, LATE) for state in sent)

    of_z, of_plus = n * p_z / 2 * arrived(EARLY, LATE), n * p_x * arrived(PLUS)
    return Pair(of_z, 0), Pair(of_plus, 0), (of_z + of_plus) / 4


def share_inputs(kraus: npt.NDArray[np.complex128], p_z: float) -> Any:
    x, (n_z, n_z_plus, boundary) = one_photon_counts(kraus, p_z), one_photon_shares(kraus, p_z)
    return inputs_from_block(
        n_z,
        Pair(0, 0),
        x,
        mu=Pair(0.5, 0.2),
        p=Pair(0.7, 0.3),
        p_z=p_z,
        lambda_ec=0,
        n_z_plus=n_z_plus,
        boundary=boundary,
    )


@pytest.mark.parametrize("seed", range(5))
def test_shares_give_the_true_phase_error_for_random_lossy_channels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kraus = rng.normal(size=(3, 2, 2)) + 1j * rng.normal(size=(3, 2, 2))
    kraus /= 1.5 * np.sqrt(np.linalg.norm(sum(k.conj().T @ k for k in kraus), 2))
    flipped = yields(kraus, MINUS, PLUS) + yields(kraus, PLUS, MINUS)
    arrived = sum(yields(kraus, outcome, sent) for outcome in (EARLY, LATE) for sent in (EARLY, LATE))
    inputs = share_inputs(kraus, 0.7)
    terms = shares_of(inputs, 0.0)
    assert terms is not None
    assert terms.rho is not None
    assert terms.t2 is not None
    e_vis = visibility_error(one_photon_counts(kraus, 0.7), 0.7)
    assert e_vis is not None
    phase_error = 1 - terms.rho - terms.t2 * (1 - 2 * e_vis)
    assert phase_error == pytest.approx(flipped / arrived, abs=1e-9)


DAMPING = 0.06
DAMPED = np.array(
    [
        np.outer(PLUS, PLUS.conj()) + np.sqrt(1 - DAMPING) * np.outer(MINUS, MINUS.conj()),
        np.sqrt(DAMPING) * np.outer(PLUS, MINUS.conj()),
    ]
)


def test_asymmetry_finds_the_damping_towards_plus_that_the_visibility_does_not_see() -> None:
    counts = one_photon_counts(DAMPED, 0.5)
    assert visibility_error(counts, 0.5) == pytest.approx(0.0, abs=1e-12)
    assert boundary_terms(counts, 0.5).phase_error == pytest.approx(DAMPING / 2)
    classes = (counts.c_plus, counts.c_z, counts.e_same, counts.e_plus, counts.e_dark)
    joint = asymmetry_terms(*classes, p_z=0.5, log_inverse_eps=46.0)
    assert joint.asymmetry_upper == pytest.approx(DAMPING / 2, abs=1e-4)
    shares = shares_of(share_inputs(DAMPED, 0.5), 46.0)
    assert shares is not None
    assert shares.asymmetry == pytest.approx(DAMPING / 2)
    assert shares.widen(0.0) == pytest.approx(DAMPING / 2, abs=1e-4)
