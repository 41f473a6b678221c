"""Tags of the open device protocol through damaged bytes: none wrong, none twice, each lost one counted."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qnode_drivers.open_protocol_tags import TagStream

from qnode.emulate.open_protocol import TAGS, built_frame
from qnode.emulate.open_protocol_tdc import RECORDS_IN_FRAME, _cuts, tag_payload
from qnode.errors import DeviceError, TransientDeviceError
from qnode.tags.open_protocol import LONGEST_FRAME_BYTES, scan
from qnode.tags.types import TagBlock

EPOCH = 77
CHANNELS = {0: 0, 1: 1}

# Steps between tags: close ones, ones out of order, and gaps that need wraps, up to ten minutes.
STEPS = st.one_of(
    st.integers(0, 1 << 27),
    st.integers(-1_000_000, -1),
    st.integers(1 << 27, 1 << 39),
    st.sampled_from([0, (1 << 27) - 1, 1 << 27, 600 * 10**12]),
)


@dataclass
class Sent:
    """Tags in the device's order, and the frames that carry them."""

    ticks: list[int]
    inputs: list[int]
    frames: list[bytes]
    counts: list[int]  # of tags, by frame


def sent(steps: list[int], inputs: list[int], start: int = 10**12, epoch: int = EPOCH) -> Sent:
    """Return frames of all tags and an empty one at the end."""
    ticks = np.cumsum(np.array([start, *steps], np.int64))[1:]
    channels = np.array(inputs, np.uint32)
    until, count, frames, counts = start, 0, [], []
    for first, end in _cuts(ticks):
        until = max(until, int(ticks[first:end].max()))
        frames.append(
            built_frame(TAGS, 0, tag_payload(epoch, count, ticks[first:end], channels[first:end], until))
        )
        counts.append(end - first)
        count += end - first
    frames.append(built_frame(TAGS, 0, tag_payload(epoch, count, ticks[:0], channels[:0], until + 1)))
    return Sent(ticks.tolist(), inputs, frames, [*counts, 0])


def received(pieces: list[bytes], tick: tuple[int, int] = (1, 1)) -> tuple[list[TagBlock], TagStream]:
    """Feed bytes piece by piece, as the port does; return the blocks."""
    stream, rest = TagStream(EPOCH, tick, CHANNELS), b""
    blocks = []
    for piece in pieces:
        data = np.frombuffer(rest + piece, np.uint8)
        while True:
            found = scan(data)
            for frame in found.frames:
                if frame.kind == TAGS:
                    stream.feed(data, frame)
            data = data[found.consumed :]
            if not found.frames:
                break
        rest = data.tobytes()
        assert len(rest) < LONGEST_FRAME_BYTES
        blocks += stream.take()
    return blocks, stream


def tags_of(blocks: list[TagBlock]) -> list[tuple[int, int]]:
    return [
        (time, channel)
        for block in blocks
        for time, channel in zip(block.times_ps.tolist(), block.channels.tolist(), strict=True)
    ]


def cut_up(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


TAGS_DRAWN = st.lists(st.tuples(STEPS, st.integers(0, 1)), max_size=700)


@settings(max_examples=60, deadline=None)
@given(TAGS_DRAWN, st.lists(st.integers(0, 1 << 20), max_size=20))
def test_all_tags_come_back_however_the_bytes_are_cut(tags: list[tuple[int, int]], cuts: list[int]) -> None:
    one = sent([step for step, _ in tags], [channel for _, channel in tags])
    blocks, stream = received(cut_up(b"".join(one.frames), cuts))
    assert tags_of(blocks) == list(zip(one.ticks, one.inputs, strict=True))
    assert stream.lost == sum(block.lost for block in blocks) == 0
    assert all(block.until_ps <= later.until_ps for block, later in itertools.pairwise(blocks))


@settings(max_examples=100, deadline=None)
@given(
    TAGS_DRAWN,
    st.lists(st.tuples(st.sampled_from("fdri"), st.integers(0, 1 << 30), st.integers(1, 255)), max_size=6),
)
def test_damage_costs_the_tags_of_damaged_frames_alone_and_each_is_counted(
    tags: list[tuple[int, int]], damage: list[tuple[str, int, int]]
) -> None:
    """Bytes are flipped, dropped, inserted, and whole frames repeated; the last frame stays whole."""
    one = sent([step for step, _ in tags], [channel for _, channel in tags])
    frames = list(one.frames[:-1])
    for how, place, value in damage:
        if not frames:
            break
        number = place % len(frames)
        frame = bytearray(frames[number])
        at = (place // 7) % max(1, len(frame))
        if how == "f" and frame:
            frame[at] ^= value
        elif how == "d" and frame:
            del frame[at : at + value]
        elif how == "i":
            frame[at:at] = bytes([value]) * (value % 9)
        else:
            frame = frame * 2
        frames[number] = bytes(frame)
    blocks, stream = received([*frames, one.frames[-1]])
    got = tags_of(blocks)
    expected = list(zip(one.ticks, one.inputs, strict=True))
    kept = iter(expected)
    assert all(tag in kept for tag in got)  # in order, none wrong, none twice
    assert stream.lost == sum(block.lost for block in blocks) == len(expected) - len(got)
    whole = [frame for frame, before in zip(frames, one.frames, strict=False) if before in frame]
    assert len(got) >= sum(
        count for frame, count in zip(one.frames, one.counts, strict=False) if frame in whole
    )


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=5000), st.lists(st.integers(0, 1 << 20), max_size=5))
def test_noise_alone_is_no_frame_and_bounded(noise: bytes, cuts: list[int]) -> None:
    blocks, stream = received(cut_up(noise, cuts))
    assert not blocks
    assert stream.lost == 0


