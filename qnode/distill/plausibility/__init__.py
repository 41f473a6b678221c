"""Whether the public counts of a block can come from the link they are said to come from.

The estimators take counts at their word. Before them each derived probability is held against two limits that
follow from the link's parameters, from what optics and electronics are allowed to be inexact in
(``[link.plausibility]``), and from chance. `examine` returns every value with its limits; the first that lies
outside discards the block. Limits never move with what was seen.

All checks together give ``false_alarms_per_year`` false alarms at an honest link, so that each side of a
check has a chance of that many a year, over the blocks of a year and the number of sides.
"""

from typing import Final

from msgspec import Struct

from qnode.config import LinkParameters
from qnode.distill.block_counts import BlockCounts
from qnode.distill.plausibility.chance import standard_deviations
from qnode.distill.plausibility.checks import CHECKS, Check
from qnode.distill.plausibility.facts import Facts

YEAR_S: Final = 365.25 * 86_400.0
SIDES: Final = 2 * len(CHECKS)
# A link whose blocks take hours would else be allowed less than three standard deviations.
_MOST_CHANCE: Final = 1e-3 / SIDES
BY_NAME: Final = {check.name: check for check in CHECKS}

__all__ = ["BY_NAME", "CHECKS", "Check", "Finding", "chance_of_false_alarm", "examine"]


class Finding(Struct, frozen=True):
    """What one check found: ``value``, and the limits within which it is plausible."""

    check: str
    value: float
    least: float
    most: float

    @property
    def plausible(self) -> bool:
        """Tell whether the value lies within the limits (not a number does not)."""
        return self.least <= self.value <= self.most

    @property
    def points_to(self) -> str:
        """What a value on this side of the limits points to; empty where it is plausible."""
        if self.plausible:
            return ""
        check = BY_NAME[self.check]
        return check.low if self.value < self.least else check.high

    def __str__(self) -> str:
        limits = f"{self.value:.6g}, plausible {self.least:.6g} to {self.most:.6g}"
        return limits if self.plausible else f"{limits}: points to {self.points_to}"


def chance_of_false_alarm(link: LinkParameters, span_s: float) -> float:
    """Return the chance of one side of one check at an honest link, for blocks of ``span_s`` seconds."""
    if span_s <= 0.0:
        return _MOST_CHANCE
    return min(_MOST_CHANCE, link.plausibility.false_alarms_per_year * span_s / YEAR_S / SIDES)


def examine(
    counts: BlockCounts, link: LinkParameters, false_alarm: float | None = None
) -> tuple[Finding, ...]:
    """Return what every check finds that the block has the counts for, in the order of `CHECKS`.

    ``false_alarm``: the chance of one side of one check, None for what the link asks for.
    """
    if false_alarm is None:
        false_alarm = chance_of_false_alarm(link, counts.n_slots / link.source.qubit_rate_hz)
    facts = Facts(counts, link, standard_deviations(false_alarm))
    found = ((check.name, check.measure(facts)) for check in CHECKS)
    return tuple(Finding(name, one.value, one.least, one.most) for name, one in found if one is not None)
