"""The span of a block when the node chooses it: the most expected secret bits a second."""

import math
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.block.decision import MOST_SIFTED_BITS, judge
from qnode.block.span_policy import (
    FIRST_SIFTED_BITS,
    MOST_EXPECTED_BITS,
    BlockRates,
    RecentBlocks,
    best_span,
    choose_span_s,
    expected_bits_per_s,
    secret_bits,
)
from qnode.config import BlockParameters, EstimationParameters, LinkParameters
from qnode.distill.counts import Pair
from qnode.distill.keylength import binary_entropy
from qnode.simulate.model import expected_rates
from qnode.simulate.parameters import SimulationParameters

RATE_HZ = 600e6
replace = msgspec.structs.replace

AUTO = LinkParameters(
    block=BlockParameters(sifted_bits="auto", longest_s=7200.0),
    estimation=EstimationParameters(estimator="rusca2018", x_mode="visibility", eps_sec=1e-9),
)


def link(**block: Any) -> LinkParameters:
    return msgspec.structs.replace(AUTO, block=msgspec.structs.replace(AUTO.block, **block))


def turin(interruptions: float = 0.0, attenuation_db: float = 10.8) -> BlockRates:
    rates = expected_rates(SimulationParameters(attenuation_db=attenuation_db), AUTO)
    disclosed = 1.045 * rates.n_z.total * binary_entropy(rates.qber_z)
    return BlockRates(
        n_z=rates.n_z,
        m_z=rates.m_z,
        x=rates.x,
        n_z_plus=rates.n_z_plus,
        boundary=rates.boundary,
        alice_parities=disclosed,
        leak_bits=disclosed,
        interruptions=interruptions,
    )


def test_without_interruptions_the_latency_limit_is_best() -> None:
    for longest_s in (300.0, 1800.0):
        choice = best_span(turin(), link(longest_s=longest_s))
        assert choice.span_s == longest_s
        counts = turin().counts(longest_s, RATE_HZ)
        assert choice.secret_bits_per_s == secret_bits(counts, AUTO) / longest_s > 1000


def test_interruptions_shorten_the_block_and_the_choice_is_the_best_of_all_spans() -> None:
    spans = []
    for mean_s in (600.0, 3600.0, 36_000.0):
        rates = turin(interruptions=1 / mean_s)
        choice = best_span(rates, AUTO)
        spans.append(choice.span_s)
        grid = [20.0 * 1.05**i for i in range(120)]
        best = max(expected_bits_per_s(rates, span_s, AUTO) for span_s in grid if span_s <= 7200.0)
        assert choice.secret_bits_per_s >= 0.9995 * best
        assert choice.span_s < 7200.0
    assert spans == sorted(spans)
    assert spans[0] > 60.0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    mean_s=st.floats(100.0, 1e5),
    attenuation_db=st.floats(3.0, 24.0),
    longest_s=st.floats(1.0, 86_400.0),
)
def test_the_span_keeps_every_limit(mean_s: float, attenuation_db: float, longest_s: float) -> None:
    rates = turin(1 / mean_s, attenuation_db)
    choice = best_span(rates, link(longest_s=longest_s))
    assert 0.0 < choice.span_s <= longest_s * (1 + 1e-12)
    assert rates.n_z.total * choice.span_s <= MOST_EXPECTED_BITS * (1 + 1e-12) < MOST_SIFTED_BITS


def test_a_link_without_key_takes_the_longest_span() -> None:
    choice = best_span(turin(attenuation_db=35.0), AUTO)
    assert (choice.span_s, choice.secret_bits_per_s) == (7200.0, 0.0)


def test_the_present_rate_of_clicks_scales_what_earlier_blocks_said() -> None:
    faster = turin().at(2.0 * turin().n_z.total)
    assert faster.m_z.total == pytest.approx(2.0 * turin().m_z.total)
    assert faster.x.c_plus.total / faster.n_z.total == pytest.approx(
        turin().x.c_plus.total / turin().n_z.total
    )
    span_s = choose_span_s(link(longest_s=100.0), 2.0 * turin().n_z.total, turin())
    assert span_s == 100.0


