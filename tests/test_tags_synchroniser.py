from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tags_generator import PERIOD_PS, Link, Recorded, symbols

from qnode.choices import LockState
from qnode.config import ReceiverParameters, SourceParameters
from qnode.tags.acceptance import Accepted, GateTable, SlipMonitor, accept, one_per_slot
from qnode.tags.alignment import Alignment, AlignmentProbe, correlate, offset_window
from qnode.tags.conversion import as_float, nearest_integer
from qnode.tags.gates import acceptance, gates
from qnode.tags.synchroniser import Synchroniser, SyncResult
from qnode.tags.tracking import Combs
from qnode.tags.types import (
    NO_CLICKS,
    X_CHANNEL,
    Z_CHANNEL,
    Channels,
    Clicks,
    Codes,
    SlotRange,
    Slots,
    TagBlock,
)

SOURCE, RECEIVER = SourceParameters(), ReceiverParameters()


@dataclass
class Played:
    """Everything a synchroniser said about one recording."""

    synchroniser: Synchroniser
    results: list[SyncResult] = field(default_factory=list)
    probes: list[AlignmentProbe] = field(default_factory=list)
    alignments: list[Alignment] = field(default_factory=list)

    @property
    def slots(self) -> Slots:
        return np.concatenate([result.clicks.slots for result in self.results])

    @property
    def outcomes(self) -> Codes:
        return np.concatenate([result.clicks.outcomes for result in self.results])

    @property
    def cuts(self) -> list[SlotRange]:
        return [cut for result in self.results for cut in result.cuts]

    @property
    def last(self) -> SyncResult:
        return self.results[-1]

    def qber(self) -> float:
        kind = symbols(self.slots) & 3
        sifted = (self.outcomes < 2) & (kind < 2)
        return float(np.mean(self.outcomes[sifted] != kind[sifted]))


def play(
    recorded: Recorded,
    *,
    span_s: float = 0.05,
    scramble_ps: int = 0,
    into: Played | None = None,
    blocks: Iterable[TagBlock] | None = None,
) -> Played:
    link = recorded.link
    source = SourceParameters(bin_spacing_ps=link.spacing_ps)
    played = into or Played(Synchroniser(source, RECEIVER, np.random.default_rng(9).bytes))
    for block in blocks if blocks is not None else recorded.blocks(span_s, scramble_ps):
        result = played.synchroniser.feed(block)
        played.results.append(result)
        if result.probe is not None:
            probe = result.probe
            played.probes.append(probe)
            into_run_s = (link.first_slot + (probe.start_ps - link.start_ps) / PERIOD_PS) / 600e6
            window = offset_window(probe, into_run_s + 37e-6, 1e-4, 600_000_000)
            found = correlate(probe, symbols, window.start, window.stop - 1)
            if found is None:
                played.synchroniser.alignment_failed(probe.number)
            else:
                played.alignments.append(found)
                played.synchroniser.aligned(found)
    check_consistent(played)
    return played


def check_consistent(played: Played) -> None:
    """What holds for every sequence of results: order, completeness, and no click in a cut."""
    slots = played.slots
    assert np.all(np.diff(slots) > 0)
    floor = 0
    for result in played.results:
        assert result.reached >= floor
        assert np.all(result.clicks.slots >= floor)
        assert np.all(result.clicks.slots < result.reached)
        floor = result.reached
    for cut in played.cuts:
        assert not np.any((slots >= cut.first) & (slots < cut.end))
    for alignment in played.alignments:
        assert not np.any(slots[slots >= alignment.last_slot - 10**8] == alignment.last_slot)


def ideal_clicks(recorded: Recorded, first_slot: int) -> float:
    """Clicks that perfect knowledge of the clock would accept from ``first_slot`` on, as far as recorded."""
    link = recorded.link
    placed = gates(SourceParameters(bin_spacing_ps=link.spacing_ps), RECEIVER)
    times, until = recorded.tags.times_ps, recorded.tags.until_ps
    share = (first_slot - link.first_slot) / ((until - link.start_ps) / PERIOD_PS)
    first_ps = link.start_ps + share * (until - link.start_ps)
    light = acceptance(placed.early, link.jitter_ps)
    noise = (
        4 * placed.early.half_width_ps + 2 * placed.early.half_width_ps + 2 * placed.boundary.half_width_ps
    ) / (2 * PERIOD_PS)
    n = np.count_nonzero(times >= first_ps)
    return n * ((1 - link.noise_share) * light + link.noise_share * noise)


