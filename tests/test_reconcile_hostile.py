"""Cascade against peers that lie, stutter or ask too much."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reconcile_support import SEED, independent_errors, make_pair

from qnode.distill.reconcile import Corrector, ReconciliationFailed, Responder, corrector, responder
from qnode.distill.reconcile._plan import make_plan
from qnode.errors import ProtocolError

BEGIN = struct.pack("<BII", 1, 0, 0)
CHECK = b"\x02"
relaxed = settings(max_examples=150, deadline=None, derandomize=True)


def sides(n_bits: int = 5000, qber: float = 0.03) -> tuple[Responder, Corrector]:
    rng = np.random.default_rng(n_bits)
    pair = make_pair(independent_errors(n_bits, qber, rng), rng)
    return (
        responder("cascade", pair.alice, seed=SEED, qber_estimate=qber),
        corrector("cascade", pair.bob, seed=SEED, qber_estimate=qber),
    )


def requests_of(n_bits: int, qber: float = 0.03) -> list[bytes]:
    """Record the requests of one honest run."""
    alice, bob = sides(n_bits, qber)
    requests = []
    request: bytes | None = bob.start()
    while request is not None:
        requests.append(request)
        request = bob.receive(alice.respond(request))
    return requests


HONEST = {n_bits: requests_of(n_bits) for n_bits in (500, 20_000)}


@given(message=st.binary(max_size=60), n_honest=st.integers(0, 12), n_bits=st.sampled_from(sorted(HONEST)))
@relaxed
def test_arbitrary_requests_are_answered_or_refused(message: bytes, n_honest: int, n_bits: int) -> None:
    alice, _ = sides(n_bits)
    for request in HONEST[n_bits][:n_honest]:
        alice.respond(request)
    before = alice.disclosed_bits
    try:
        answer = alice.respond(message)
    except ProtocolError:
        assert alice.disclosed_bits == before
        with pytest.raises(ProtocolError, match="after a refused one"):
            alice.respond(BEGIN)
    else:
        assert before < alice.disclosed_bits <= before + 8 * len(answer)


@given(
    data=st.data(),
    n_bits=st.sampled_from(sorted(HONEST)),
    change=st.sampled_from(["flip", "truncate", "extend", "repeat"]),
)
@relaxed
def test_altered_requests_are_answered_or_refused(data: st.DataObject, n_bits: int, change: str) -> None:
    alice, _ = sides(n_bits)
    requests = HONEST[n_bits]
    n_honest = data.draw(st.integers(0, len(requests) - 1))
    for request in requests[:n_honest]:
        alice.respond(request)
    message = bytearray(requests[n_honest])
    if change == "flip":
        for _ in range(data.draw(st.integers(1, 4))):
            message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    elif change == "truncate":
        del message[data.draw(st.integers(0, len(message) - 1)) :]
    elif change == "extend":
        message += data.draw(st.binary(min_size=1, max_size=9))
    before = alice.disclosed_bits
    for _ in range(2 if change == "repeat" else 1):
        try:
            answer = alice.respond(bytes(message))
        except ProtocolError:
            assert alice.disclosed_bits == before
            return
        assert before < alice.disclosed_bits <= before + 8 * len(answer)
        before = alice.disclosed_bits
    assert change in ("flip", "repeat")  # a wrong length never passes


def test_a_peer_that_asks_forever_is_stopped_at_the_limit_of_an_honest_run() -> None:
    n_bits = 5000
    plan = make_plan(n_bits, 0.03)
    alice, _ = sides(n_bits)
    alice.respond(BEGIN)
    whole_words = [base << 7 | 2 for base in range(n_bits // 64)]
    start = struct.pack(f"<BII{len(whole_words)}I", 0, len(whole_words), 0, *whole_words)
    no_blocks = bytes((plan.n_blocks(0) + 7) // 8)
    no_codes = bytes((len(whole_words) + 3) // 4)
    alice.respond(start + no_blocks)
    again = start[:9] + no_codes + start[9:]
    with pytest.raises(ProtocolError, match="parities asked of a frame"):  # noqa: PT012
        for _ in range(n_bits):
            alice.respond(again)
    assert alice.disclosed_bits <= plan.disclosure_limit_bits < 2 * n_bits


def word(base: int, heap: int) -> bytes:
    return struct.pack("<BIII", 0, 1, 0, base << 7 | heap)


def tree(slot: int, height: int, i: int) -> bytes:
    return struct.pack("<BIII", 0, 0, 1, slot << 29 | height << 24 | i)


def test_searches_that_start_at_no_node_of_a_begun_pass_are_refused() -> None:
    plan = make_plan(20_000, 0.03)
    assert plan.levels[0] == 5
    assert plan.levels[1] == 7
    stride = plan.stride_words
    wrong = [
        word(0, 0),  # no node
        word(0, 64),  # a bit has no children
        word(0, 1),  # above the blocks of pass 0
        word(2 * stride, 32),  # a pass not begun
        word((1 << 25) - 1, 63),
        tree(0, 1, 0),  # pass 0 has no trees
        tree(1, 0, 0),
        tree(1, 2, 0),  # above the blocks of pass 1
        tree(1, 1, stride >> 1),
        tree(2, 1, 0),
        tree(7, 31, 0xFFFFFF),
    ]
    no_blocks = bytes((plan.n_blocks(1) + 7) // 8)
    for request in wrong:
        alice, _ = sides(20_000)
        alice.respond(BEGIN)
        alice.respond(BEGIN + bytes((plan.n_blocks(0) + 7) // 8))
        with pytest.raises(ProtocolError, match="no node"):
            alice.respond(request + no_blocks)
    for request in (word(stride, 1), word(0, 2), tree(1, 1, 0)):
        alice, _ = sides(20_000)
        alice.respond(BEGIN)
        alice.respond(BEGIN + bytes((plan.n_blocks(0) + 7) // 8))
        assert len(alice.respond(request + no_blocks)) == 1


def begun(alice: Responder, n_passes: int, n_bits: int) -> None:
    plan = make_plan(n_bits, 0.03)
    alice.respond(BEGIN)
    for slot in range(n_passes - 1):
        alice.respond(BEGIN + bytes((plan.n_blocks(slot) + 7) // 8))


def test_requests_out_of_turn_are_refused() -> None:
    n_bits = 5000
    last_blocks = bytes((make_plan(n_bits, 0.03).n_blocks(2) + 7) // 8)

    alice, _ = sides(n_bits)
    begun(alice, 2, n_bits)
    with pytest.raises(ProtocolError, match="check out of turn"):
        alice.respond(CHECK)

    alice, _ = sides(n_bits)
    begun(alice, 3, n_bits)
    with pytest.raises(ProtocolError, match="extra pass without a check"):
        alice.respond(BEGIN + last_blocks)

    alice, _ = sides(n_bits)
    begun(alice, 3, n_bits)
    alice.respond(CHECK)
    with pytest.raises(ProtocolError, match="check out of turn"):
        alice.respond(CHECK)

    alice, _ = sides(n_bits)
    begun(alice, 3, n_bits)
    alice.respond(CHECK)
    with pytest.raises(ProtocolError, match="search after a check"):
        alice.respond(word(0, 32))

    alice, _ = sides(n_bits)
    begun(alice, 3, n_bits)
    alice.respond(CHECK)
    with pytest.raises(ProtocolError, match="search besides an extra pass"):
        alice.respond(b"\x01" + word(0, 32)[1:])

    alice, _ = sides(n_bits)
    begun(alice, 3, n_bits)
    with pytest.raises(ProtocolError, match="asks nothing"):
        alice.respond(b"\x00" + BEGIN[1:] + last_blocks)


def test_set_padding_bits_are_refused() -> None:
    plan = make_plan(5000, 0.03)
    assert plan.n_blocks(0) % 8
    alice, _ = sides(5000)
    alice.respond(BEGIN)
    blocks = bytearray((plan.n_blocks(0) + 7) // 8)
    blocks[-1] |= 0x80
    with pytest.raises(ProtocolError, match="padding"):
        alice.respond(BEGIN + bytes(blocks))


@given(data=st.data(), n_honest=st.integers(0, 10))
@relaxed
def test_an_answer_of_another_length_is_refused(data: st.DataObject, n_honest: int) -> None:
    alice, bob = sides(500)
    answer = alice.respond(bob.start())
    for _ in range(n_honest):
        request = bob.receive(answer)
        if request is None:
            return
        answer = alice.respond(request)
    wrong = data.draw(st.binary(max_size=40).filter(lambda message: len(message) != len(answer)))
    with pytest.raises(ProtocolError, match="octets in place of"):
        bob.receive(wrong)


@given(
    seed=st.integers(0, 2**32 - 1),
    n_bits=st.sampled_from([64, 65, 3000, 20_001]),
    n_honest=st.integers(0, 30),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_an_alice_who_answers_at_random_wears_bob_out_but_never_breaks_him(
    seed: int, n_bits: int, n_honest: int
) -> None:
    alice, bob = sides(n_bits)
    rng = np.random.default_rng(seed)
    plan = make_plan(n_bits, 0.03)
    request: bytes | None = bob.start()
    try:
        for k in range(plan.request_limit + 1):
            assert request is not None
            answer = alice.respond(request)
            request = bob.receive(answer if k < n_honest else rng.bytes(len(answer)))
            if request is None:
                break
        else:
            pytest.fail("Bob goes on behind the limit")
    except ReconciliationFailed:
        pass
    assert bob.statistics.disclosed_bits <= plan.disclosure_limit_bits
