import struct
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tags_generator import symbols

from qnode.distill.bits import Bits
from qnode.distill.bits.planes import chosen, joined, ones_before, plane, spread
from qnode.distill.bits.words import HAS_EXTRACT
from qnode.distill.counts import Pair, XCounts
from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.codec import decode_announcement, encode_announcement
from qnode.distill.sifting.gap_codec import decode_gaps, encode_gaps
from qnode.distill.sifting.sift import SiftedBlock, SiftRecord, errors_by_intensity, keep_bits
from qnode.errors import ProtocolError
from qnode.node.dialogue.announcement import AnnouncementCodec, announcement_codec
from qnode.tags.types import (
    DECOY,
    OUTCOME_BOUNDARY,
    OUTCOME_CENTRAL,
    OUTCOME_EARLY,
    OUTCOME_LATE,
    UNKNOWN_SYMBOL,
    X_PLUS,
    Z_EARLY,
    Z_LATE,
    Clicks,
    Codes,
    Slots,
)

CLASS_Z, CLASS_CENTRAL, CLASS_BOUNDARY = OUTCOME_EARLY, OUTCOME_CENTRAL, OUTCOME_BOUNDARY
BOTH_CODECS = [announcement_codec(1), announcement_codec(2)]
each_codec = pytest.mark.parametrize("codec", BOTH_CODECS, ids=["protocol-1", "protocol-2"])


def random_clicks(n: int, mean_gap: float, seed: int) -> tuple[Slots, Codes]:
    rng = np.random.default_rng(seed)
    slots = 10**12 + np.cumsum(1 + rng.exponential(mean_gap, n).astype(np.int64))
    return slots, rng.integers(0, 4, n).astype(np.uint8)


def announced(*clicks: tuple[int, int]) -> Announced:
    return said(np.array([c[0] for c in clicks], np.int64), np.array([c[1] for c in clicks], np.uint8))


def said(slots: Slots, outcomes: Codes) -> Announced:
    return Announced.of(Clicks(slots, outcomes))


def kept_of(outcomes: Codes, keep: Bits) -> Bits:
    return keep_bits(plane(outcomes, OUTCOME_LATE), plane(outcomes, OUTCOME_CENTRAL), keep)


def table(sent: dict[int, int]) -> Callable[[Slots], Codes]:
    return lambda slots: np.array([sent.get(int(slot), UNKNOWN_SYMBOL) for slot in slots], np.uint8)


@each_codec
@pytest.mark.parametrize(("mean_gap", "most_bytes"), [(19_000, 2.5), (300, 1.6), (2, 0.6)])
def test_an_announcement_comes_back_and_is_short(
    codec: AnnouncementCodec, mean_gap: float, most_bytes: float
) -> None:
    slots, outcomes = random_clicks(20_000, mean_gap, 1)
    data = codec.encode(said(slots, outcomes), 10**12)
    back = codec.decode(data, 10**12, int(slots[-1]) - 10**12 + 1)
    assert back.equals(said(slots, outcomes))
    assert len(data) / slots.size < most_bytes


@each_codec
@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(st.integers(0, 40), st.integers(0, 10**7), st.just(2**48)), st.integers(0, 3)),
        max_size=80,
    ),
    st.integers(0, 10**13),
)
def test_any_ascending_clicks_come_back(
    codec: AnnouncementCodec, clicks: list[tuple[int, int]], first: int
) -> None:
    slots = first + np.cumsum([1 + gap for gap, _ in clicks], dtype=np.int64)
    outcomes = np.array([outcome for _, outcome in clicks], np.uint8)
    n_slots = int(slots[-1]) - first + 1 if clicks else 0
    back = codec.decode(codec.encode(said(slots, outcomes), first), first, n_slots)
    assert back.equals(said(slots, outcomes))


@each_codec
def test_an_announcement_never_tells_early_from_late(codec: AnnouncementCodec) -> None:
    slots, outcomes = random_clicks(1000, 50, 2)
    flipped = np.where(outcomes < 2, outcomes ^ 1, outcomes).astype(np.uint8)
    assert codec.encode(said(slots, outcomes), 0) == codec.encode(said(slots, flipped), 0)


