"""Cascade from end to end: Bob ends with Alice's key, and both count what it cost."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reconcile_support import (
    SEED,
    PlainAlice,
    dialogue,
    independent_errors,
    make_pair,
    plain_permutation,
    reconcile,
)

from qnode.distill.bits import Bits
from qnode.distill.reconcile import ReconciliationFailed, corrector, leaked_bits, responder
from qnode.distill.reconcile.cascade.plan import CHECK_BITS, make_plan
from qnode.distill.reconcile.cascade.shuffle import Shuffles
from qnode.errors import FieldError

lengths = st.one_of(
    st.integers(64, 700),
    st.floats(6.0, 17.0).map(lambda x: int(2**x)),
    st.sampled_from([64, 65, 127, 128, 4096, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 1 << 16]),
)
rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)
qbers = st.one_of(st.just(0.0), st.floats(0.0, 0.11))
relaxed = settings(max_examples=80, deadline=None, derandomize=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def entropy(p: float) -> float:
    return float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


@given(n_bits=lengths, qber=qbers, rng=rngs, seed=st.binary(min_size=32, max_size=32))
@relaxed
def test_random_keys_with_independent_errors_are_corrected(
    n_bits: int, qber: float, rng: np.random.Generator, seed: bytes
) -> None:
    pair = make_pair(independent_errors(n_bits, qber, rng), rng)
    bob = reconcile(pair, qber, seed)
    assert bob.statistics.corrected_errors == pair.n_errors


@given(n_bits=lengths, qber=qbers, estimate=st.floats(0.005, 0.11), rng=rngs)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_wrong_estimate_costs_parities_but_not_correctness(
    n_bits: int, qber: float, estimate: float, rng: np.random.Generator
) -> None:
    pair = make_pair(independent_errors(n_bits, qber, rng), rng)
    assert reconcile(pair, estimate).statistics.corrected_errors == pair.n_errors


@given(n_bits=lengths, rng=rngs, n_bursts=st.integers(1, 4), share=st.floats(0.0, 0.04))
@relaxed
def test_bursts_are_corrected(n_bits: int, rng: np.random.Generator, n_bursts: int, share: float) -> None:
    errors = np.zeros(n_bits, np.uint8)
    for _ in range(n_bursts):
        length = max(1, int(n_bits * share))
        first = int(rng.integers(0, n_bits - length + 1))
        errors[first : first + length] = rng.integers(0, 2, length)
    pair = make_pair(errors, rng)
    reconcile(pair, pair.n_errors / n_bits)


@given(n_bits=lengths, rng=rngs, period=st.sampled_from([16, 64, 128, 1024]), offset=st.integers(0, 63))
@relaxed
def test_periodic_errors_are_corrected(
    n_bits: int, rng: np.random.Generator, period: int, offset: int
) -> None:
    errors = np.zeros(n_bits, np.uint8)
    errors[offset::period] = 1
    pair = make_pair(errors, rng)
    reconcile(pair, pair.n_errors / n_bits)


@given(n_bits=lengths, rng=rngs, n_errors=st.integers(1, 6))
@relaxed
def test_a_few_errors_are_corrected_though_none_were_expected(
    n_bits: int, rng: np.random.Generator, n_errors: int
) -> None:
    errors = np.zeros(n_bits, np.uint8)
    errors[rng.choice(n_bits, n_errors, replace=False)] = 1
    reconcile(make_pair(errors, rng), 0.0)


@pytest.mark.parametrize("n_errors", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("n_under", [16, 64, 1024])
def test_a_leap_misled_by_more_than_one_error_is_made_good(
    n_errors: int, n_under: int, rng: np.random.Generator
) -> None:
    """Errors that pass 0 gathers under one node, where so few searches leap over all levels."""
    n_bits = 1 << 17
    plan = make_plan(n_bits, 0.001)
    assert plan.n_segments == 1
    assert plan.levels[0] >= 10
    shuffles = Shuffles.of(plan)
    shuffles.draw(SEED, 0)
    origins = plain_permutation(shuffles, 0)
    errors = np.zeros(64 * plan.segment_words, np.uint8)
    errors[origins[7 * n_under + rng.choice(n_under, n_errors, replace=False)]] = 1
    assert not errors[n_bits:].any()
    bob = reconcile(make_pair(errors[:n_bits], rng), 0.001)
    assert bob.statistics.corrected_errors == n_errors


def test_equal_keys_stay_equal_and_cost_the_blocks_and_the_check(rng: np.random.Generator) -> None:
    pair = make_pair(np.zeros(1 << 16, np.uint8), rng)
    bob = reconcile(pair, 0.0)
    assert bob.statistics.corrected_errors == 0
    assert bob.statistics.rounds == 4
    assert CHECK_BITS < bob.statistics.disclosed_bits < 500


@pytest.mark.parametrize(("n_bits", "qber", "f_upper"), [(1_000_000, 0.015, 1.05), (1 << 20, 0.03, 1.06)])
def test_efficiency_and_wire_stay_within_their_goals(
    n_bits: int, qber: float, f_upper: float, rng: np.random.Generator
) -> None:
    errors = np.zeros(n_bits, np.uint8)
    errors[rng.choice(n_bits, int(qber * n_bits), replace=False)] = 1
    statistics = reconcile(make_pair(errors, rng), qber).statistics
    assert statistics.disclosed_bits <= f_upper * n_bits * entropy(qber)
    assert 8 * (statistics.request_bytes + statistics.response_bytes) < n_bits


def test_a_key_of_two_million_bits_with_a_long_burst_is_corrected(rng: np.random.Generator) -> None:
    n_bits = 2_000_003
    errors = independent_errors(n_bits, 0.01, rng)
    errors[700_000:740_000] = rng.integers(0, 2, 40_000)
    pair = make_pair(errors, rng)
    reconcile(pair, pair.n_errors / n_bits)


@given(n_bits=lengths.filter(lambda n: n < 70_000), qber=st.floats(0.0, 0.11), rng=rngs)
@example(n_bits=800_001, qber=0.02, rng=np.random.default_rng(8))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_plain_alice_gives_the_same_answers_and_counts_the_same(
    n_bits: int, qber: float, rng: np.random.Generator
) -> None:
    pair = make_pair(independent_errors(n_bits, qber, rng), rng)
    alice = responder("cascade", pair.alice, seed=SEED, qber_estimate=0.03)
    bob = corrector("cascade", pair.bob, seed=SEED, qber_estimate=0.03)
    plain = PlainAlice(pair.alice, 0.03)
    request: bytes | None = bob.start()
    rounds = request_bytes = response_bytes = 0
    while request is not None:
        answer = alice.respond(request)
        assert answer == plain.respond(request)
        assert alice.disclosed_bits == plain.disclosed_bits
        rounds += 1
        request_bytes += len(request)
        response_bytes += len(answer)
        request = bob.receive(answer)
    statistics = bob.statistics
    assert bob.corrected.equals(pair.alice)
    assert statistics.disclosed_bits == plain.disclosed_bits
    assert (statistics.rounds, statistics.request_bytes, statistics.response_bytes) == (
        rounds,
        request_bytes,
        response_bytes,
    )


@pytest.mark.parametrize("qber", [0.27, 0.35, 0.5])
@pytest.mark.parametrize("estimate", [0.005, 0.03, 0.11])
@pytest.mark.parametrize("n_bits", [3_000, 1 << 16])
def test_a_hopeless_key_fails_cleanly(
    n_bits: int, estimate: float, qber: float, rng: np.random.Generator
) -> None:
    pair = make_pair(independent_errors(n_bits, qber, rng), rng)
    alice = responder("cascade", pair.alice, seed=SEED, qber_estimate=estimate)
    bob = corrector("cascade", pair.bob, seed=SEED, qber_estimate=estimate)
    with pytest.raises(ReconciliationFailed):
        dialogue(alice, bob)
    with pytest.raises(RuntimeError):
        _ = bob.corrected


def test_both_parities_are_charged_when_error_positions_are_not_assumed_public(
    rng: np.random.Generator,
) -> None:
    pair = make_pair(independent_errors(5000, 0.02, rng), rng)
    alice = responder("cascade", pair.alice, seed=SEED, qber_estimate=0.02, leak_count="both")
    bob = corrector("cascade", pair.bob, seed=SEED, qber_estimate=0.02, leak_count="both")
    dialogue(alice, bob)
    assert alice.leaked_bits == bob.statistics.leaked_bits == 2 * alice.disclosed_bits
    assert leaked_bits(100, "alice") == 100


def test_the_keys_given_are_not_changed(rng: np.random.Generator) -> None:
    pair = make_pair(independent_errors(5000, 0.02, rng), rng)
    copies = (pair.alice.to_bytes(), pair.bob.to_bytes())
    reconcile(pair, 0.02)
    assert (pair.alice.to_bytes(), pair.bob.to_bytes()) == copies


def test_another_seed_takes_another_way_to_the_same_key(rng: np.random.Generator) -> None:
    pair = make_pair(independent_errors(20_000, 0.03, rng), rng)
    ways = {reconcile(pair, 0.03, bytes([k]) * 32).statistics.request_bytes for k in range(4)}
    assert len(ways) > 1


def _key(n_bits: int) -> Bits:
    return Bits.pack(np.zeros(n_bits, np.uint8))


@pytest.mark.parametrize("make", [responder, corrector])
@pytest.mark.parametrize(
    ("field", "method", "n_bits", "seed", "estimate", "leak_count"),
    [
        ("method", "winnow", 64, SEED, 0.01, "alice"),
        ("key", "cascade", 63, SEED, 0.01, "alice"),
        ("seed", "cascade", 64, SEED[1:], 0.01, "alice"),
        ("qber_estimate", "cascade", 64, SEED, -0.01, "alice"),
        ("qber_estimate", "cascade", 64, SEED, 0.51, "alice"),
        ("qber_estimate", "cascade", 64, SEED, float("nan"), "alice"),
        ("leak_count", "cascade", 64, SEED, 0.01, "bob"),
    ],
)
def test_impossible_arguments_are_refused_by_name(
    make: object, field: str, method: str, n_bits: int, seed: bytes, estimate: float, leak_count: str
) -> None:
    assert callable(make)
    with pytest.raises(FieldError) as caught:
        make(method, _key(n_bits), seed=seed, qber_estimate=estimate, leak_count=leak_count)
    assert caught.value.field == field
