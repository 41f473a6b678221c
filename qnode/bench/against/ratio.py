"""Runs of two kinds in turn, and the ratio of their figures with its confidence interval."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

FEWEST_PAIRS: Final = 4
CONFIDENCE: Final = 0.95

T = TypeVar("T")


class Ratio(NamedTuple):
    """A ratio, and the interval that holds the true one with a probability of 95 %."""

    ratio: float
    low: float
    high: float


def in_turn(ours: Callable[[], T], theirs: Callable[[], T], pairs: int) -> Iterator[tuple[T, T]]:
    """Yield the results of pairs of runs, each one of ours and one of theirs.

    The first run of a pair is once theirs and once ours, so that a machine that becomes slower or faster
    favours neither.
    """
    for number in range(pairs):
        if number % 2:
            mine = ours()
            yield mine, theirs()
        else:
            other = theirs()
            yield ours(), other


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return the ratio of ours to theirs over pairs of runs: the geometric mean, with Student's interval.

    Only the two runs of a pair are compared with each other; what changes from pair to pair cancels.

    Raises:
        ValueError: fewer than four pairs, or a figure that is not positive.
    """
    if len(ours) < FEWEST_PAIRS:
        raise ValueError(f"{len(ours)} pairs, expected {FEWEST_PAIRS} or more")
    logs = [math.log(mine / other) for mine, other in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(logs)
    spread = student_quantile(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - spread), math.exp(mean + spread))


def student_quantile(degrees: int) -> float:
    """Return the two-sided quantile of Student's distribution at `CONFIDENCE`.

    The expansion in the normal quantile of Abramowitz and Stegun, 26.7.5: exact to 0.2 % from three degrees
    of freedom on.
    """
    z = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / float(degrees) ** power for power, term in enumerate(terms, 1))