@each_codec
def test_a_dark_second_within_a_batch_costs_little(codec: AnnouncementCodec) -> None:
    slots, outcomes = random_clicks(2000, 100, 3)
    slots[1000:] += 600_000_000
    near = len(codec.encode(said(slots - np.repeat([0, 600_000_000], 1000), outcomes), 10**12))
    data = codec.encode(said(slots, outcomes), 10**12)
    assert np.array_equal(codec.decode(data, 10**12, 10**10).slots, slots)
    assert len(data) < 3 * near


@each_codec
def test_clicks_out_of_order_are_not_encoded(codec: AnnouncementCodec) -> None:
    for slots in ([5, 5], [5, 4], [2, 3]):
        with pytest.raises(ValueError, match="ascend"):
            codec.encode(said(np.array(slots, np.int64), np.zeros(2, np.uint8)), 3)


@each_codec
def test_slots_outside_the_span_are_refused(codec: AnnouncementCodec) -> None:
    data = codec.encode(announced((10, 0), (20, 2), (30, 3)), 10)
    assert len(codec.decode(data, 10, 21)) == 3
    for n_slots in (20, 1, 0):
        with pytest.raises(ProtocolError):
            codec.decode(data, 10, n_slots)


@each_codec
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**40))
def test_hostile_bytes_are_refused_or_decode_within_their_span(
    codec: AnnouncementCodec, data: bytes, n_slots: int
) -> None:
    try:
        got = codec.decode(data, 1000, n_slots)
    except ProtocolError:
        return
    assert np.all(np.diff(got.slots) > 0)
    assert not len(got) or (got.slots[0] >= 1000 and got.slots[-1] < 1000 + n_slots)
    assert len(got.x_arm) == len(got)
    assert len(got.boundary) == np.bitwise_count(got.x_arm.words).sum()
    assert len(data) >= 5


@each_codec
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 7), st.integers(1, 60))
def test_a_damaged_announcement_never_gives_the_same_clicks_in_another_form(
    codec: AnnouncementCodec, where: int, bit: int, n: int
) -> None:
    slots, outcomes = random_clicks(n, 500, n)
    data = bytearray(codec.encode(said(slots, outcomes), 10**12))
    for cut in (0, 4, len(data) - 1):
        with pytest.raises(ProtocolError):
            codec.decode(bytes(data[:cut]), 10**12, 10**9)
    with pytest.raises(ProtocolError):
        codec.decode(bytes(data) + b"\0", 10**12, 10**9)
    data[where % len(data)] ^= 1 << bit
    try:
        got = codec.decode(bytes(data), 10**12, 10**9)
    except ProtocolError:
        return
    assert not got.equals(said(slots, outcomes))


@pytest.mark.parametrize(
    ("click", "x_arm", "boundary"),
    [(5e-5, 0.49, 0.5), (0.0467, 0.041, 0.5), (0.3, 0.05, 0.3), (1e-3, 0.9, 0.1)],
    ids=["turin", "fast", "dense", "mostly-x"],
)
def test_an_announcement_by_gaps_costs_little_more_than_its_entropy(
    click: float, x_arm: float, boundary: float
) -> None:
    rng = np.random.default_rng(11)
    n = 100_000
    slots = np.cumsum(rng.geometric(click, n)).astype(np.int64)
    of_x = np.where(rng.random(n) < boundary, OUTCOME_BOUNDARY, OUTCOME_CENTRAL)
    outcomes = np.where(rng.random(n) < x_arm, of_x, rng.integers(0, 2, n)).astype(np.uint8)
    entropy_bits = n * (_entropy(click) / click + _entropy(x_arm) + x_arm * _entropy(boundary))
    assert 8 * len(encode_gaps(said(slots, outcomes), 0)) < 1.1 * entropy_bits
    if boundary == 0.5:
        assert 8 * len(encode_gaps(said(slots, outcomes), 0)) < 1.02 * entropy_bits


