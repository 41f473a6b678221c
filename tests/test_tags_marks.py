"""What Bob's tags show beside clicks: counted by slot, the same however the tags come, nobody accused."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import msgspec.structs
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tags_generator import PERIOD_PS, Link, Recorded

from qnode.choices import LockState
from qnode.config import ReceiverParameters, SourceParameters
from qnode.distill.counts import SPAN_PARTS, TagCounts
from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.span_counts import SpanCounts
from qnode.tags.alignment import Alignment
from qnode.tags.dead_time import DeadTimeWatch, slots_of
from qnode.tags.gates import gates
from qnode.tags.marks import NO_MARKS, Marks, joined
from qnode.tags.synchroniser import Synchroniser, SyncResult
from qnode.tags.tracking import Combs
from qnode.tags.types import X_CHANNEL, Z_CHANNEL, Clicks, SlotRange, TagBlock

SOURCE = SourceParameters()
GATES = gates(SOURCE, ReceiverParameters())
# A clock without error, so that each tag's slot is known without following one; at this rate slots repeat.
BUSY = Link(rate_hz=3e6, ppm=0.0, walk=0.0, drift_ps_per_s=0.0, jitter_ps=20.0, dead_ps=0.0, first_slot=10**6)
RECEIVER = ReceiverParameters(dead_time_s=120e-9)
SPAN = (10**6 + 60_000_000, 10**6 + 110_000_000)  # locked before it begins, and received after it ends
TURIN = Link(ppm=0.0, walk=0.0, drift_ps_per_s=0.0)
TURIN_DEAD_S = 25e-6


@dataclass(frozen=True, eq=False)
class Placed:
    """Where tags lie by the truth: slot, channel, and whether inside a gate."""

    slots: npt.NDArray[np.int64]
    channels: npt.NDArray[np.int8]
    inside: npt.NDArray[np.bool_]
    clear: npt.NDArray[np.bool_]  # far from every border, wherever a tracked clock may put them


def placed(tags: TagBlock, link: Link) -> Placed:
    since = (tags.times_ps - link.start_ps).astype(np.float64)
    least = GATES.skew_ps / 2.0 - PERIOD_PS / 4.0  # a slot begins midway between a late and an early bin
    slots = np.floor((since - least) / PERIOD_PS).astype(np.int64)
    within = since - slots * PERIOD_PS
    inside = np.zeros(within.shape, np.bool_)
    clear = np.minimum(within - least, least + PERIOD_PS - within) > 40.0
    for channel, kinds in (
        (Z_CHANNEL, (GATES.early, GATES.late)),
        (X_CHANNEL, (GATES.boundary, GATES.central)),
    ):
        for gate in kinds:
            off = np.abs(within - gate.centre_ps)
            own = tags.channels == channel
            inside |= own & (off < gate.half_width_ps)
            clear &= ~own | (np.abs(off - gate.half_width_ps) > 40.0)
    clear &= np.abs(np.abs(within - least - PERIOD_PS / 2.0)) > 40.0  # nor midway between two ticks
    return Placed(slots + link.first_slot, tags.channels, inside, clear)


def clear_tags(link: Link, seconds: float, seed: int) -> Recorded:
    """Tags without those near a border, where a picosecond of the tracked clock decides."""
    tags = link.tags(seconds, seed).tags
    clear = placed(tags, link).clear
    return Recorded(TagBlock(tags.times_ps[clear], tags.channels[clear], tags.until_ps), link)


@cache
def busy() -> Recorded:
    return clear_tags(BUSY, 0.2, seed=31)


@cache
def turin() -> Recorded:
    return TURIN.tags(2.0, seed=32)


def play(
    blocks: Iterable[TagBlock], link: Link, receiver: ReceiverParameters, given_away: int = 0
) -> Iterator[SyncResult]:
    """Feed a synchroniser, whose probes are answered with the truth; ties go to the first outcome.

    So many slots are ``given_away`` after a probe's last.
    """
    synchroniser = Synchroniser(SOURCE, receiver, bytes)
    for block in blocks:
        result = synchroniser.feed(block)
        probe = result.probe
        if probe is not None:
            offset = 2 * link.first_slot + round(2.0 * (probe.start_ps - link.start_ps) / PERIOD_PS)
            last = (int(probe.ticks[-1]) + offset) // 2 + given_away
            synchroniser.aligned(Alignment(probe.number, offset, 1, 99.0, last))
        yield result


def counted(results: Iterable[SyncResult], spans: Sequence[tuple[int, int]]) -> list[TagCounts]:
    """The counts of spans, from all results."""
    counts = [SpanCounts(first, end - first) for first, end in spans]
    for result in results:
        for span in counts:
            span.add_clicks(Announced.of(result.clicks))
            span.add_marks(result.marks)
            span.add_cuts(result.cuts)
    assert result.reached >= max(end for _, end in spans)
    return [span.tag_counts() for span in counts]


def chopped(recorded: Recorded, borders_ps: Sequence[int]) -> Iterator[TagBlock]:
    """The tags in blocks that end at the given times after the beginning, and at the end."""
    tags, first = recorded.tags, 0
    ends = [recorded.link.start_ps + border for border in sorted(set(borders_ps))]
    for until in [*(end for end in ends if end < tags.until_ps), tags.until_ps]:
        last = int(np.searchsorted(tags.times_ps, until))
        yield TagBlock(tags.times_ps[first:last], tags.channels[first:last], until)
        first = last


def reference(recorded: Recorded, receiver: ReceiverParameters, first: int, end: int) -> TagCounts:
    """Count one span tag by tag, from the truth."""
    truth = placed(recorded.tags, recorded.link)
    seen: dict[int, Counter[int]] = {}
    out_of_gate = too_close = 0
    last: dict[int, int] = {}
    least_ps = receiver.dead_time_s * 1e12 * 0.999 - 10_000
    for time, slot, channel, inside in zip(
        recorded.tags.times_ps.tolist(), truth.slots.tolist(), truth.channels.tolist(), truth.inside.tolist(),
        strict=True,
    ):  # fmt: skip
        own, other = (time - last.get(c, -(10**18)) for c in (channel, 1 - channel))
        close = own < least_ps or (receiver.dead_time == "joint" and 10_000 < other < least_ps)
        last[channel] = time
        if first <= slot < end:
            too_close += close
            out_of_gate += not inside
            if inside:
                seen.setdefault(slot, Counter())[channel] += 1
    parts = {arm: [0] * SPAN_PARTS for arm in (Z_CHANNEL, X_CHANNEL)}
    for slot, channels in seen.items():  # both arms: with no random bits the outcome is an early bin
        arm = Z_CHANNEL if Z_CHANNEL in channels else X_CHANNEL
        parts[arm][(slot - first) * SPAN_PARTS // (end - first)] += 1
    borders = [-(-part * (end - first) // SPAN_PARTS) for part in range(SPAN_PARTS + 1)]
    return TagCounts(
        cross_clicks=sum(len(channels) == 2 for channels in seen.values()),
        double_clicks=sum(len(channels) == 1 and channels.total() > 1 for channels in seen.values()),
        out_of_gate=out_of_gate,
        too_close=too_close,
        live_slots=tuple(np.diff(borders).tolist()),
        z_clicks=tuple(parts[Z_CHANNEL]),
        x_clicks=tuple(parts[X_CHANNEL]),
    )


def halves() -> list[tuple[int, int]]:
    middle = (SPAN[0] + SPAN[1]) // 2 + 1
    return [(SPAN[0], middle), (middle, SPAN[1])]


@pytest.mark.parametrize("dead_time", ["independent", "joint"])
def test_the_counts_of_a_span_are_those_of_its_tags_one_by_one(dead_time: str) -> None:
    receiver = msgspec.structs.replace(RECEIVER, dead_time=dead_time)
    got = counted(play(busy().blocks(0.01), BUSY, receiver), halves())
    assert got == [reference(busy(), receiver, *half) for half in halves()]
    assert min(got[0].cross_clicks, got[0].double_clicks, got[0].out_of_gate, got[0].too_close) > 100
    assert min(got[0].x_clicks) > 1000


@cache
def whole() -> list[TagCounts]:
    return counted(play(busy().blocks(0.02), BUSY, RECEIVER), halves())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2 * 10**11), min_size=1, max_size=60), st.booleans())
@example([10**11, 10**11 + 1, 10**11 + 2, 10**11 + 10**6], False)
def test_however_the_feed_is_chopped_the_counts_are_the_same(borders_ps: list[int], scattered: bool) -> None:
    # Some feeds until it locks in any case, which it does after 30 to 80 ms.
    feeds = [10**10 * k for k in range(1, 8)]
    near = [] if scattered else [feeds[-1] + border % 10**9 for border in borders_ps]
    results = play(chopped(busy(), [*feeds, *borders_ps, *near]), BUSY, RECEIVER)
    assert counted(results, halves()) == whole()


def test_tags_of_a_dark_moment_count_as_little_as_its_slots() -> None:
    link = replace(BUSY, off_s=(0.125, 0.126), dark_hz=1e6)
    recorded = clear_tags(link, 0.2, seed=33)
    results = list(play(recorded.blocks(0.01), link, RECEIVER))
    (got,) = counted(results, [SPAN])
    cuts = [cut for result in results for cut in result.cuts if cut.end > SPAN[0]]
    assert sum(got.live_slots) == SPAN[1] - SPAN[0] - sum(cut.end - cut.first for cut in cuts)
    assert 300_000 < sum(cut.end - cut.first for cut in cuts) < 1_200_000
    slots = placed(recorded.tags, link).slots
    cut = np.zeros(slots.shape, np.bool_)
    for one in cuts:
        cut |= (slots >= one.first) & (slots < one.end)
    tags = recorded.tags
    lit = Recorded(TagBlock(tags.times_ps[~cut], tags.channels[~cut], tags.until_ps), link)
    wanted = reference(lit, RECEIVER, *SPAN)
    # Of the slot in which a bad stretch begins only the tags before it count.
    for ours, theirs in zip(msgspec.structs.astuple(got), msgspec.structs.astuple(wanted), strict=True):
        if ours is not got.live_slots and ours is not got.too_close:
            assert np.abs(np.subtract(ours, theirs)).sum() <= len(cuts)


def test_marks_are_told_once_with_the_result_that_reaches_beyond_their_slots() -> None:
    before = 0
    for result in play(busy().blocks(0.0007), BUSY, RECEIVER, given_away=600_000):
        before = max([before, *(cut.end for cut in result.cuts)])
        for slots in (result.marks.out_of_gate, result.marks.too_close, result.marks.cross_clicks):
            assert np.all(np.diff(slots) >= 0)
            assert np.all((slots >= before) & (slots < result.reached))
        before = result.reached


def too_close(
    recorded: Recorded, receiver: ReceiverParameters, blocks: Iterable[TagBlock] | None = None
) -> list[int]:
    """The slots of tags that came too close, after half a second."""
    first = recorded.link.first_slot + 300_000_000
    results = play(recorded.blocks(0.05) if blocks is None else blocks, recorded.link, receiver)
    found = np.concatenate([result.marks.too_close for result in results])
    return [slot for slot in found.tolist() if slot >= first]


DECLARED = ReceiverParameters(dead_time_s=TURIN_DEAD_S)


def with_tag(recorded: Recorded, time_ps: int, channel: int) -> Recorded:
    tags = recorded.tags
    place = int(np.searchsorted(tags.times_ps, time_ps))
    times = np.insert(tags.times_ps, place, time_ps)
    channels = np.insert(tags.channels, place, channel).astype(np.int8)
    return Recorded(TagBlock(times, channels, tags.until_ps), recorded.link)


def a_long_wait(recorded: Recorded, channel: int | None) -> int:
    """When a tag of ``channel`` (None: of any) came, after 1 s, that none follows for three dead times."""
    tags = recorded.tags
    own = tags.channels == channel if channel is not None else np.ones(tags.channels.shape, np.bool_)
    times = tags.times_ps[own & (tags.times_ps > recorded.link.start_ps + 10**12)]
    return int(times[np.flatnonzero(np.diff(times) > 3.0 * TURIN_DEAD_S * 1e12)[0]])


@pytest.mark.parametrize("channel", [Z_CHANNEL, X_CHANNEL])
@pytest.mark.parametrize(("after_us", "accused"), [(24.9, True), (25.0, False)])
def test_a_tag_sooner_than_the_declared_dead_time_is_found_in_its_slot(
    channel: int, after_us: float, accused: bool
) -> None:
    time_ps = a_long_wait(turin(), channel) + round(after_us * 1e6)
    recorded = with_tag(turin(), time_ps, channel)
    slot = int(placed(TagBlock(np.array([time_ps]), np.array([channel], np.int8), 0), TURIN).slots[0])
    assert too_close(recorded, DECLARED) == ([slot] if accused else [])
    assert too_close(recorded, ReceiverParameters()) == []  # nothing was declared


def jointly_dead() -> Recorded:
    """The Turin tags that a receiver gives of which each click blanks both detectors."""
    tags, kept, last = turin().tags, [], -(10**18)
    for i, time in enumerate(tags.times_ps.tolist()):
        if time - last >= TURIN_DEAD_S * 1e12:
            kept.append(i)
            last = time
    return Recorded(TagBlock(tags.times_ps[kept], tags.channels[kept], tags.until_ps), TURIN)


@pytest.mark.parametrize(("after_us", "accused"), [(0.0, False), (0.009, False), (0.1, True), (24.9, True)])
def test_with_joint_hold_off_the_other_detector_must_wait_too(after_us: float, accused: bool) -> None:
    joint = msgspec.structs.replace(DECLARED, dead_time="joint")
    honest = jointly_dead()
    time_ps = a_long_wait(honest, None)
    tags = honest.tags
    other = 1 - int(tags.channels[np.searchsorted(tags.times_ps, time_ps)])
    recorded = with_tag(honest, time_ps + round(after_us * 1e6), other)
    assert too_close(honest, joint) == []
    assert len(too_close(recorded, joint)) == accused
    assert too_close(recorded, DECLARED) == []
    assert len(too_close(turin(), joint)) > 1000


@pytest.mark.parametrize("scramble_ps", [0, 900_000])
def test_nobody_is_accused_for_jitter_lost_tags_or_tags_in_any_order(scramble_ps: int) -> None:
    link = replace(TURIN, jitter_ps=300.0)
    recorded = link.tags(2.0, seed=34)
    blocks = list(recorded.blocks(0.01, scramble_ps))
    for number in (110, 111, 150):  # lost from the front of a block, or the whole of it
        block, n = blocks[number], 100 if number < 150 else blocks[number].times_ps.size
        blocks[number] = TagBlock(block.times_ps[n:], block.channels[n:], block.until_ps, lost=n)
    assert too_close(recorded, DECLARED, blocks) == []


def test_nobody_is_accused_after_a_restart() -> None:
    synchroniser = Synchroniser(SOURCE, DECLARED, bytes)
    found = 0
    for number, block in enumerate(turin().blocks(0.05)):
        result = synchroniser.feed(block)
        found += result.marks.too_close.size
        probe = result.probe
        if probe is not None:
            offset = 2 * TURIN.first_slot + round(2.0 * (probe.start_ps - TURIN.start_ps) / PERIOD_PS)
            last = (int(probe.ticks[-1]) + offset) // 2
            synchroniser.aligned(Alignment(probe.number, offset, 1, 99.0, last))
        if number == 15:
            assert synchroniser.state is LockState.LOCKED
            synchroniser.restart()
    assert synchroniser.state is LockState.LOCKED
    assert found == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40_000), st.sampled_from([Z_CHANNEL, X_CHANNEL])), max_size=50),
    st.lists(st.integers(0, 50), max_size=5), st.booleans(),
)  # fmt: skip
def test_tags_that_come_too_soon_are_found_whatever_the_feeds(
    gaps: list[tuple[int, int]], borders: list[int], joint: bool
) -> None:
    receiver = ReceiverParameters(dead_time_s=60e-9, dead_time="joint" if joint else "independent")
    times = np.cumsum([gap for gap, _ in gaps], dtype=np.int64)
    channels = np.array([channel for _, channel in gaps], np.int8)
    watch, found, first = DeadTimeWatch(receiver), list[int](), 0
    for last in [*sorted(min(border, len(gaps)) for border in borders), len(gaps)]:
        found += [first + int(i) for i in watch.see(times[first:last], channels[first:last])]
        first = last
    wanted = []
    for i, time in enumerate(times.tolist()):
        since = {
            c: time
            - max((int(t) for t, d in zip(times[:i], channels[:i], strict=True) if d == c), default=-(10**9))
            for c in (Z_CHANNEL, X_CHANNEL)
        }
        own, other = since[int(channels[i])], since[1 - int(channels[i])]
        if own < 49_940 or (joint and 10_000 < other < 49_940):
            wanted.append(i)
    assert found == wanted


def test_a_tag_that_comes_too_soon_has_the_slot_that_the_clock_of_its_own_sub_interval_gives() -> None:
    combs = Combs(
        np.array([0, 10_000]), np.zeros(2), np.array([100, 200]), np.full(2, 1000.0), np.array([3, 6])
    )
    times = np.array([0, 2000, 9000, 10_400, 12_000, 15_000])
    tags = np.array([1, 2, 3, 4, 5])
    both, second = np.array([True, True]), np.array([False, True])
    assert slots_of(tags, times, combs, both, offset=4).tolist() == [53, 56, 102, 103, 104]
    assert slots_of(tags, times, combs, second, offset=4).tolist() == [102, 103, 104]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 30), st.integers(1, 100),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=60),
    st.lists(st.tuples(st.integers(0, 140), st.integers(0, 60)), max_size=6),
    st.lists(st.integers(0, 60), max_size=4),
)  # fmt: skip
def test_each_slot_is_live_or_cut_once_and_in_one_part(
    first: int, n: int, gaps: list[tuple[int, int]], ranges: list[tuple[int, int]], borders: list[int]
) -> None:
    slots = np.cumsum([gap + 1 for gap, _ in gaps], dtype=np.int64)
    outcomes = np.array([outcome for _, outcome in gaps], np.uint8)
    marks = Marks(slots, slots[::2], slots[::3], slots[::5])
    counts, begin = SpanCounts(first, n), 0
    for end in [*sorted(min(border, len(gaps)) for border in borders), len(gaps)]:
        counts.add_clicks(Announced.of(Clicks(slots[begin:end], outcomes[begin:end])))
        begin = end
    counts.add_marks(marks.below(40))
    counts.add_marks(marks.since(40))
    counts.add_cuts(SlotRange(since, since + length) for since, length in ranges)
    part = {slot: (slot - first) * SPAN_PARTS // n for slot in range(first, first + n)}
    cut = {slot for since, length in ranges for slot in range(since, since + length)}
    live = Counter(p for slot, p in part.items() if slot not in cut)
    z = Counter(part[s] for s, o in zip(slots.tolist(), outcomes, strict=True) if s in part and o < 2)
    x = Counter(part[s] for s, o in zip(slots.tolist(), outcomes, strict=True) if s in part and o >= 2)
    assert counts.tag_counts() == TagCounts(
        cross_clicks=sum(s in part for s in slots[::3].tolist()),
        double_clicks=sum(s in part for s in slots[::2].tolist()),
        out_of_gate=sum(s in part for s in slots.tolist()),
        too_close=sum(s in part for s in slots[::5].tolist()),
        live_slots=tuple(live[p] for p in range(SPAN_PARTS)),
        z_clicks=tuple(z[p] for p in range(SPAN_PARTS)),
        x_clicks=tuple(x[p] for p in range(SPAN_PARTS)),
    )


def test_marks_that_are_joined_are_in_order() -> None:
    one = Marks(*(np.array([1, 5]) for _ in range(4)))
    other = Marks(*(np.array([3]) for _ in range(4)))
    both = joined([one, NO_MARKS, other])
    assert both.out_of_gate.tolist() == both.too_close.tolist() == [1, 3, 5]
    assert len(both) == 12
    assert len(joined([])) == 0