def test_the_turin_link_locks_within_two_hundred_milliseconds_and_loses_less_than_a_percent() -> None:
    recorded = Link().tags(4.0, seed=1)
    played = play(recorded, scramble_ps=50_000)
    states = [result.state for result in played.results]
    assert states.index(LockState.LOCKED) <= 4
    assert set(states[4:]) == {LockState.LOCKED}
    assert played.qber() < 0.03
    first = played.alignments[0].last_slot + 1
    # The last fraction of a sub-interval waits for more tags.
    assert played.slots.size > 0.99 * ideal_clicks(recorded, first) - 600
    statistics = played.last.statistics
    assert statistics.clock_offset_ppm == pytest.approx(30.0, abs=0.01)
    assert statistics.vector_strength > 0.65
    assert statistics.phase_residual_ps < 15
    assert (statistics.losses, statistics.jumps, statistics.slips) == (0, 0, 0)
    assert played.cuts[0].first == 0
    assert len(played.cuts) == 1


@pytest.mark.parametrize("ppm", [-60.0, 60.0])
def test_slot_numbers_are_those_of_alice(ppm: float) -> None:
    played = play(Link(ppm=ppm, noise_share=0.0, qber=0.0, jitter_ps=20.0, visibility=1.0).tags(1.0, seed=2))
    kind = symbols(played.slots) & 3
    before = symbols(played.slots - 1) & 3
    outcomes = played.outcomes
    z = (outcomes < 2) & (kind < 2)
    assert z.sum() > 3000
    # The few exceptions are cross clicks, whose outcome is drawn.
    assert np.mean(outcomes[z] != kind[z]) < 1e-3
    assert np.mean(kind[outcomes == 2] == 2) < 2e-3  # the dark port
    boundary = outcomes == 3
    assert boundary.sum() > 2000
    assert np.mean((before[boundary] == 0) & (kind[boundary] == 1)) < 2e-3  # no light


def test_a_weak_noisy_link_locks() -> None:
    # 28 dB: a third of the clicks is noise.
    played = play(Link(rate_hz=15_000, noise_share=0.35, qber=0.07).tags(2.0, seed=3))
    assert played.last.state is LockState.LOCKED
    assert played.last.statistics.locks == 1
    assert played.qber() < 0.2
    assert played.slots.size > 15_000


def test_after_ten_seconds_without_light_it_locks_again_by_itself() -> None:
    recorded = Link(off_s=(0.6, 10.6)).tags(11.4, seed=4)
    played = play(recorded)
    statistics = played.last.statistics
    assert played.last.state is LockState.LOCKED
    assert (statistics.locks, statistics.losses) == (2, 1)
    assert len(played.alignments) == 2
    # The probe's own prediction is within microseconds: no guess from the sites' clocks is needed.
    assert played.probes[0].expected_offset is None
    assert played.probes[1].expected_offset == pytest.approx(played.alignments[1].offset, abs=2000)
    assert played.qber() < 0.03
    cut = sum(cut.end - cut.first for cut in played.cuts[1:])
    assert 10.0 * 600e6 < cut < 10.35 * 600e6


def test_a_dark_moment_is_cut_without_losing_the_lock() -> None:
    played = play(Link(off_s=(0.8, 0.9)).tags(1.6, seed=5))
    statistics = played.last.statistics
    assert (statistics.locks, statistics.losses) == (1, 0)
    cut = sum(cut.end - cut.first for cut in played.cuts[1:])
    assert 0.04 * 600e6 < cut < 0.16 * 600e6
    assert played.qber() < 0.03


def test_a_jump_of_phase_is_cut_and_aligned_anew() -> None:
    played = play(Link(step_s=0.8, step_ps=250.0 + 7 * PERIOD_PS).tags(1.6, seed=6))
    statistics = played.last.statistics
    assert statistics.jumps in (1, 2)  # two when the jump divides a sub-interval
    assert statistics.locks == 2
    expected = played.probes[1].expected_offset
    assert expected is not None
    assert played.alignments[1].offset - expected == pytest.approx(-14, abs=1)
    assert played.qber() < 0.03


