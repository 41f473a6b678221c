"""Targets: the classical channel, from frames to the parities of a block."""

import struct
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import trio
from fuzz_target import Target, at_once, kinds, same, seeds_of, taken_again

from qnode.distill.bits import Bits
from qnode.distill.reconcile import SEED_BYTES, corrector, responder
from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.codec import decode_announcement, encode_announcement
from qnode.distill.sifting.gap_codec import decode_gaps, encode_gaps
from qnode.errors import LinkError, ProtocolError
from qnode.link import codec
from qnode.link import messages as m
from qnode.link.directions import Direction
from qnode.link.frames import FrameStream

KEY = bytes(32)


# The link


class _Bytes(trio.abc.ReceiveStream):
    """A connection on which pieces of ``data`` come."""

    def __init__(self, data: bytes, piece_bytes: int) -> None:
        self._data, self._piece_bytes, self._at = data, piece_bytes, 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        end = self._at + min(self._piece_bytes, max_bytes or 1 << 16)
        piece, self._at = self._data[self._at : end], end
        return piece

    async def aclose(self) -> None:
        return None


def _frames(data: bytes) -> None:
    """Read frames, after the first byte: in clear as before a hello, or with codes as after it."""
    if not data:
        return
    stream: Any = _Bytes(data[1:], 1 + data[0] // 2)
    frames = FrameStream(stream)
    if data[0] % 2:
        frames.authenticate(Direction.ALICE_TO_BOB, KEY, KEY)

    async def read() -> None:
        while True:
            await frames.receive()

    trio.run(read)


def _seeds_of_frames() -> Iterable[bytes]:
    for how in (0, 1, 254, 255):
        sent = bytearray()

        class Sink:
            async def send_all(self, data: bytes) -> None:
                sent.extend(data)  # noqa: B023 - used within this turn

        stream: Any = Sink()
        frames = FrameStream(stream)
        if how % 2:
            frames.authenticate(Direction.BOB_TO_ALICE, KEY, KEY)
        for payload in (b"", b"hello", bytes(300)):
            at_once(frames.send(payload))
        yield bytes([how]) + sent


def _message(data: bytes) -> None:
    message = codec.decode(data)
    with taken_again():
        same(codec.decode(codec.encode(message)), message)


def _hello(data: bytes) -> None:
    message = codec.decode_hello(data)
    with taken_again():
        again = codec.decode_hello(codec.encode(message))
        if not isinstance(message, m.Hello):
            same(again, message)


# The block dialogue

_PLACE = struct.Struct("<II")


def _announcement(decode: Callable[..., Announced], encode: Callable[..., bytes]) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        if len(data) < _PLACE.size:
            return
        first, n_slots = _PLACE.unpack_from(data)
        payload = data[_PLACE.size :]
        found = decode(payload, first, n_slots)
        assert len(found) == 0 or (first <= found.slots[0] and found.slots[-1] < first + n_slots)
        with taken_again():
            same(encode(found, first), payload)  # the form is canonical

    return target


def _seeds_of_announcement(encode: Callable[..., bytes]) -> Callable[[], Iterable[bytes]]:
    def seeds() -> Iterable[bytes]:
        rng = np.random.default_rng(1)
        for n, most, x_share in (
            (0, 100, 0.5),
            (1, 100, 0.5),
            (40, 80, 0.5),
            (60, 20_000, 0.1),
            (200, 10**6, 0.02),
        ):
            slots = np.sort(rng.choice(most, n, replace=False)).astype(np.int64)
            x_arm = rng.random(n) < x_share
            boundary = rng.random(int(x_arm.sum())) < 0.5
            announced = Announced(slots + 7, _bits(x_arm), _bits(boundary))
            yield _PLACE.pack(7, most) + encode(announced, 7)

    return seeds


def _bits(values: Any) -> Bits:
    packed = np.packbits(values.astype(np.uint8), bitorder="little").tobytes()
    return Bits.from_bytes(packed, len(values))


_SEED = bytes(SEED_BYTES)
_QBER = 0.03


@cache
def _key(n_bits: int) -> tuple[Bits, Bits]:
    rng = np.random.default_rng(n_bits)
    true = rng.integers(0, 2, n_bits)
    return _bits(true), _bits(true ^ (rng.random(n_bits) < _QBER))


def _pieces(data: bytes) -> Iterable[bytes]:
    """Cut ``data`` into messages: a length of two bytes before each."""
    at = 0
    while at + 2 <= len(data):
        length = int.from_bytes(data[at : at + 2], "little")
        yield data[at + 2 : at + 2 + length]
        at += 2 + length


def _requests(method: str, n_bits: int) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        alice = responder(method, _key(n_bits)[0], seed=_SEED, qber_estimate=_QBER)
        for piece in _pieces(data):
            alice.respond(piece)

    return target


def _seeds_of_requests(method: str, n_bits: int) -> Callable[[], Iterable[bytes]]:
    def seeds() -> Iterable[bytes]:
        key, noisy = _key(n_bits)
        alice = responder(method, key, seed=_SEED, qber_estimate=_QBER)
        bob = corrector(method, noisy, seed=_SEED, qber_estimate=_QBER)
        said = b""
        request: bytes | None = bob.start()
        while request is not None and len(said) < 4000:
            said += len(request).to_bytes(2, "little") + request
            request = bob.receive(alice.respond(request))
            yield said

    return seeds


TARGETS: dict[str, Target] = {
    "frames": Target(_frames, (LinkError,), _seeds_of_frames),
    "message": Target(_message, (ProtocolError,), lambda: seeds_of(kinds(m.SessionMessage))),
    "hello": Target(_hello, (ProtocolError,), lambda: seeds_of(kinds(m.HelloMessage))),
    "announcement": Target(
        _announcement(decode_announcement, encode_announcement),
        (ProtocolError,),
        _seeds_of_announcement(encode_announcement),
    ),
    "gaps": Target(
        _announcement(decode_gaps, encode_gaps), (ProtocolError,), _seeds_of_announcement(encode_gaps)
    ),
    "cascade": Target(_requests("cascade", 500), (ProtocolError,), _seeds_of_requests("cascade", 500)),
    "ldpc": Target(_requests("ldpc", 2000), (ProtocolError,), _seeds_of_requests("ldpc", 2000)),
}
