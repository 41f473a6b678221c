"""Timing jitter: a Gaussian with an exponential tail, as a distribution and as a table to draw from."""

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from qnode.simulate.parameters import JitterParameters

TABLE_BITS = 11
CLIPPED_SIGMAS = 4.5  # no click is earlier than this


def normal_quantiles() -> npt.NDArray[np.float64]:
    """Return the quantiles of the normal distribution at i / 2^11, ends clipped, shape ``(2^11 + 1,)``."""
    count = 1 << TABLE_BITS
    normal = NormalDist()
    inner = [normal.inv_cdf(i / count) for i in range(1, count)]
    return np.array([-CLIPPED_SIGMAS, *inner, CLIPPED_SIGMAS])


def _below(jitter: JitterParameters, time_ps: float) -> float:
    """Return the share of clicks before ``time_ps`` (exponentially modified Gaussian in the tail)."""
    sigma, tail = jitter.sigma_ps, jitter.tail_ps
    gaussian = _phi(time_ps / sigma)
    log_factor = 0.5 * (sigma / tail) ** 2 - time_ps / tail
    shifted = _phi(time_ps / sigma - sigma / tail)
    delayed = gaussian - (math.exp(min(log_factor, 700.0)) * shifted if shifted > 0.0 else 0.0)
    return (1.0 - jitter.tail_fraction) * gaussian + jitter.tail_fraction * delayed


@lru_cache(maxsize=1024)  # a search for the best parameters uses the same few gates thousands of times
def acceptance(jitter: JitterParameters, offset_ps: float, width_ps: float) -> float:
    """Return the share of a pulse's clicks in a gate of ``width_ps`` centred ``offset_ps`` after it."""
    return _below(jitter, offset_ps + width_ps / 2) - _below(jitter, offset_ps - width_ps / 2)


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))
