"""Estimator ``eur``: entropic uncertainty relation, variable length, Hoeffding's or exact statistics.

The form of the key length is that of Tupkary et al., arXiv:2408.17349; events, budget and exact statistics
are those of the security reference, section 4.3.
"""

import math

from qnode.distill.keylength.assumptions import Assumption, stated
from qnode.distill.keylength.asymmetry import asymmetry_of
from qnode.distill.keylength.coin import inverted_coin
from qnode.distill.keylength.decoy import PhotonBounds, photon_bounds, weighted_limits
from qnode.distill.keylength.inputs import EstimatorInput
from qnode.distill.keylength.limits import exact_limits, hoeffding_limits
from qnode.distill.keylength.result import KeyLength, assemble, asymmetry_events
from qnode.distill.keylength.sampling import exact_phase_error, serfling_phase_error
from qnode.distill.keylength.shares import shares_of

# Z counts, X counts, X errors, Z errors up (mu1, mu2), X errors of mu2 up, the coins in Z and X, sampling.
EVENTS = 9


def key_length(inputs: EstimatorInput) -> KeyLength:
    """Return the (2 eps_AT + eps_PA)-secret length, eps_AT = eps_PA = eps_sec/3; no vacuum is credited."""
    events = EVENTS + asymmetry_events(inputs)
    eps_third = inputs.eps_sec / 3.0
    log_inverse = math.log(events) + 2.0 * (math.log(3.0) - math.log(inputs.eps_sec))
    limits = exact_limits if inputs.statistics == "exact" else hoeffding_limits
    weighted = weighted_limits(inputs, limits, log_inverse)
    empty = inverted_coin(inputs, weighted, inputs.vacuum_rule, log_inverse)
    bounds = photon_bounds(inputs, weighted, empty, most_errors=inputs.m_x.total)
    return assemble(
        inputs,
        bounds,
        estimator="eur",
        phi_visibility=_phase_error(inputs, bounds, log_inverse),
        asymmetry=asymmetry_of(inputs, log_inverse),
        shares=shares_of(inputs, log_inverse),
        credited_empty=0.0,
        overhead_bits=-2.0 * math.log2(2.0 * eps_third),
        epsilons={
            "eps_at": eps_third,
            "eps_at_weight": 2.0,
            "eps_pa": eps_third,
            "eps_pa_weight": 1.0,
            "event": math.exp(-log_inverse),  # every one-sided event; all together at most eps_at^2
            "events": float(events),
        },
        assumptions={
            **Assumption.ENTROPIC_UNCERTAINTY.stated(
                statistics=inputs.statistics, vacuum_rule=inputs.vacuum_rule
            ),
            **stated(Assumption.NO_EMPTY_CREDIT),
        },
    )


def _phase_error(inputs: EstimatorInput, bounds: PhotonBounds, log_inverse: float) -> float:
    if bounds.empty:
        return 0.5
    c, d = bounds.s_z1_lower, bounds.s_x1_lower
    if inputs.statistics == "exact":
        return exact_phase_error(bounds.v_x1_upper, c, d, log_inverse)
    return serfling_phase_error(bounds.b, c, d, log_inverse)
