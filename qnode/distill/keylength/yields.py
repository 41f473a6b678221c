"""What the adversary can do, seen from the counts: the cone of expected clicks by photon number.

Every slot of a block ends in at most one of fifteen classes. Seven exist once for each intensity:

    E, G   Z arm, Alice sent a Z state of one photon; were it measured in X: phase error, or none
    W, R   Z arm, a Z state of no or several photons; bit wrong, or right
    P      Z arm, Alice sent |+>
    C, D   central slot of the X arm, Alice sent a Z state; |+> (the dark port: errors)

and one for both together: B, a boundary slot of the X arm. E and G are not seen apart, nor from R.

The expected clicks of a class are a sum over photon numbers, and those of the two intensities stand in the
ratio of the Poisson probabilities. So all that an adversary can bring about is a sum of non-negative
multiples of a few generators (docs/three_state.md derives them). A linear statement about expected clicks
holds for every attack when it holds for every generator.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Final

from qnode.distill.counts import Pair
from qnode.distill.keylength.enclosure import Enclosure, exponential

KINDS: Final = ("E", "G", "W", "R", "P", "C", "D")
Z_ARM: Final = ("E", "G", "W", "R", "P")
# Classes by index: signal, decoy, and the boundary slots, which are not told apart by intensity.
CLASSES: Final = (*(f"{kind}{k}" for k in (1, 2) for kind in KINDS), "B")
BOUNDARY: Final = len(CLASSES) - 1

Clicks = Mapping[int, Fraction]  # expected clicks by place in CLASSES
Signal = Mapping[str, Fraction]  # expected clicks at the signal intensity by kind, 0 where absent
_UNIT: Final = Fraction(1)
_NONE: Final = Fraction(0)


def class_index(kind: str, intensity: int) -> int:
    """Return the place in `CLASSES` of a kind at an intensity, 0 for the signal and 1 for the decoy."""
    return intensity * len(KINDS) + KINDS.index(kind)


@dataclass(frozen=True)
class Emission:
    """What Alice sends, in exact numbers.

    ``decoy_share``: the ratio p_2 P_2(n) / (p_1 P_1(n)) of decoy to signal for n = 0, 1, 2 photons, with
    P_k(n) Poisson's probability; it falls with n towards 0. ``plus_odds``: p_X / p_Z.
    """

    decoy_share: tuple[Enclosure, Enclosure, Enclosure]
    plus_odds: Fraction

    @classmethod
    def of(cls, mu: Pair, p: Pair, p_z: float) -> "Emission":
        """Return it for mean photon numbers ``mu``, probabilities ``p`` and the share ``p_z`` of Z states."""
        signal, decoy = Fraction(mu.signal), Fraction(mu.decoy)
        factor = exponential(signal - decoy)
        chosen = Fraction(p.decoy) / Fraction(p.signal)
        shares = [chosen * (decoy / signal) ** n for n in range(3)]
        zero, one, two = (Enclosure(share * factor.lower, share * factor.upper).rounded() for share in shares)
        return cls((zero, one, two), (1 - Fraction(p_z)) / Fraction(p_z))


@dataclass(frozen=True)
class Generator:
    """Expected clicks by place in `CLASSES`: ``fixed`` + arm ratio * ``scaled``; absent ones are 0.

    The arm ratio is that of expected boundary clicks to those of the Z arm.
    """

    fixed: Clicks
    scaled: Clicks

    @cached_property
    def in_integers(self) -> tuple[Mapping[int, int], Mapping[int, int]]:
        """Return a multiple of ``fixed`` and ``scaled`` in integers: the same direction, quicker to check."""
        unit = math.lcm(*(x.denominator for x in (*self.fixed.values(), *self.scaled.values())))
        fixed, scaled = (
            {j: x.numerator * (unit // x.denominator) for j, x in clicks.items()}
            for clicks in (self.fixed, self.scaled)
        )
        return fixed, scaled


@lru_cache(maxsize=16)  # the bounds of one block ask for the same
def generators(emission: Emission) -> tuple[Generator, ...]:
    """Return generators whose cone holds the expected clicks of every attack at a given arm ratio.

    Each generator is linear in the decoy's share, so the ends of its interval suffice.
    """
    found = []
    for clicks, scaled, shares in _signal_clicks(emission):
        for share in shares:
            added = _both_intensities(scaled, share)
            added[BOUNDARY] = (1 + share) * sum((clicks.get(kind, _NONE) for kind in Z_ARM), _NONE)
            found.append(Generator(_both_intensities(clicks, share), added))
    return tuple(found)


def _both_intensities(signal: Signal, share: Fraction) -> dict[int, Fraction]:
    """Return the clicks by class, those of the decoy being ``share`` times the signal's."""
    return {
        class_index(kind, k): clicks * part
        for kind, clicks in signal.items()
        for k, part in ((0, 1), (1, share))
    }


def _signal_clicks(emission: Emission) -> Iterator[tuple[Signal, Signal, tuple[Fraction, ...]]]:
    """Yield the signal's clicks of each generator, what the arm ratio multiplies, and the decoy's share.

    A photon that is sure to click somewhere in the Z arm clicks in the X arm's boundary slots with the arm
    ratio as its chance, and in the central slot with twice that times its chance to be found as |->.
    """
    odds = emission.plus_odds
    zero, one, two = emission.decoy_share
    # No photon: Alice's state does not matter. Half of the bits are wrong; |+> to Z states as p_X to p_Z.
    half = Fraction(1, 2)
    empty: Signal = {"W": half, "R": half, "P": odds}
    yield empty, {}, zero
    yield empty, {"C": Fraction(2), "D": 2 * odds}, zero
    # One photon: a Z state is |+> or |-> with equal chance. Bob would find it as |-> or |+>.
    each = 1 / (2 * odds)
    yield {"E": each, "P": _UNIT}, {"C": 2 * each, "D": 2 * _UNIT}, one  # |+> found as |->
    yield {"G": each, "P": _UNIT}, {}, one  # |+> found as |+>
    yield {"G": _UNIT}, {"C": 2 * _UNIT}, one  # |-> found as |->
    yield {"E": _UNIT}, {}, one  # |-> found as |+>
    # Two photons and more: nothing relates |+> to the Z states, but central clicks come with Z arm clicks.
    # The decoy's share lies between 0 and that of two photons.
    several = (_NONE, two.upper)
    for kind, central in (("W", "C"), ("R", "C"), ("P", "D")):
        yield {kind: _UNIT}, {}, several
        yield {kind: _UNIT}, {central: 2 * _UNIT}, several
