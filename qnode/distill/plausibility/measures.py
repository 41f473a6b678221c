"""The measures of `CHECKS`: the value of each check, and the limits of an honest block.

A measure returns None if the block does not have the counts for it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from qnode.distill.counts import Pair, TagCounts
from qnode.distill.keylength.shares import rho_of, t2_of
from qnode.distill.plausibility.chance import Limits, count_limits, dispersion_limits, share_limits
from qnode.distill.plausibility.facts import LEAST_LIVE, Facts

# The least live part of a span; otherwise the rest may hide an attack.
_LEAST_LIVE_SHARE: Final = 0.5
_FEWEST_EXPECTED: Final = 5.0
_LITTLE_OCCUPIED: Final = 0.1


@dataclass(frozen=True)
class Measured:
    """A value and the limits within which it is plausible, chance included; None: no limit on that side."""

    value: float
    least: float | None
    most: float | None


Measure = Callable[[Facts], Measured | None]


def _share(n: float, x: float, limits: Limits, z: float) -> Measured | None:
    if n <= 0.0:
        return None
    least, most = share_limits(n, *limits, z)
    return Measured(x / n, least, most)


def _odds(part: float, rest: float, limits: Limits, z: float, scale: float) -> Measured | None:
    """Measure ``scale * part / rest``, which lies between ``limits``, through the share of ``part``."""
    if rest <= 0.0:
        return None
    shares = [odds / (scale + odds) for odds in limits]
    least, most = share_limits(part + rest, shares[0], shares[1], z)
    return Measured(scale * part / rest, _to_odds(least, scale), _to_odds(most, scale))


def _to_odds(share: float, scale: float) -> float | None:
    return scale * share / (1.0 - share) if share < 1.0 else None


def _around_half(facts: Facts) -> Limits:
    tolerance = facts.link.plausibility.balance_tolerance
    return 0.5 - tolerance, 0.5 + tolerance


# --- errors -------------------------------------------------------------------------------------------------


def _qber_z(facts: Facts) -> Measured | None:
    n, m, most = facts.counts.n_z.total, facts.counts.m_z.total, facts.link.block.qber_z_limit
    found = _share(n, m, (facts.link.plausibility.least_error_z, 1.0), facts.z)
    return None if found is None else Measured(found.value, found.least, most)


def _e_vis(facts: Facts) -> Measured | None:
    x, scale = facts.counts.x, facts.p_z / (2.0 * facts.p_x)
    limits = (facts.link.plausibility.least_error_x, facts.link.block.e_vis_limit)
    found = _odds(x.c_plus.total, x.c_z.total, limits, facts.z, scale)
    return None if found is None else Measured(found.value, found.least, limits[1])


def _boundary_error(facts: Facts) -> Measured | None:
    x, limits = facts.counts.x, (facts.link.plausibility.least_error_z, facts.link.block.qber_z_limit)
    return _odds(x.e_dark.total, x.e_same.total, limits, facts.z, 1.0)


def _errors_by_intensity(facts: Facts, errors: Pair) -> Measured | None:
    """Measure the decoy's share of errors: noise knows no intensity, two photons know its square."""
    (p1, p2), (least_ratio, _) = facts.link.source.p, facts.mu_ratio
    square = least_ratio**2
    return _share(errors.total, errors.decoy, (p2 * square / (p1 + p2 * square), p2), facts.z)


# --- the channel between |+> and |-> ------------------------------------------------------------------------


def _rho(facts: Facts) -> Measured | None:
    plus = facts.counts.n_z_plus
    if plus is None:
        return None
    scale = rho_of(1.0, facts.p_z)
    return _odds(plus.total, facts.counts.n_z.total, _around_half(facts), facts.z, scale)