def test_lost_tags_cut_their_stretch() -> None:
    recorded = Link().tags(1.0, seed=7)
    blocks = list(recorded.blocks(0.05))
    whole = play(recorded, blocks=blocks)
    gap = replace(
        blocks[12], times_ps=blocks[12].times_ps[400:], channels=blocks[12].channels[400:], lost=400
    )
    played = play(recorded, blocks=[*blocks[:12], gap, *blocks[13:]])
    assert played.last.order.lost == 400
    assert any(stretch.reason == "lost" for result in played.results for stretch in result.stretches)
    assert sum(cut.end - cut.first for cut in played.cuts[1:]) > 0.005 * 600e6
    assert played.slots.size < whole.slots.size
    assert played.last.statistics.locks == 1


def test_a_restart_of_the_source_counts_slots_anew() -> None:
    played = play(Link().tags(0.4, seed=8))
    assert played.last.state is LockState.LOCKED
    old = played.last.reached
    played.synchroniser.restart()
    assert played.synchroniser.state is LockState.SEARCHING
    again = play(
        Link(first_slot=1000, start_ps=7_000_000_000 + 10**12).tags(0.4, seed=9),
        into=Played(played.synchroniser),
    )
    assert again.last.state is LockState.LOCKED
    assert again.slots.max() < old
    assert again.qber() < 0.03


def test_failed_alignments_ask_for_longer_probes_and_in_the_end_for_a_new_clock() -> None:
    synchroniser = Synchroniser(SOURCE, RECEIVER, np.random.default_rng(1).bytes)
    sizes, states = [], []
    for block in Link().tags(4.0, seed=10).blocks(0.05):
        result = synchroniser.feed(block)
        if result.probe is not None:
            sizes.append(result.probe.ticks.size)
            synchroniser.alignment_failed(result.probe.number)
            states.append(synchroniser.state)
    assert sizes[:3] == [512, 1024, 2048]
    assert LockState.SEARCHING in states
    assert not len(result.clicks)


@pytest.mark.parametrize("block_s", [0.05, 0.08, 0.099, 0.1, 1.0])
def test_alice_accepts_the_probes_of_a_series_however_long_blocks_of_tags_are(block_s: float) -> None:
    synchroniser = Synchroniser(SOURCE, RECEIVER, np.random.default_rng(1).bytes)
    probes = []
    for block in Link(rate_hz=12_000).tags(2.5, seed=10).blocks(block_s):
        probe = synchroniser.feed(block).probe
        if probe is not None:
            probes.append(probe)
            assert correlate(probe, symbols, 0, 100) is None  # far from where it fits
            synchroniser.alignment_failed(probe.number)
    assert len(probes) >= (5 if block_s < 1.0 else 2)
    for probe in probes:
        assert probe.ticks[-1] <= 0.4 * 2 * 600e6
    assert max(probe.ticks.size for probe in probes) > 1500  # nearly all that 0.4 s have


def test_answers_to_earlier_probes_are_ignored() -> None:
    synchroniser = Synchroniser(SOURCE, RECEIVER, np.random.default_rng(1).bytes)
    probe = None
    for block in Link().tags(0.3, seed=11).blocks(0.05):
        probe = synchroniser.feed(block).probe or probe
    assert probe is not None
    synchroniser.aligned(Alignment(probe.number - 1, 0, 1, 99.0, 0))
    states = [synchroniser.state]
    synchroniser.aligned(Alignment(probe.number, 0, 1, 99.0, 0))
    states.append(synchroniser.state)
    synchroniser.restart()
    synchroniser.aligned(Alignment(probe.number, 0, 1, 99.0, 0))
    states.append(synchroniser.state)
    assert states == [LockState.ALIGNING, LockState.LOCKED, LockState.SEARCHING]


