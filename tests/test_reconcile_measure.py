"""The measurement of reconciliation itself: made-up blocks are what they claim, and sums are right."""

from itertools import islice

import pytest

from qnode.distill.reconcile.measure import Measured, measure_blocks


def test_measured_blocks_have_the_errors_asked_for_and_end_right() -> None:
    blocks = list(islice(measure_blocks("cascade", 50_000, 0.02, seed=1), 5))
    n_errors = sum(block.n_errors for block in blocks)
    assert abs(n_errors - 5000) < 5 * 5000**0.5
    for block in blocks:
        assert not block.failed
        assert not block.wrong
        assert block.statistics.corrected_errors == block.n_errors
        assert block.alice_s > 0
        assert block.bob_s > 0
    measured = Measured.of(blocks)
    assert (measured.n_blocks, measured.n_bits) == (5, 250_000)
    assert 1.0 < measured.f_ec < 1.1
    assert measured.rounds_max >= measured.rounds_mean > 5
    again = Measured.of(list(islice(measure_blocks("cascade", 50_000, 0.02, seed=1), 5)))
    assert again.f_ec == measured.f_ec


def test_a_hopeless_block_is_measured_as_failed() -> None:
    blocks = list(islice(measure_blocks("cascade", 5000, 0.4, seed=1, qber_estimate=0.02), 2))
    assert all(block.failed for block in blocks)
    good = next(measure_blocks("cascade", 5000, 0.02, seed=1))
    assert Measured.of([good, *blocks]).failed_blocks == 2


@pytest.mark.parametrize("n_bits", [64, 1000])
def test_blocks_without_errors_can_be_measured(n_bits: int) -> None:
    block = next(measure_blocks("cascade", n_bits, 0.0, seed=1))
    assert block.n_errors == block.statistics.corrected_errors == 0
    assert not block.wrong
