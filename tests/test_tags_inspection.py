"""What one pass over a stream of tags says: counts, order, gaps, rates, intervals, dead time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.tags.inspection import (
    MOST_CHANNELS,
    RATE_BINS,
    SAMPLE_TAGS,
    ChannelFigures,
    Inspected,
    Inspection,
    interval_edges_ps,
)
from qnode.tags.periods import find_periods
from qnode.tags.types import Times
from qnode.units import PS_PER_S


def inspected(times_ps: Times, channels: "np.ndarray", *, at_once: int = 1 << 18) -> Inspected:
    inspection = Inspection()
    for first in range(0, times_ps.size, at_once):
        part = slice(first, first + at_once)
        inspection.see(times_ps[part], channels[part].astype(np.int16))
    return inspection.figures()


def one(found: Inspected, channel: int) -> ChannelFigures:
    return next(figures for figures in found.channels if figures.channel == channel)


def light(rate_hz: float, seconds: float, *, dead_time_ps: int = 0, seed: int = 1) -> Times:
    """Return the tags of a detector in steady light."""
    rng = np.random.default_rng(seed)
    waits = rng.exponential(PS_PER_S / rate_hz, int(rate_hz * seconds))
    return np.cumsum(np.rint(waits).astype(np.int64) + dead_time_ps)


@settings(max_examples=40)
@given(
    times=st.lists(st.integers(0, 1 << 45), min_size=1, max_size=60),
    channels=st.lists(st.sampled_from([0, 1, 7, -3]), min_size=60, max_size=60),
    at_once=st.integers(1, 60),
)
def test_the_figures_are_those_of_the_whole_list_however_it_is_cut(
    times: list[int], channels: list[int], at_once: int
) -> None:
    t, c = np.array(times, np.int64), np.array(channels[: len(times)])
    found = inspected(t, c, at_once=at_once)
    steps = np.diff(t)
    assert found.tags == t.size
    assert found.first_ps == t.min()
    assert found.duration_s == pytest.approx((t.max() - t.min()) / PS_PER_S)
    assert found.backward_steps == np.count_nonzero(steps < 0)
    assert found.largest_step_back_ps == max(0, int(-steps.min())) if steps.size else True
    assert found.disorder_ps == int((np.maximum.accumulate(t) - t).max())
    gaps = np.diff(np.maximum.accumulate(t))
    assert found.longest_gap_s == pytest.approx(int(gaps.max()) / PS_PER_S if gaps.size else 0.0)
    assert [figures.channel for figures in found.channels] == sorted(set(c.tolist()))
    for figures in found.channels:
        own = t[c == figures.channel]
        assert figures.tags == own.size == figures.rate_bins.sum()
        later = np.diff(np.maximum.accumulate(own))[np.diff(own) >= 0]
        shortest = min((int(own[i] - own[:i].max()) for i in range(1, own.size) if own[i] >= own[:i].max()),
                       default=None)  # fmt: skip
        assert figures.shortest_interval_ps == shortest
        assert figures.intervals.sum() >= np.count_nonzero(later > 0)
        assert np.array_equal(figures.sample_ps, own - t[0])


@settings(max_examples=12)
@given(times=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=100))
def test_times_that_no_device_has_break_nothing(times: list[int]) -> None:
    figures = inspected(np.array(times, np.int64), np.ones(len(times)), at_once=7)
    (only,) = figures.channels
    assert figures.tags == only.tags == only.rate_bins.sum() == len(times)
    assert figures.duration_s >= 0.0
    find_periods({1: only.sample_ps}, 1.0)


def test_rates_over_69_hours_fit_into_the_bins() -> None:
    seconds = 69 * 3600
    times = light(2.0, seconds)
    found = inspected(times, np.ones(times.size))
    bins = one(found, 1).rate_bins
    assert RATE_BINS // 2 <= bins.size <= RATE_BINS
    assert bins.size * found.bin_s >= found.duration_s > (bins.size - 1) * found.bin_s
    assert bins[:-1].mean() / found.bin_s == pytest.approx(2.0, rel=0.02)
    assert bins.sum() == times.size


def test_the_sample_of_a_channel_is_its_first_tags() -> None:
    times = light(1e6, 0.2)
    channels = np.where(np.arange(times.size) % 2, 1, 2)
    found = inspected(times, channels, at_once=1000)
    sample = one(found, 1).sample_ps
    assert sample.size == SAMPLE_TAGS
    assert np.array_equal(sample, times[channels == 1][:SAMPLE_TAGS] - times[0])


def test_a_gap_that_chance_does_not_explain_is_found_and_no_other() -> None:
    times = light(1e4, 20.0)
    assert inspected(times, np.ones(times.size)).gaps == ()
    times[times > 8 * PS_PER_S] += PS_PER_S // 2
    found = inspected(times, np.ones(times.size), at_once=777)
    (gap,) = found.gaps
    assert gap.seconds == pytest.approx(0.5, abs=0.002)
    assert gap.at_s == pytest.approx(8.0, abs=0.002)
    assert found.longest_gap_s == gap.seconds


@pytest.mark.parametrize("dead_time_ns", [25, 1_000, 20_000])
def test_the_dead_time_shows_in_spite_of_a_few_glitches(dead_time_ns: int) -> None:
    times = light(3e4, 20.0, dead_time_ps=1000 * dead_time_ns)
    glitches = times[:: times.size // 5][1:4] + 150
    times = np.sort(np.concatenate((times, glitches)))
    figures = one(inspected(times, np.ones(times.size)), 1)
    assert figures.shortest_interval_ps == 150
    assert figures.dead_time_ps is not None
    assert figures.dead_time_ps / 1000 == pytest.approx(dead_time_ns, rel=0.1)


def test_light_without_dead_time_shows_none() -> None:
    times = light(3e4, 20.0)
    assert one(inspected(times, np.ones(times.size)), 1).dead_time_ps is None


def test_intervals_are_counted_in_bins_whose_edges_are_told() -> None:
    intervals = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1000, 12_345_678, PS_PER_S, 1 << 60])
    counted = one(inspected(np.cumsum(np.append(0, intervals)), np.ones(intervals.size + 1)), 1).intervals
    edges = interval_edges_ps()
    assert np.array_equal(counted, np.histogram(intervals, edges)[0])
    assert edges.size == counted.size + 1


def test_a_counter_of_64_bits_may_wrap() -> None:
    times = light(1e5, 0.1) + np.int64(2**63 - 1 - PS_PER_S // 20)
    found = inspected(times, np.ones(times.size))
    assert found.backward_steps == 0
    assert found.disorder_ps == 0
    assert found.duration_s == pytest.approx(0.1, rel=0.02)
    assert found.first_ps == times[0]


def test_channels_beyond_the_most_are_counted_together() -> None:
    channels = np.arange(MOST_CHANNELS + 10)
    found = inspected(np.arange(channels.size), channels)
    assert len(found.channels) == MOST_CHANNELS
    assert found.channels_left_out == 10
    assert found.tags == channels.size


def test_a_stream_without_tags_has_figures_too() -> None:
    found = Inspection().figures()
    assert (found.tags, found.duration_s, found.channels, found.gaps) == (0, 0.0, (), ())
