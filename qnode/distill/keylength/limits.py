"""From observed counts to limits on their means: Hoeffding's deviation, and exact Clopper-Pearson limits."""

import math
from dataclasses import dataclass

from qnode.distill.counts import Pair
from qnode.distill.keylength.tails import binomial_upper_probability


@dataclass(frozen=True)
class CountLimits:
    """Lower and upper limits on the mean counts of one basis, per intensity, each one-sided."""

    signal_lower: float
    signal_upper: float
    decoy_lower: float
    decoy_upper: float


def deviation(n: float, log_inverse_eps: float) -> float:
    """Return Hoeffding's sqrt(n ln(1/eps) / 2), n the events of both intensities (Rusca 2018, A2 and A4)."""
    return math.sqrt(0.5 * n * log_inverse_eps)


def hoeffding_limits(counts: Pair, log_inverse_eps: float) -> CountLimits:
    """Return the counts minus and plus the deviation of their sum, unclipped as printed."""
    delta = deviation(counts.total, log_inverse_eps)
    return CountLimits(
        counts.signal - delta, counts.signal + delta, counts.decoy - delta, counts.decoy + delta
    )


def clipped(limits: CountLimits, total: float) -> CountLimits:
    """Return the limits clipped to [0, total]."""
    return CountLimits(
        signal_lower=min(max(limits.signal_lower, 0.0), total),
        signal_upper=min(max(limits.signal_upper, 0.0), total),
        decoy_lower=min(max(limits.decoy_lower, 0.0), total),
        decoy_upper=min(max(limits.decoy_upper, 0.0), total),
    )


def exact_limits(counts: Pair, log_inverse_eps: float) -> CountLimits:
    """Return exact limits on the means of the intensity labels (security reference 4.3).

    The labels are independent with unequal means; Hoeffding 1956, theorem 4, carries the Clopper-Pearson
    limit of the binomial over to them where the limit lies at least one event away from the observation.
    """
    signal_upper = exact_upper(counts.signal, counts.total, log_inverse_eps)
    decoy_upper = exact_upper(counts.decoy, counts.total, log_inverse_eps)
    return CountLimits(
        signal_lower=counts.total - decoy_upper,
        signal_upper=signal_upper,
        decoy_lower=counts.total - signal_upper,
        decoy_upper=decoy_upper,
    )


def exact_upper(x: float, n: float, log_inverse_eps: float) -> float:
    """Return max(n B^-1(1 - eps; x + 1, n - x), x + 1), at most n: Pr(mean above it) <= eps."""
    if x >= n:
        return n
    return min(n, max(n * binomial_upper_probability(x, n, -log_inverse_eps), x + 1.0))
