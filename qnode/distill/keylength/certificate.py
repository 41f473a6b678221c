"""The checker: the bound that given weights prove about a block, in exact arithmetic.

A search (`qnode.distill.keylength.search`) proposes weights b_j and a scale, which are not trusted. Where

    sum_j (b_j - 1) x_j <= 0   for every generator x of the adversary's possibilities,

the inequality of `qnode.distill.keylength.martingale` leaves a statement about clicks alone,

    sum_j (N_j + a_j) ln b_j - (b_j - 1) a_j  <=  allowance,

and adding scale times (value_E (E_1 + E_2) + value_G (G_1 + G_2)) on both sides bounds that sum from below.
This is weak duality: the b_j - 1 are a dual solution of the program over the yields of all photon numbers.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from qnode.distill.keylength.enclosure import UNITS, down, logarithm_down
from qnode.distill.keylength.martingale import Allowance, Counts
from qnode.distill.keylength.yields import CLASSES, Generator, class_index


@dataclass(frozen=True)
class Values:
    """What a one-photon Z detection counts in the sum that is bounded: with a phase error, and without."""

    error: Fraction
    right: Fraction


@dataclass(frozen=True)
class Weights:
    """A proposal: the weight b_j of each class, and the scale (0 for a statement without E and G)."""

    classes: tuple[float, ...]
    scale: float


@dataclass(frozen=True)
class ArmRatio:
    """An interval of ratios of boundary clicks to Z arm clicks; ``most`` None: without upper end."""

    least: Fraction
    most: Fraction | None


def holds_for_all(weights: Weights, cone: Iterable[Generator], ratio: ArmRatio) -> bool:
    """Return whether sum_j (b_j - 1) x_j <= 0 for every generator x at every ratio of the interval."""
    # Times a common denominator, so that all is in integers.
    parts = [b.as_integer_ratio() for b in weights.classes]
    unit = math.lcm(*(denominator for _, denominator in parts))
    excess = [(numerator - denominator) * (unit // denominator) for numerator, denominator in parts]
    for generator in cone:
        fixed, scaled = (sum(excess[j] * x for j, x in part.items()) for part in generator.in_integers)
        # Linear in the ratio: both ends decide, or one end and the direction.
        ends = [fixed * ratio.least.denominator + scaled * ratio.least.numerator]
        ends.append(
            scaled if ratio.most is None else fixed * ratio.most.denominator + scaled * ratio.most.numerator
        )
        if max(ends) > 0:
            return False
    return True


def proven_sum(
    weights: Weights, values: Values, counts: Counts, shape: tuple[float, ...], allowance: Allowance
) -> Fraction:
    """Return s such that scale * (sum of values over E and G) >= s, if `holds_for_all` and the event holds.

    With scale 0, s > 0 is a contradiction: the event does not hold for any division of the clicks.
    """
    # In units of 1/UNITS. Everything grows with each weight's logarithm and each value, so that rounding
    # these and every product down rounds the sum down.
    scale = Fraction(weights.scale)
    logs = [logarithm_down(b) for b in weights.classes]
    proven = down(-allowance.constant)
    for a, b, log in zip(shape, weights.classes, logs, strict=True):
        proven += _times(a, log + down(1 - Fraction(b)))
    value = {"E": down(scale * values.error), "G": down(scale * values.right), "W": 0, "R": 0}
    pairs = {"P": counts.plus, "C": counts.central, "D": counts.dark}
    for k in (0, 1):
        for kind, pair in pairs.items():
            proven += _times(_of(pair, k), logs[class_index(kind, k)])
        each = {
            kind: x + logs[class_index(kind, k)] + down(-allowance.slopes[class_index(kind, k)])
            for kind, x in value.items()
        }
        # The worst division of the sifted bits: no more in W than there are errors, the others anywhere.
        worst = min(each["E"], each["G"], each["R"])
        proven += _times(_of(counts.z, k), worst) + _times(_of(counts.wrong, k), min(0, each["W"] - worst))
    return Fraction(proven + _times(counts.boundary, logs[len(CLASSES) - 1]), UNITS)


def _times(count: float, units: int) -> int:
    """Return the product of a count, at least 0, and a number in units, rounded down."""
    numerator, denominator = count.as_integer_ratio()
    return numerator * units // denominator


def _of(pair: object, k: int) -> float:
    return float(getattr(pair, ("signal", "decoy")[k]))
