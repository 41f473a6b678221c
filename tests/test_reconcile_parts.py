"""The parts of Cascade by themselves: plan, permutations, check."""

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reconcile_support import SEED, Places, deal, plain_permutation

from qnode.distill.bits import Bits
from qnode.distill.reconcile.base.words import U
from qnode.distill.reconcile.cascade.check import check_tag
from qnode.distill.reconcile.cascade.nodes import Layout
from qnode.distill.reconcile.cascade.plan import CHECK_BITS, MAX_BLOCK_BITS, Plan, make_plan
from qnode.distill.reconcile.cascade.shuffle import (
    Shuffles,
    Table,
    permute_segment,
    place_before_slot,
    place_in_slot,
    restore_segment,
)
from qnode.kernels import kernel

Words = npt.NDArray[np.uint64]

lengths = st.one_of(
    st.integers(64, 70_000), st.sampled_from([64, 65, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 99_999, 800_001])
)
relaxed = settings(max_examples=40, deadline=None, derandomize=True)


def shuffled(plan: Plan, shuffles: Shuffles, slot: int, source: Words) -> Words:
    target, spare = np.empty_like(source), np.empty_like(source)
    permute_segment(source, U(1), U(0), shuffles.forward[slot], plan.bitwise, spare, target)
    return target


def origins(plan: Plan, shuffles: Shuffles, slot: int) -> Places:
    """Return which bit comes to each place, found by shuffling the bits of its number one after the other."""
    n_positions = 64 * plan.segment_words
    numbers = np.arange(n_positions)
    found = np.zeros(n_positions, np.int64)
    for k in range(n_positions.bit_length()):
        plane = np.packbits((numbers >> k & 1).astype(np.uint8), bitorder="little").view(np.uint64)
        bits = np.unpackbits(shuffled(plan, shuffles, slot, plane).view(np.uint8), bitorder="little")
        found |= bits.astype(np.int64) << k
    return found


@kernel
def moved(
    there: bool, slot: int, table: Table, segment_words: int, bitwise: bool, places: Places, found: Places
) -> None:
    for k in range(places.size):
        x = U(places[k])
        if there:
            found[k] = place_in_slot(x, U(slot), table, U(segment_words), bitwise)
        else:
            found[k] = place_before_slot(x, U(slot), table, U(segment_words), bitwise)


@given(n_bits=lengths, pass_index=st.integers(0, 9))
@relaxed
def test_a_shuffle_is_the_permutation_that_its_tables_say(n_bits: int, pass_index: int) -> None:
    plan = make_plan(n_bits, 0.02)
    shuffles = Shuffles.of(plan)
    shuffles.draw(SEED, pass_index)
    slot = plan.slot(pass_index)
    source = origins(plan, shuffles, slot)
    n_places = 64 * plan.segment_words
    assert np.array_equal(np.sort(source), np.arange(n_places))
    assert np.array_equal(source, plain_permutation(shuffles, slot))
    if plan.bitwise:
        assert np.array_equal(source[n_bits:], np.arange(n_bits, n_places))
    found = np.empty(n_places, np.int64)
    moved(False, slot, shuffles.forward, plan.segment_words, plan.bitwise, np.arange(n_places), found)
    assert np.array_equal(found, source)
    moved(True, slot, shuffles.inverse, plan.segment_words, plan.bitwise, source, found)
    assert np.array_equal(found, np.arange(n_places))


@given(n_bits=lengths, rng=st.integers(0, 2**32 - 1).map(np.random.default_rng))
@relaxed
def test_a_key_dealt_and_permuted_is_restored(n_bits: int, rng: np.random.Generator) -> None:
    plan = make_plan(n_bits, 0.02)
    shuffles = Shuffles.of(plan)
    shuffles.draw(SEED, 0)
    table = shuffles.forward[0]
    key = Bits.pack(rng.integers(0, 2, n_bits, dtype=np.uint8))
    restored = np.zeros_like(key.words)
    permuted, spare = np.empty((2, plan.segment_words), np.uint64)
    for segment in range(plan.n_segments):
        permute_segment(key.words, U(plan.n_segments), U(segment), table, plan.bitwise, spare, permuted)
        assert (
            permuted.tobytes()
            == np.packbits(
                deal(key, plan, segment)[plain_permutation(shuffles, 0)], bitorder="little"
            ).tobytes()
        )
        restore_segment(permuted, table, plan.bitwise, spare, restored, U(plan.n_segments), U(segment))
    assert np.array_equal(restored, key.words)


