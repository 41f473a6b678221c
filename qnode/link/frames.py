"""Length-prefixed frames over any trio stream, with a code on each once the session has keys.

A frame is a 4-byte length (big endian, of the payload alone), the payload, and after the hello a 16-byte
code: AES-256-GMAC of the payload under the key of the direction, with direction (1 byte), three zero bytes
and the frame's counter (8 bytes) as nonce (NIST SP 800-38D). Direction and counter make a replayed,
reordered, reflected or spliced frame as invalid as a changed one. The code is verified before a byte of the
payload is parsed.

Errors of trio become `LinkError` here: this module raises nothing but `LinkError` and its kinds.
"""

import hmac
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qnode.errors import AuthenticationError, LinkError, ProtocolError
from qnode.link.directions import Direction

LENGTH_BYTES = 4
CODE_BYTES = 16
LARGEST_PAYLOAD_BYTES = 16 << 20
LARGEST_HELLO_BYTES = 64 << 10
_READ_BYTES = 256 << 10


class FrameStream:
    """Frames on ``stream``; one task may send while another receives.

    A `send` or `receive` that was cancelled in the middle of a frame leaves the stream unusable.
    """

    def __init__(self, stream: trio.abc.Stream, largest_payload_bytes: int = LARGEST_HELLO_BYTES) -> None:
        self.stream = stream
        self.waiting_since_s: float | None = None
        """Start of the present wait in `receive` (trio's clock); None while no task receives."""
        self.arriving_bytes = 0
        """Length of the arriving frame by its prefix, not verified yet."""
        self._largest_payload_bytes = largest_payload_bytes
        self._received = bytearray()
        self._outgoing: _Coder | None = None
        self._incoming: _Coder | None = None

    def __repr__(self) -> str:
        return f"FrameStream({'authenticated' if self._incoming else 'in clear'})"

    def authenticate(
        self,
        outgoing: Direction,
        outgoing_key: bytes,
        incoming_key: bytes,
        largest_payload_bytes: int = LARGEST_PAYLOAD_BYTES,
    ) -> None:
        """From now on, put a code on every frame of both directions; change the limit of the payload."""
        self._outgoing = _Coder(outgoing, outgoing_key)
        self._incoming = _Coder(outgoing.reverse, incoming_key)
        self._largest_payload_bytes = largest_payload_bytes

    async def send(self, payload: bytes) -> None:
        """Send ``payload`` as one frame. Callers take turns.

        Raises:
            ValueError: the payload is larger than a frame may be.
            LinkError: the connection is broken.
        """
        if len(payload) > self._largest_payload_bytes:
            raise ValueError(f"a payload of {len(payload)} bytes exceeds {self._largest_payload_bytes}")
        code = self._outgoing.next_code(payload) if self._outgoing else b""
        with _broken_link():
            await self.stream.send_all(b"".join((len(payload).to_bytes(LENGTH_BYTES, "big"), payload, code)))

    async def receive(self) -> bytes:
        """Return the payload of the next frame.

        Raises:
            AuthenticationError: the code is wrong: a frame was changed, replayed or omitted, or is not
                from the peer.
            ProtocolError: the frame is larger than allowed.
            LinkError: the connection broke, or ended within a frame or without a goodbye.
        """
        self.waiting_since_s = trio.current_time()
        try:
            return await self._receive()
        finally:
            self.waiting_since_s = None
            self.arriving_bytes = 0

    async def _receive(self) -> bytes:
        await self._fill(LENGTH_BYTES)
        length = int.from_bytes(self._received[:LENGTH_BYTES], "big")
        if length > self._largest_payload_bytes:
            raise ProtocolError(f"a frame of {length} bytes exceeds {self._largest_payload_bytes}")
        self.arriving_bytes = length
        end = LENGTH_BYTES + length
        code_bytes = CODE_BYTES if self._incoming else 0
        await self._fill(end + code_bytes)
        with memoryview(self._received) as view:
            payload = bytes(view[LENGTH_BYTES:end])
            code = bytes(view[end : end + code_bytes])
        del self._received[: end + code_bytes]
        if self._incoming and not hmac.compare_digest(self._incoming.next_code(payload), code):
            raise AuthenticationError("the code of a frame does not verify")
        return payload

    async def _fill(self, wanted_bytes: int) -> None:
        while len(self._received) < wanted_bytes:
            with _broken_link():
                data = await self.stream.receive_some(_READ_BYTES)
            if not data:
                place = "within a frame" if self._received else "without a goodbye"
                raise LinkError(f"the peer closed the connection {place}")
            self._received += data


class _Coder:
    """The code of successive frames of one direction; a key serves one session, so no nonce occurs twice."""

    def __init__(self, direction: Direction, key: bytes) -> None:
        self._prefix = bytes((direction, 0, 0, 0))
        self._counter = 0
        self._cipher = AESGCM(key)

    def next_code(self, payload: bytes) -> bytes:
        nonce = self._prefix + self._counter.to_bytes(8, "big")
        self._counter += 1
        return self._cipher.encrypt(nonce, b"", payload)


@contextmanager
def _broken_link() -> Iterator[None]:
    try:
        yield
    except trio.BrokenResourceError as error:
        reason = error.__cause__ or error
        raise LinkError(f"the connection broke: {reason}") from None
    except trio.ClosedResourceError:
        raise LinkError("the connection is closed") from None
