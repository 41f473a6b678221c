"""Estimator ``wiesemann2024``: the constants of the consolidated one-decoy proof (arXiv:2405.16578)."""

import math

from qnode.distill.keylength.assumptions import Assumption, stated
from qnode.distill.keylength.asymmetry import asymmetry_of
from qnode.distill.keylength.coin import printed_coin
from qnode.distill.keylength.decoy import photon_bounds, weighted_limits
from qnode.distill.keylength.inputs import EstimatorInput
from qnode.distill.keylength.limits import clipped_hoeffding_limits
from qnode.distill.keylength.result import KeyLength, assemble, asymmetry_events
from qnode.distill.keylength.sampling import serfling_phase_error
from qnode.distill.keylength.shares import shares_of
from qnode.errors import FieldError

TERMS = 15


def key_length(inputs: EstimatorInput) -> KeyLength:
    """Return the key length with the published 15 equal terms and Serfling's bound (security reference 4.2).

    Raises:
        FieldError: another vacuum rule than ``min`` is asked for; the estimator fixes it.
    """
    if inputs.vacuum_rule != "min":
        raise FieldError("vacuum_rule", f"wiesemann2024 fixes the rule min, got {inputs.vacuum_rule}")
    terms = TERMS + asymmetry_events(inputs)
    log_inverse = math.log(terms) - math.log(inputs.eps_sec)
    weighted = weighted_limits(inputs, clipped_hoeffding_limits, log_inverse)
    bounds = photon_bounds(inputs, weighted, printed_coin(inputs, weighted, "min", log_inverse))
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
        shares=shares_of(inputs, log_inverse),
        credited_empty=0.0,
        overhead_bits=4.0 * log_inverse / math.log(2.0) - 1.0,
        epsilons={"eps_0": inputs.eps_sec / terms, "eps_0_weight": float(terms)},
        assumptions={
            **stated(Assumption.OBSERVED_THRESHOLDS),
            **Assumption.COMPOSITION.stated(terms=terms),
        },
    )
