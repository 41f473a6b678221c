"""From errors of empty qubits to their detections: Alice's bit of an empty qubit is a coin."""

import math

from qnode.choices import VacuumRule
from qnode.distill.counts import Pair
from qnode.distill.keylength.decoy import EmptyBound, EmptyBounds, Source, WeightedLimits, empty_errors_upper
from qnode.distill.keylength.inputs import EstimatorInput
from qnode.distill.keylength.limits import CountLimits, deviation


def printed_coin(
    inputs: EstimatorInput, weighted: WeightedLimits, rule: VacuumRule, log_inverse_eps: float
) -> EmptyBounds:
    """Return the published bounds: twice the errors plus the deviation of all detections (A14, A16).

    The X scale stands before the deviation, not before the errors (security reference 3.6).
    """
    source = Source(inputs.mu, inputs.p)

    def bound(m: Pair, limits: CountLimits, coin: float) -> EmptyBound:
        errors = empty_errors_upper(source, limits, m.total, rule)
        return EmptyBound(errors, 2.0 * (errors + coin))

    coin_z = deviation(inputs.n_z.total, log_inverse_eps)
    coin_x = inputs.x_scale * deviation(inputs.n_x.total, log_inverse_eps)
    return EmptyBounds(bound(inputs.m_z, weighted.m_z, coin_z), bound(inputs.m_x, weighted.m_x, coin_x))


def inverted_coin(
    inputs: EstimatorInput, weighted: WeightedLimits, rule: VacuumRule, log_inverse_eps: float
) -> EmptyBounds:
    """Return the bounds in Z and X that follow from the errors alone (security reference 4.3 and 3.6).

    With one X detector the coin of an empty qubit is Alice's choice between |+> (an "error") and a Z state.
    """
    source = Source(inputs.mu, inputs.p)

    def errors_of(m: Pair, limits: CountLimits) -> float:
        return min(m.total, empty_errors_upper(source, limits, m.total, rule))

    v_z0, v_x0 = errors_of(inputs.m_z, weighted.m_z), errors_of(inputs.m_x, weighted.m_x)
    empty_z = coin_trials_upper(v_z0, 0.5, log_inverse_eps)
    if inputs.one_x_detector:
        empty_x = inputs.x_scale * (coin_trials_upper(v_x0, inputs.p_x, log_inverse_eps) - v_x0)
    else:
        empty_x = coin_trials_upper(v_x0, 0.5, log_inverse_eps)
    return EmptyBounds(EmptyBound(v_z0, empty_z), EmptyBound(v_x0, empty_x))


def coin_trials_upper(successes: float, p: float, log_inverse_eps: float) -> float:
    """Return the most trials N of a coin of probability ``p`` that give ``successes``, failing with eps.

    Inverts Hoeffding's N p - sqrt(N ln(1/eps)/2) <= successes (security reference 3.6, 4.3).
    """
    c = math.sqrt(0.5 * log_inverse_eps)
    return ((c + math.sqrt(c * c + 4.0 * p * successes)) / (2.0 * p)) ** 2