def _entropy(p: float) -> float:
    return float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


@given(st.data(), st.integers(0, 400))
def test_bits_spread_over_a_mask_are_the_chosen_ones_again(data: st.DataObject, n: int) -> None:
    mask = Bits.pack(np.array(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), np.uint8))
    ones = int(np.bitwise_count(mask.words).sum())
    bits = Bits.pack(np.array(data.draw(st.lists(st.integers(0, 1), min_size=ones, max_size=ones)), np.uint8))
    apart = spread(bits, mask)
    assert not np.any(apart.words & ~mask.words)
    assert chosen(apart, mask).equals(bits)
    with pytest.raises(ValueError, match="ones"):
        spread(Bits.pack(np.zeros(ones + 1, np.uint8)), mask)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(0, 2000))
def test_whatever_decodes_is_what_its_clicks_encode_to(data: st.DataObject, n: int, n_empty: int) -> None:
    k = max(0, (n_empty // n).bit_length() - 1)
    lengths = (n + (n_empty >> k), n * k, n, n)
    body = bytearray(data.draw(st.binary(min_size=1, max_size=1)) * sum((b + 7) // 8 for b in lengths))
    # A first part with the right number of ones, so that the checks after it are reached as well.
    places = data.draw(st.permutations(range(lengths[0])))[: n - 1]
    ones = np.zeros(lengths[0], np.uint8)
    ones[[place for place in places if place < lengths[0] - 1]] = 1
    ones[-1] = 1
    body[: (lengths[0] + 7) // 8] = Bits.pack(ones).to_bytes()
    announcement = struct.pack("<IQ", n, n_empty) + bytes(body)
    try:
        got = decode_announcement(announcement, 1000, 10_000)
    except ProtocolError:
        return
    assert encode_announcement(got, 1000) == announcement


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0, 0, 0, 1, 2, 3])), min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
)
def test_whatever_decodes_by_gaps_is_what_its_clicks_encode_to(
    clicks: list[tuple[int, int]], changes: list[tuple[int, int]]
) -> None:
    slots = 1000 + np.cumsum([1 + gap for gap, _ in clicks], dtype=np.int64)
    data = bytearray(encode_gaps(said(slots, np.array([outcome for _, outcome in clicks], np.uint8)), 1000))
    for where, change in changes:
        data[where % len(data)] ^= change
    try:
        got = decode_gaps(bytes(data), 1000, 10_000)
    except ProtocolError:
        return
    assert encode_gaps(got, 1000) == bytes(data)


@pytest.mark.parametrize(
    "head",
    [
        (0xFFFFFFFF, 0, 0, 0, 0),
        (1 << 26, 1 << 61, 1 << 26, 0, 0),
        (1, 1 << 40, 0xFFFFFFFF, 0, 0),
        (8, 100, 800, 8, 0xFFFFFFFF),
        (8, 100, 0, 9, 0),
        (0, 5, 0, 0, 0),
        (0, 0, 0, 1, 0),
        (1 << 26, 0, 0, 0, 0),
        (100, 0, 100, 10, 0),
    ],
)
def test_a_head_of_gaps_that_claims_what_its_bytes_do_not_hold_is_refused(head: tuple[int, ...]) -> None:
    for body in (b"", bytes(100), b"\xff" * 100):
        with pytest.raises(ProtocolError):
            decode_gaps(struct.pack("<IQIII", *head) + body, 0, 1 << 62)


def test_a_boundary_click_is_one_of_the_x_arm() -> None:
    data = bytearray(encode_announcement(announced((5, CLASS_Z)), 0))
    assert decode_announcement(bytes(data), 0, 10).equals(announced((5, CLASS_Z)))
    data[-1] |= 1  # the bit that says boundary, beside that of the arm
    with pytest.raises(ProtocolError, match="outside the X arm"):
        decode_announcement(bytes(data), 0, 10)


def test_a_small_message_cannot_ask_for_much_memory() -> None:
    with pytest.raises(ProtocolError):
        decode_announcement(b"\xff\xff\xff\x03\x00" + bytes(100), 0, 1 << 40)
    with pytest.raises(ProtocolError):
        decode_announcement(b"\x01\x00\x00\x00\x3f" + bytes(100), 0, 1 << 40)


def test_light_of_a_boundary_slot_is_counted_with_the_qubit_that_carries_it() -> None:
    d = DECOY
    # slot: (state of i-1, state of i) and where it must be counted
    sent: dict[int, int] = {}
    clicks: list[tuple[int, int]] = []

    def boundary(before: int, own: int) -> None:
        slot = 10 * (len(clicks) + 1)
        sent[slot - 1], sent[slot] = before, own
        clicks.append((slot, CLASS_BOUNDARY))

    boundary(Z_EARLY + d, Z_EARLY)  # same, signal: light early in i
    boundary(Z_LATE + d, Z_LATE)  # same, decoy: light late in i-1
    boundary(Z_EARLY, X_PLUS + d)  # plus, decoy: half of i
    boundary(X_PLUS, Z_LATE + d)  # plus, signal: half of i-1
    boundary(Z_EARLY, Z_LATE + d)  # dark, by convention i
    for states in ((Z_LATE, Z_EARLY), (Z_LATE, X_PLUS), (X_PLUS, Z_EARLY), (X_PLUS, X_PLUS)):
        boundary(*states)
    record = SiftRecord()
    record.add(announced(*clicks), table(sent))
    block = record.finish()
    zero = Pair(0.0, 0.0)
    assert block.x_counts == XCounts(
        c_plus=zero, c_z=zero, e_same=Pair(1.0, 1.0), e_plus=Pair(1.0, 1.0), e_dark=Pair(0.0, 1.0)
    )
    assert block.boundary == 9
    assert block.unknown == 0
    assert block.n_z.total == 0


def test_central_clicks_count_by_state_and_intensity() -> None:
    sent = {1: X_PLUS, 2: X_PLUS | DECOY, 3: Z_EARLY, 4: Z_LATE | DECOY, 5: Z_LATE}
    record = SiftRecord()
    record.add(announced(*[(slot, CLASS_CENTRAL) for slot in sent]), table(sent))
    counts = record.finish().x_counts
    assert (counts.c_plus, counts.c_z) == (Pair(1.0, 1.0), Pair(2.0, 1.0))


@pytest.mark.parametrize("split", range(8))
def test_qubits_beside_a_boundary_click_leave_the_key_also_across_batches(split: int) -> None:
    sent = dict.fromkeys(range(100), Z_LATE) | {50: Z_LATE | DECOY}
    clicks = [(9, CLASS_Z), (10, CLASS_BOUNDARY), (11, CLASS_Z), (20, CLASS_Z), (22, CLASS_BOUNDARY)]
    clicks += [(23, CLASS_BOUNDARY), (50, CLASS_Z)]
    record = SiftRecord()
    record.add(announced(*clicks[:split]), table(sent))
    record.add(announced(*clicks[split:]), table(sent))
    block = record.finish()
    assert list(block.keep.unpack()) == [0, 0, 1, 1, 0, 0, 1]
    assert list(block.bits.unpack()) == [1, 1, 1]
    assert list(block.decoy.unpack()) == [0, 0, 1]
    assert block.n_z == Pair(2.0, 1.0)


@pytest.mark.parametrize("split", range(9))
def test_z_clicks_on_plus_count_like_kept_ones_by_intensity_also_across_batches(split: int) -> None:
    plus, decoy = X_PLUS, X_PLUS | DECOY
    sent = {1: plus, 5: decoy, 9: plus, 10: Z_EARLY, 20: decoy, 22: plus, 23: plus, 30: plus, 31: plus}
    clicks = [(1, CLASS_Z), (5, CLASS_Z), (9, CLASS_Z), (10, CLASS_BOUNDARY)]  # 10 takes 9 away
    clicks += [(20, CLASS_Z), (22, CLASS_BOUNDARY), (23, CLASS_Z), (30, CLASS_Z), (31, CLASS_CENTRAL)]
    record = SiftRecord()
    record.add(announced(*clicks[:split]), table(sent))
    record.add(announced(*clicks[split:]), table(sent))
    block = record.finish()
    assert block.n_z_plus == Pair(3.0, 2.0)
    assert block.n_z.total == 0.0
    assert len(block.bits) == 0


def test_a_boundary_click_in_a_blocks_first_slot_does_not_use_a_qubit_of_the_block_before() -> None:
    sent = dict.fromkeys(range(99, 104), Z_EARLY)
    clicks = [(100, CLASS_BOUNDARY), (102, CLASS_BOUNDARY), (103, CLASS_Z)]
    record = SiftRecord(100)
    record.add(announced(*clicks), table(sent))
    block = record.finish()
    assert block.x_counts.e_same.total == 1.0
    assert block.boundary == 1
    assert block.unknown == 1
    assert list(block.keep.unpack()) == [0, 0, 1]


def test_forgotten_symbols_are_dropped_and_counted() -> None:
    sent = {5: Z_LATE, 9: Z_EARLY, 10: Z_EARLY}
    clicks = [(1, CLASS_Z), (2, CLASS_CENTRAL), (5, CLASS_Z), (9, CLASS_BOUNDARY), (10, CLASS_BOUNDARY)]
    record = SiftRecord()
    record.add(announced(*clicks), table(sent))
    block = record.finish()
    assert block.unknown == 3
    assert (block.boundary, block.n_z_plus) == (1, Pair(0.0, 0.0))
    assert block.x_counts.e_same == Pair(1.0, 0.0)
    assert list(block.keep.unpack()) == [0, 0, 1, 0, 0]


def test_before_slot_0_nothing_was_sent() -> None:
    record = SiftRecord()
    record.add(
        announced((0, CLASS_BOUNDARY), (1, CLASS_BOUNDARY)), lambda slots: np.zeros(slots.size, np.uint8)
    )
    block = record.finish()
    assert block.unknown == 1
    assert block.x_counts.e_same == Pair(1.0, 0.0)


def test_batches_must_ascend() -> None:
    record = SiftRecord()
    record.add(announced((5, CLASS_Z), (9, CLASS_Z)), symbols)
    for slot in (9, 3):
        with pytest.raises(ProtocolError, match="not ascending"):
            record.add(announced((slot, CLASS_Z)), symbols)


def sifted_click_by_click(
    slots: Slots, outcomes: Codes, sent: Callable[[Slots], Codes], first_slot: int
) -> tuple[list[int], list[int], Pair, XCounts, int, int]:
    """Sift click by click: kept ones and their symbols, those on plus, X counts, boundary, unknown."""
    kept, plus, unknown, boundary, x = dict[int, int](), list[int](), 0, 0, Counter[tuple[str, int]]()
    for i, (slot, outcome) in enumerate(zip(slots.tolist(), outcomes.tolist(), strict=True)):
        symbol, before = (int(one) for one in sent(np.array([slot, max(0, slot - 1)], np.int64)))
        state, own_intensity = symbol & 3, symbol >> 2 & 1
        if outcome < OUTCOME_CENTRAL:
            unknown += state == 3
            if state < 2:
                kept[i] = symbol
            elif state == 2:
                plus.append(i)
            continue
        if outcome == OUTCOME_BOUNDARY and i and slots[i - 1] == slot - 1:
            kept.pop(i - 1, None)
            plus = [j for j in plus if j != i - 1]
        before = UNKNOWN_SYMBOL if slot - 1 < first_slot else before
        if state == 3 or (outcome == OUTCOME_BOUNDARY and before & 3 == 3):
            unknown += 1
        elif outcome == OUTCOME_CENTRAL:
            x["c_plus" if state == 2 else "c_z", own_intensity] += 1
        else:
            boundary += 1
            kind = {(0, 0): "e_same", (1, 1): "e_same", (0, 2): "e_plus", (2, 1): "e_plus", (0, 1): "e_dark"}
            of_own = before & 3 == 0
            if name := kind.get((before & 3, state)):
                x[name, own_intensity if of_own else before >> 2 & 1] += 1
    decoys = sum(int(sent(slots[j : j + 1])[0]) >> 2 & 1 for j in plus)
    names = ("c_plus", "c_z", "e_same", "e_plus", "e_dark")
    counts = XCounts(*(Pair(float(x[name, 0]), float(x[name, 1])) for name in names))
    on_plus = Pair(float(len(plus) - decoys), float(decoys))
    return list(kept), list(kept.values()), on_plus, counts, boundary, unknown


@each_codec
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.one_of(st.just(0), st.integers(0, 40)), st.integers(0, 3)), max_size=150),
    st.lists(st.integers(0, 150), max_size=3),
    st.integers(0, 5),
    st.integers(0, 2**32),
)
def test_announced_bytes_sift_to_what_sifting_click_by_click_gives(
    codec: AnnouncementCodec, clicks: list[tuple[int, int]], borders: list[int], first: int, seed: int
) -> None:
    slots = first - 1 + np.cumsum([1 + gap for gap, _ in clicks], dtype=np.int64)
    outcomes = np.array([outcome for _, outcome in clicks], np.uint8)
    sent = np.random.default_rng(seed).choice(
        np.array([0, 1, 2, 4, 5, 6, UNKNOWN_SYMBOL], np.uint8), (int(slots[-1]) + 1) if clicks else 0
    )
    record, begin = SiftRecord(first), 0
    for end in [*sorted(min(border, len(clicks)) for border in borders), len(clicks)]:
        part = said(slots[begin:end], outcomes[begin:end])
        base = int(slots[begin]) if begin < end else first
        record.add(codec.decode(codec.encode(part, base), base, 10**9), lambda asked: sent[asked])
        begin = end
    block: SiftedBlock = record.finish()
    kept, symbols_kept, on_plus, x, boundary, unknown = sifted_click_by_click(
        slots, outcomes, lambda asked: sent[asked], first
    )
    assert np.flatnonzero(block.keep.unpack()).tolist() == kept
    assert block.bits.unpack().tolist() == [symbol & 1 for symbol in symbols_kept]
    assert block.decoy.unpack().tolist() == [symbol >> 2 for symbol in symbols_kept]
    assert (block.n_z_plus, block.x_counts) == (on_plus, x)
    assert (block.boundary, block.unknown) == (boundary, unknown)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=6), st.integers(0, 2**32))
