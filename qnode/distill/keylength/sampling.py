"""From the error rate of the X sample to the phase error rate of the unseen Z events.

``c`` is the number of unseen events, ``d`` the size of the sample, ``b`` the error rate and ``v`` the number
of errors in the sample. All results are clipped to 1/2.
"""

import math
from dataclasses import dataclass
from typing import Final

from qnode.distill.keylength.tails import log_hypergeometric_lower_tail

# With fewer errors in the sample the Gaussian estimate behind gamma misses its target by orders of magnitude.
GAMMA_LEAST_ERRORS: Final = 100.0


def gamma_phase_error(b: float, c: float, d: float, eps: float) -> float:
    """Return b + gamma (Rusca 2018, A21 with 1/eps in the place of 19/eps_sec; Fung, Ma, Chau 2010).

    Where the logarithm in gamma falls below 1/ln 2 (samples beyond 1/eps^2 events) it is held there: the
    printed formula would fall with growing b and end in the root of a negative number.
    """
    if b == 0.0:
        return 0.0
    if c < 1.0 or d < 1.0:
        return 0.5
    spread = (c + d) / (c * d)
    variance = (1.0 - b) * b
    logarithm = math.log2(spread / variance) - 2.0 * math.log2(eps)
    gamma = math.sqrt(spread * variance / math.log(2.0) * max(logarithm, 1.0 / math.log(2.0)))
    return min(0.5, b + gamma)


def serfling_phase_error(b: float, c: float, d: float, log_inverse_eps: float) -> float:
    """Return b plus Serfling's deviation at failure probability eps (Serfling 1974)."""
    if c < 1.0 or d < 1.0:
        return 0.5
    return min(0.5, b + math.sqrt(0.5 * log_inverse_eps * (c + d) * (d + 1.0) / (c * d * d)))


def exact_phase_error(v: float, c: float, d: float, log_inverse_eps: float) -> float:
    """Return the exact bound: the largest (K - v)/c whose hypergeometric tail still exceeds eps.

    K is the number of errors among all c + d events; the tail is Pr[at most v of them in the sample] and
    falls with K. ``c`` and ``d`` are rounded down and ``v`` up. K being an integer, the
    bound moves in steps of 1/c.
    """
    unseen, sample, errors = math.floor(c), math.floor(d), math.ceil(v)
    if unseen < 1 or sample < 1 or errors >= sample:
        return 0.5

    def tail_exceeds(marked: int) -> bool:
        return log_hypergeometric_lower_tail(errors, marked, sample, unseen + sample) > -log_inverse_eps

    largest = errors + math.ceil(0.5 * unseen)  # more than half is clipped anyway
    low = errors  # with no error left over the tail is one
    width = max(16, math.isqrt(errors + 1) * (unseen + sample) // sample)
    high = min(largest, errors + errors * unseen // sample + width)
    while high < largest and tail_exceeds(high):
        low, width = high, 2 * width
        high = min(largest, high + width)
    if high == largest and tail_exceeds(high):
        return 0.5
    while high - low > 1:
        middle = (low + high) // 2
        if tail_exceeds(middle):
            low = middle
        else:
            high = middle
    return min(0.5, (low - errors) / unseen)


@dataclass(frozen=True)
class RuscaPhaseError:
    """The phase error of ``rusca2018``, and whether the exact tail had to stand in for gamma."""

    value: float
    by_exact_tail: bool


def rusca_phase_error(v: float, c: float, d: float, eps: float) -> RuscaPhaseError:
    """Return b + gamma, or the exact tail at eps^2 where the sample holds fewer than 100 errors.

    At 100 errors gamma lies below the exact tail; just above, the value at 100 is kept until gamma has caught
    up, because a block must not gain key by having more errors.
    """
    few = exact_phase_error(min(v, GAMMA_LEAST_ERRORS), c, d, -2.0 * math.log(eps))
    if v < GAMMA_LEAST_ERRORS:
        return RuscaPhaseError(few, by_exact_tail=True)
    printed = gamma_phase_error(min(v / d, 0.5), c, d, eps)
    return RuscaPhaseError(max(printed, few), by_exact_tail=few > printed)
