"""From observed counts to limits on their means: Hoeffding's deviation, and exact Clopper-Pearson limits."""

import math
from functools import lru_cache
from typing import Final

import msgspec

from qnode.distill.counts import Pair
from qnode.distill.keylength.tails import binomial_upper_probability


class CountLimits(msgspec.Struct, frozen=True):
    """Lower and upper limits on the mean counts of one basis, per intensity, each one-sided."""

    signal_lower: float
    signal_upper: float
    decoy_lower: float
    decoy_upper: float

    def weighted(self, weight: Pair) -> "CountLimits":
        """Return the limits times a weight for each intensity."""
        return CountLimits(
            self.signal_lower * weight.signal,
            self.signal_upper * weight.signal,
            self.decoy_lower * weight.decoy,
            self.decoy_upper * weight.decoy,
        )


def clip(value: float, upper: float) -> float:
    """Return ``value`` clipped to [0, upper]."""
    return min(max(value, 0.0), upper)


def deviation(n: float, log_inverse_eps: float) -> float:
    """Return Hoeffding's sqrt(n ln(1/eps) / 2), n the events of both intensities (Rusca 2018, A2 and A4)."""
    return math.sqrt(0.5 * n * log_inverse_eps)


def hoeffding_limits(counts: Pair, log_inverse_eps: float) -> CountLimits:
    """Return the counts minus and plus the deviation of their sum, unclipped as printed."""
    delta = deviation(counts.total, log_inverse_eps)
    return CountLimits(
        counts.signal - delta, counts.signal + delta, counts.decoy - delta, counts.decoy + delta
    )


def clipped_hoeffding_limits(counts: Pair, log_inverse_eps: float) -> CountLimits:
    """Return the same limits clipped to [0, both counts together]."""
    limits, total = hoeffding_limits(counts, log_inverse_eps), counts.total
    return CountLimits(
        clip(limits.signal_lower, total),
        clip(limits.signal_upper, total),
        clip(limits.decoy_lower, total),
        clip(limits.decoy_upper, total),
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


# A count below this (a plan's expectation) has the limit of this one, which is no smaller.
_LEAST_COUNT: Final = 1e-9


@lru_cache(maxsize=64)  # the corners of the intensities' intervals ask for the same limits again
def exact_upper(x: float, n: float, log_inverse_eps: float) -> float:
    """Return max(n B^-1(1 - eps; x + 1, n - x), x + 1), at most n: Pr(mean above it) <= eps."""
    if x + 1.0 >= n:
        return n
    if 0.0 < x < _LEAST_COUNT:
        x = _LEAST_COUNT
    return min(n, max(n * binomial_upper_probability(x, n, -log_inverse_eps), x + 1.0))