def _t2(facts: Facts) -> Measured | None:
    central, boundary = facts.counts.x.c_z.total, facts.counts.boundary
    if boundary is None:  # protocol 1 has the classes alone
        return _odds(central, facts.counts.x.e_same.total, _around_half(facts), facts.z, facts.p_z / 4.0)
    scale = t2_of(1.0, 0.5, facts.p_z)  # with rho at one half
    return _odds(central, boundary, _around_half(facts), facts.z, scale)


def _boundary_plus(facts: Facts) -> Measured | None:
    x, (least, most) = facts.counts.x, _around_half(facts)
    scale = facts.p_z / (2.0 * facts.p_x)
    limits = (least, most + facts.link.block.qber_z_limit)
    return _odds(x.e_plus.total, x.e_same.total, limits, facts.z, scale)


def _boundary_same(facts: Facts) -> Measured | None:
    boundary = facts.counts.boundary
    if not boundary:
        return None
    tolerance = 2.0 * facts.link.plausibility.balance_tolerance
    share = 0.5 * facts.p_z**2  # two Z states in a row, half of them |0>|0> or |1>|1>
    limits = (share * (1.0 - tolerance), share * (1.0 + tolerance))
    return _share(boundary, facts.counts.x.e_same.total, limits, facts.z)


# --- photon statistics --------------------------------------------------------------------------------------


def _intensity(facts: Facts, right: Pair, wrong: Pair, weight: float) -> Measured | None:
    """Measure mu2/mu1 from ``right`` less ``weight`` times ``wrong``, in which noise cancels."""
    seen, noise = facts.per_probability(right), facts.per_probability(wrong)
    signal, decoy = seen.signal - weight * noise.signal, seen.decoy - weight * noise.decoy
    p1, p2 = facts.link.source.p
    deviation_signal = math.sqrt(seen.signal / p1 + weight**2 * noise.signal / p1)
    deviation_decoy = math.sqrt(seen.decoy / p2 + weight**2 * noise.decoy / p2)
    if signal <= 2.0 * facts.z * deviation_signal:
        return None
    least, most = facts.mu_ratio
    light_z, light_x = facts.light
    most *= 1.0 + (light_z + light_x) * (1.0 - most)  # a click takes several photons once, and cross clicks

    def chance(ratio: float) -> float:
        return facts.z * math.hypot(deviation_decoy, ratio * deviation_signal) / signal

    return Measured(decoy / signal, least - chance(least), most + chance(most))


def _intensity_z(facts: Facts) -> Measured | None:
    n, m = facts.counts.n_z, facts.counts.m_z
    right = Pair(n.signal - m.signal, n.decoy - m.decoy)
    return _intensity(facts, right, m, 1.0)


def _intensity_x(facts: Facts) -> Measured | None:
    x = facts.counts.x
    return _intensity(facts, x.c_z, x.c_plus, facts.p_z / facts.p_x)


def _intensity_plus(facts: Facts) -> Measured | None:
    """Measure the decoy's share of the clicks on |+>, less that of the clicks on Z states."""
    plus, n = facts.counts.n_z_plus, facts.counts.n_z
    if plus is None or plus.total <= 0.0 or n.total <= 0.0:
        return None
    share = (plus.decoy + n.decoy) / (plus.total + n.total)
    chance = facts.z * math.sqrt(share * (1.0 - share) * (1.0 / plus.total + 1.0 / n.total))
    # A cross click's random arm takes Z clicks of bright qubits, and those of Z states a little more often.
    allowed = chance + (0.01 + facts.light[1]) * share
    return Measured(plus.decoy / plus.total - n.decoy / n.total, -allowed, allowed)


def _yield_z(facts: Facts) -> Measured | None:
    """Measure how many of the qubits with a photon at all would have to be detected."""
    if facts.live_slots <= 0.0:
        return None
    worst = Measured(0.0, None, 1.0)
    n = facts.per_probability(facts.counts.n_z)
    for seen, mu in zip((n.signal, n.decoy), facts.link.source.mu, strict=True):
        photons = facts.live_slots * facts.p_z * -math.expm1(-mu)
        value = seen / photons
        if value >= worst.value:
            worst = Measured(value, None, 1.0 + facts.z / math.sqrt(photons))
    return worst


