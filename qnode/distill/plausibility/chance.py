"""The deviation of a count or a share from its expectation by chance alone, far in the tails.

A binomial or Poisson count lies beyond a limit with about the probability with which a standard normal
variable lies beyond z, when the limit is where the signed root of twice the log-likelihood ratio is z.
Unlike the count's own standard deviation this has the exact large-deviation exponent, so that it holds at
six and more standard deviations and for small counts (Barndorff-Nielsen and Cox, Inference and Asymptotics,
1994, section 3.4). Half a count stands between the discrete count and its continuous limit.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import Final

Limits = tuple[float, float]

_BISECTIONS: Final = 80
_NORMAL: Final = NormalDist()


def standard_deviations(chance: float) -> float:
    """Return the z that a standard normal variable exceeds with probability ``chance``, below 1/2."""
    return -_NORMAL.inv_cdf(chance)


@lru_cache(maxsize=1024)
def count_limits(least_mean: float, most_mean: float, z: float) -> Limits:
    """Return the limits of a Poisson count whose mean lies between ``least_mean`` and ``most_mean``."""

    def deviance(x: float, mean: float) -> float:
        return 2.0 * (x * math.log(x / mean) - x + mean if x > 0.0 else mean)

    least = most = 0.0
    if least_mean > 0.0:
        least = _limit(lambda x: deviance(x, least_mean), least_mean, 0.0, z) - 0.5
    if most_mean > 0.0:
        reach = most_mean + z * math.sqrt(most_mean) + z * z + 1.0
        most = _limit(lambda x: deviance(x, most_mean), most_mean, reach, z)
    return max(0.0, least), most + 0.5


@lru_cache(maxsize=1024)
def share_limits(n: float, least_share: float, most_share: float, z: float) -> Limits:
    """Return the limits of the share of ``n`` events whose chance lies between the two given ones.

    0 or 1 where no share is beyond chance; so also for n = 0.
    """
    if n <= 0.0:
        return 0.0, 1.0

    def deviance(y: float, share: float) -> float:
        return 2.0 * n * (_term(y, share) + _term(1.0 - y, 1.0 - share))

    least, most = 0.0, 1.0
    if 0.0 < least_share < 1.0:
        least = _limit(lambda y: deviance(y, least_share), least_share, 0.0, z)
    if 0.0 < most_share < 1.0:
        most = _limit(lambda y: deviance(y, most_share), most_share, 1.0, z)
    return max(0.0, least - 0.5 / n), min(1.0, most + 0.5 / n)


def dispersion_limits(degrees: int, most_extra: float, z: float) -> Limits:
    """Return the limits of a chi-square sum of ``degrees`` degrees of freedom.

    ``most_extra``: what a drift of the mean may add. Wilson and Hilferty, PNAS 17, 684 (1931).
    """
    spread = math.sqrt(2.0 / (9.0 * degrees))
    centre = 1.0 - 2.0 / (9.0 * degrees)
    total = degrees + most_extra
    least = degrees * max(0.0, centre - z * spread) ** 3
    # A non-central sum varies by 2 (degrees + 2 extra).
    most = (
        degrees * (centre + z * spread) ** 3
        + most_extra
        + z * (math.sqrt(2.0 * (total + most_extra)) - math.sqrt(2.0 * degrees))
    )
    return least, most


def _term(y: float, share: float) -> float:
    return y * math.log(y / share) if y > 0.0 else 0.0


def _limit(deviance: Callable[[float], float], inside: float, outside: float, z: float) -> float:
    """Return where ``deviance``, 0 at ``inside`` and growing on the way, is z squared; else ``outside``."""
    if deviance(outside) <= z * z:
        return outside
    for _ in range(_BISECTIONS):
        middle = 0.5 * (inside + outside)
        if middle in (inside, outside):
            break  # no number lies between them
        if deviance(middle) > z * z:
            outside = middle
        else:
            inside = middle
    return outside