def test_an_alignment_half_a_slot_off_is_noticed() -> None:
    # Even and odd ticks exchanged: with bins 800 ps apart the gates do not fit.
    synchroniser = Synchroniser(SOURCE, RECEIVER, np.random.default_rng(1).bytes)
    played = Played(synchroniser)
    recorded = Link().tags(1.0, seed=12)
    for block in recorded.blocks(0.05):
        result = synchroniser.feed(block)
        if result.probe is not None:
            into = 2 * (
                recorded.link.first_slot + (result.probe.start_ps - recorded.link.start_ps) / PERIOD_PS
            )
            found = correlate(result.probe, symbols, int(into) - 100_000, int(into) + 100_000)
            assert found is not None
            wrong = 1 if not played.alignments else 0
            played.alignments.append(found)
            synchroniser.aligned(replace(found, offset=found.offset + wrong))
    assert result.statistics.slips == 1
    assert result.statistics.locks == 2
    assert result.state is LockState.LOCKED


def test_an_even_spacing_locks_and_reports_no_slips() -> None:
    played = play(Link(spacing_ps=PERIOD_PS / 2).tags(1.0, seed=13))
    assert played.last.state is LockState.LOCKED
    assert played.last.statistics.slips == 0
    assert played.qber() < 0.03


def test_results_do_not_depend_on_how_tags_are_cut_into_blocks() -> None:
    recorded = Link().tags(1.0, seed=14)
    coarse = play(recorded, span_s=0.1)
    fine = play(recorded, span_s=0.003)
    common = np.intersect1d(coarse.slots, fine.slots)
    # They lock at different moments and their last sub-intervals end at different tags.
    start, end = max(coarse.slots[0], fine.slots[0]), min(coarse.slots[-1], fine.slots[-1])
    in_both = (coarse.slots >= start) & (coarse.slots <= end)
    assert common.size > 0.999 * np.count_nonzero(in_both)
    assert np.count_nonzero(in_both) > 15_000


def test_a_fast_link_without_dead_time_keeps_one_click_a_slot() -> None:
    recorded = Link(rate_hz=3e6, noise_share=0.01, dead_ps=0.0).tags(0.3, seed=15)
    played = play(recorded, span_s=0.02)
    statistics = played.last.statistics
    assert statistics.cross_clicks > 100
    assert statistics.double_clicks > 100
    assert played.slots.size + statistics.cross_clicks + statistics.double_clicks == pytest.approx(
        statistics.used, rel=1e-3
    )
    assert played.qber() < 0.02


def test_silence_without_any_tag_is_survived() -> None:
    synchroniser = Synchroniser(SOURCE, RECEIVER, np.random.default_rng(1).bytes)
    empty = TagBlock(np.empty(0, np.int64), np.empty(0, np.int8), 0)
    for step in range(50):
        result = synchroniser.feed(replace(empty, until_ps=step * 10**12))
        assert result.state is LockState.SEARCHING


def accept_at(
    ticks: npt.NDArray[np.int64],
    residuals_ps: npt.NDArray[np.float64],
    channels: Channels,
    table: GateTable,
    monitor: SlipMonitor,
) -> Accepted:
    """Accept tags that lie so far from ticks of a clock of 1000 ps."""
    times = 7_000_000 + 1000 * ticks + np.rint(residuals_ps).astype(np.int64)
    combs = Combs(
        np.array([7_000_000]), np.zeros(1), np.zeros(1, np.int64), np.array([1000.0]), np.array([times.size])
    )
    return accept(times, channels, combs, np.array([True]), 0, 0, table, monitor, NO_CLICKS)


def test_the_slip_monitor_needs_an_uneven_spacing() -> None:
    rng = np.random.default_rng(2)
    for skew, slipped in ((-33.3, True), (33.3, True), (0.0, False)):
        table = replace(GateTable.of(gates(SOURCE, RECEIVER)), skew_ps=skew)
        table.centres_ps[:] = [-skew / 2, skew / 2, skew / 2, skew / 2]
        monitor = SlipMonitor(skew)
        n = 20_000
        ticks = np.arange(n, dtype=np.int64) * 3
        # The truth is half a slot off: what is called early is late.
        residuals = np.where(ticks % 2 == 0, skew / 2, -skew / 2) + rng.normal(0, 92, n)
        accept_at(ticks, residuals, np.zeros(n, np.int8), table, monitor)
        assert monitor.slipped() is slipped


