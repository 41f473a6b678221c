"""Monte-Carlo coverage: how often the truth lies beyond its bound, at an e that lets failures be counted.

A block is drawn with known photon numbers: the adversary fixes how many qubits of each photon number are
detected; which intensity each had, which empty qubits are wrong, and which one-photon qubits fall into the
sample is chance. ``eur`` fails with (eps_sec/3)^2/9 per event, 1.2 % at most.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from qnode.distill.counts import Pair
from qnode.distill.keylength import EstimatorInput, KeyLength, asymmetry_terms, estimate
from qnode.distill.keylength.coin import coin_trials_upper
from qnode.distill.keylength.limits import exact_limits
from qnode.distill.keylength.sampling import exact_phase_error

EPS_SEC = 0.99
E = (EPS_SEC / 3) ** 2 / 9
MU, P = Pair(0.5, 0.2), Pair(0.7, 0.3)
P_Z = 0.6
TRIALS = 500
PHOTONS = np.arange(4)
DETECTED_Z = np.array([120, 3000, 700, 110])
DETECTED_X = np.array([120, 6000, 1400, 220])
WRONG_OF_MANY = 0.03
PHASE_ERROR = 0.04


def signal_share() -> np.ndarray:
    """Return p_{1|n}: the chance that a qubit of n photons was of the signal intensity."""
    signal = P.signal * math.exp(-MU.signal) * MU.signal**PHOTONS
    decoy = P.decoy * math.exp(-MU.decoy) * MU.decoy**PHOTONS
    return np.asarray(signal / (signal + decoy))


@dataclass(frozen=True)
class Truth:
    """What the bounds are about; ``n_z1_mean``: the mean Z detections of the signal, given photon numbers."""

    s_z0: float
    s_z1: float
    s_x0: float
    s_x1: float
    v_x1: float
    n_z1_mean: float
    phase_error: float


def label(rng: np.random.Generator, counts: np.ndarray) -> Pair:
    signal = int(rng.binomial(counts, signal_share()).sum())
    return Pair(signal, int(counts.sum()) - signal)


def draw(rng: np.random.Generator, one_x_detector: bool) -> tuple[EstimatorInput, Truth]:
    """Draw one block; with one X detector, "detections" are those of Z states and errors those of |+>."""
    wrong_z = rng.binomial(DETECTED_Z, [0.5, 0.02, WRONG_OF_MANY, WRONG_OF_MANY])
    share = signal_share()
    m_z_signal = int(rng.binomial(wrong_z, share).sum())
    m_z = Pair(m_z_signal, int(wrong_z.sum()) - m_z_signal)
    right = label(rng, DETECTED_Z - wrong_z)
    n_z = Pair(m_z.signal + right.signal, m_z.decoy + right.decoy)
    if one_x_detector:
        # What arrives at either port; |+> shows its errors at the monitored one, a Z state half of its light.
        in_x = rng.binomial(DETECTED_X, 1 - P_Z)
        seen = DETECTED_X - in_x
        seen[1:] = rng.binomial(seen[1:], 0.5)
        v_x0, scale, sample = int(in_x[0]), 2 * (1 - P_Z) / P_Z, int(in_x[1])
        s_x0 = scale * float(seen[0])
    else:
        seen, scale, sample, s_x0 = DETECTED_X, 1.0, int(DETECTED_X[1]), float(DETECTED_X[0])
        in_x, v_x0 = DETECTED_X, int(rng.binomial(DETECTED_X[0], 0.5))
    unseen = int(DETECTED_Z[1])
    marked = round(PHASE_ERROR * (unseen + sample))
    v_x1 = int(rng.hypergeometric(marked, unseen + sample - marked, sample))
    many = rng.binomial(in_x[2:], WRONG_OF_MANY)
    errors = np.array([v_x0, v_x1, *many])
    m_x = label(rng, errors)
    if one_x_detector:
        n_x = label(rng, seen)
    else:
        correct = label(rng, seen - errors)
        n_x = Pair(correct.signal + m_x.signal, correct.decoy + m_x.decoy)
    inputs = EstimatorInput(
        n_z=n_z, m_z=m_z, n_x=n_x, m_x=m_x, mu=MU, p=P, lambda_ec=0.0, eps_sec=EPS_SEC, x_scale=scale
    )
    truth = Truth(
        s_z0=float(DETECTED_Z[0]),
        s_z1=float(unseen),
        s_x0=s_x0,
        s_x1=float(sample),
        v_x1=float(v_x1),
        n_z1_mean=float((DETECTED_Z * share).sum()),
        phase_error=(marked - v_x1) / unseen,
    )
    return inputs, truth


def failures(result: KeyLength, truth: Truth) -> Iterator[str]:
    """Yield the names of the bounds that the truth violates."""
    weight = math.exp(MU.signal) / P.signal
    limits = result.weighted.n_z
    if truth.n_z1_mean > limits.signal_upper / weight:
        yield "n_z signal_upper"
    if truth.n_z1_mean < limits.signal_lower / weight:
        yield "n_z signal_lower"
    if not result.s_z0_lower <= truth.s_z0:
        yield "s_z0_lower"
    if not truth.s_z0 <= result.s_z0_upper:
        yield "s_z0_upper"
    if not result.s_z1_lower <= truth.s_z1:
        yield "s_z1_lower"
    if not truth.s_x0 <= result.s_x0_upper:
        yield "s_x0_upper"
    if not result.s_x1_lower <= truth.s_x1:
        yield "s_x1_lower"
    if not truth.v_x1 <= result.v_x1_upper:
        yield "v_x1_upper"
    if not truth.phase_error <= result.phi_z_upper:
        yield "phi_z_upper"


# How many one-sided events stand behind each bound (security reference 4.3).
EVENTS = {
    "n_z signal_upper": 1,
    "n_z signal_lower": 1,
    "s_z0_lower": 1,
    "s_z0_upper": 3,
    "s_z1_lower": 4,
    "s_x0_upper": 3,
    "s_x1_lower": 4,
    "v_x1_upper": 1,
    "phi_z_upper": 9,
}


def most(events: int, trials: int, e: float = E) -> float:
    """Return how many failures are allowed: the promise, and four standard deviations of chance."""
    mean = events * e * trials
    return mean + 4 * math.sqrt(mean)


@pytest.mark.parametrize("one_x_detector", [False, True], ids=["two X detectors", "one X detector"])
def test_every_bound_of_eur_exact_covers_the_truth_as_often_as_promised(one_x_detector: bool) -> None:
    rng = np.random.default_rng(20)
    counted: Counter[str] = Counter()
    bounded = 0
    for _ in range(TRIALS):
        inputs, truth = draw(rng, one_x_detector)
        result = estimate(inputs, "eur")
        counted.update(failures(result, truth))
        bounded += result.s_x1_lower > 0.2 * truth.s_x1 and result.phi_z_upper < 0.5
    for name, events in EVENTS.items():
        assert counted[name] <= most(events, TRIALS), name
    assert bounded > 0.9 * TRIALS  # no bound is trivial
    # The limits on the labels are tight, so that their failures are seen and the count proves something.
    assert counted["n_z signal_upper"] > 0
    assert counted["n_z signal_lower"] > 0


def test_limits_on_labels_fail_about_as_often_as_e_allows() -> None:
    rng, trials, e = np.random.default_rng(21), 50_000, 0.02
    share = signal_share()
    limits = cache(lambda x: exact_limits(Pair(x, int(DETECTED_X.sum()) - x), -math.log(e)))
    mean = float((DETECTED_X * share).sum())
    drawn = rng.binomial(DETECTED_X, share, size=(trials, 4)).sum(axis=1).tolist()
    above = sum(mean > limits(x).signal_upper for x in drawn)
    below = sum(mean < limits(x).signal_lower for x in drawn)
    for failed in (above, below):
        assert 0.1 * e * trials < failed <= most(1, trials, e)


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_the_coin_of_empty_qubits_fails_less_often_than_e(p: float) -> None:
    rng, trials, e, flips = np.random.default_rng(22), 50_000, 0.05, 400
    upper = cache(lambda v: coin_trials_upper(v, p, -math.log(e)))
    failed = sum(flips > upper(v) for v in rng.binomial(flips, p, trials).tolist())
    assert 0 < failed <= most(1, trials, e)


def test_the_sampling_bound_fails_about_as_often_as_e_allows() -> None:
    rng, trials, e = np.random.default_rng(23), 50_000, 0.02
    unseen, sample, marked = 3000, 800, 190
    upper = cache(lambda v: exact_phase_error(v, unseen, sample, -math.log(e)))
    drawn = rng.hypergeometric(marked, unseen + sample - marked, sample, trials).tolist()
    failed = sum((marked - v) / unseen > upper(v) for v in drawn)
    assert 0.1 * e * trials < failed <= most(1, trials, e)


def test_the_joint_bound_on_the_asymmetry_holds_where_the_deviation_of_an_open_count_does_not() -> None:
    rng, trials, e, p_z = np.random.default_rng(24), 4000, 0.01, 0.5
    means = {"c_plus": 200.0, "c_z": 8000.0, "e_same": 2000.0, "e_plus": 2000.0, "e_dark": 40.0}
    true_t4 = means["e_dark"] / means["e_same"]
    truth = 1 + true_t4 - p_z / 4 * means["c_z"] / means["e_same"] - means["e_plus"] / means["e_same"] / 2
    log_inverse = -math.log(e)
    joint = dark = t2 = 0
    for _ in range(trials):
        pairs = {name: Pair(float(rng.poisson(mean)), 0.0) for name, mean in means.items()}
        terms = asymmetry_terms(**pairs, p_z=p_z, log_inverse_eps=log_inverse)
        assert terms.asymmetry_upper is not None
        assert terms.t2_upper is not None
        joint += truth > terms.asymmetry_upper
        t2 += p_z / 4 * means["c_z"] / means["e_same"] > terms.t2_upper
        seen = pairs["e_dark"].signal
        dark += means["e_dark"] > seen + math.sqrt(seen * log_inverse / 2)
    assert joint <= most(3, trials, e)
    assert joint > 0
    assert t2 <= most(2, trials, e)
    assert dark > 4 * e * trials  # the reference's E_dark + d(E_dark): docs/security.md says so
