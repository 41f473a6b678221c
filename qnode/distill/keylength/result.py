"""The result of an estimator, and the last steps common to all estimators."""

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from qnode.choices import AsymmetryBound
from qnode.distill.counts import Pair
from qnode.distill.keylength.assumptions import Assumption, Assumptions, stated
from qnode.distill.keylength.asymmetry import AsymmetryTerms
from qnode.distill.keylength.decoy import PhotonBounds, WeightedLimits
from qnode.distill.keylength.inputs import EstimatorInput
from qnode.distill.keylength.shares import ShareTerms

# One-sided events of the bound on the asymmetry. ``joint`` needs four of its six; it keeps six, so that a
# peer of protocol 1 comes to the same length.
_ASYMMETRY_EVENTS: Final[Mapping[AsymmetryBound, int]] = {"shares": 2, "joint": 6}


class KeyLength(msgspec.Struct, frozen=True, kw_only=True):
    """The number of secret bits of a block, with every intermediate bound and the assumptions.

    ``length`` is ``length_unfloored`` rounded down, 0 when that is negative or nothing bounds the phase
    error. ``mu``: the intensities that all bounds stand for, the worst of what calibration allows.
    ``asymmetry`` (from the classes of boundary slots) and ``shares`` are computed wherever their counts are
    given; ``asymmetry_bound`` says which of them is charged. ``error_rate_x1``: v_x1_upper / s_x1_lower;
    sampling makes ``phi_visibility_upper`` of it, the asymmetry term (where it is charged) ``phi_z_upper``.
    ``overhead_bits`` (smoothing, privacy amplification) and ``verification_bits`` are subtracted beside
    ``lambda_ec_bits``. ``epsilons`` names each failure probability; ``a_weight`` beside ``a`` says how
    often it counts in eps_sec. ``assumptions`` has the text of each.
    """

    length: int
    length_unfloored: float
    mu: Pair
    weighted: WeightedLimits
    v_z0_upper: float
    v_x0_upper: float
    s_z0_lower: float
    s_z0_upper: float
    s_z1_lower: float
    s_x0_upper: float
    s_x1_lower: float
    v_x1_upper: float
    error_rate_x1: float
    phi_visibility_upper: float
    phi_z_upper: float
    lambda_ec_bits: float
    overhead_bits: float
    verification_bits: float
    estimator: str
    x_mode: str
    asymmetry: AsymmetryTerms | None
    shares: ShareTerms | None
    asymmetry_bound: AsymmetryBound | None
    epsilons: Mapping[str, float]
    assumptions: Assumptions

    @property
    def asymmetry_upper(self) -> float | None:
        """The upper limit on the asymmetry that is charged, None where none is, or nothing limits it."""
        if self.asymmetry_bound == "shares":
            return self.shares.asymmetry_upper if self.shares is not None else None
        if self.asymmetry_bound == "joint":
            return self.asymmetry.asymmetry_upper if self.asymmetry is not None else None
        return None


def asymmetry_events(inputs: EstimatorInput) -> int:
    """Return how many one-sided events the charged bound on the asymmetry adds to the budget."""
    return 0 if inputs.charged is None else _ASYMMETRY_EVENTS[inputs.charged]


def binary_entropy(x: float) -> float:
    """Return h(x) = -x log2 x - (1 - x) log2(1 - x), 0 at both ends."""
    if x <= 0.0 or x >= 1.0:
        return 0.0
    return -(x * math.log(x) + (1.0 - x) * math.log1p(-x)) / math.log(2.0)


def verification_overhead_bits(inputs: EstimatorInput) -> float:
    """Return max(log2(2/eps_cor), tag length): what the verification tag costs (security reference 7.2)."""
    return max(1.0 - math.log2(inputs.eps_cor), float(inputs.verification_bits))


def assemble(
    inputs: EstimatorInput,
    bounds: PhotonBounds,
    *,
    estimator: str,
    phi_visibility: float,
    asymmetry: AsymmetryTerms | None,
    shares: ShareTerms | None,
    credited_empty: float,
    overhead_bits: float,
    epsilons: Mapping[str, float],
    assumptions: Assumptions,
) -> KeyLength:
    """Apply the asymmetry term, subtract what was disclosed and spent, and round down."""
    terms = {"shares": shares, "joint": asymmetry, None: None}[inputs.charged]
    phi = phi_visibility if terms is None else terms.widen(phi_visibility)
    verification_bits = verification_overhead_bits(inputs)
    unfloored = (
        credited_empty
        + bounds.s_z1_lower * (1.0 - binary_entropy(phi))
        - inputs.lambda_ec
        - overhead_bits
        - verification_bits
    )
    usable = not bounds.empty and phi < 0.5
    length = max(0, math.floor(unfloored)) if usable else 0
    # The photon bounds exclude each other where this could fail, and the counts were refused there.
    assert length <= inputs.n_z.total, f"{length} secret bits from {inputs.n_z.total} sifted bits"
    return KeyLength(
        length=length,
        length_unfloored=unfloored if usable else min(0.0, unfloored),
        mu=inputs.mu,
        weighted=bounds.weighted,
        v_z0_upper=bounds.v_z0_upper,
        v_x0_upper=bounds.v_x0_upper,
        s_z0_lower=bounds.s_z0_lower,
        s_z0_upper=bounds.s_z0_upper,
        s_z1_lower=bounds.s_z1_lower,
        s_x0_upper=bounds.s_x0_upper,
        s_x1_lower=bounds.s_x1_lower,
        v_x1_upper=bounds.v_x1_upper,
        error_rate_x1=bounds.b,
        phi_visibility_upper=phi_visibility,
        phi_z_upper=phi,
        lambda_ec_bits=inputs.lambda_ec,
        overhead_bits=overhead_bits,
        verification_bits=verification_bits,
        estimator=estimator,
        x_mode="visibility" if inputs.charged is None else "visibility + asymmetry",
        asymmetry=asymmetry,
        shares=shares,
        asymmetry_bound=inputs.charged,
        epsilons={"eps_sec": inputs.eps_sec, "eps_cor": inputs.eps_cor, **epsilons},
        assumptions={**assumptions, **common_assumptions(inputs)},
    )


def common_assumptions(inputs: EstimatorInput) -> Assumptions:
    """Return what every estimator leaves open for this receiver (security reference 3.6, 4.4, 4.5, 6)."""
    found = stated(
        Assumption.INDEPENDENT_DEAD_TIME,
        Assumption.ACTIVE_CHOICE,
        Assumption.NO_EFFICIENCY_MISMATCH,
        Assumption.RANDOM_PHASES,
        Assumption.NO_DETECTOR_MEMORY,
        Assumption.LATE_ANNOUNCEMENT,
        Assumption.EXACT_INTENSITIES,
    )
    if inputs.one_x_detector:
        found |= stated(Assumption.ONE_X_DETECTOR)
    if inputs.charged is not None:
        found |= stated(Assumption.ASYMMETRY_OF_ALL_PHOTONS)
        if inputs.charged == "shares":
            found |= stated(Assumption.EQUAL_ARM_EFFICIENCY)
    elif inputs.one_x_detector:
        found |= stated(Assumption.VISIBILITY_ONLY)
    if inputs.p_z is not None and inputs.one_x_detector:
        expected = 2.0 * inputs.p_x / inputs.p_z
        if abs(inputs.x_scale - expected) > 1e-6 * expected:
            found |= Assumption.UNUSUAL_X_SCALE.stated(x_scale=inputs.x_scale, expected=expected)
    return found
