"""What becomes of a block: each limit, what the estimator is told, and what disclosed bits cost."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace
from plausible_blocks import honest_link, one_block

from qnode.block.decision import (
    MOST_ANNOUNCED_CLICKS,
    MOST_SIFTED_BITS,
    assumptions,
    check_clicks,
    check_size,
    decide,
    judge,
    key_length,
    verification_bits,
)
from qnode.block.disclosed import Disclosed
from qnode.block.outcome import BlockLost
from qnode.config import LinkParameters
from qnode.distill.amplification.amplify import seed_length_bytes
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import Pair
from qnode.distill.estimation import inputs_from_block, visibility_error
from qnode.distill.keylength import Assumption, estimate
from qnode.distill.plausibility import examine
from qnode.distill.reconcile import MIN_BLOCK_BITS
from qnode.units import BULK_BYTES

TURIN = honest_link("turin")
LINK: LinkParameters = TURIN.link
GOOD: BlockCounts = one_block(TURIN)
NONE = Pair(0.0, 0.0)


def limited(**changes: Any) -> LinkParameters:
    """Return the link with other limits of a block."""
    return replace(LINK, block=replace(LINK.block, **changes))


def estimated(**changes: Any) -> LinkParameters:
    return replace(LINK, estimation=replace(LINK.estimation, **changes))


def lost(counts: BlockCounts, link: LinkParameters) -> str:
    with pytest.raises(BlockLost) as refusal:
        judge(counts, link)
    return refusal.value.reason


def test_a_good_block_gives_exactly_the_key_that_its_estimator_says() -> None:
    result = decide(GOOD, LINK)
    assert result.length == key_length(GOOD, LINK).length > LINK.block.minimum_secret_bits
    assert Assumption.RECORDED not in result.assumptions
    assert Assumption.RECORDED in decide(GOOD, LINK, recorded=True).assumptions


@pytest.mark.parametrize(
    "link",
    [
        LINK,
        estimated(eps_sec=1e-12),
        estimated(eps_cor=1e-25),
        estimated(estimator="eur", x_mode="visibility + asymmetry", asymmetry_bound="shares"),
        estimated(estimator="eur", x_mode="visibility + asymmetry", asymmetry_bound="joint"),
        estimated(estimator="eur", statistics="hoeffding"),
        replace(LINK, source=replace(LINK.source, mu_uncertainty=(0.02, 0.03))),
        replace(LINK, reconciliation=replace(LINK.reconciliation, leak_count="both")),
        replace(LINK, reconciliation=replace(LINK.reconciliation, verification_bits=128)),
    ],
)
def test_the_estimator_is_told_all_that_block_and_link_say(link: LinkParameters) -> None:
    chosen, source = link.estimation, link.source
    tag_bits = 128 if chosen.eps_cor < 1e-20 else link.reconciliation.verification_bits
    inputs = inputs_from_block(
        n_z=GOOD.n_z,
        m_z=GOOD.m_z,
        x=GOOD.x,
        mu=Pair(*source.mu),
        p=Pair(*source.p),
        p_z=source.p_z,
        lambda_ec=GOOD.lambda_ec_bits,
        mu_uncertainty=Pair(*source.mu_uncertainty),
        eps_sec=chosen.eps_sec,
        eps_cor=chosen.eps_cor,
        x_mode=chosen.x_mode,
        statistics=chosen.statistics,
        vacuum_rule=chosen.vacuum_rule,
        asymmetry_bound=chosen.asymmetry_bound,
        n_z_plus=GOOD.n_z_plus,
        boundary=GOOD.boundary,
        error_positions_public=link.reconciliation.leak_count == "alice",
        verification_bits=tag_bits,
    )
    assert key_length(GOOD, link) == estimate(inputs, chosen.estimator)


def test_a_block_beyond_a_limit_gives_no_key() -> None:
    e_vis = visibility_error(GOOD.x, LINK.source.p_z)
    assert e_vis is not None
    for below, at, reason in (
        (limited(qber_z_limit=0.99 * GOOD.qber_z), limited(qber_z_limit=GOOD.qber_z), "qber_z"),
        (limited(e_vis_limit=0.99 * e_vis), limited(e_vis_limit=e_vis), "e_vis"),
    ):
        assert lost(GOOD, below) == reason
        assert judge(GOOD, at).length > 0
    length = key_length(GOOD, LINK).length
    assert lost(GOOD, limited(minimum_secret_bits=length + 1)) == "key_length"
    assert judge(GOOD, limited(minimum_secret_bits=length)).length == length


@pytest.mark.parametrize("bound", ["shares", "joint"])
def test_a_block_of_too_large_or_unknown_asymmetry_gives_no_key(bound: str) -> None:
    charged = estimated(estimator="eur", x_mode="visibility + asymmetry", asymmetry_bound=bound)
    upper = key_length(GOOD, charged).asymmetry_upper
    assert upper is not None
    for limit, gives_key in ((upper + 1e-3, True), (upper, True), (upper - 1e-9, False)):
        link = replace(charged, block=replace(LINK.block, asymmetry_limit=limit))
        if gives_key:
            assert judge(GOOD, link).length > 0
        else:
            assert lost(GOOD, link) == "asymmetry"
    if bound == "joint":
        unknown = replace(GOOD, x=replace(GOOD.x, e_same=NONE, e_dark=NONE, e_plus=NONE))
        assert key_length(unknown, charged).asymmetry_upper is None
        assert lost(unknown, charged) == "asymmetry"


def test_counts_that_contradict_the_intensities_give_no_key() -> None:
    def exchanged(pair: Pair) -> Pair:
        return Pair(pair.decoy, pair.signal)

    odd = replace(GOOD, n_z=exchanged(GOOD.n_z), m_z=exchanged(GOOD.m_z))
    assert lost(odd, LINK) == "contradiction"


def test_a_blind_interferometer_is_told() -> None:
    blind = replace(GOOD, x=replace(GOOD.x, c_z=NONE))
    assert lost(blind, LINK) == "e_vis"


def test_counts_that_the_link_cannot_give_make_no_key_though_the_estimator_would() -> None:
    assert GOOD.late is not None
    early = replace(GOOD, late=Pair(0.4 * GOOD.n_z.signal, GOOD.late.decoy))
    assert judge(early, LINK).length > 0
    with pytest.raises(BlockLost) as refusal:
        decide(early, LINK)
    assert refusal.value.reason == "late_signal"


@pytest.mark.parametrize("leak_count", ["alice", "both"])
def test_every_disclosed_bit_of_sample_and_correction_is_charged(leak_count: str) -> None:
    link = replace(LINK, reconciliation=replace(LINK.reconciliation, leak_count=leak_count))
    for n_bits, count_bits in ((1, 1), (4095, 12), (4096, 13)):  # of an error count from 0 to n_bits
        charged = n_bits + (count_bits if leak_count == "both" else 0)
        disclosed = Disclosed().and_sample(n_bits, link).and_reconciled(700, 900, "cascade")
        assert disclosed == Disclosed(n_bits + 700, charged + 900, "cascade")
        assert Disclosed(7, 7).and_sample(n_bits, link) == Disclosed(n_bits + 7, charged + 7)


def test_a_block_is_of_a_size_that_can_give_key_and_can_be_spoken_of() -> None:
    least = LINK.block.minimum_secret_bits
    assert least > MIN_BLOCK_BITS
    for n_z, reason in (
        (least - 1, "too_few_bits"),
        (least, ""),
        (least + 1, ""),
        (MOST_SIFTED_BITS, ""),
        (MOST_SIFTED_BITS + 1, "too_many_bits"),
    ):
        assert why(partial(check_size, n_z, LINK)) == reason
    for n_z, reason in ((MIN_BLOCK_BITS - 1, "too_few_bits"), (MIN_BLOCK_BITS, "")):
        assert why(partial(check_size, n_z, limited(minimum_secret_bits=1))) == reason
    for n_clicks in (0, MOST_ANNOUNCED_CLICKS, MOST_ANNOUNCED_CLICKS + 1, 2 * MOST_ANNOUNCED_CLICKS):
        too_many = n_clicks > MOST_ANNOUNCED_CLICKS
        assert why(partial(check_clicks, n_clicks)) == ("too_many_bits" if too_many else "")


def why(check: Callable[[], object]) -> str:
    """Return for which reason a block is lost, nothing if it is not."""
    try:
        check()
    except BlockLost as lost_for:
        return lost_for.reason
    return ""


def test_the_largest_block_fits_a_message() -> None:
    assert seed_length_bytes(MOST_SIFTED_BITS) <= BULK_BYTES < seed_length_bytes(68_000_000)
    assert MOST_ANNOUNCED_CLICKS == 8 * BULK_BYTES


def test_a_tag_is_as_long_as_eps_cor_asks_for_and_no_shorter_than_configured() -> None:
    long_tag = replace(LINK, reconciliation=replace(LINK.reconciliation, verification_bits=128))
    for link, n_z, expected in ((LINK, 1_000_000, 64), (LINK, 50_000_000, 128), (long_tag, 1000, 128)):
        assert verification_bits(link, n_z) == expected


def test_what_a_key_stands_on_follows_from_the_link() -> None:
    def stands_on(link: LinkParameters) -> set[Assumption]:
        return set(assumptions(key_length(GOOD, link), link))

    def receiving(**changes: Any) -> LinkParameters:
        return replace(LINK, receiver=replace(LINK.receiver, **changes))

    both = replace(LINK, reconciliation=replace(LINK.reconciliation, leak_count="both"))
    alice = replace(LINK, reconciliation=replace(LINK.reconciliation, leak_count="alice"))
    assert Assumption.COMPUTATIONAL_KEY_CONTROL in stands_on(LINK)
    assert Assumption.PUBLIC_ERROR_POSITIONS in stands_on(alice)
    assert Assumption.PUBLIC_ERROR_POSITIONS not in stands_on(both)
    for dead_time, dead_time_s, independent, unchecked in (
        ("independent", 0.0, True, False),
        ("joint", 0.0, False, True),
        ("joint", 2e-5, False, False),
    ):
        found = stands_on(receiving(dead_time=dead_time, dead_time_s=dead_time_s))
        assert (Assumption.INDEPENDENT_DEAD_TIME in found) is independent
        assert (Assumption.UNCHECKED_JOINT_DEAD_TIME in found) is unchecked


def test_of_several_checks_that_fail_the_first_is_the_reason_and_the_others_are_named() -> None:
    odd = replace(GOOD, late=Pair(0.4 * GOOD.n_z.signal, 0.4 * GOOD.n_z.decoy))
    with pytest.raises(BlockLost) as refusal:
        decide(odd, LINK)
    assert refusal.value.reason == "late_signal"
    first, second = (finding for finding in examine(odd, LINK) if not finding.plausible)
    assert (first.check, second.check) == ("late_signal", "late_decoy")
    assert refusal.value.detail == f"{first}; also outside: late_decoy"
