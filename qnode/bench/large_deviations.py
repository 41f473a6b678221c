"""The probability of very rare events: importance sampling by exponential tilting.

Counts that are sums of independent events (binomial, Poisson) are drawn from tilted laws, under which the
event occurs about half of the time. Each sample is weighted with the ratio of both laws. A probability of
1e-30 then needs some thousand samples (Siegmund, Ann. Stat. 4, 673, 1976). The tilt that puts
the mean on the border of the event, at its most likely point, is the efficient one for a half-space.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]
_STEPS = 200
_TILT_ROUNDS = 6
_FARTHEST_TILT = 60.0


@dataclass(frozen=True)
class Binomial:
    """A count of ``n`` independent events of chance ``p``."""

    n: int
    p: float

    @property
    def mean(self) -> float:
        """Return the mean."""
        return self.n * self.p

    def tilted(self, tilt: float) -> "Binomial":
        """Return the law with probabilities multiplied by exp(tilt x), normalised."""
        odds = self.p * math.exp(tilt)
        return Binomial(self.n, odds / (1.0 - self.p + odds))

    def cumulant(self, tilt: float) -> float:
        """Return log E exp(tilt x)."""
        return self.n * math.log1p(self.p * math.expm1(tilt))

    def draw(self, rng: np.random.Generator, samples: int) -> Samples:
        """Return ``samples`` counts."""
        return rng.binomial(self.n, self.p, samples).astype(np.float64)


@dataclass(frozen=True)
class Poisson:
    """A count of rare events of unknown number."""

    mean: float

    def tilted(self, tilt: float) -> "Poisson":
        """Return the law with probabilities multiplied by exp(tilt x), normalised."""
        return Poisson(self.mean * math.exp(tilt))

    def cumulant(self, tilt: float) -> float:
        """Return log E exp(tilt x)."""
        return self.mean * math.expm1(tilt)

    def draw(self, rng: np.random.Generator, samples: int) -> Samples:
        """Return ``samples`` counts."""
        return rng.poisson(self.mean, samples).astype(np.float64)


Law = Binomial | Poisson


@dataclass(frozen=True)
class Rare:
    """A probability, and the standard deviation of the estimate as a fraction of it."""

    probability: float
    relative_error: float

    def __add__(self, other: "Rare") -> "Rare":
        both = self.probability + other.probability
        error = math.hypot(self.probability * self.relative_error, other.probability * other.relative_error)
        return Rare(both, error / both if both > 0.0 else 0.0)


def probability(
    laws: Sequence[Law],
    tilts: Sequence[float],
    fails: Callable[[Samples], NDArray[np.bool_]],
    rng: np.random.Generator,
    samples: int,
) -> Rare:
    """Return the probability of ``fails``, a function of one row of counts per sample.

    The estimate is unbiased for all ``tilts`` (one for each law); good tilts make its variance small.
    """
    drawn = [law.tilted(tilt).draw(rng, samples) for law, tilt in zip(laws, tilts, strict=True)]
    log_weight = np.full(samples, math.fsum(law.cumulant(t) for law, t in zip(laws, tilts, strict=True)))
    for counts, tilt in zip(drawn, tilts, strict=True):
        log_weight -= tilt * counts
    failed = fails(np.stack(drawn, axis=1))
    if not failed.any():
        return Rare(0.0, math.inf)
    largest = float(log_weight[failed].max())
    weights = np.where(failed, np.exp(np.minimum(log_weight - largest, 0.0)), 0.0)
    mean = float(weights.mean())
    error = float(weights.std()) / math.sqrt(samples) / mean
    return Rare(mean * math.exp(largest), error)


def sum_at_most(laws: Sequence[Law], most: float, rng: np.random.Generator, samples: int) -> Rare:
    """Return Pr[sum of the counts <= most] for a ``most`` below the mean."""
    return _sum_beyond(laws, most, rng, samples, lower=True)


def sum_at_least(laws: Sequence[Law], least: float, rng: np.random.Generator, samples: int) -> Rare:
    """Return Pr[sum of the counts >= least] for a ``least`` above the mean."""
    return _sum_beyond(laws, least, rng, samples, lower=False)


def _sum_beyond(
    laws: Sequence[Law], limit: float, rng: np.random.Generator, samples: int, *, lower: bool
) -> Rare:
    possible = math.fsum(law.n if isinstance(law, Binomial) else math.inf for law in laws)
    if limit < 0.0 if lower else limit > possible:
        return Rare(0.0, 0.0)
    # A tilted mean cannot lie at the edge itself.
    at = min(max(limit, 0.5), possible - 0.5)
    tilt = _bisected(
        lambda t: math.fsum(law.tilted(t).mean for law in laws) - at, -_FARTHEST_TILT, _FARTHEST_TILT
    )

    def fails(counts: Samples) -> NDArray[np.bool_]:
        total = counts.sum(axis=1)
        return np.asarray(total <= limit if lower else total >= limit)

    return probability(laws, [tilt] * len(laws), fails, rng, samples)


def border_tilts(laws: Sequence[Law], margin: Callable[[Sequence[float]], float]) -> list[float]:
    """Return tilts that put the mean on the border of ``margin`` < 0, at its most likely point.

    ``margin`` is positive at the mean and about linear over the spread of the counts. At the most likely
    point the tilts are proportional to the slopes of ``margin`` there, which iteration finds.
    """
    means = [law.mean for law in laws]
    at, tilts = means, [0.0] * len(laws)
    for _ in range(_TILT_ROUNDS):
        slopes = _slopes(margin, at)
        scale = max(abs(slope) for slope in slopes)
        direction = [-slope / scale for slope in slopes]

        def moved(size: float, direction: Sequence[float] = direction) -> list[float]:
            return [law.tilted(size * one).mean for law, one in zip(laws, direction, strict=True)]

        far = 1e-4  # beyond the border, but not where the counts vanish
        while margin(moved(far)) > 0.0 and far < _FARTHEST_TILT:
            far *= 1.5
        size = _bisected(lambda size, moved=moved: margin(moved(size)), 0.0, far)  # type: ignore[misc]
        tilts = [size * one for one in direction]
        at = moved(size)
    return tilts


def _slopes(margin: Callable[[Sequence[float]], float], at: Sequence[float]) -> list[float]:
    slopes = []
    for place, value in enumerate(at):
        step = max(1.0, 0.5 * math.sqrt(value))
        up, down = list(at), list(at)
        up[place], down[place] = value + step, max(0.0, value - step)
        slopes.append((margin(up) - margin(down)) / (up[place] - down[place]))
    return slopes


def _bisected(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the point at which a monotone ``function`` changes its sign."""
    sign = function(low) > 0.0
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if (function(middle) > 0.0) == sign:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def log_hypergeometric_at_most(most: int, marked: int, drawn: int, population: int) -> float:
    """Return log Pr[at most ``most`` marked among ``drawn`` of ``population``], summed term by term.

    It needs neither importance sampling nor the node's code: log-gamma functions give the largest term, and
    ratios of neighbours the others. ``most`` lies below the mean.
    """
    smallest = max(0, drawn - (population - marked))
    if most < smallest:
        return -math.inf

    def choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    log_first = choose(marked, most) + choose(population - marked, drawn - most) - choose(population, drawn)
    total, term = 1.0, 1.0
    for j in range(most, smallest, -1):
        unmarked = population - marked - drawn + j
        term *= j * unmarked / ((marked - j + 1) * (drawn - j + 1))
        total += term
        if term < 1e-17 * total:
            break
    return log_first + math.log(total)
