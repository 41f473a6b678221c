"""The plausibility checks: whether the public counts of a block can come from the configured link.

The estimators assume that counts are true. Before them, each derived probability is compared with two limits.
The limits follow from the link's parameters, from the tolerances of optics and electronics
(``[link.plausibility]``), and from chance. `examine` returns every value with its limits; the first one
outside discards the block. Observations never move the limits.

All checks together give ``false_alarms_per_year`` false alarms at an honest link. The probability of each
side of a check is this number divided by the blocks of a year and the number of sides.
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
# Otherwise a link with blocks of hours would have limits below three standard deviations.
_MOST_CHANCE: Final = 1e-3 / SIDES

__all__ = ["chance_of_false_alarm", "examine", "unseen_blinding"]


def chance_of_false_alarm(link: LinkParameters, span_s: float) -> float:
    """Return the false-alarm probability of one side of one check, for blocks of ``span_s`` seconds."""
    if span_s <= 0.0:
        return _MOST_CHANCE
    return min(_MOST_CHANCE, link.plausibility.false_alarms_per_year * span_s / YEAR_S / SIDES)


def examine(
    counts: BlockCounts, link: LinkParameters, false_alarm: float | None = None
) -> tuple[Finding, ...]:
    """Return the result of every check for which the block has the counts, in the order of `CHECKS`.

    ``false_alarm``: the probability of one side of one check; None: that of the link.
    """
    facts = Facts(counts, link, _standard_deviations(counts, link, false_alarm))
    found = ((check, MEASURES[check.name](facts)) for check in CHECKS)
    return tuple(_finding(check, one) for check, one in found if one is not None)


def unseen_blinding(counts: BlockCounts, link: LinkParameters) -> float:
    """Return the share of a block that may have been blinded, with all else imitated, without detection.

    Such light makes no cross clicks, so their lower limit determines the share. 1 if there is no limit.
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
