"""Whether the public counts of a block can come from the link they are said to come from.

The estimators take counts at their word. Before them each derived probability is held against two limits that
follow from the link's parameters, from what optics and electronics are allowed to be inexact in
(``[link.plausibility]``), and from chance. `examine` returns every value with its limits; the first that lies
outside discards the block. Limits never move with what was seen.

All checks together give ``false_alarms_per_year`` false alarms at an honest link, so that each side of a
check has a chance of that many a year, over the blocks of a year and the number of sides.
"""

import math
from typing import Final

import msgspec.structs

from qnode.config import LinkParameters
from qnode.distill.block_counts import BlockCounts
from qnode.distill.check_table import CHECKS, Check, Finding
from qnode.distill.plausibility.chance import standard_deviations
from qnode.distill.plausibility.facts import Facts
from qnode.distill.plausibility.measures import MEASURES, Measured, accidental_cross_clicks

YEAR_S: Final = 365.25 * 86_400.0
SIDES: Final = 2 * len(CHECKS)
# A link whose blocks take hours would else be allowed less than three standard deviations.
_MOST_CHANCE: Final = 1e-3 / SIDES

__all__ = ["chance_of_false_alarm", "examine", "unseen_blinding"]


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
    facts = Facts(counts, link, _standard_deviations(counts, link, false_alarm))
    found = ((check, MEASURES[check.name](facts)) for check in CHECKS)
    return tuple(_finding(check, one) for check, one in found if one is not None)


def unseen_blinding(counts: BlockCounts, link: LinkParameters) -> float:
    """Return for which share of a block detectors may obey bright light with all else faked, and not be told.

    Such light makes no cross clicks; their lower limit is what it must not fall below. 1 where there is none.
    """
    facts = Facts(counts, link, _standard_deviations(counts, link, None))
    expected = None if counts.tags is None else accidental_cross_clicks(facts, counts.tags)
    found = MEASURES["cross_clicks"](facts)
    if not expected or found is None or found.least is None:
        return 1.0
    return max(0.0, 1.0 - found.least / expected)


def _standard_deviations(counts: BlockCounts, link: LinkParameters, false_alarm: float | None) -> float:
    if false_alarm is None:
        false_alarm = chance_of_false_alarm(link, counts.n_slots / link.source.qubit_rate_hz)
    return standard_deviations(false_alarm) * math.sqrt(link.plausibility.repeats)


def _finding(check: Check, one: Measured) -> Finding:
    finding = Finding(check.name, one.value, one.least, one.most)
    if finding.plausible:
        return finding
    return msgspec.structs.replace(finding, points_to=check.low if finding.too_low else check.high)
