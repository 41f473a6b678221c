"""The effect of a transmitter whose intensities differ from the link's: visible in the counts, or not.

A decoy of another brightness changes the ratio of the clicks of both intensities. Chance and calibration hide
a small deviation. Then the estimator uses wrong intensities and the key is too long. ``mu_uncertainty``
covers deviations up to its value.
"""

import math
from dataclasses import dataclass
from typing import Final

import msgspec.structs
import numpy as np

from qnode.bench.drawn_blocks import DrawnLink
from qnode.block.decision import decide, key_length
from qnode.block.outcome import BlockLost
from qnode.config import LinkParameters
from qnode.distill.check_table import Finding
from qnode.distill.keylength import KeyLength
from qnode.distill.plausibility import chance_of_false_alarm, examine
from qnode.distill.plausibility.chance import standard_deviations
from qnode.plan.forecast import USUAL_F_EC, forecast
from qnode.simulate.parameters import SimulationParameters

CHECK: Final = "intensity_z"
_BISECTIONS: Final = 40


@dataclass(frozen=True)
class Threshold:
    """The decoy from which on the counts reveal the deviation, on one side.

    ``decoy``: the mean photon number sent when the measured ratio lies at its limit. ``deviation``: the
    change of the sent decoy that moves the ratio by one standard deviation.
    """

    decoy: float
    deviation: float


def with_decoy(link: LinkParameters, decoy: float, signal: float | None = None) -> LinkParameters:
    """Return the link with other intensities, exactly known; they may be swapped, so nothing is checked."""
    mu = (link.source.mu[0] if signal is None else signal, decoy)
    source = msgspec.structs.replace(link.source, mu=mu, mu_uncertainty=(0.0, 0.0))
    return msgspec.structs.replace(link, source=source)


def threshold(link: LinkParameters, simulation: SimulationParameters, *, brighter: bool) -> Threshold:
    """Return the threshold at which `CHECK` detects a decoy brighter or weaker than the link's."""
    span_s = forecast(simulation, link).span_s
    z = standard_deviations(chance_of_false_alarm(link, span_s))

    def beyond(decoy: float) -> float:
        """Return the distance of the expected ratio beyond its limit, in standard deviations."""
        found = _expected(link, simulation, decoy)
        assert found.least is not None
        assert found.most is not None
        least, most = link_ratio(link)
        if brighter:
            return (found.value - found.most) / ((found.most - most) / z)
        return (found.least - found.value) / ((least - found.least) / z)

    mu2 = link.source.mu[1]
    low, high = 1.0, (1.5 if brighter else 0.5)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if beyond(mu2 * middle) < 0.0:
            low = middle
        else:
            high = middle
    at = mu2 * high
    step = 0.001 * mu2 * (1.0 if brighter else -1.0)
    slope = (beyond(at + step) - beyond(at - step)) / (2.0 * step)
    return Threshold(at, abs(1.0 / slope))


def link_ratio(link: LinkParameters) -> tuple[float, float]:
    """Return the least and the greatest mu2/mu1 that the calibration allows."""
    (mu1, mu2), (off1, off2) = link.source.mu, link.source.mu_uncertainty
    return mu2 * (1.0 - off2) / (mu1 * (1.0 + off1)), mu2 * (1.0 + off2) / (mu1 * (1.0 - off1))


def _expected(link: LinkParameters, simulation: SimulationParameters, decoy: float) -> Finding:
    counts = DrawnLink(with_decoy(link, decoy), simulation).expected()
    (found,) = (one for one in examine(counts, link) if one.check == CHECK)
    return found


@dataclass(frozen=True)
class Outcome:
    """The outcome of blocks: the numbers discarded by `CHECK`, discarded by any check, and without key."""

    blocks: int
    by_check: int
    by_any: int
    without_key: int
    reasons: dict[str, int]


def outcome(
    link: LinkParameters,
    sent: LinkParameters,
    simulation: SimulationParameters,
    blocks: int,
    seed: int = 1,
) -> Outcome:
    """Draw honest blocks of the sent intensities, and check them with the link's intensities."""
    by_check = by_any = without_key = 0
    reasons: dict[str, int] = {}
    for counts in DrawnLink(sent, simulation).blocks(blocks, np.random.default_rng(seed)):
        failed = {one.check for one in examine(counts, link) if not one.plausible}
        by_check += CHECK in failed
        by_any += bool(failed)
        try:
            decide(counts, link)
        except BlockLost as lost:
            without_key += 1
            reasons[lost.reason] = reasons.get(lost.reason, 0) + 1
    return Outcome(blocks, by_check, by_any, without_key, reasons)


def lengths(
    link: LinkParameters, sent: LinkParameters, simulation: SimulationParameters, f_ec: float = USUAL_F_EC
) -> tuple[int | None, int | None]:
    """Return the key length that the link claims for the sent intensities, and the right one, or None."""
    counts = forecast(simulation, sent, f_ec).counts

    def length(judge: LinkParameters) -> int | None:
        try:
            found: KeyLength = key_length(counts, judge)
        except BlockLost:
            return None
        return found.length

    return length(link), length(sent)


def excess(claimed: int | None, right: int | None) -> float:
    """Return the excess of a length as a fraction; 0 if there is none, infinite if no key is right."""
    if not claimed:
        return 0.0
    return max(0.0, claimed / right - 1.0) if right else math.inf
