"""Estimator ``eur``: entropic uncertainty relation, variable length, Hoeffding's or exact statistics.

The form of the key length is that of Tupkary et al., arXiv:2408.17349; events, budget and exact statistics
are those of the security reference, section 4.3.
"""

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
from qnode.distill.keylength.inputs import EstimatorInput
from qnode.distill.keylength.limits import CountLimits, exact_limits, hoeffding_limits
from qnode.distill.keylength.result import ASYMMETRY_EVENTS, Bounds, KeyLength, assemble, clip
from qnode.distill.keylength.sampling import exact_phase_error, serfling_phase_error

# Z counts, X counts, X errors, Z errors up (mu1, mu2), X errors of mu2 up, the coins in Z and X, sampling.
EVENTS = 9


def key_length(inputs: EstimatorInput) -> KeyLength:
    """Return the (2 eps_AT + eps_PA)-secret length, eps_AT = eps_PA = eps_sec/3; no vacuum is credited."""
    events = EVENTS + (ASYMMETRY_EVENTS if inputs.uses_asymmetry else 0)
    eps_third = inputs.eps_sec / 3.0
    log_inverse = math.log(events) + 2.0 * (math.log(3.0) - math.log(inputs.eps_sec))
    bounds = _bounds(inputs, log_inverse)
    return assemble(
        inputs,
        bounds,
        estimator="eur",
        phi_visibility=_phase_error(inputs, bounds, log_inverse),
        asymmetry=asymmetry_of(inputs, log_inverse),
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
        assumptions=(
            f"entropic uncertainty, {inputs.statistics} statistics, vacuum rule {inputs.vacuum_rule}",
            "no entropy is credited for empty qubits",
        ),
    )


def _phase_error(inputs: EstimatorInput, bounds: Bounds, log_inverse: float) -> float:
    if bounds.empty:
        return 0.5
    c, d = bounds.s_z1_lower, bounds.s_x1_lower
    if inputs.statistics == "exact":
        return exact_phase_error(bounds.v_x1_upper, c, d, log_inverse)
    return serfling_phase_error(bounds.b, c, d, log_inverse)


def _bounds(inputs: EstimatorInput, log_inverse: float) -> Bounds:
    """Return the bounds of 4.3; the statistics decide only how counts become limits on their means."""
    source = Source(inputs.mu, inputs.p)
    scale = inputs.x_scale
    limits = exact_limits if inputs.statistics == "exact" else hoeffding_limits
    z, x = limits(inputs.n_z, log_inverse), limits(inputs.n_x, log_inverse)
    m_z, m_x = limits(inputs.m_z, log_inverse), limits(inputs.m_x, log_inverse)

    def empty_errors(m: Pair, m_limits: CountLimits) -> float:
        return min(m.total, empty_errors_upper(source, m_limits, m.total, inputs.vacuum_rule))

    s_z0_upper = coin_trials_upper(empty_errors(inputs.m_z, m_z), 0.5, log_inverse)
    empty_x = empty_errors(inputs.m_x, m_x)
    if inputs.one_x_detector:
        s_x0_upper = scale * (coin_trials_upper(empty_x, inputs.p_x, log_inverse) - empty_x)
    else:
        s_x0_upper = coin_trials_upper(empty_x, 0.5, log_inverse)
    n_z, n_x = inputs.n_z.total, scale * inputs.n_x.total
    s_z0_upper, s_x0_upper = clip(s_z0_upper, n_z), clip(s_x0_upper, n_x)
    return Bounds(
        s_z0_lower=clip(empty_lower(source, z), n_z),
        s_z0_upper=s_z0_upper,
        s_z1_lower=clip(one_photon_lower(source, z, s_z0_upper), n_z),
        s_x0_upper=s_x0_upper,
        s_x1_lower=clip(scale * one_photon_lower(source, x, s_x0_upper / scale), n_x),
        v_x1_upper=min(inputs.m_x.total, one_photon_errors_upper(source, m_x)),
    )


def coin_trials_upper(successes: float, p: float, log_inverse: float) -> float:
    """Return the most trials N of a coin of probability ``p`` that give ``successes``, failing with eps.

    Inverts Hoeffding's N p - sqrt(N ln(1/eps)/2) <= successes (security reference 3.6, 4.3).
    """
    c = math.sqrt(0.5 * log_inverse)
    return ((c + math.sqrt(c * c + 4.0 * p * successes)) / (2.0 * p)) ** 2
