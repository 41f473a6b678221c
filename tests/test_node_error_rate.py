"""What a site takes a link's error rate to be, after blocks that gave key and others."""

from pathlib import Path

import pytest

from qnode.block.error_rate import ErrorRate
from qnode.block.span import BlockSpan
from qnode.config import SiteConfig, load
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import Pair, XCounts
from qnode.node.status.link_figures import LinkFigures

CONFIG = load(Path(__file__).parent.parent / "config" / "bob.toml", SiteConfig)
NONE = XCounts(**{name: Pair(0, 0) for name in XCounts.__struct_fields__})


@pytest.fixture
def known() -> ErrorRate:
    rate = ErrorRate(limit=0.05)
    rate.counted(0.02)
    return rate


@pytest.mark.parametrize(
    "reason",
    [
        "key_length",
        "asymmetry",
        "disagreement",
        "store",
        "store_full",
        "too_few_bits",
        "lock",
        "link",
    ],
)
def test_what_a_verified_block_has_counted_stays_known(known: ErrorRate, reason: str) -> None:
    known.lost(reason)
    assert known.value == 0.02


@pytest.mark.parametrize(
    "reason", ["reconciliation", "verification", "emission", "contradiction", "t2", "e_vis", "cross_clicks"]
)
def test_a_block_that_says_that_errors_may_be_others_leaves_nothing_known(
    known: ErrorRate, reason: str
) -> None:
    known.lost(reason)
    assert known.value is None


def test_a_sample_is_trusted_only_while_its_block_is_worked_on(known: ErrorRate) -> None:
    known.sampled(0.03)
    assert known.value == 0.03
    known.lost("link")
    assert known.value is None


def test_a_rate_beyond_the_limit_is_no_estimate(known: ErrorRate) -> None:
    known.counted(0.06)
    known.lost("qber_z")
    assert known.value is None
    known.sampled(0.5)
    assert known.value is None


def test_a_site_goes_on_with_the_error_rate_of_a_block_that_gave_no_key() -> None:
    figures = LinkFigures(CONFIG)
    figures.blocks.sifted(3, Pair(8000, 2000), NONE, BlockSpan(1, 0, 10**9))
    figures.blocks.sampled(3, 70, 4096)
    assert figures.history.error_rate.value == 70 / 4096
    figures.blocks.verified(
        3,
        BlockCounts(
            n_z=Pair(8000, 2000), m_z=Pair(120, 30), x=NONE, alice_parities=1, reconciliation_leak_bits=1
        ),
    )
    figures.blocks.lost(3, "key_length", "too short")
    assert figures.history.error_rate.value == 0.015
    figures.blocks.lost(4, "reconciliation", "a burst of errors")
    assert figures.history.error_rate.value is None
