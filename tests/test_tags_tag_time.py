"""Tag time over the turn of a 64-bit counter of picoseconds, and for as long as a TDC counts."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from tags_generator import PERIOD_PS, Link, Recorded, symbols

from qnode.config import LinkParameters, ReceiverParameters, SourceParameters
from qnode.devices.conformance_checks import check_tag_block
from qnode.errors import TransientDeviceError
from qnode.simulate.generator import KNOTS_PER_S, Lit, TagGenerator
from qnode.simulate.parameters import SimulationParameters
from qnode.tags import tag_time
from qnode.tags.alignment import correlate
from qnode.tags.synchroniser import Synchroniser, SyncResult
from qnode.tags.tag_time import TagTime, signed_64
from qnode.tags.types import Codes, Slots, TagBlock
from qnode.units import PS_PER_S

TURN_PS = 1 << 63
SOURCE, RECEIVER = SourceParameters(), ReceiverParameters(dead_time_s=24e-6)


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    """Tags of 1.4 s with a dark stretch, so that lock ends and comes again."""
    return Link(off_s=(0.7, 1.1)).tags(1.4, seed=1)


def later(blocks: Iterator[TagBlock], by_ps: int) -> Iterator[TagBlock]:
    """Yield the blocks as a 64-bit counter shows them that stands so much higher."""
    for block in blocks:
        times_ps = block.times_ps + np.int64(by_ps)
        yield replace(block, times_ps=times_ps, until_ps=signed_64(block.until_ps + by_ps))


def played(link: Link, blocks: Iterator[TagBlock], by_ps: int = 0) -> list[SyncResult]:
    """Return what the blocks give, probes answered from Alice's symbols."""
    synchroniser = Synchroniser(SOURCE, RECEIVER, np.random.default_rng(9).bytes)
    results = []
    for block in blocks:
        result = synchroniser.feed(block)
        results.append(result)
        if (probe := result.probe) is None:
            continue
        middle = 2 * link.first_slot + round(2 * (probe.start_ps - by_ps - link.start_ps) / PERIOD_PS)
        if probe.expected_offset is not None:
            assert abs(probe.expected_offset - middle) < 100_000
        found = correlate(probe, link.lookup, middle - 100_000, middle + 100_000)
        assert found is not None
        synchroniser.aligned(found)
    return results


def assert_same(
    results: list[SyncResult], expected: list[SyncResult], by_ps: int = 0, slots: int = 0
) -> None:
    for got, wanted in zip(results, expected, strict=True):
        assert np.array_equal(got.clicks.slots, wanted.clicks.slots + slots)
        assert np.array_equal(got.clicks.outcomes, wanted.clicks.outcomes)
        assert np.array_equal(got.marks.out_of_gate, wanted.marks.out_of_gate + slots)
        assert [cut.end for cut in got.cuts] == [cut.end + slots for cut in wanted.cuts]
        assert got.statistics == wanted.statistics
        assert (got.order, got.state) == (wanted.order, wanted.state)
        assert got.until_ps == wanted.until_ps + by_ps
        assert got.stretches == tuple(stretch.moved(by_ps) for stretch in wanted.stretches)
        assert (got.probe is None) == (wanted.probe is None)
        if got.probe is not None and wanted.probe is not None:
            assert got.probe.start_ps == wanted.probe.start_ps + by_ps


@pytest.mark.parametrize("before_s", [0.06, 0.4, 0.9, 1.3])
def test_a_link_goes_on_while_the_counter_of_its_tdc_wraps(recorded: Recorded, before_s: float) -> None:
    expected = played(recorded.link, recorded.blocks(0.05, 50_000))
    assert expected[-1].statistics.locks == 2
    by_ps = TURN_PS - recorded.link.start_ps - int(before_s * PS_PER_S)
    results = played(recorded.link, later(recorded.blocks(0.05, 50_000), by_ps), by_ps)
    assert results[-1].until_ps > TURN_PS
    assert_same(results, expected, by_ps)


def test_lost_tags_are_marked_where_the_counter_wraps(recorded: Recorded) -> None:
    def with_a_loss() -> Iterator[TagBlock]:
        for i, block in enumerate(recorded.blocks(0.05)):
            yield replace(block, lost=7) if i == 9 else block

    expected = played(recorded.link, with_a_loss())
    by_ps = TURN_PS - recorded.link.start_ps - 9 * PS_PER_S // 20
    assert_same(played(recorded.link, later(with_a_loss(), by_ps), by_ps), expected, by_ps)


def test_nothing_changes_when_the_origin_of_times_and_ticks_moves_on(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = played(recorded.link, recorded.blocks(0.05, 50_000))
    monkeypatch.setattr(tag_time, "MOST_LOCAL_PS", PS_PER_S // 8)
    assert_same(played(recorded.link, recorded.blocks(0.05, 50_000)), expected)


def test_slots_are_numbered_to_the_last_digit_after_a_year(recorded: Recorded) -> None:
    year_slots = 2 * 10**16

    def shifted(slots: Slots) -> Codes:
        return symbols(slots - year_slots)

    link = replace(recorded.link, first_slot=recorded.link.first_slot + year_slots, lookup=shifted)
    results = played(link, replace(recorded, link=link).blocks(0.05, 50_000))
    assert_same(results, played(recorded.link, recorded.blocks(0.05, 50_000)), slots=year_slots)


def test_a_clock_that_jumps_by_weeks_is_one_clear_error() -> None:
    time = TagTime()
    empty = TagBlock(np.empty(0, np.int64), np.empty(0, np.int8), 0)
    time.take(empty)
    with pytest.raises(TransientDeviceError, match="jumped by 46 days"):
        time.take(replace(empty, until_ps=4 * 10**18))
    with pytest.raises(TransientDeviceError, match="jumped by -46 days"):
        time.take(replace(empty, until_ps=-4 * 10**18))


def test_the_simulated_counter_wraps_as_hardware_does() -> None:
    generator = TagGenerator(SimulationParameters(), LinkParameters(), most_tags=1 << 16)
    last_page = TURN_PS // PS_PER_S * KNOTS_PER_S // 3200 * 3200
    generator._page_start, generator._page = last_page, generator._page_of_knots(last_page)
    until_knot, until_ps, wrapped = generator.knot + 6400, None, False
    settings = SimulationParameters().settings_at(0.0)
    while generator.knot < until_knot:
        block = generator.step(until_knot, settings, Lit(1, last_page))
        check_tag_block(block, earlier_until_ps=until_ps, order_window_ps=2_000)
        until_ps = block.until_ps
        wrapped |= bool((block.times_ps > 0).any() and (block.times_ps < 0).any())
    assert wrapped
