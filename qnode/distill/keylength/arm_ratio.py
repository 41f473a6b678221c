"""The ratio of boundary clicks to Z arm clicks: the interval that the counts allow, in pieces.

The ratio of expected clicks is the receiver's and the same for all light, but it is not known. The one event
of `qnode.distill.keylength.martingale` excludes ratios far from the observed one. Each bound must hold on
every piece of the remaining interval, and separate weights prove it on each piece.
"""

import math
from fractions import Fraction
from itertools import pairwise
from typing import Final

from qnode.distill.keylength.certificate import ArmRatio, Values, Weights, holds_for_all, proven_sum
from qnode.distill.keylength.martingale import Allowance, Counts
from qnode.distill.keylength.yields import BOUNDARY, CLASSES, Z_ARM, Emission, generators

# Ends of the pieces between the two ends of the interval, as a share of the way from the ratio that is seen
# to the upper end (on a logarithmic scale): the bound is worst a little above what is seen.
_BETWEEN: Final = (0.0, 0.15, 0.35)
_NOTHING: Final = Values(Fraction(0), Fraction(0))
_HALVINGS: Final = 40
# Weights from floating point keep their condition exactly when they are a little smaller.
_SLIGHTLY_LESS: Final = 1.0 - 2.0**-45


def pieces(
    counts: Counts, shape: tuple[float, ...], emission: Emission, allowance: Allowance
) -> tuple[ArmRatio, ...]:
    """Return intervals, in order, that hold every ratio which the event does not exclude."""
    least, most = Fraction(0), None
    if counts.boundary <= 0.0 or counts.z.total + counts.plus.total <= 0.0:
        return (ArmRatio(least, most),)
    seen = Seen(counts, shape, emission, allowance)
    centre = seen.ratio
    down, up = seen.distance(-1.0), seen.distance(1.0)
    if down is not None:
        end = Fraction(centre * math.exp(-down))
        if seen.excludes(ArmRatio(least, end), at=float(end)):
            least = end
    if up is not None:
        end = Fraction(centre * math.exp(up))
        if seen.excludes(ArmRatio(end, None), at=float(end)):
            most = end
    if most is None or up is None:
        return (ArmRatio(least, most),)
    ends = [least, *(Fraction(centre * math.exp(share * up)) for share in _BETWEEN), most]
    return tuple(ArmRatio(low, high) for low, high in pairwise(ends))


class Seen:
    """The clicks of the Z arm and of boundary slots, gamma shapes included."""

    def __init__(
        self, counts: Counts, shape: tuple[float, ...], emission: Emission, allowance: Allowance
    ) -> None:
        self._counts, self._shape, self._emission, self._allowance = counts, shape, emission, allowance
        self._z_shape = math.fsum(a for name, a in zip(CLASSES, shape, strict=True) if name[0] in Z_ARM)
        self.z_arm = counts.z.total + counts.plus.total + self._z_shape
        self._boundary_shape = shape[BOUNDARY]
        self.ratio = counts.boundary / (counts.z.total + counts.plus.total)
        self.boundary = counts.boundary + self._boundary_shape
        # The unseen classes' slopes cost at most so much; a little more, so that rounding does not matter.
        self._needed = float(allowance.constant) + counts.z.total * float(max(allowance.slopes)) + 0.01

    def _weights(self, ratio: float) -> tuple[float, float]:
        """Return the weights of Z arm and boundary that speak most against ``ratio``.

        They are seen over expected clicks, shapes included, for the expected number x of Z arm clicks at
        which the two just keep the condition: (z - 1) + ratio (boundary - 1) = 0, quadratic in x.
        """
        a, b = self._z_shape, self._boundary_shape
        square = ratio * (1.0 + ratio)
        half = 0.5 * ((1.0 + ratio) * (b + ratio * a) - ratio * (self.z_arm + self.boundary))
        constant = (self.z_arm - a) * b + ratio * (self.boundary - b) * a
        root = math.sqrt(half * half + square * constant)
        x = (root - half) / square if half <= 0.0 else constant / (root + half)
        return self.z_arm / (x + a), self.boundary / (ratio * x + b)

    def _proven(self, ratio: float) -> float:
        z, boundary = self._weights(ratio)
        against = self.z_arm * math.log(z) + self.boundary * math.log(boundary)
        return against - (z - 1.0) * self._z_shape - (boundary - 1.0) * self._boundary_shape - self._needed

    def distance(self, sign: float) -> float | None:
        """Return how far up (1) or down (-1), on a logarithmic scale, ratios stop being excluded."""
        centre = self.ratio
        near, far = 0.0, 16.0
        if not self._proven(centre * math.exp(sign * far)) > 0.0:
            return None
        for _ in range(_HALVINGS):
            middle = 0.5 * (near + far)
            excluded = self._proven(centre * math.exp(sign * middle)) > 0.0
            near, far = (near, middle) if excluded else (middle, far)
        return far

    def excludes(self, beyond: ArmRatio, *, at: float) -> bool:
        """Return whether the best weights against ``at`` prove that the ratio is not ``beyond``."""
        z, boundary = (weight * _SLIGHTLY_LESS for weight in self._weights(at))
        by_kind = [z if name[0] in Z_ARM else 1.0 for name in CLASSES[:-1]]
        weights = Weights((*by_kind, boundary), 0.0)
        return (
            holds_for_all(weights, generators(self._emission), beyond)
            and proven_sum(weights, _NOTHING, self._counts, self._shape, self._allowance) > 0
        )
