"""Frames: nothing that was changed, replayed, reflected, spliced or cut comes through."""

import random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from qnode.errors import AuthenticationError, LinkError, ProtocolError
from qnode.link.directions import Direction
from qnode.link.frames import LARGEST_HELLO_BYTES, FrameStream

KEYS = [random.Random(5).randbytes(32) for _ in range(2)]
A2B, B2A = Direction.ALICE_TO_BOB, Direction.BOB_TO_ALICE


def frames_on(stream: trio.abc.Stream, outgoing: Direction = A2B, keys: list[bytes] = KEYS) -> FrameStream:
    frames = FrameStream(stream)
    mine = outgoing - 1
    frames.authenticate(outgoing, keys[mine], keys[1 - mine])
    return frames


async def recorded(*payloads: bytes, outgoing: Direction = A2B, keys: list[bytes] = KEYS) -> list[bytes]:
    """Return what a sender puts on the wire for each payload."""
    ours, theirs = memory_stream_pair()
    frames = frames_on(ours, outgoing, keys)
    wire = []
    for payload in payloads:
        await frames.send(payload)
        wire.append(bytes(await theirs.receive_some(1 << 20)))
    return wire


async def received(data: bytes, receiver: Direction = B2A) -> list[bytes]:
    """Return the payloads that a receiver takes out of ``data`` before the end of the stream."""
    ours, theirs = memory_stream_pair()
    await theirs.send_all(data)
    await theirs.send_eof()
    frames = frames_on(ours, receiver)
    payloads = []
    while True:
        try:
            payloads.append(await frames.receive())
        except LinkError as error:
            if type(error) is LinkError and "without a goodbye" in str(error):
                return payloads
            raise


async def test_payloads_arrive_whole_and_in_order() -> None:
    # About what is sent at once, and what has room in the buffer of a receiver.
    sizes = [
        0,
        3,
        (64 << 10) - 20,
        64 << 10,
        (64 << 10) + 1,
        (256 << 10) - 20,
        (256 << 10) - 19,
        1_000_000,
        5,
    ]
    payloads = [random.Random(size).randbytes(size) for size in sizes]
    assert await received(b"".join(await recorded(*payloads))) == payloads


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(1, 50))
@settings(max_examples=30, deadline=None)
async def test_frames_survive_any_fragmentation(payloads: list[bytes], step: int) -> None:
    wire = b"".join(await recorded(*payloads))
    ours, theirs = memory_stream_pair()
    frames = frames_on(ours, B2A)
    async with trio.open_nursery() as nursery:

        async def drip() -> None:
            for start in range(0, len(wire), step):
                await theirs.send_all(wire[start : start + step])

        nursery.start_soon(drip)
        for payload in payloads:
            assert await frames.receive() == payload


async def test_every_flipped_bit_is_refused() -> None:
    (wire,) = await recorded(b"a payload of some length")
    for bit in range(8 * len(wire)):
        tampered = bytearray(wire)
        tampered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LinkError):
            await received(bytes(tampered))


async def test_every_truncation_is_refused() -> None:
    (wire,) = await recorded(b"payload")
    for length in range(1, len(wire)):
        with pytest.raises(LinkError, match="within a frame"):
            await received(wire[:length])


async def test_replay_reorder_omission_reflection_and_splice_are_refused() -> None:
    first, second, third = await recorded(b"same", b"same", b"same")
    (other_session,) = await recorded(b"same", keys=[key[::-1] for key in KEYS])
    (reflected,) = await recorded(b"same", outgoing=B2A)
    assert await received(first + second + third) == [b"same"] * 3
    for wrong in (first + first, second + first, first + third, second, other_session, reflected):
        with pytest.raises(AuthenticationError):
            await received(wrong)


async def test_a_frame_is_not_reflected_even_under_one_key() -> None:
    one_key = [KEYS[0], KEYS[0]]
    (reflected,) = await recorded(b"same", outgoing=B2A, keys=one_key)
    ours, theirs = memory_stream_pair()
    await theirs.send_all(reflected)
    with pytest.raises(AuthenticationError):
        await frames_on(ours, B2A, one_key).receive()


async def test_a_frame_beyond_the_limit_is_refused_before_it_is_read() -> None:
    ours, theirs = memory_stream_pair()
    frames = FrameStream(ours)
    await theirs.send_all((LARGEST_HELLO_BYTES + 1).to_bytes(4, "big"))
    await theirs.aclose()
    with pytest.raises(ProtocolError, match="exceeds"):
        await frames.receive()
    with pytest.raises(ValueError, match="exceeds"):
        await frames.send(bytes(LARGEST_HELLO_BYTES + 1))


async def test_errors_of_the_stream_become_link_errors() -> None:
    ours, theirs = memory_stream_pair()
    frames = FrameStream(ours)
    await theirs.aclose()
    with pytest.raises(LinkError, match="broke"):
        await frames.send(b"x")
    await ours.aclose()
    for act in (frames.receive, lambda: frames.send(b"x")):
        with pytest.raises(LinkError, match="closed"):
            await act()