def test_a_configured_number_of_bits_is_kept_whatever_earlier_blocks_said() -> None:
    fixed = link(sifted_bits=1_000_000)
    for recent in (None, turin(), turin(interruptions=1 / 50)):
        assert choose_span_s(fixed, 8000.0, recent) == 125.0
    assert choose_span_s(fixed, 100.0, turin()) == 7200.0
    assert choose_span_s(fixed, 0.0, None) == 7200.0


def test_before_the_first_key_a_block_has_the_first_size() -> None:
    assert choose_span_s(AUTO, 8000.0, None) == FIRST_SIFTED_BITS / 8000.0


def test_trust_grows_with_every_block_that_nothing_interrupted() -> None:
    recent = RecentBlocks()
    assert recent.rates() is None
    spans = []
    for _ in range(12):
        span_s = choose_span_s(AUTO, turin().n_z.total, recent.rates())
        spans.append(span_s)
        recent.accepted(span_s, turin().counts(span_s, RATE_HZ))
    assert all(later > earlier for earlier, later in pairwise(spans[1:]))
    assert spans[-1] > 2 * spans[0]
    rates = recent.rates()
    assert rates is not None
    assert rates.n_z.total == pytest.approx(turin().n_z.total)
    assert rates.x.e_dark.decoy == pytest.approx(turin().x.e_dark.decoy)
    assert rates.interruptions == pytest.approx(0.5 / math.fsum(spans))


def test_one_interruption_counts_once_however_many_blocks_it_cost() -> None:
    recent = RecentBlocks()
    recent.accepted(100.0, turin().counts(100.0, RATE_HZ))
    for reason in ("link", "link", "lock", "emission", "qber_z"):
        recent.lost(reason)
    recent.accepted(100.0, turin().counts(100.0, RATE_HZ))
    recent.lost("key_length")
    rates = recent.rates()
    assert rates is not None
    assert rates.interruptions == pytest.approx(1.5 / 200.0)


def test_what_a_peer_of_protocol_1_did_not_say_is_taken_from_the_blocks_after_his_upgrade() -> None:
    recent, old = RecentBlocks(), replace(turin(), n_z_plus=None, boundary=None).counts(100.0, RATE_HZ)
    recent.accepted(100.0, old)
    rates = recent.rates()
    assert rates is not None
    assert rates.n_z_plus is None
    assert rates.boundary is None
    assert rates.at(1000.0).counts(10.0, RATE_HZ).n_z_plus is None
    new = replace(old, n_z_plus=Pair(5000.0, 1000.0), boundary=8000.0)
    recent.accepted(100.0, new)
    recent.accepted(300.0, replace(new, n_z_plus=Pair(15_000.0, 3000.0), boundary=24_000.0))
    rates = recent.rates()
    assert rates is not None
    assert (rates.n_z_plus, rates.boundary) == (Pair(50.0, 10.0), 80.0)
    scaled = rates.at(2 * rates.n_z.total).counts(10.0, RATE_HZ)
    assert (scaled.n_z_plus, scaled.boundary) == (Pair(1000.0, 200.0), 1600.0)
    assert rates.counts(10.0, RATE_HZ).tags is None


def test_a_span_is_chosen_by_the_joint_bound_while_nobody_has_said_what_shares_need() -> None:
    estimation = EstimationParameters(eps_sec=1e-9)
    unsaid = replace(turin(), n_z_plus=None, boundary=None).counts(300.0, RATE_HZ)
    said = turin().counts(300.0, RATE_HZ)
    bounds = [
        judge(counts, replace(AUTO, estimation=replace(estimation, asymmetry_bound=bound))).asymmetry_bound
        for counts, bound in ((unsaid, "shares"), (said, "shares"), (said, "joint"))
    ]
    assert bounds == ["joint", "shares", "joint"]
