"""One-time authentication: the tag, its bound, and the pool's rules."""

import random
from typing import Any

import pytest
from cryptography.hazmat.primitives.poly1305 import Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st
from link_room import MemoryPadId, MemoryPads

from qnode.errors import (
    AuthenticationError,
    PoolExhausted,
    ProtocolError,
    StoreAway,
    StoreError,
    StoreUnusable,
)
from qnode.link import authentication
from qnode.link.authentication import (
    Transcript,
    TranscriptHash,
    epsilon_of_tag,
    make_tag,
    transcript_tag,
    verify_tag,
    verify_transcript_tag,
)
from qnode.link.directions import Direction
from qnode.link.messages import BlockAgreed, BlockProposed
from qnode.link.transcripts import OPEN_BLOCKS_LIMIT, Transcripts

KEY = random.Random(3).randbytes(16)
A2B, B2A = Direction.ALICE_TO_BOB, Direction.BOB_TO_ALICE


def transcript_of(
    *payloads: bytes, key: bytes = KEY, direction: Direction = A2B, block_id: int = 7
) -> Transcript:
    transcript = Transcript(key, direction, block_id, (b"hellos",), b"dialogue")
    for payload in payloads:
        transcript.enter(payload)
    return transcript


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=6), st.binary(min_size=16, max_size=16))
def test_the_tag_is_poly1305_with_the_pad_added_last(payloads: list[bytes], pad: bytes) -> None:
    text = b"".join(
        b"\x01" + (7).to_bytes(8, "big") + i.to_bytes(8, "big") + len(payload).to_bytes(8, "big") + payload
        for i, payload in enumerate([b"dialogue", b"hellos", *payloads])
    )
    finished = transcript_of(*payloads).finish()
    assert finished.n_bytes == len(text)
    assert transcript_tag(finished, pad) == Poly1305.generate_tag(KEY + pad, text)


def test_known_answer_of_rfc_8439() -> None:
    r, s = (
        bytes.fromhex("85d6be7857556d337f4452fe42d506a8"),
        bytes.fromhex("0103808afb0db2fd4abff6af4149f51b"),
    )
    running = Poly1305(r + bytes(16))
    running.update(b"Cryptographic Forum Research Group")
    tag = transcript_tag(TranscriptHash(running.finalize(), 34), s)
    assert tag == bytes.fromhex("a8061dc1305136c6c22b8baf0c0127a9")


@settings(deadline=None)
@given(st.lists(st.binary(max_size=9), max_size=4), st.lists(st.binary(max_size=9), max_size=4))
def test_different_sequences_of_messages_hash_differently(one: list[bytes], other: list[bytes]) -> None:
    same = transcript_of(*one).finish().value == transcript_of(*other).finish().value
    assert same == (one == other)


def test_direction_block_context_and_key_enter_the_hash() -> None:
    hashes = {
        transcript_of(b"x").finish().value,
        transcript_of(b"x", direction=B2A).finish().value,
        transcript_of(b"x", block_id=8).finish().value,
        transcript_of(b"x", key=bytes(15) + b"\x01").finish().value,
        Transcript(KEY, A2B, 7, (b"hellos", b"x"), b"statement").finish().value,
        Transcript(KEY, A2B, 7, (b"hellosx",), b"dialogue").finish().value,
    }
    assert len(hashes) == 6


def test_a_finished_transcript_takes_no_more_and_repeats_its_hash() -> None:
    transcript = transcript_of(b"x")
    assert transcript.finish() == transcript.finish()
    with pytest.raises(ProtocolError, match="after the end"):
        transcript.enter(b"y")


def test_a_transcript_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "LARGEST_TRANSCRIPT_BYTES", 200)
    transcript = transcript_of()
    with pytest.raises(ProtocolError, match="more than 200 bytes"):
        transcript.enter(bytes(200))


def test_epsilon_of_tag_is_the_bound_of_poly1305() -> None:
    assert epsilon_of_tag(1) == 8 * 2.0**-106
    assert epsilon_of_tag(17) == 16 * 2.0**-106
    assert epsilon_of_tag() == 2.0**-77


def test_secrets_do_not_show() -> None:
    finished = transcript_of(b"x").finish()
    assert finished.value.hex() not in repr(finished)
    assert repr(finished.value) not in repr(finished)
    assert KEY.hex() not in repr(transcript_of(b"x"))