def test_joined_bits_are_those_of_the_parts_and_counted_up_to_any_place(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, 2, size).astype(np.uint8) for size in sizes]
    whole = np.concatenate([np.zeros(0, np.uint8), *parts])
    together = joined([Bits.pack(part) for part in parts])
    assert together.equals(Bits.pack(whole))
    places = range(whole.size + 1)
    assert ones_before(together, places) == [int(whole[:place].sum()) for place in places]


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 10_001])
def test_both_sides_keep_the_same_bits_and_the_counts_are_those_of_a_plain_sift(n: int) -> None:
    slots, outcomes = random_clicks(n, 3, n)
    kind = symbols(slots)
    outcomes = np.where((outcomes < 2) & (kind & 3 < 2), kind & 1, outcomes).astype(np.uint8)
    record = SiftRecord()
    for part in np.array_split(np.arange(n), 7):
        first = int(slots[part[0]]) if part.size else 0
        data = encode_announcement(said(slots[part], outcomes[part]), first)
        record.add(decode_announcement(data, first, 10**9), symbols)
    block = record.finish()
    bits = kept_of(outcomes, block.keep)
    assert bits.equals(block.bits)
    next_to_boundary = np.zeros(n, np.bool_)
    next_to_boundary[:-1] = (slots[:-1] + 1 == slots[1:]) & (outcomes[1:] == 3)
    keep = (outcomes < 2) & (kind & 3 < 2) & ~next_to_boundary
    assert np.array_equal(block.keep.unpack().astype(bool), keep)
    assert np.array_equal(block.bits.unpack(), kind[keep] & 1)
    assert np.array_equal(block.decoy.unpack(), kind[keep] >> 2)
    assert block.n_z == Pair(float(np.sum(kind[keep] < 4)), float(np.sum(kind[keep] >= 4)))
    on_plus = (outcomes < 2) & (kind & 3 == X_PLUS) & ~next_to_boundary
    assert block.n_z_plus == Pair(
        float(np.sum(on_plus & (kind < 4))), float(np.sum(on_plus & (kind >= 4) & (kind < 8)))
    )
    boundary = outcomes == 3
    assert block.boundary == np.sum(boundary & (kind & 3 != 3) & (symbols(slots - 1) & 3 != 3))
    central = outcomes == 2
    assert block.x_counts.c_plus.total + block.x_counts.c_z.total == central.sum()
    assert block.x_counts.c_plus.decoy == np.sum(kind[central] == (X_PLUS | DECOY))


