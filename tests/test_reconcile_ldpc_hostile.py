"""LDPC against peers that lie, stutter or ask too much."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.distill.bits import Bits
from qnode.distill.reconcile import Corrector, ReconciliationFailed, Responder, corrector, responder
from qnode.distill.reconcile.ldpc.frames import make_cut
from qnode.distill.reconcile.ldpc.rate import row_limit
from qnode.errors import ProtocolError

SEED = bytes(range(32))
N_BITS = 250_000  # three frames
relaxed = settings(max_examples=150, deadline=None, derandomize=True)


def sides(n_bits: int = N_BITS, qber: float = 0.02, estimate: float = 0.015) -> tuple[Responder, Corrector]:
    rng = np.random.default_rng(n_bits)
    bits = rng.integers(0, 2, n_bits, dtype=np.uint8)
    errors = (rng.random(n_bits) < qber).astype(np.uint8)
    return (
        responder("ldpc", Bits.pack(bits), seed=SEED, qber_estimate=estimate),
        corrector("ldpc", Bits.pack(bits ^ errors), seed=SEED, qber_estimate=estimate),
    )


def start(n_rows: int) -> bytes:
    return struct.pack("<BH", 0, n_rows)


def extend(*entries: tuple[int, int]) -> bytes:
    return b"\x01" + b"".join(struct.pack("<IH", frame, n_pieces) for frame, n_pieces in entries)


def started(n_rows: int = 100) -> Responder:
    alice, _ = sides()
    alice.respond(start(n_rows))
    return alice


@given(message=st.binary(max_size=40), is_started=st.booleans())
@relaxed
def test_arbitrary_requests_are_answered_or_refused(message: bytes, is_started: bool) -> None:
    alice = started() if is_started else sides()[0]
    before = alice.disclosed_bits
    try:
        answer = alice.respond(message)
    except ProtocolError:
        assert alice.disclosed_bits == before
        with pytest.raises(ProtocolError, match="after a refused one"):
            alice.respond(start(100))
    else:
        assert alice.disclosed_bits == before + 8 * len(answer)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x02",
        start(100)[:2],
        start(100) + b"\0",
        start(0),
        start(row_limit(make_cut(N_BITS)) + 1),
        start(0xFFFF),
        extend((0, 110)),
    ],
)
def test_a_first_request_that_no_honest_bob_sends_is_refused(message: bytes) -> None:
    alice, _ = sides()
    with pytest.raises(ProtocolError, match="reconciliation"):
        alice.respond(message)
    assert alice.disclosed_bits == 0


@pytest.mark.parametrize(
    "message",
    [
        start(100),
        extend(),
        extend((0, 110))[:-1],
        extend((0, 110)) + b"\0",
        extend((3, 110)),
        extend((1, 110), (0, 110)),
        extend((1, 110), (1, 112)),
        extend((1, 100)),
        extend((1, 0)),
        extend((0, 110), (1, 100)),
        extend((1, 0xFFFF)),
        extend((0xFFFFFFFF, 110)),
    ],
)
def test_a_later_request_that_no_honest_bob_sends_is_refused(message: bytes) -> None:
    alice = started()
    before = alice.disclosed_bits
    with pytest.raises(ProtocolError, match="reconciliation"):
        alice.respond(message)
    assert alice.disclosed_bits == before


def test_a_peer_that_asks_for_everything_gets_about_as_many_bits_as_there_are() -> None:
    alice = started(1)
    n_pieces = 2
    with pytest.raises(ProtocolError, match="may give"):  # noqa: PT012
        while True:
            alice.respond(extend(*((frame, n_pieces) for frame in range(3))))
            n_pieces += 25
    assert 0.9 * N_BITS < alice.disclosed_bits < 1.02 * N_BITS


@given(data=st.data(), n_honest=st.integers(0, 1))
@relaxed
def test_an_answer_of_another_length_is_refused(data: st.DataObject, n_honest: int) -> None:
    alice, bob = sides(3000)
    answer = alice.respond(bob.start())
    for _ in range(n_honest):
        request = bob.receive(answer)
        if request is None:
            return
        answer = alice.respond(request)
    cut = data.draw(
        st.one_of(st.binary(max_size=40), st.integers(0, len(answer) - 1).map(lambda n: answer[:n]))
    )
    wrong = data.draw(st.sampled_from([cut, answer + b"\0", answer + cut]))
    if len(wrong) != len(answer):
        with pytest.raises(ProtocolError, match="octets in place of"):
            bob.receive(wrong)


@given(
    seed=st.integers(0, 2**32 - 1), n_bits=st.sampled_from([64, 65, 3000, 60_001]), n_honest=st.integers(0, 2)
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_an_alice_who_answers_at_random_wears_bob_out_but_never_breaks_him(
    seed: int, n_bits: int, n_honest: int
) -> None:
    alice, bob = sides(n_bits)
    rng = np.random.default_rng(seed)
    request: bytes | None = bob.start()
    try:
        for k in range(1000):
            assert request is not None
            answer = alice.respond(request)
            request = bob.receive(answer if k < n_honest else rng.bytes(len(answer)))
            if request is None:
                break
        else:
            pytest.fail("Bob goes on without end")
    except ReconciliationFailed:
        pass
    assert bob.statistics.disclosed_bits < 1.02 * n_bits + 8 * 64 + 40 * 8


def test_a_frame_whose_check_disagrees_is_not_accepted() -> None:
    alice, bob = sides(50_000, qber=0.005, estimate=0.015)
    answer = bytearray(alice.respond(bob.start()))
    answer[-1] ^= 1
    request = bob.receive(bytes(answer))
    with pytest.raises(ReconciliationFailed):  # noqa: PT012
        while request is not None:
            request = bob.receive(alice.respond(request))