def test_a_sealed_transcript_verifies_once_and_uses_up_its_pad() -> None:
    alice, bob = MemoryPads("alice"), MemoryPads("bob")
    finished = transcript_of(b"x").finish()
    sealed = make_tag(alice, finished)
    pad_id = MemoryPadId(sealed.pad_segment, sealed.pad_index)
    verify_tag(bob, finished, pad_id, sealed.tag)
    assert bob.confirmed == [0]
    with pytest.raises(AuthenticationError, match="used or unknown"):
        verify_tag(bob, finished, pad_id, sealed.tag)


def test_a_forged_tag_burns_no_pad() -> None:
    alice, bob = MemoryPads("alice"), MemoryPads("bob")
    finished = transcript_of(b"x").finish()
    sealed = make_tag(alice, finished)
    pad_id = MemoryPadId(0, sealed.pad_index)
    for bit in range(128):
        forged = bytearray(sealed.tag)
        forged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(AuthenticationError, match="does not verify"):
            verify_tag(bob, finished, pad_id, bytes(forged))
    for wrong in (b"", sealed.tag[:15], sealed.tag + b"\0"):
        assert not verify_transcript_tag(finished, bob.receive_pad(pad_id), wrong)
    assert bob.confirmed == []
    verify_tag(bob, finished, pad_id, sealed.tag)


def test_each_seal_spends_another_pad_until_none_is_left() -> None:
    alice = MemoryPads("alice", n_pads=2)
    finished = transcript_of(b"x").finish()
    first, second = make_tag(alice, finished), make_tag(alice, finished)
    assert (first.pad_index, second.pad_index) == (0, 1)
    assert first.tag != second.tag
    with pytest.raises(PoolExhausted):
        make_tag(alice, finished)


@pytest.mark.parametrize("error", [StoreUnusable("the disk is gone"), StoreAway("the database is away")])
def test_an_unusable_pool_is_not_taken_for_a_forgery(error: StoreError) -> None:
    class BrokenPads(MemoryPads):
        def receive_pad(self, pad_id: Any) -> bytes:
            raise error

    with pytest.raises(type(error)):
        verify_tag(BrokenPads("bob"), transcript_of().finish(), MemoryPadId(0, 0), bytes(16))


def test_wrong_lengths_of_keys_and_pads_are_refused() -> None:
    with pytest.raises(ValueError, match="hash key"):
        transcript_of(key=bytes(15))
    with pytest.raises(ValueError, match="pad"):
        transcript_tag(transcript_of().finish(), bytes(15))


def transcripts_of(role: str) -> Transcripts:
    pads = MemoryPads("alice" if role == "alice" else "bob")
    return Transcripts(pads.hash_keys(), A2B if role == "alice" else B2A, b"hellos")


def propose(book: Transcripts, block_id: int) -> bool:
    return book.enter(BlockProposed(block_id, 1, 0, 10), b"proposed", outgoing=True)


def test_both_sites_arrive_at_the_same_hash_of_each_direction() -> None:
    alice, bob = transcripts_of("alice"), transcripts_of("bob")
    for book, outgoing in ((alice, True), (bob, False)):
        book.enter(BlockProposed(1, 1, 0, 10), b"proposed", outgoing=outgoing)
        book.enter(BlockAgreed(1), b"agreed", outgoing=not outgoing)
    assert alice.finish(1, outgoing=True) == bob.finish(1, outgoing=False)
    assert alice.finish(1, outgoing=False) == bob.finish(1, outgoing=True)
    assert alice.finish(1, outgoing=True) != alice.finish(1, outgoing=False)
    assert alice.statement(1, b"prepared", outgoing=True) == bob.statement(1, b"prepared", outgoing=False)


def test_blocks_open_in_order_once_and_not_too_many() -> None:
    book = transcripts_of("alice")
    with pytest.raises(ProtocolError, match="not proposed"):
        book.enter(BlockAgreed(1), b"", outgoing=False)
    assert propose(book, 5)
    for again in (5, 4):
        with pytest.raises(ProtocolError, match="proposed after"):
            propose(book, again)
    for block_id in range(6, 5 + OPEN_BLOCKS_LIMIT):
        propose(book, block_id)
    with pytest.raises(ProtocolError, match="blocks are open"):
        propose(book, 1000)


def test_what_is_said_of_a_dropped_block_is_stale() -> None:
    book = transcripts_of("alice")
    propose(book, 5)
    book.drop(5)
    assert not book.enter(BlockAgreed(5), b"", outgoing=False)
    assert book.stale_messages == 1
    with pytest.raises(ProtocolError, match="no open transcript"):
        book.finish(5, outgoing=True)