@pytest.mark.parametrize("tick", [(1, 1), (125, 32), (81, 1), (65_535, 7), (1, 65_535)])
def test_times_are_exact_for_every_tick(tick: tuple[int, int]) -> None:
    one = sent([0, 1, 7, 1 << 26, -3, (1 << 30) + 1], [0, 1, 0, 1, 0, 1], start=(1 << 44) + 12_345)
    blocks, _ = received(one.frames, tick)
    assert [time for time, _ in tags_of(blocks)] == [ticks * tick[0] // tick[1] for ticks in one.ticks]


def test_a_tag_needs_five_bytes_at_fifty_thousand_a_second() -> None:
    random = np.random.default_rng(3)
    steps = random.exponential(20e6, 50_000).astype(np.int64).tolist()  # of 1 ps: long gaps have a wrap
    one = sent(steps, random.integers(0, 2, 50_000).tolist())
    assert sum(map(len, one.frames)) < 5 * 50_000
    tdc1 = sent([step // 8 for step in steps], one.inputs)
    assert sum(map(len, tdc1.frames)) < 4.3 * 50_000
    assert max(tdc1.counts) == RECORDS_IN_FRAME


def test_unknown_optional_records_are_skipped_and_others_refused() -> None:
    head = tag_payload(EPOCH, 0, np.array([5], np.int64), np.array([1], np.uint32), 9)
    for kind, is_known in ((8, True), (15, True), (1, False), (7, False)):
        record = (1 << 31 | kind << 27 | 1234).to_bytes(4, "little")
        frame = built_frame(TAGS, 0, head + record)
        if is_known:
            assert tags_of(received([frame])[0]) == [(5, 1)]
        else:
            with pytest.raises(DeviceError, match="do not fit"):
                received([frame])


def test_a_count_or_clock_that_goes_back_is_an_error_and_no_tag() -> None:
    before, after = sent([10] * 9, [0] * 9), sent([10] * 5, [1] * 5, start=2 * 10**12)
    with pytest.raises(TransientDeviceError, match="anew"):
        received([*before.frames, after.frames[0]])
    again = tag_payload(EPOCH, 9, np.array([3], np.int64), np.array([1], np.uint32), 9)
    with pytest.raises(TransientDeviceError, match="clock"):
        received([*before.frames, built_frame(TAGS, 0, again)])


def test_frames_of_an_earlier_start_are_dropped() -> None:
    old, new = sent([10] * 9, [0] * 9, epoch=76), sent([10] * 5, [1] * 5)
    blocks, stream = received([*old.frames, *new.frames])
    assert len(tags_of(blocks)) == 5
    assert (stream.stale_frames, stream.lost) == (len(old.frames), 0)


def test_tags_that_nobody_takes_are_dropped_and_counted() -> None:
    """Each second frame is missing, so that each of the others begins a block."""
    one = sent([1] * (248 * 200), [0] * (248 * 200))
    stream = TagStream(EPOCH, (1, 1), CHANNELS)
    for whole in one.frames[1:-1:2]:
        data = np.frombuffer(whole, np.uint8)
        stream.feed(data, scan(data).frames[0])
    data = np.frombuffer(one.frames[-1], np.uint8)
    stream.feed(data, scan(data).frames[0])
    blocks = stream.take()
    assert len(blocks) < 70
    last = sent([1] * (248 * 201), [0] * (248 * 201)).frames[-2]
    data = np.frombuffer(last, np.uint8)
    stream.feed(data, scan(data).frames[0])
    blocks += stream.take()
    tags, lost = len(tags_of(blocks)), sum(block.lost for block in blocks)
    assert tags + lost == 248 * 201
    assert stream.lost == lost
