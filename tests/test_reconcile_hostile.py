"""Cascade against peers that lie, stutter or ask too much."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reconcile_support import SEED, independent_errors, make_pair

from qnode.distill.reconcile import Corrector, ReconciliationFailed, Responder, corrector, responder
from qnode.distill.reconcile.cascade.nodes import Layout
from qnode.distill.reconcile.cascade.plan import Plan, make_plan
from qnode.errors import ProtocolError

BEGIN = struct.pack("<BBBI", 1, 1, 1, 0)
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


def search(*starts: int, depth: int = 1, leap: int = 1) -> bytes:
    return struct.pack(f"<BBBI{len(starts)}I", 0, depth, leap, len(starts), *starts)


def test_a_peer_that_asks_forever_is_stopped_at_the_limit_of_an_honest_run() -> None:
    n_bits = 5000
    plan = make_plan(n_bits, 0.03)
    alice, _ = sides(n_bits)
    alice.respond(BEGIN)
    halves = [word << 7 | 2 for word in range(n_bits // 64)]
    start = search(*halves)
    no_blocks = bytes((plan.n_blocks(0) + 7) // 8)
    no_codes = bytes((2 * len(halves) + 7) // 8)
    alice.respond(start + no_blocks)
    again = start[:7] + no_codes + start[7:]
    with pytest.raises(ProtocolError, match="parities asked of a block"):  # noqa: PT012
        for _ in range(n_bits):
            alice.respond(again)
    assert alice.disclosed_bits <= plan.disclosure_limit_bits < 2 * n_bits


def node(plan: Plan, layer: int, slot: int, segment: int, index: int, heap: int) -> int:
    layout = Layout.of(plan)
    first = (0, int(layout.layer_1), int(layout.layer_2))[layer]
    per_set = int((layout.words, layout.groups, layout.heads)[layer])
    return (first + (slot * plan.n_segments + segment) * per_set + index) << 7 | heap


def alice_in_two_passes(n_bits: int) -> tuple[Responder, Plan, bytes]:
    """Return an Alice, and what the next request must say of the blocks of pass 1."""
    plan = make_plan(n_bits, 0.03)
    alice, _ = sides(n_bits)
    alice.respond(BEGIN)
    alice.respond(BEGIN + bytes((plan.n_segments * plan.n_blocks(0) + 7) // 8))
    return alice, plan, bytes((plan.n_segments * plan.n_blocks(1) + 7) // 8)


def test_searches_that_start_at_no_node_of_a_begun_pass_are_refused() -> None:
    n_bits = 20_000
    plan = make_plan(n_bits, 0.03)
    assert plan.levels[0] == 5
    assert plan.levels[1] == 7
    wrong = [
        node(plan, 0, 0, 0, 0, 0),  # no node
        node(plan, 0, 0, 0, 0, 64),  # a bit has no children
        node(plan, 0, 0, 0, 0, 1),  # above the blocks of pass 0
        node(plan, 0, 2, 0, 0, 32),  # a pass not begun
        node(plan, 1, 0, 0, 0, 32),  # pass 0 has nothing above its words
        node(plan, 1, 1, 0, 0, 31),  # above the blocks of pass 1
        node(plan, 1, 1, 0, 5, 32),  # behind the segment, in a pass not begun
        node(plan, 2, 1, 0, 0, 1),
        (1 << 32) - 1,
    ]
    for start in wrong:
        alice, _, no_blocks = alice_in_two_passes(n_bits)
        with pytest.raises(ProtocolError, match="no node"):
            alice.respond(search(start) + no_blocks)
    right = [node(plan, 0, 1, 0, 0, 1), node(plan, 0, 0, 0, 0, 2), node(plan, 1, 1, 0, 0, 32)]
    for start in right:
        alice, _, no_blocks = alice_in_two_passes(n_bits)
        assert len(alice.respond(search(start) + no_blocks)) == 1


def test_searches_must_start_segment_after_segment() -> None:
    n_bits = 800_000
    plan = make_plan(n_bits, 0.03)
    assert plan.n_segments > 1
    starts = [node(plan, 0, 0, segment, 0, 2) for segment in (0, 1)]
    alice, _, no_blocks = alice_in_two_passes(n_bits)
    assert alice.respond(search(*starts) + no_blocks)
    alice, _, no_blocks = alice_in_two_passes(n_bits)
    with pytest.raises(ProtocolError, match="no order"):
        alice.respond(search(*starts[::-1]) + no_blocks)


def test_a_search_cannot_go_on_behind_the_end_of_a_segment() -> None:
    n_bits = 300_000
    plan = make_plan(n_bits, 0.03)
    assert plan.levels[2] > 12
    assert int(Layout.of(plan).groups) % 64
    last_blocks = bytes((plan.n_segments * plan.n_blocks(2) + 7) // 8)
    alice, _ = sides(n_bits)
    begun(alice, 3, n_bits)
    last = node(plan, 2, 2, 0, int(Layout.of(plan).heads) - 1, 63)
    alice.respond(search(last) + last_blocks)
    with pytest.raises(ProtocolError, match="no node"):
        alice.respond(search()[:7] + bytes([3]))


@pytest.mark.parametrize(("depth", "leap"), [(0, 1), (7, 1), (1, 0), (1, 13), (255, 255)])
def test_a_depth_that_no_record_has_is_refused(depth: int, leap: int) -> None:
    alice, _ = sides()
    alice.respond(BEGIN)
    with pytest.raises(ProtocolError, match="levels deep"):
        alice.respond(search(2, depth=depth, leap=leap))


def begun(alice: Responder, n_passes: int, n_bits: int) -> None:
    plan = make_plan(n_bits, 0.03)
    alice.respond(BEGIN)
    for slot in range(n_passes - 1):
        alice.respond(BEGIN + bytes((plan.n_segments * plan.n_blocks(slot) + 7) // 8))


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
        alice.respond(search(32))

    alice, _ = sides(n_bits)
    begun(alice, 3, n_bits)
    alice.respond(CHECK)
    with pytest.raises(ProtocolError, match="search besides an extra pass"):
        alice.respond(b"\x01" + search(32)[1:])

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