def test_symbols_may_lie_apart_in_memory() -> None:
    slots, outcomes = random_clicks(1000, 3, 5)
    blocks = []
    for lookup in (symbols, lambda asked: np.repeat(symbols(asked), 2)[::2]):
        record = SiftRecord()
        record.add(said(slots, outcomes), lookup)
        blocks.append(record.finish())
    assert blocks[0].bits.equals(blocks[1].bits)
    assert blocks[0].keep.equals(blocks[1].keep)
    assert blocks[0].x_counts == blocks[1].x_counts


def test_a_mask_that_does_not_fit_is_refused() -> None:
    outcomes = np.array([0, 1, 2, 3], np.uint8)
    assert list(kept_of(outcomes, Bits.pack(np.array([1, 1, 0, 0], np.uint8))).unpack()) == [0, 1]
    for mask in ([1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0, 0]):
        with pytest.raises(ProtocolError):
            kept_of(outcomes, Bits.pack(np.array(mask, np.uint8)))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 300), st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]), st.integers(0, 2**32))
def test_chosen_bits_are_those_of_the_mask_in_their_order(n: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits, mask = rng.integers(0, 2, n).astype(np.uint8), (rng.random(n) < share).astype(np.uint8)
    for portable in (True, not HAS_EXTRACT):
        got = chosen(Bits.pack(bits), Bits.pack(mask), portable=portable)
        assert got.equals(Bits.pack(bits[mask == 1]))


def test_a_mask_of_another_length_chooses_nothing() -> None:
    with pytest.raises(ValueError, match="mask of 3 bits for 4"):
        chosen(Bits.pack(np.ones(4, np.uint8)), Bits.pack(np.ones(3, np.uint8)))


def test_errors_are_counted_by_intensity() -> None:
    rng = np.random.default_rng(4)
    before, error, decoy = (rng.random(1000) < p for p in (0.5, 0.03, 0.3))
    pair = errors_by_intensity(
        Bits.pack(before.astype(np.uint8)),
        Bits.pack((before ^ error).astype(np.uint8)),
        Bits.pack(decoy.astype(np.uint8)),
    )
    assert pair == Pair(float(np.sum(error & ~decoy)), float(np.sum(error & decoy)))
    with pytest.raises(ValueError, match="bits"):
        errors_by_intensity(
            Bits.pack(np.ones(3, np.uint8)), Bits.pack(np.ones(3, np.uint8)), Bits.pack(np.ones(4, np.uint8))
        )


def test_neither_record_nor_result_shows_bits() -> None:
    record = SiftRecord()
    record.add(announced((5, CLASS_Z), (9, CLASS_Z)), symbols)
    assert repr(record) == "SiftRecord(2 clicks)"
    assert "words" not in repr(record.finish())