# --- tags ---------------------------------------------------------------------------------------------------


def _late(facts: Facts, late: float, n: float) -> Measured | None:
    tolerance = facts.link.plausibility.late_tolerance
    return _share(n, late, (0.5 - tolerance, 0.5 + tolerance), facts.z)


def _late_signal(facts: Facts) -> Measured | None:
    late, n = facts.counts.late, facts.counts.n_z
    return None if late is None else _late(facts, late.signal, n.signal)


def _late_decoy(facts: Facts) -> Measured | None:
    late, n = facts.counts.late, facts.counts.n_z
    return None if late is None else _late(facts, late.decoy, n.decoy)


def _bunching(facts: Facts) -> float:
    """Return E[mu^2] / E[mu]^2: how much more often two photons are there than in light of one intensity."""
    (mu1, mu2), (p1, p2) = facts.link.source.mu, facts.link.source.p
    return (p1 * mu1**2 + p2 * mu2**2) / (p1 * mu1 + p2 * mu2) ** 2


def accidental_cross_clicks(facts: Facts, tags: TagCounts) -> float | None:
    """Return in how many slots both arms click by chance, each arm live on its own; None if unknown."""
    boundary = facts.counts.boundary
    if boundary is None or facts.live_slots <= 0.0:
        return None
    z_slots, x_slots = facts.clicked_slots(tags)
    # Half of the light in boundary slots is of the qubit before: the Z arm's click gives no information about
    # it.
    of_another = 0.5 * boundary / max(1.0, boundary + facts.counts.x.central)
    together = (1.0 - of_another) * _bunching(facts) + of_another
    return z_slots * x_slots / facts.live_slots * together


def _cross_clicks(facts: Facts) -> Measured | None:
    tags = facts.counts.tags
    accidental = None if tags is None else accidental_cross_clicks(facts, tags)
    if tags is None or accidental is None:
        return None
    seen, factor = float(tags.cross_clicks), facts.link.plausibility.cross_click_factor
    if facts.link.receiver.dead_time == "independent":
        return Measured(seen, *count_limits(accidental / factor, accidental * factor, facts.z))
    # Both are live together; a slow hold-off lets the second click of a slot through, a fast one none.
    occupied = facts.occupancies(tags)
    if occupied is None:
        return None
    most = factor * accidental / max(LEAST_LIVE, 1.0 - occupied[0])
    return Measured(seen, None, count_limits(0.0, most, facts.z)[1])


def _double_clicks(facts: Facts) -> Measured | None:
    tags = facts.counts.tags
    if tags is None or facts.live_slots <= 0.0:
        return None
    z_slots, x_slots = facts.clicked_slots(tags)
    # Two bins share the light of a slot in each arm; more than half of the pairs never fall into both.
    accidental = 0.5 * (z_slots**2 + x_slots**2) / facts.live_slots * _bunching(facts)
    most = facts.link.plausibility.cross_click_factor * accidental
    return Measured(float(tags.double_clicks), None, count_limits(0.0, most, facts.z)[1])


def _out_of_gate(facts: Facts) -> Measured | None:
    """Measure the share of tags outside the gates: beside light, noise, of which half makes errors inside."""
    tags, x, source = facts.counts.tags, facts.counts.x, facts.link.source
    if tags is None or facts.counts.n_z.total <= 0.0:
        return None
    least, most = facts.link.plausibility.out_of_gate
    errors = max(facts.counts.qber_z, x.e_dark.total / x.e_same.total if x.e_same.total else 0.0)
    outside_for_inside = source.period_ps / (2.0 * facts.link.receiver.gate_width_ps) - 1.0
    most = min(1.0, most + 2.0 * errors * outside_for_inside)
    n = tags.out_of_gate + sum(facts.clicked_slots(tags))
    return _share(n, tags.out_of_gate, (least, most), facts.z)


