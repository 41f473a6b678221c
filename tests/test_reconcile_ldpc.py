"""LDPC from end to end: Bob ends with Alice's block in few round trips, and both count what it cost."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.distill.bits import Bits
from qnode.distill.reconcile import (
    Corrector,
    LeakCount,
    ReconciliationFailed,
    choose_method,
    corrector,
    responder,
)
from qnode.errors import FieldError

SEED = bytes(range(32))
BitArray = npt.NDArray[np.uint8]

lengths = st.one_of(
    st.integers(64, 700),
    st.floats(6.0, 17.0).map(lambda x: int(2**x)),
    st.sampled_from([64, 65, 127, 128, 4031, 4032, 4096, 51_199, 51_200, 51_201, 102_400, 102_401]),
)
qbers = st.one_of(st.just(0.0), st.floats(0.0, 0.11))
relaxed = settings(max_examples=60, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Run:
    """What one dialogue cost."""

    bob: Corrector
    rounds: int
    disclosed_bits: int


def entropy(q: float) -> float:
    return float(-q * np.log2(q) - (1 - q) * np.log2(1 - q))


def independent_errors(n_bits: int, qber: float, rng: np.random.Generator) -> BitArray:
    return (rng.random(n_bits) < qber).astype(np.uint8)


def reconcile(
    errors: BitArray, estimate: float, seed: bytes = SEED, leak_count: LeakCount = "alice", bits_seed: int = 0
) -> Run:
    """Run both sides over a random block; check the result, and that both count every bit sent."""
    bits = np.random.default_rng(bits_seed).integers(0, 2, errors.shape, dtype=np.uint8)
    key = Bits.pack(bits)
    alice = responder("ldpc", key, seed=seed, qber_estimate=estimate, leak_count=leak_count)
    bob = corrector(
        "ldpc", Bits.pack(bits ^ errors), seed=seed, qber_estimate=estimate, leak_count=leak_count
    )
    n_octets = n_request_octets = 0
    request: bytes | None = bob.start()
    while request is not None:
        n_request_octets += len(request)
        answer = alice.respond(request)
        n_octets += len(answer)
        request = bob.receive(answer)
    assert bob.corrected.equals(key)
    statistics = bob.statistics
    assert statistics.disclosed_bits == alice.disclosed_bits == 8 * n_octets
    assert statistics.leaked_bits == alice.leaked_bits
    assert statistics.corrected_errors == int(errors.sum())
    assert (statistics.response_bytes, statistics.request_bytes) == (n_octets, n_request_octets)
    return Run(bob, statistics.rounds, statistics.disclosed_bits)


@given(
    n_bits=lengths,
    qber=qbers,
    factor=st.floats(0.6, 1.6),
    seed=st.binary(min_size=32, max_size=32),
    key=st.integers(0, 99),
)
@relaxed
def test_any_block_is_corrected_and_both_sides_count_alike(
    n_bits: int, qber: float, factor: float, seed: bytes, key: int
) -> None:
    errors = independent_errors(n_bits, qber, np.random.default_rng(key))
    reconcile(errors, min(0.5, qber * factor), seed, bits_seed=key)


@given(data=st.data(), n_bits=st.integers(64, 5000))
@relaxed
def test_any_pattern_of_a_few_errors_is_corrected(data: st.DataObject, n_bits: int) -> None:
    errors = np.zeros(n_bits, np.uint8)
    errors[data.draw(st.lists(st.integers(0, n_bits - 1), max_size=n_bits // 32))] = 1
    reconcile(errors, 0.03)


@pytest.mark.parametrize(
    ("qber", "efficiency"),
    [(0.005, 1.27), (0.01, 1.20), (0.015, 1.17), (0.02, 1.16), (0.03, 1.15), (0.05, 1.15), (0.08, 1.15)],
)
def test_a_long_block_costs_little_more_than_the_entropy_in_at_most_three_round_trips(
    qber: float, efficiency: float
) -> None:
    n_bits = 512_000
    errors = independent_errors(n_bits, qber, np.random.default_rng(3))
    run = reconcile(errors, qber)
    assert run.rounds <= 3
    assert run.disclosed_bits < efficiency * entropy(qber) * n_bits


@pytest.mark.parametrize(("qber", "estimate"), [(0.015, 0.01), (0.03, 0.01), (0.08, 0.005), (0.05, 0.0)])
def test_an_estimate_that_is_too_low_costs_round_trips_and_some_bits(qber: float, estimate: float) -> None:
    n_bits = 204_800
    errors = independent_errors(n_bits, qber, np.random.default_rng(3))
    run = reconcile(errors, estimate)
    assert 2 <= run.rounds <= 20
    assert run.disclosed_bits < 1.6 * entropy(qber) * n_bits


def test_an_estimate_that_is_too_high_costs_the_bits_it_asks_for() -> None:
    n_bits = 204_800
    errors = independent_errors(n_bits, 0.015, np.random.default_rng(3))
    run = reconcile(errors, 0.03)
    assert run.rounds == 1
    assert 1.05 * entropy(0.03) * n_bits < run.disclosed_bits < 1.2 * entropy(0.03) * n_bits


@pytest.mark.parametrize("start", [0, 123_456])
def test_a_burst_costs_no_more_than_as_many_errors_apart(start: int) -> None:
    n_bits = 409_600
    rng = np.random.default_rng(7)
    errors = independent_errors(n_bits, 0.012, rng)
    errors[start : start + 2400] = independent_errors(2400, 0.5, rng)
    run = reconcile(errors, 0.015)
    assert run.rounds <= 3
    assert run.disclosed_bits < 1.2 * entropy(errors.mean()) * n_bits


def test_a_block_without_errors_needs_one_round_trip() -> None:
    run = reconcile(np.zeros(300_000, np.uint8), 0.0)
    assert run.rounds == 1
    assert run.disclosed_bits < 0.01 * 300_000


@pytest.mark.parametrize("n_bits", [1000, 200_000])
def test_a_block_with_too_many_errors_fails_before_more_is_disclosed_than_it_has(n_bits: int) -> None:
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2, n_bits, dtype=np.uint8)
    errors = independent_errors(n_bits, 0.4, rng)
    alice = responder("ldpc", Bits.pack(bits), seed=SEED, qber_estimate=0.02)
    bob = corrector("ldpc", Bits.pack(bits ^ errors), seed=SEED, qber_estimate=0.02)
    request: bytes | None = bob.start()
    with pytest.raises(ReconciliationFailed, match="does not decode"):  # noqa: PT012
        while request is not None:
            request = bob.receive(alice.respond(request))
    assert alice.disclosed_bits < 1.02 * n_bits + 1000


def test_sides_with_different_seeds_fail_and_never_agree_on_a_wrong_block() -> None:
    bits = np.random.default_rng(5).integers(0, 2, 10_000, dtype=np.uint8)
    alice = responder("ldpc", Bits.pack(bits), seed=SEED, qber_estimate=0.02)
    bob = corrector("ldpc", Bits.pack(bits), seed=SEED[::-1], qber_estimate=0.02)
    request: bytes | None = bob.start()
    with pytest.raises(ReconciliationFailed):  # noqa: PT012
        while request is not None:
            request = bob.receive(alice.respond(request))
    with pytest.raises(RuntimeError, match="not finished"):
        _ = bob.corrected


def test_the_count_of_both_doubles_what_is_charged() -> None:
    errors = independent_errors(60_000, 0.02, np.random.default_rng(3))
    run = reconcile(errors, 0.02, leak_count="both")
    assert run.bob.statistics.leaked_bits == 2 * run.disclosed_bits


def test_what_bob_asks_depends_on_the_errors_and_not_on_the_key() -> None:
    errors = independent_errors(200_000, 0.016, np.random.default_rng(12))
    dialogues = []
    for key in (1, 2):
        bits = np.random.default_rng(key).integers(0, 2, errors.shape, dtype=np.uint8)
        alice = responder("ldpc", Bits.pack(bits), seed=SEED, qber_estimate=0.013)
        bob = corrector("ldpc", Bits.pack(bits ^ errors), seed=SEED, qber_estimate=0.013)
        requests: list[bytes] = []
        request: bytes | None = bob.start()
        while request is not None:
            requests.append(request)
            request = bob.receive(alice.respond(request))
        dialogues.append(requests)
    assert dialogues[0] == dialogues[1]
    assert len(dialogues[0]) > 1


@pytest.mark.parametrize("make", [responder, corrector])
@pytest.mark.parametrize(
    ("field", "n_bits", "estimate"),
    [
        ("key", 63, 0.01),
        ("qber_estimate", 64, -0.01),
        ("qber_estimate", 64, 0.51),
        ("qber_estimate", 64, float("nan")),
    ],
)
def test_impossible_arguments_are_named(make, field: str, n_bits: int, estimate: float) -> None:  # type: ignore[no-untyped-def]
    key = Bits.pack(np.zeros(n_bits, np.uint8))
    with pytest.raises(FieldError) as caught:
        make("ldpc", key, seed=SEED, qber_estimate=estimate)
    assert caught.value.field == field


# The choice


def test_a_slow_link_stays_with_cascade_and_a_fast_one_leaves_it_at_a_long_round_trip() -> None:
    turin = {"block_bits": 1_000_000, "sifted_bits_per_s": 7600.0}
    fast = {"block_bits": 10_000_000, "sifted_bits_per_s": 40e6}
    assert choose_method(0.5, **turin) == "cascade"  # type: ignore[arg-type]
    assert choose_method(0.0, **fast) == "cascade"  # type: ignore[arg-type]
    assert choose_method(0.005, **fast) == "cascade"  # type: ignore[arg-type]
    assert choose_method(0.1, **fast) == "ldpc"  # type: ignore[arg-type]


def test_cascade_is_left_where_its_blocks_do_not_fit_the_memory() -> None:
    link = {"block_bits": 100_000_000, "sifted_bits_per_s": 40e6}
    assert choose_method(0.1, **link) == "ldpc"  # type: ignore[arg-type]
    assert choose_method(0.1, max_memory_bytes=1 << 33, **link) == "cascade"  # type: ignore[arg-type]


@given(st.floats(0.0, 2.0), st.floats(0.0, 2.0), st.floats(1e3, 1e9))
def test_a_longer_round_trip_never_leads_back_to_cascade(a: float, b: float, rate: float) -> None:
    near, far = sorted((a, b))
    if choose_method(near, block_bits=1_000_000, sifted_bits_per_s=rate) == "ldpc":
        assert choose_method(far, block_bits=1_000_000, sifted_bits_per_s=rate) == "ldpc"
