"""Estimator ``rusca2018``: the published one-decoy key length (Rusca et al., APL 112, 171104, app. A)."""

import math

from qnode.distill.keylength.assumptions import Assumption, Assumptions, stated
from qnode.distill.keylength.asymmetry import asymmetry_of
from qnode.distill.keylength.coin import printed_coin
from qnode.distill.keylength.decoy import photon_bounds, weighted_limits
from qnode.distill.keylength.inputs import EstimatorInput
from qnode.distill.keylength.limits import hoeffding_limits
from qnode.distill.keylength.result import KeyLength, assemble, asymmetry_events
from qnode.distill.keylength.sampling import RuscaPhaseError, rusca_phase_error
from qnode.distill.keylength.shares import shares_of

# eps_sec = 4 smoothing + 4 chain rule + 1 privacy amplification + 6 detections + 4 errors, all equal (2.3).
TERMS = 19


def key_length(inputs: EstimatorInput) -> KeyLength:
    """Return the key length of (A25); the events of a charged asymmetry join the 19 equal terms.

    Choices (security reference 2.4): 19 in gamma, v_X1 not capped, the exact hypergeometric tail at
    (eps_sec/19)^2 instead of gamma where fewer than 100 errors stand in the sample.
    """
    terms = TERMS + asymmetry_events(inputs)
    eps = inputs.eps_sec / terms
    log_inverse = math.log(terms) - math.log(inputs.eps_sec)
    weighted = weighted_limits(inputs, hoeffding_limits, log_inverse)
    bounds = photon_bounds(inputs, weighted, printed_coin(inputs, weighted, inputs.vacuum_rule, log_inverse))
    sampled = RuscaPhaseError(0.5, by_exact_tail=False)
    if not bounds.empty:
        sampled = rusca_phase_error(bounds.v_x1_upper, bounds.s_z1_lower, bounds.s_x1_lower, eps)
    return assemble(
        inputs,
        bounds,
        estimator="rusca2018",
        phi_visibility=sampled.value,
        asymmetry=asymmetry_of(inputs, log_inverse),
        shares=shares_of(inputs, log_inverse),
        credited_empty=0.0 if inputs.error_positions_public else bounds.s_z0_lower,
        overhead_bits=6.0 * log_inverse / math.log(2.0),
        epsilons=_budget(inputs, eps, sampled),
        assumptions=_assumptions(inputs, terms, sampled),
    )


def _budget(inputs: EstimatorInput, eps: float, sampled: RuscaPhaseError) -> dict[str, float]:
    weights = {"smoothing": 4, "chain_rule": 4, "privacy_amplification": 1, "detections": 6, "errors": 4}
    if inputs.charged is not None:
        weights["asymmetry"] = asymmetry_events(inputs)
    budget: dict[str, float] = {}
    for name, weight in weights.items():
        budget[name] = eps
        budget[f"{name}_weight"] = float(weight)
    if sampled.by_exact_tail:
        budget["sampling_tail"] = eps * eps  # carried by the smoothing term, so it has no weight of its own
    return budget


def _assumptions(inputs: EstimatorInput, terms: int, sampled: RuscaPhaseError) -> Assumptions:
    found = stated(Assumption.FIXED_LENGTH)
    found |= Assumption.RUSCA_CONSTANTS.stated(vacuum_rule=inputs.vacuum_rule, terms=terms)
    if inputs.error_positions_public:
        found |= stated(Assumption.NO_EMPTY_CREDIT_PUBLIC_ERRORS)
    else:
        found |= stated(Assumption.EMPTY_CREDIT)
    if sampled.by_exact_tail:
        found |= Assumption.EXACT_TAIL.stated(terms=terms)
    else:
        found |= stated(Assumption.APPROXIMATE_GAMMA)
    return found