def test_clicks_of_one_slot_become_one_by_the_rules() -> None:
    n = 40_000
    slots = np.repeat(np.arange(n), 2)
    random = np.random.default_rng(3).bytes
    both_arms = one_per_slot(Clicks(slots, np.tile([0, 2], n).astype(np.uint8)), random)
    assert both_arms.double_clicks.size == 0
    assert np.array_equal(both_arms.cross_clicks, np.arange(n))
    assert np.bincount(both_arms.clicks.outcomes) == pytest.approx([n / 4] * 4, rel=0.05)
    z_twice = one_per_slot(Clicks(slots, np.tile([0, 1], n).astype(np.uint8)), random)
    assert np.array_equal(z_twice.double_clicks, np.arange(n))
    assert z_twice.cross_clicks.size == 0
    assert np.bincount(z_twice.clicks.outcomes) == pytest.approx([n / 2] * 2, rel=0.05)
    x_twice = one_per_slot(Clicks(slots, np.tile([3, 2], n).astype(np.uint8)), random)
    assert np.bincount(x_twice.clicks.outcomes) == pytest.approx([0, 0, n / 2, n / 2], rel=0.05)
    same = one_per_slot(Clicks(slots, np.ones(2 * n, np.uint8)), random)
    assert np.array_equal(same.double_clicks, np.arange(n))
    assert np.all(same.clicks.outcomes == 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_one_click_per_slot_ascending_whatever_comes(gaps: list[tuple[int, int]]) -> None:
    slots = np.cumsum([gap for gap, _ in gaps], dtype=np.int64)
    outcomes = np.array([outcome for _, outcome in gaps], np.uint8)
    singled = one_per_slot(Clicks(slots, outcomes), bytes)
    assert np.array_equal(singled.clicks.slots, np.unique(slots))
    assert set(singled.clicks.outcomes) <= {0, 1, 2, 3}


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**51) + 1, 2**51 - 1), st.floats(-(2.0**50), 2.0**50))
def test_conversions_are_exact_and_round_to_the_nearest(integer: int, number: float) -> None:
    assert as_float(np.int64(integer)) == integer
    assert nearest_integer(np.float64(number)) == round(number)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 4000), max_size=40), st.lists(st.integers(0, 4000), max_size=40),
    st.integers(-1500, 1500), st.lists(st.integers(5, 7), max_size=3), st.booleans(),
)  # fmt: skip
def test_slots_never_fall_whatever_the_clock_is_corrected_by(
    first: list[int], second: list[int], correction: int, held: list[int], good: bool
) -> None:
    table = GateTable.of(gates(SOURCE, RECEIVER))
    table.halves_ps[:] = 500.0
    times = np.concatenate([np.sort(np.array(part, np.int64)) for part in (first, second)])
    ends = np.array([len(first), len(first) + len(second)])
    combs = Combs(
        np.array([-9000, -9000 + correction]), np.zeros(2), np.zeros(2, np.int64), np.full(2, 1e3), ends
    )
    clicks = Clicks(np.sort(np.array(held, np.int64)), np.zeros(len(held), np.uint8))
    got = accept(
        times, np.zeros(times.size, np.int8), combs, np.array([True, good]), 0, 5, table,
        SlipMonitor(table.skew_ps), clicks,
    )  # fmt: skip
    assert np.all(np.diff(got.clicks.slots) >= 0)
    assert np.array_equal(got.clicks.slots[: len(held)], clicks.slots)
    shifts = np.repeat([9000, 9000 - correction], [len(first), len(second)])
    slots = np.rint((times + shifts) / 1000).astype(np.int64) // 2
    looked_at = slots if good else slots[: len(first)]
    told = np.concatenate([got.clicks.slots[len(held) :], got.out_of_gate])
    assert np.array_equal(np.sort(told), np.sort(looked_at[looked_at >= 5]))
    assert np.all(np.diff(got.out_of_gate) >= 0)


def test_channels_are_those_of_the_types() -> None:
    table = GateTable.of(gates(SOURCE, RECEIVER))
    monitor = SlipMonitor(table.skew_ps)
    ticks = np.array([0, 1, 2, 3], np.int64)
    channels = np.array([Z_CHANNEL, Z_CHANNEL, X_CHANNEL, X_CHANNEL], np.int8)
    got = accept_at(ticks, table.centres_ps, channels, table, monitor)
    assert list(got.clicks.slots) == [0, 0, 1, 1]
    assert list(got.clicks.outcomes) == [0, 1, 3, 2]
