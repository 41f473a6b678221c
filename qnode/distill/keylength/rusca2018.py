"""Estimator ``rusca2018``: the published one-decoy key length (Rusca et al., APL 112, 171104, app. A)."""

import math

from qnode.distill.counts import Pair
from qnode.distill.keylength.asymmetry import asymmetry_of
from qnode.distill.keylength.decoy import (
    Source,
    empty_errors_upper,
    empty_lower,
    one_photon_errors_upper,
    one_photon_lower,
)
from qnode.distill.keylength.inputs import EstimatorInput, VacuumRule
from qnode.distill.keylength.limits import deviation, hoeffding_limits
from qnode.distill.keylength.result import ASYMMETRY_EVENTS, Bounds, KeyLength, assemble, clip
from qnode.distill.keylength.sampling import RuscaPhaseError, rusca_phase_error

# eps_sec = 4 smoothing + 4 chain rule + 1 privacy amplification + 6 detections + 4 errors, all equal (2.3).
TERMS = 19


def key_length(inputs: EstimatorInput) -> KeyLength:
    """Return the key length of (A25); with the asymmetry term its six events join the 19 equal terms.

    Choices (security reference 2.4): 19 in gamma, v_X1 not capped, the exact hypergeometric tail at
    (eps_sec/19)^2 instead of gamma where fewer than 100 errors stand in the sample.
    """
    terms = TERMS + (ASYMMETRY_EVENTS if inputs.uses_asymmetry else 0)
    eps = inputs.eps_sec / terms
    log_inverse = math.log(terms) - math.log(inputs.eps_sec)
    bounds = _bounds(inputs, log_inverse)
    sampled = RuscaPhaseError(0.5, by_exact_tail=False)
    if not bounds.empty:
        sampled = rusca_phase_error(bounds.v_x1_upper, bounds.s_z1_lower, bounds.s_x1_lower, eps)
    return assemble(
        inputs,
        bounds,
        estimator="rusca2018",
        phi_visibility=sampled.value,
        asymmetry=asymmetry_of(inputs, log_inverse),
        credited_empty=bounds.s_z0_lower,
        overhead_bits=6.0 * log_inverse / math.log(2.0),
        epsilons=_budget(inputs, eps, sampled),
        assumptions=_assumptions(inputs, terms, sampled),
    )


def _bounds(inputs: EstimatorInput, log_inverse: float) -> Bounds:
    """Return the bounds of section 2.2 with Hoeffding's deviations at eps = exp(-log_inverse), as printed."""
    source = Source(inputs.mu, inputs.p)
    scale, rule = inputs.x_scale, inputs.vacuum_rule
    z = hoeffding_limits(inputs.n_z, log_inverse)
    x = hoeffding_limits(inputs.n_x, log_inverse)
    m_x = hoeffding_limits(inputs.m_x, log_inverse)
    s_z0_upper = _empty_upper(source, inputs.n_z, inputs.m_z, 1.0, rule, log_inverse)
    s_x0_upper = _empty_upper(source, inputs.n_x, inputs.m_x, scale, rule, log_inverse)
    n_z, n_x = inputs.n_z.total, scale * inputs.n_x.total
    # The scale stands before n+-_X,k: before the counts and their deviation, not before the empty detections.
    s_x1 = scale * one_photon_lower(source, x, s_x0_upper / scale)
    return Bounds(
        s_z0_lower=clip(empty_lower(source, z), n_z),
        s_z0_upper=s_z0_upper,
        s_z1_lower=clip(one_photon_lower(source, z, s_z0_upper), n_z),
        s_x0_upper=s_x0_upper,
        s_x1_lower=clip(s_x1, n_x),
        v_x1_upper=one_photon_errors_upper(source, m_x),
    )


def _empty_upper(
    source: Source, n: Pair, m: Pair, scale: float, rule: VacuumRule, log_inverse: float
) -> float:
    """Return the upper bound on empty-qubit detections: twice the errors plus the deviation of the coin."""
    errors = empty_errors_upper(source, hoeffding_limits(m, log_inverse), m.total, rule)
    return clip(2.0 * (errors + scale * deviation(n.total, log_inverse)), scale * n.total)


def _budget(inputs: EstimatorInput, eps: float, sampled: RuscaPhaseError) -> dict[str, float]:
    weights = {"smoothing": 4, "chain_rule": 4, "privacy_amplification": 1, "detections": 6, "errors": 4}
    if inputs.uses_asymmetry:
        weights["asymmetry"] = ASYMMETRY_EVENTS
    budget: dict[str, float] = {}
    for name, weight in weights.items():
        budget[name] = eps
        budget[f"{name}_weight"] = float(weight)
    if sampled.by_exact_tail:
        budget["sampling_tail"] = eps * eps  # carried by the smoothing term, so it has no weight of its own
    return budget


def _assumptions(inputs: EstimatorInput, terms: int, sampled: RuscaPhaseError) -> tuple[str, ...]:
    sentences = [
        "published fixed-length claim, used with a length computed from the observed counts",
        f"vacuum rule {inputs.vacuum_rule}, constant {terms} in gamma and in the key length",
    ]
    if sampled.by_exact_tail:
        sentences.append(
            f"few X errors: exact hypergeometric tail at (eps_sec/{terms})^2 in the place of gamma"
        )
    else:
        sentences.append("gamma is an approximation whose failure probability is somewhat above its target")
    return tuple(sentences)
