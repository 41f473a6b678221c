"""Estimator ``wiesemann2024``: the constants of the consolidated one-decoy proof (arXiv:2405.16578)."""

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
from qnode.distill.keylength.limits import CountLimits, clipped, deviation, hoeffding_limits
from qnode.distill.keylength.result import ASYMMETRY_EVENTS, Bounds, KeyLength, assemble, clip
from qnode.distill.keylength.sampling import serfling_phase_error
from qnode.errors import FieldError

TERMS = 15


def key_length(inputs: EstimatorInput) -> KeyLength:
    """Return the key length with the published 15 equal terms and Serfling's bound (security reference 4.2).

    Raises:
        FieldError: another vacuum rule than ``min`` is asked for; the estimator fixes it.
    """
    if inputs.vacuum_rule != "min":
        raise FieldError("vacuum_rule", f"wiesemann2024 fixes the rule min, got {inputs.vacuum_rule}")
    terms = TERMS + (ASYMMETRY_EVENTS if inputs.uses_asymmetry else 0)
    log_inverse = math.log(terms) - math.log(inputs.eps_sec)
    bounds = _bounds(inputs, log_inverse)
    phi = 0.5
    if not bounds.empty:
        # The proof needs the tail at eps_0^2, hence twice the logarithm.
        phi = serfling_phase_error(bounds.b, bounds.s_z1_lower, bounds.s_x1_lower, 2.0 * log_inverse)
    return assemble(
        inputs,
        bounds,
        estimator="wiesemann2024",
        phi_visibility=phi,
        asymmetry=asymmetry_of(inputs, log_inverse),
        credited_empty=0.0,
        overhead_bits=4.0 * log_inverse / math.log(2.0) - 1.0,
        epsilons={"eps_0": inputs.eps_sec / terms, "eps_0_weight": float(terms)},
        assumptions=(
            "an estimate: the theorem wants thresholds fixed in advance, observed counts are inserted",
            f"the composition of the {terms} equal terms is taken over, not derived",
        ),
    )


def _bounds(inputs: EstimatorInput, log_inverse: float) -> Bounds:
    source = Source(inputs.mu, inputs.p)
    scale = inputs.x_scale

    def limits(counts: Pair) -> CountLimits:
        return clipped(hoeffding_limits(counts, log_inverse), counts.total)

    def empty_upper(n: Pair, m: Pair, factor: float) -> float:
        errors = empty_errors_upper(source, limits(m), m.total, "min")
        return clip(2.0 * (errors + factor * deviation(n.total, log_inverse)), factor * n.total)

    z, x = limits(inputs.n_z), limits(inputs.n_x)
    n_z, n_x = inputs.n_z.total, scale * inputs.n_x.total
    s_z0_upper = empty_upper(inputs.n_z, inputs.m_z, 1.0)
    s_x0_upper = empty_upper(inputs.n_x, inputs.m_x, scale)
    return Bounds(
        s_z0_lower=clip(empty_lower(source, z), n_z),
        s_z0_upper=s_z0_upper,
        s_z1_lower=clip(one_photon_lower(source, z, s_z0_upper), n_z),
        s_x0_upper=s_x0_upper,
        s_x1_lower=clip(scale * one_photon_lower(source, x, s_x0_upper / scale), n_x),
        v_x1_upper=one_photon_errors_upper(source, limits(inputs.m_x)),
    )
