"""Counts held against what physics and the link's parameters allow, before anybody makes key of them."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from plausible_blocks import failed, honest_link, one_block, shipped

from qnode.bench.drawn_blocks import DrawnLink
from qnode.block.decision import decide
from qnode.block.outcome import REASONS, BlockLost
from qnode.config import LinkParameters
from qnode.distill.block_counts import BlockCounts
from qnode.distill.check_table import BY_NAME, CHECKS, Finding
from qnode.distill.counts import Pair, XCounts
from qnode.distill.keylength import Assumption
from qnode.distill.plausibility import YEAR_S, chance_of_false_alarm, examine, unseen_blinding
from qnode.distill.plausibility.chance import (
    count_limits,
    dispersion_limits,
    share_limits,
    standard_deviations,
)
from qnode.distill.plausibility.measures import MEASURES
from qnode.loopback.drills import drills

replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def turin() -> DrawnLink:
    return honest_link("turin")


@pytest.fixture(scope="module")
def block(turin: DrawnLink) -> BlockCounts:
    return one_block(turin)


def test_every_check_has_a_measure_a_reason_and_words_for_what_it_points_to() -> None:
    assert list(MEASURES) == [check.name for check in CHECKS]
    assert set(BY_NAME) <= REASONS
    assert all(check.what and (check.low or check.high) for check in CHECKS)


# Chance


def _binomial_tail_above(n: int, p: float, x: int) -> float:
    return math.fsum(
        math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(p)
            + (n - k) * math.log1p(-p)
        )
        for k in range(x, min(n, x + 400) + 1)
    )


@pytest.mark.parametrize(("n", "p"), [(200, 0.02), (2000, 0.25), (100_000, 0.015), (100_000, 0.5)])
@pytest.mark.parametrize("chance", [1e-3, 1e-7, 1e-10])
def test_a_share_lies_above_its_limit_by_chance_about_as_often_as_asked(
    n: int, p: float, chance: float
) -> None:
    z = standard_deviations(chance)
    _, most = share_limits(n, 0.0, p, z)
    beyond = _binomial_tail_above(n, p, math.floor(most * n) + 1)
    assert 0.15 * chance < beyond < 1.15 * chance
    least, _ = share_limits(n, 1.0 - p, 1.0, z)
    assert least == pytest.approx(1.0 - most)


@pytest.mark.parametrize("mean", [0.5, 8.0, 55.0, 4000.0])
@pytest.mark.parametrize("chance", [1e-3, 1e-8])
def test_a_count_lies_beyond_its_limits_by_chance_about_as_often_as_asked(mean: float, chance: float) -> None:
    def probability(k: int) -> float:
        return math.exp(k * math.log(mean) - mean - math.lgamma(k + 1))

    least, most = count_limits(mean, mean, standard_deviations(chance))
    above = math.fsum(probability(k) for k in range(math.floor(most) + 1, math.floor(most) + 2000))
    below = math.fsum(probability(k) for k in range(math.ceil(least)))
    assert 0.02 * chance < above < 1.2 * chance
    assert below < 1.2 * chance
    assert below > 0.02 * chance or least == 0.0


def test_the_spread_over_the_parts_lies_beyond_its_limits_by_chance_about_as_often_as_asked() -> None:
    rng, chance = np.random.default_rng(4), 1e-3
    least, most = dispersion_limits(15, 0.0, standard_deviations(chance))
    drawn = rng.chisquare(15, 400_000)
    for beyond in (np.mean(drawn > most), np.mean(drawn < least)):
        assert 0.7 * chance < beyond < 1.3 * chance


def test_all_checks_together_give_one_false_alarm_a_year_whatever_the_length_of_a_block() -> None:
    link = LinkParameters()
    for span_s in (0.4, 131.5, 600.0):
        chance = chance_of_false_alarm(link, span_s)
        assert chance * 2 * len(CHECKS) * YEAR_S / span_s == pytest.approx(1.0)


def test_tags_that_are_played_again_and_again_are_allowed_the_chance_of_one_pass(
    turin: DrawnLink, block: BlockCounts
) -> None:
    repeats = replace(turin.link.plausibility, repeats=100.0)
    looped = replace(turin.link, plausibility=repeats)

    def fails(link: LinkParameters, factor: float) -> bool:
        n_z = Pair(block.n_z.signal, round(block.n_z.decoy * factor))
        (found,) = (one for one in examine(replace(block, n_z=n_z), link) if one.check == "intensity_z")
        return not found.plausible

    # Five standard deviations of one pass are a tenth of that of the block.
    assert fails(turin.link, 1.05)
    assert not fails(looped, 1.05)
    assert fails(looped, 1.5)


# Honest links


@pytest.mark.parametrize("name", ["turin", "turin-best", "fast"])
def test_drawn_blocks_pass_every_check_and_fail_by_chance_as_rarely_as_asked(name: str) -> None:
    link, n, chance = honest_link(name), 250, 1e-3
    beyond = dict.fromkeys(BY_NAME, 0)
    for counts in link.blocks(n, np.random.default_rng(11)):
        assert all(found.plausible for found in examine(counts, link.link))
        for found in examine(counts, link.link, chance):
            beyond[found.check] += not found.plausible
    # Twice the chance (two sides) of 250 blocks is half a block; more than five never happen.
    assert max(beyond.values()) <= 5, beyond


@pytest.mark.parametrize("name", ["turin", "turin-best", "fast"])
def test_a_shipped_link_has_the_counts_for_every_check(name: str) -> None:
    link = honest_link(name)
    found = {one.check for one in examine(one_block(link), link.link)}
    undeclared = {"dead_time", "occupancy"} if link.link.receiver.dead_time_s == 0.0 else set()
    assert found == set(BY_NAME) - undeclared


def test_a_peer_of_protocol_1_is_held_against_what_he_says(turin: DrawnLink, block: BlockCounts) -> None:
    said = replace(block, tags=None, n_z_plus=None, boundary=None, late=None)
    found = {one.check for one in examine(said, turin.link)}
    assert {"qber_z", "e_vis", "t2", "boundary_error", "boundary_plus", "intensity_z", "intensity_x"} <= found
    assert not {"rho", "cross_clicks", "late_signal"} & found
    assert failed(said, turin) == set()


# What is not honest


def _times(pair: Pair, factor: float) -> Pair:
    return Pair(round(pair.signal * factor), round(pair.decoy * factor))


def _x(block: BlockCounts, **factors: float) -> XCounts:
    return replace(block.x, **{name: _times(getattr(block.x, name), by) for name, by in factors.items()})


def _tags(block: BlockCounts, **changes: Any) -> Any:
    assert block.tags is not None
    return replace(block.tags, **changes)


def _swapped(pair: Pair) -> Pair:
    return Pair(pair.decoy, pair.signal)


ATTACKS: list[tuple[str, Any]] = [
    ("qber_z", lambda b: {"m_z": _times(b.m_z, 0.04)}),
    ("e_vis", lambda b: {"x": _x(b, c_plus=0.02)}),
    ("boundary_error", lambda b: {"x": _x(b, e_dark=40.0)}),
    ("boundary_error", lambda b: {"x": _x(b, e_dark=0.01)}),
    ("errors_z", lambda b: {"m_z": Pair(b.m_z.total - 100, 100)}),
    ("errors_x", lambda b: {"x": replace(b.x, c_plus=Pair(b.x.c_plus.total - 9, 9))}),
    ("rho", lambda b: {"n_z_plus": _times(b.n_z_plus, 0.8)}),
    ("rho", lambda b: {"n_z_plus": _times(b.n_z_plus, 1.2)}),
    ("t2", lambda b: {"boundary": round(b.boundary * 1.2)}),
    ("t2", lambda b: {"boundary": round(b.boundary * 0.8)}),
    ("boundary_plus", lambda b: {"x": _x(b, e_plus=2.0)}),
    ("boundary_same", lambda b: {"x": _x(b, e_same=0.7, e_plus=0.7)}),
    ("intensity_z", lambda b: {"n_z": Pair(b.n_z.signal, round(b.n_z.decoy * 1.06))}),
    ("intensity_z", lambda b: {"n_z": Pair(b.n_z.signal, round(b.n_z.decoy * 0.94))}),
    ("intensity_z", lambda b: {"n_z": _swapped(b.n_z), "m_z": _swapped(b.m_z)}),
    ("intensity_x", lambda b: {"x": replace(b.x, c_z=Pair(b.x.c_z.signal, round(b.x.c_z.decoy * 1.1)))}),
    ("intensity_plus", lambda b: {"n_z_plus": Pair(b.n_z_plus.signal, round(b.n_z_plus.decoy * 1.1))}),
    ("yield_z", lambda b: {"n_slots": 1e6, "tags": _tags(b, live_slots=(62_500,) * 16)}),
    ("late_signal", lambda b: {"late": Pair(round(b.late.signal * 1.1), b.late.decoy)}),
    ("late_decoy", lambda b: {"late": Pair(b.late.signal, round(b.late.decoy * 0.9))}),
    ("cross_clicks", lambda b: {"tags": _tags(b, cross_clicks=0)}),
    ("cross_clicks", lambda b: {"tags": _tags(b, cross_clicks=400)}),
    ("double_clicks", lambda b: {"tags": _tags(b, double_clicks=400)}),
    ("out_of_gate", lambda b: {"tags": _tags(b, out_of_gate=100)}),
    ("out_of_gate", lambda b: {"tags": _tags(b, out_of_gate=900_000)}),
    ("dead_time", lambda b: {"tags": _tags(b, too_close=1)}),
    ("occupancy", lambda b: {"tags": _tags(b, live_slots=tuple(n // 2 for n in b.tags.live_slots))}),
    ("arm_ratio", lambda b: {"tags": _tags(b, x_clicks=tuple(n // 4 for n in b.tags.x_clicks))}),
    ("steadiness_z", lambda b: {"tags": _tags(b, z_clicks=(b.tags.z_clicks[0] // 2, *b.tags.z_clicks[1:]))}),
    ("steadiness_x", lambda b: {"tags": _tags(b, x_clicks=(*b.tags.x_clicks[1:], 2 * b.tags.x_clicks[0]))}),
]


@pytest.mark.parametrize(
    ("check", "attack"), ATTACKS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(ATTACKS)]
)
def test_each_check_finds_what_it_is_there_for(
    turin: DrawnLink, block: BlockCounts, check: str, attack: Any
) -> None:
    changes = attack(block)
    assert check in failed(block, turin, **changes)
    with pytest.raises(BlockLost) as lost:
        decide(replace(block, **changes), turin.link)
    assert lost.value.reason in failed(block, turin, **changes)


def test_clicks_that_are_more_regular_than_chance_are_found_where_dead_time_is_no_reason() -> None:
    link = honest_link("fast")
    counts = one_block(link)
    assert counts.tags is not None
    link.link = replace(link.link, receiver=replace(link.link.receiver, dead_time_s=1e-9))
    assert failed(counts, link) == set()
    even = sum(counts.tags.z_clicks) // 16
    assert failed(counts, link, tags=replace(counts.tags, z_clicks=(even,) * 16)) == {"steadiness_z"}


def test_one_dark_part_of_a_span_does_not_silence_the_others(turin: DrawnLink, block: BlockCounts) -> None:
    assert block.tags is not None
    dark = (block.tags.live_slots[0] // 50_000, *block.tags.live_slots[1:])
    clicks = tuple(0 if part == 0 else n // (1 + (part > 8)) for part, n in enumerate(block.tags.z_clicks))
    changed = _tags(block, live_slots=dark, z_clicks=clicks, x_clicks=(0, *block.tags.x_clicks[1:]))
    assert "steadiness_z" in failed(block, turin, tags=changed)


def test_a_span_that_is_mostly_cut_is_not_plausible(turin: DrawnLink, block: BlockCounts) -> None:
    assert block.tags is not None
    mostly = tuple(n if part < 6 else 0 for part, n in enumerate(block.tags.live_slots))
    assert "live_share" in failed(block, turin, tags=_tags(block, live_slots=mostly))


@pytest.mark.parametrize("share", [0.5, 0.1, 0.002])
def test_a_peer_of_protocol_1_cannot_hide_that_boundary_clicks_are_missing(
    turin: DrawnLink, block: BlockCounts, share: float
) -> None:
    said = replace(block, tags=None, n_z_plus=None, boundary=None, late=None)
    fewer = _x(block, e_same=share, e_plus=share, e_dark=share)
    assert "t2" in failed(said, turin, x=fewer)


def test_the_list_of_assumptions_says_how_much_blinding_cross_clicks_do_not_tell(block: BlockCounts) -> None:
    link = replace(shipped("turin").link, plausibility=shipped("turin").link.plausibility)
    told = decide(block, link).assumptions[Assumption.DETECTORS_COUNT_PHOTONS]
    assert f"{unseen_blinding(block, link):.0%}" in told
    assert 0.5 < unseen_blinding(block, link) < 0.9
    assert unseen_blinding(replace(block, tags=None), link) == 1.0


def test_joint_hold_off_lets_no_cross_clicks_be_too_few(turin: DrawnLink, block: BlockCounts) -> None:
    joint = honest_link("turin")
    receiver = replace(turin.link.receiver, dead_time="joint", dead_time_s=1e-6)
    joint.link = replace(turin.link, receiver=receiver)
    assert "cross_clicks" not in failed(block, joint, tags=_tags(block, cross_clicks=0))
    assert "cross_clicks" in failed(block, joint, tags=_tags(block, cross_clicks=400))
    # A hold-off that takes longer than a slot: both are live together, for a hundredth of the time.
    slow = replace(receiver, dead_time_s=32e-6)
    joint.link = replace(turin.link, receiver=slow)
    assert "cross_clicks" not in failed(block, joint, tags=_tags(block, cross_clicks=1500))


def test_a_value_that_is_no_number_is_not_plausible() -> None:
    assert not Finding("rho", math.nan, 0.4, 0.6).plausible
    assert not Finding("rho", math.nan, None, 0.6).plausible
    assert Finding("rho", 0.5, None, None).plausible


def test_a_finding_says_value_limits_and_what_it_points_to(turin: DrawnLink, block: BlockCounts) -> None:
    (found,) = [
        one
        for one in examine(replace(block, tags=_tags(block, cross_clicks=0)), turin.link)
        if one.check == "cross_clicks"
    ]
    assert str(found).startswith("0, plausible ")
    assert str(found).endswith(f"points to {BY_NAME['cross_clicks'].low}")


# Eve's drills


# What a drill fails at Turin, drawn from the model; the page of drills says what daemons make of them.
SEEN = {
    "intercept-resend": set(),
    "photon-number-splitting": {"intensity_z", "intensity_x"},
    "damping": set(),
    "added-loss": set(),
    "blinding": {"e_vis", "t2", "boundary_error", "cross_clicks"},
    "careful-blinding": {"cross_clicks"},
    "steering": {"boundary_error"},
    "time-shift": {"out_of_gate"},
    "after-gate": {"out_of_gate"},
    "dead-time": {"out_of_gate"},
    "dead-time-z": {"out_of_gate"},
    "bright-decoy": {"intensity_z", "intensity_x"},
    "swapped-intensities": {"intensity_z", "intensity_x"},
    "bright-source": set(),
}


def test_each_drill_fails_the_checks_that_are_there_for_it() -> None:
    config = shipped("turin")
    for drill in drills(config.link):
        settings = drill.change.applied(config.simulation.settings_at(0.0))
        link = DrawnLink(config.link, config.simulation, settings)
        for counts in link.blocks(5, np.random.default_rng(6)):
            assert failed(counts, link) >= SEEN[drill.name], drill.name
            if not SEEN[drill.name]:
                assert failed(counts, link) == set(), drill.name
    assert set(SEEN) == {drill.name for drill in drills(config.link)}


def test_what_no_check_finds_is_charged_or_does_no_harm_or_is_an_assumption() -> None:
    config = shipped("turin-best")
    key = {}
    for drill in drills(config.link):
        settings = drill.change.applied(config.simulation.settings_at(0.0))
        counts = one_block(DrawnLink(config.link, config.simulation, settings))
        try:
            key[drill.name] = decide(counts, config.link).length
        except BlockLost:
            key[drill.name] = 0
    given = {name for name, length in key.items() if length}
    # Errors are charged and loss is the channel's; a common scale is what only a power monitor sees.
    assert given == {"intercept-resend", "added-loss", "bright-source"}
    honest = decide(one_block(honest_link("turin-best")), config.link).length
    assert key["intercept-resend"] < 0.8 * honest


# Intensities that are not the configured ones


@pytest.mark.parametrize("decoy", [0.3, 0.4, 0.22, 0.24, 0.18, 0.16])
def test_a_decoy_that_is_not_the_configured_one_gives_no_key(decoy: float) -> None:
    sends = shipped("turin")
    sent = replace(sends.link, source=replace(sends.link.source, mu=(0.5, decoy)))
    link = DrawnLink(sent, sends.simulation)
    for counts in link.blocks(20, np.random.default_rng(3)):
        with pytest.raises(BlockLost) as lost:
            decide(counts, sends.link)
        assert lost.value.reason in ("intensity_z", "intensity_x", "errors_z", "errors_x")


def test_what_the_uncertainty_covers_is_no_reason_to_discard() -> None:
    sends = shipped("turin")
    configured = replace(sends.link, source=replace(sends.link.source, mu_uncertainty=(0.01, 0.01)))
    sent = replace(sends.link, source=replace(sends.link.source, mu=(0.5 * 0.99, 0.2 * 1.01)))
    for counts in DrawnLink(sent, sends.simulation).blocks(20, np.random.default_rng(3)):
        assert decide(counts, configured).length > 0
