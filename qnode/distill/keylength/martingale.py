"""The martingale bound: the distance of the clicks of a block from their expectations, given earlier slots.

Let N_j be the clicks of class j, and x_j the sum over all slots of the chance, given everything before the
slot, that it ends in class j: no more than one class a slot. For fixed weights b_j > 0 the product of
b_j^N_j exp(-(b_j - 1) x_j) over all classes never grows in the mean, whatever happens (the step in the
proof of Freedman's inequality, Ann. Probab. 3, 100, 1975). Averaged over gamma-distributed weights with mean
one and shape a_j (the method of mixtures, Robbins 1970), and by Markov's inequality: except with
probability e, for all weights at once,

    sum_j (N_j + a_j) ln b_j - (b_j - 1)(x_j + a_j)  <=  ln(1/e) + sum_j [ ln(1 + N_j/a_j)/2 + 1/(12 a_j) ]

docs/three_state.md has the proof. The a_j must not depend on the block; they are chosen from a fixed set of
`CHOICES`, and the union bound over the set is included.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from qnode.distill.counts import Pair
from qnode.distill.keylength.enclosure import logarithm
from qnode.distill.keylength.yields import KINDS, Z_ARM

# Scales of the two arms: 4^0 .. 4^24, each by itself.
_STEP: Final = 4.0
_STEPS: Final = 25
CHOICES: Final = _STEPS**2
# A class of no expected clicks still pays 1/(12 a).
_LEAST: Final = 1.0
# The shapes as a share of usual clicks: small ones cost in the logarithm, large ones as if more had to be
# expected. Classes that weigh little take more.
_SHARE: Final = {"E": 0.3, "G": 0.1, "W": 0.5, "R": 0.3, "P": 0.05, "C": 0.05, "D": 0.3, "B": 0.1}
# What an honest link may look like; only how well the bound fits depends on it.
_USUAL_ERROR: Final = 0.1


@dataclass(frozen=True)
class Counts:
    """The observed counts of one block, per intensity, signal first.

    ``z``: sifted bits. ``wrong``: bit errors among them. ``plus``: Z arm clicks on |+>. ``central``,
    ``dark``: central slots of Z states and |+>. ``boundary``: all boundary slots.
    """

    z: Pair
    wrong: Pair
    plus: Pair
    central: Pair
    dark: Pair
    boundary: float


def shapes(counts: Counts, mu: Pair, p: Pair, p_z: float) -> tuple[float, ...]:
    """Return the gamma shapes a_j of all classes: one of `CHOICES` sets that source and ``p_z`` fix."""
    z_scale = _scale(counts.z.total)
    x_scale = _scale(counts.central.total)
    shares = usual_shares(mu, p, p_z)
    values = []
    for share in shares:
        scales = [z_scale if kind in Z_ARM else x_scale for kind in KINDS]
        values += [_SHARE[kind] * scale * share[kind] for kind, scale in zip(KINDS, scales, strict=True)]
    values.append(_SHARE["B"] * x_scale / p_z)
    return tuple(max(_LEAST, value) for value in values)


def usual_shares(mu: Pair, p: Pair, p_z: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return the clicks of each kind for one sifted bit (Z arm) or one central click of a Z state (X arm)."""
    odds = (1.0 - p_z) / p_z
    weights = (p.signal * mu.signal, p.decoy * mu.decoy)
    found = []
    for weight, mean in zip(weights, (mu.signal, mu.decoy), strict=True):
        share = weight / math.fsum(weights)
        one = share * math.exp(-mean)
        found.append(
            {
                "E": one * _USUAL_ERROR,
                "G": one * (1.0 - _USUAL_ERROR),
                "W": share * _USUAL_ERROR / 4.0,
                "R": share - one,
                "P": share * odds,
                "C": share,
                "D": share * odds * _USUAL_ERROR,
            }
        )
    return found[0], found[1]


def _scale(clicks: float) -> float:
    wanted = math.log(max(1.0, clicks)) / math.log(_STEP)
    return float(_STEP ** min(_STEPS - 1, round(wanted)))


def log_inverse_event(eps_event_root: Fraction) -> Fraction:
    """Return an upper bound on ln(1/e), e = ``eps_event_root``^2 divided by the number of `CHOICES`."""
    return logarithm(Fraction(CHOICES)).upper - 2 * logarithm(eps_event_root).lower


@dataclass(frozen=True)
class Allowance:
    """The right-hand side of the inequality, linear in the clicks that are not seen.

    ``constant`` and ``slopes``: an upper bound on it is constant + sum_j slopes_j N_j, since a logarithm lies
    below its tangent at any ``guess`` of N_j. The slope is 0 where N_j is seen.
    """

    constant: Fraction
    slopes: tuple[Fraction, ...]

    @classmethod
    def of(
        cls,
        log_inverse: Fraction,
        shape: Sequence[float],
        seen: Sequence[float | None],
        guess: Sequence[float],
    ) -> "Allowance":
        """Return it for the given shapes; ``guess`` stands in where a count is not ``seen``."""
        constant, slopes = log_inverse, []
        for a, count, guessed in zip(map(Fraction, shape), seen, map(Fraction, guess), strict=True):
            at = guessed if count is None else Fraction(count)
            slope = Fraction(0) if count is not None else 1 / (2 * (at + a))
            constant += logarithm(1 + at / a).upper / 2 + 1 / (12 * a) - slope * at
            slopes.append(slope)
        return cls(constant, tuple(slopes))
