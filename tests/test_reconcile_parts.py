"""The parts of Cascade by themselves: plan, permutations, check."""

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reconcile_support import SEED

from qnode.distill.reconcile._check import check_parities
from qnode.distill.reconcile._plan import CHECK_BITS, MAX_FRAME_BITS, make_plan
from qnode.distill.reconcile._shuffle import Shuffles, move_differences

lengths = st.one_of(
    st.integers(64, 70_000), st.sampled_from([64, 65, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, 99_999])
)
relaxed = settings(max_examples=40, deadline=None, derandomize=True)


def plain_permutation(shuffles: Shuffles, slot: int) -> npt.NDArray[np.int64]:
    """Return the place of every bit, found by shuffling the bits of its number one after the other."""
    n_positions = 64 * shuffles.plan.n_words
    numbers = np.arange(n_positions)
    found = np.zeros(n_positions, np.int64)
    for k in range(n_positions.bit_length()):
        plane = np.packbits((numbers >> k & 1).astype(np.uint8), bitorder="little").view(np.uint64)
        shuffled = shuffles.apply(slot, plane)
        found |= np.unpackbits(shuffled.view(np.uint8), bitorder="little").astype(np.int64) << k
    return found


@given(n_bits=lengths, pass_index=st.integers(0, 9))
@relaxed
def test_a_shuffle_is_a_permutation_that_keeps_padding_apart(n_bits: int, pass_index: int) -> None:
    plan = make_plan(n_bits, 0.02)
    shuffles = Shuffles.of(plan)
    shuffles.draw(SEED, pass_index)
    source = plain_permutation(shuffles, plan.slot(pass_index))
    assert np.array_equal(np.sort(source), np.arange(64 * plan.n_words))
    if plan.bitwise:
        assert np.array_equal(source[n_bits:], np.arange(n_bits, 64 * plan.n_words))


@given(n_bits=lengths, position=st.floats(0, 1, exclude_max=True))
@relaxed
def test_a_difference_moves_back_to_where_it_came_from(n_bits: int, position: float) -> None:
    plan = make_plan(n_bits, 0.02)
    shuffles = Shuffles.of(plan)
    shuffles.draw(SEED, 0)
    bit = int(position * n_bits)
    source = np.zeros(plan.n_words, np.uint64)
    source[bit // 64] = np.uint64(1) << np.uint64(bit % 64)
    target = np.zeros_like(source)
    shuffled = shuffles.apply(0, source)
    move_differences(
        np.zeros_like(source), shuffled, shuffles.gather, shuffles.rotation, plan.bitwise, target
    )
    assert np.array_equal(target, source)


@pytest.mark.parametrize("n_bits", [1000, 1 << 16])
def test_neighbours_part_in_every_pass(n_bits: int) -> None:
    plan = make_plan(n_bits, 0.02)
    shuffles = Shuffles.of(plan)
    shuffles.draw(SEED, 1)
    place = np.argsort(plain_permutation(shuffles, 1))[:n_bits]
    for distance in (1, 2, 64, 128):
        same_word = np.mean(place[distance:] // 64 == place[:-distance] // 64)
        assert same_word < 3 * 64 / n_bits + 0.01


def test_the_passes_and_seeds_differ() -> None:
    plan = make_plan(1 << 15, 0.02)
    words = np.arange(plan.n_words, dtype=np.uint64)
    shuffles = Shuffles.of(plan)
    shuffled = []
    for pass_index, seed in [(0, SEED), (1, SEED), (2, SEED), (3, SEED), (4, SEED), (0, SEED[::-1])]:
        shuffles.draw(seed, pass_index)
        shuffled.append(shuffles.apply(plan.slot(pass_index), words).tobytes())
    assert len(set(shuffled)) == len(shuffled)


def test_the_shuffle_of_a_seed_is_fixed_for_good() -> None:
    """Two sites may run different releases: the permutation belongs to the protocol."""
    digests = []
    for n_bits in (128, 1 << 14):
        plan = make_plan(n_bits, 0.02)
        shuffles = Shuffles.of(plan)
        shuffles.draw(SEED, 1)
        words = np.arange(plan.n_words, dtype=np.uint64)
        digests.append(hashlib.sha256(shuffles.apply(1, words).astype("<u8").tobytes()).hexdigest()[:16])
    assert digests == ["84ebb52e48e0d275", "00e16a0385666f29"]


@given(
    n_bits=st.integers(64, MAX_FRAME_BITS),
    qber=st.one_of(st.floats(0, 0.5), st.sampled_from([0.0, 0.5, 5e-324])),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_plan_is_sound_for_any_length_and_estimate(n_bits: int, qber: float) -> None:
    plan = make_plan(n_bits, qber)
    assert plan == make_plan(n_bits, float(str(qber)))
    assert 0 <= 64 * plan.n_words - n_bits < 64
    assert list(plan.levels) == sorted(plan.levels)
    for slot in range(plan.n_slots):
        assert 1 <= plan.level(slot) < 31
        assert plan.n_blocks(slot) >= 8
        assert plan.n_blocks(slot) << plan.level(slot) >= n_bits
        assert 64 * plan.stride_words % (1 << plan.level(slot)) == 0
        assert plan.n_blocks(slot) << plan.level(slot) <= 64 * plan.stride_words
    assert plan.n_slots * plan.stride_words << 7 < 1 << 32
    assert plan.n_slots <= 8


def test_estimates_that_quantise_alike_give_the_same_plan() -> None:
    assert make_plan(100_000, 0.015) == make_plan(100_000, 0.015 + 1e-12)


def test_a_check_sees_single_errors_and_pairs_and_depends_on_its_number() -> None:
    rng = np.random.default_rng(2)
    words = rng.integers(0, 1 << 63, 1000, dtype=np.uint64)
    right = check_parities(words, SEED, 1)
    assert len(right) * 8 == CHECK_BITS
    assert check_parities(words, SEED, 2) != right
    for first, second in rng.integers(0, 64_000, (200, 2)):
        wrong = words.copy()
        wrong[first // 64] ^= np.uint64(1) << np.uint64(first % 64)
        assert check_parities(wrong, SEED, 1) != right
        wrong[second // 64] ^= np.uint64(1) << np.uint64(second % 64)
        assert first == second or check_parities(wrong, SEED, 1) != right


def test_check_parities_are_balanced_and_linear() -> None:
    rng = np.random.default_rng(3)
    zero = np.zeros(50, np.uint64)
    assert check_parities(zero, SEED, 1) == bytes(CHECK_BITS // 8)
    left, right = rng.integers(0, 1 << 63, (2, 50), dtype=np.uint64)
    both = bytes(
        a ^ b for a, b in zip(check_parities(left, SEED, 1), check_parities(right, SEED, 1), strict=True)
    )
    assert check_parities(left ^ right, SEED, 1) == both
    ones = sum(int.from_bytes(check_parities(left, SEED, k), "little").bit_count() for k in range(500))
    assert abs(ones - 500 * CHECK_BITS / 2) < 5 * np.sqrt(500 * CHECK_BITS / 4)