def _dead_time(facts: Facts) -> Measured | None:
    tags = facts.counts.tags
    if tags is None or facts.link.receiver.dead_time_s <= 0.0:
        return None
    return Measured(float(tags.too_close), None, 0.0)


def _live_share(facts: Facts) -> Measured | None:
    if facts.counts.tags is None or facts.counts.n_slots <= 0.0:
        return None
    return Measured(facts.live_slots / facts.counts.n_slots, _LEAST_LIVE_SHARE, None)


def _occupancy(facts: Facts) -> Measured | None:
    """Measure for what share of the time the clicks inside gates alone keep the busier detector blind."""
    tags = facts.counts.tags
    occupied = None if tags is None else facts.occupancies(tags)
    if tags is None or occupied is None:
        return None
    return Measured(max(occupied) / facts.tags_per_click(tags), None, 1.01)


def _arm_ratio(facts: Facts) -> Measured | None:
    tags = facts.counts.tags
    if tags is None:
        return None
    return _odds(
        float(sum(tags.x_clicks)), float(sum(tags.z_clicks)), facts.link.plausibility.arm_ratio, facts.z, 1.0
    )


def _steadiness(facts: Facts, tags: TagCounts, parts: tuple[int, ...], arm: int) -> Measured | None:
    """Measure the chi-square of the clicks in the parts of the span against one constant rate.

    Dead time makes counts more regular than chance, by the square of the live fraction; only where it hardly
    matters, clicks may be too regular.
    """
    total = sum(parts)
    expected_of = [total * slots / max(1.0, facts.live_slots) for slots in tags.live_slots]
    # A part that is nearly all cut says nothing, and must not silence the others.
    pairs = [(n, mean) for n, mean in zip(parts, expected_of, strict=True) if mean >= _FEWEST_EXPECTED]
    if len(pairs) < 2:
        return None
    degrees = len(pairs) - 1
    extra = 0.25 * facts.link.plausibility.drift**2 * total
    least, most = dispersion_limits(degrees, extra, facts.z)
    occupied = facts.occupancies(tags)
    if facts.link.receiver.dead_time_s <= 0.0 or occupied is None:
        least = 0.0
    else:
        least *= max(0.0, 1.0 - 1.1 * occupied[arm]) ** 2
    return Measured(
        sum((n - expected) ** 2 / expected for n, expected in pairs) / degrees,
        least / degrees,
        most / degrees,
    )


def _steadiness_z(facts: Facts) -> Measured | None:
    tags = facts.counts.tags
    return None if tags is None else _steadiness(facts, tags, tags.z_clicks, 0)


def _steadiness_x(facts: Facts) -> Measured | None:
    tags = facts.counts.tags
    return None if tags is None else _steadiness(facts, tags, tags.x_clicks, 1)


MEASURES: Final[Mapping[str, Measure]] = {
    "qber_z": _qber_z,
    "e_vis": _e_vis,
    "boundary_error": _boundary_error,
    "errors_z": lambda facts: _errors_by_intensity(facts, facts.counts.m_z),
    "errors_x": lambda facts: _errors_by_intensity(facts, facts.counts.x.c_plus),
    "rho": _rho,
    "t2": _t2,
    "boundary_plus": _boundary_plus,
    "boundary_same": _boundary_same,
    "intensity_z": _intensity_z,
    "intensity_x": _intensity_x,
    "intensity_plus": _intensity_plus,
    "yield_z": _yield_z,
    "late_signal": _late_signal,
    "late_decoy": _late_decoy,
    "cross_clicks": _cross_clicks,
    "double_clicks": _double_clicks,
    "out_of_gate": _out_of_gate,
    "dead_time": _dead_time,
    "live_share": _live_share,
    "occupancy": _occupancy,
    "arm_ratio": _arm_ratio,
    "steadiness_z": _steadiness_z,
    "steadiness_x": _steadiness_x,
}