def test_a_burst_falls_on_all_segments_and_is_scattered_in_each() -> None:
    n_bits = 2_000_003
    plan = make_plan(n_bits, 0.02)
    assert plan.n_segments > 3
    shuffles = Shuffles.of(plan)
    shuffles.draw(SEED, 0)
    burst = np.zeros(n_bits, np.uint8)
    burst[700_000:740_000] = 1
    key = Bits.pack(burst)
    for segment in range(plan.n_segments):
        bits = deal(key, plan, segment)[plain_permutation(shuffles, 0)]
        assert abs(int(bits.sum()) - 40_000 / plan.n_segments) <= 64
        blocks = bits[: bits.size // 2048 * 2048].reshape(-1, 2048).sum(axis=1)
        expected = 2048 * 40_000 / n_bits
        assert abs(blocks.mean() - expected) < 2
        assert blocks.var() < 1.5 * expected


@pytest.mark.parametrize("n_bits", [1000, 1 << 16])
def test_neighbours_part_in_every_pass(n_bits: int) -> None:
    plan = make_plan(n_bits, 0.02)
    shuffles = Shuffles.of(plan)
    shuffles.draw(SEED, 1)
    place = np.argsort(origins(plan, shuffles, 1))[:n_bits]
    for distance in (1, 2, 64, 128):
        same_word = np.mean(place[distance:] // 64 == place[:-distance] // 64)
        assert same_word < 3 * 64 / n_bits + 0.01


def test_the_passes_and_seeds_differ() -> None:
    plan = make_plan(1 << 15, 0.02)
    words = np.arange(plan.segment_words, dtype=np.uint64)
    shuffles = Shuffles.of(plan)
    results = set()
    for pass_index, seed in [(0, SEED), (1, SEED), (2, SEED), (3, SEED), (4, SEED), (0, SEED[::-1])]:
        shuffles.draw(seed, pass_index)
        results.add(shuffled(plan, shuffles, plan.slot(pass_index), words).tobytes())
    assert len(results) == 6


def test_the_shuffle_of_a_seed_is_fixed_for_good() -> None:
    """Two sites may run different releases: the permutation belongs to the protocol."""
    digests = []
    for n_bits in (128, 1 << 16):
        plan = make_plan(n_bits, 0.02)
        shuffles = Shuffles.of(plan)
        shuffles.draw(SEED, 1)
        words = np.arange(plan.segment_words, dtype=np.uint64)
        result = shuffled(plan, shuffles, 1, words).astype("<u8").tobytes()
        digests.append(hashlib.sha256(result).hexdigest()[:16])
    assert digests == ["84ebb52e48e0d275", "6d2ad65973a47a11"]


@given(
    n_bits=st.integers(64, MAX_BLOCK_BITS),
    qber=st.one_of(st.floats(0, 0.5), st.sampled_from([0.0, 0.5, 5e-324])),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_plan_is_sound_for_any_length_and_estimate(n_bits: int, qber: float) -> None:
    plan = make_plan(n_bits, qber)
    assert plan == make_plan(n_bits, float(str(qber)))
    assert 0 <= 64 * plan.n_segments * plan.segment_words - n_bits < max(64, n_bits // 8)
    assert plan.bitwise or plan.segment_words % 64 == 0
    assert list(plan.levels) == sorted(plan.levels)
    for slot in range(plan.n_slots):
        assert 1 <= plan.level(slot) <= 18
        assert plan.n_blocks(slot) >= 8
        assert plan.n_blocks(slot) << plan.level(slot) >= plan.n_positions
        assert plan.n_positions <= 64 * plan.segment_words
    layout = Layout.of(plan)
    assert int(layout.n_records) << 7 < 1 << 32
    # Exactness of the division by a segment's words.
    assert plan.bitwise or (64 * plan.segment_words <= 1 << 20 and plan.segment_words < 1 << 14)


@pytest.mark.parametrize("n_bits", [10_000_000, 1 << 22, 12_345_678])
def test_padding_of_long_blocks_is_negligible(n_bits: int) -> None:
    plan = make_plan(n_bits, 0.02)
    assert 64 * plan.n_segments * plan.segment_words - n_bits <= 0.005 * n_bits


def test_estimates_that_quantise_alike_give_the_same_plan() -> None:
    assert make_plan(100_000, 0.015) == make_plan(100_000, 0.015 + 1e-12)


def test_a_check_sees_single_errors_and_depends_on_seed_and_number() -> None:
    rng = np.random.default_rng(2)
    key = Bits.pack(rng.integers(0, 2, 64_001, dtype=np.uint8))
    right = check_tag(key, SEED, 1)
    assert len(right) * 8 == CHECK_BITS
    assert check_tag(key, SEED, 2) != right
    assert check_tag(key, SEED[::-1], 1) != right
    for bit in (0, 63, 64, 31_999, 64_000):
        wrong = Bits(key.words.copy(), len(key))
        wrong.words[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
        assert check_tag(wrong, SEED, 1) != right
