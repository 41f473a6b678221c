from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.tags.order import OrderWindow
from qnode.tags.types import TagBlock, Times


def block(
    times: Sequence[int] | Times,
    channels: Sequence[int] | None = None,
    until: int | None = None,
    lost: int = 0,
) -> TagBlock:
    times_ps = np.array(times, np.int64)
    on = np.zeros(times_ps.size, np.int8) if channels is None else np.array(channels, np.int8)
    return TagBlock(times_ps, on, int(times_ps.max()) if until is None else until, lost)


def test_tags_displaced_across_blocks_come_out_in_order_with_their_channels() -> None:
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.integers(1, 400, 20_000))
    channels = rng.integers(0, 2, times.size).astype(np.int8)
    order = np.argsort(times + rng.integers(0, 1000, times.size), kind="stable")
    window = OrderWindow(2000)
    out_times, out_channels = [], []
    for part in np.array_split(order, 23):
        until = int(times[part].max())
        got = window.feed(TagBlock(times[part], channels[part], until)).tags
        assert not got.times_ps.size or got.times_ps[-1] < got.until_ps
        out_times.append(got.times_ps)
        out_channels.append(got.channels)
    last = window.feed(block([], [], int(times[-1]) + 5000)).tags
    assert np.array_equal(np.concatenate([*out_times, last.times_ps]), times)
    assert np.array_equal(np.concatenate([*out_channels, last.channels]), channels)
    assert window.statistics.late == 0
    assert window.statistics.displaced > 1000
    assert window.statistics.ordered == times.size


def test_tags_backwards_by_more_than_the_window_are_counted_dropped_and_marked() -> None:
    window = OrderWindow(100)
    window.feed(block([1000, 2000], until=2000))
    got = window.feed(block([1500, 2500, 1950], until=3000))
    assert list(got.tags.times_ps) == [1950, 2000, 2500]
    assert window.statistics.late == 1
    assert [(s.first_ps, s.end_ps, s.reason) for s in got.stretches] == [(1900, 2900, "late")]


def test_unknown_channels_and_impossible_times_are_counted_and_dropped() -> None:
    window = OrderWindow(0)
    got = window.feed(block([10, 20, 30, 10**15], [0, 7, 1, 0], until=100))
    assert list(got.tags.times_ps) == [10, 30]
    assert (window.statistics.unknown_channel, window.statistics.ahead) == (1, 1)
    assert got.stretches[0].reason == "unknown_channel"


def test_a_stretch_in_which_the_hardware_lost_tags_is_dropped_whole() -> None:
    window = OrderWindow(100)
    window.feed(block([1000, 1950], until=2000))
    got = window.feed(block([5000, 5050, 6000], until=7000, lost=12))
    assert list(got.tags.times_ps) == [1000, 6000] or list(got.tags.times_ps) == [6000]
    assert window.statistics.lost == 12
    assert window.statistics.in_gaps == 3
    assert [(s.first_ps, s.end_ps, s.reason) for s in got.stretches] == [(1900, 5100, "lost")]


def test_tags_without_use_come_again_in_front_and_count_once() -> None:
    window = OrderWindow(100)
    first = window.feed(block([1000, 1400, 1500], [0, 1, 0], until=2000)).tags
    again = window.feed(block([2450, 1950], [1, 1], until=3000), first.after(1)).tags
    assert list(again.times_ps) == [1400, 1500, 1950, 2450]
    assert list(again.channels) == [1, 0, 1, 1]
    assert (window.statistics.received, window.statistics.ordered) == (5, 5)


def test_silence_moves_the_horizon() -> None:
    window = OrderWindow(100)
    window.feed(block([1000], until=1000))
    got = window.feed(block([], [], until=10**12)).tags
    assert list(got.times_ps) == [1000]
    assert got.until_ps == 10**12 - 100


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5000), max_size=30), min_size=1, max_size=6),
    st.integers(0, 3000),
)
def test_output_is_ordered_and_every_tag_is_accounted_for(parts: list[list[int]], window_ps: int) -> None:
    window = OrderWindow(window_ps)
    out, until = [], 0
    for part in parts:
        until += 2000
        out.append(window.feed(block([until + t - 2500 for t in part], until=until)).tags.times_ps)
    out.append(window.feed(block([], [], until=until + 20_000)).tags.times_ps)
    times = np.concatenate(out)
    assert np.all(np.diff(times) >= 0)
    assert times.size + window.statistics.late == sum(len(part) for part in parts)


def test_a_wholly_disordered_block_is_still_sorted() -> None:
    times = np.random.default_rng(3).permutation(20_000).astype(np.int64)
    got = OrderWindow(0).feed(block(times, until=30_000)).tags
    assert np.array_equal(got.times_ps, np.arange(20_000))
