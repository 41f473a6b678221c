"""Length-prefixed frames over any trio stream, with a code on each once the session has keys.

A frame is a 4-byte length (big endian, of the payload alone), the payload, and after the hello a 16-byte
code: AES-256-GMAC of the payload under the key of the direction, with direction (1 byte), three zero bytes
and the frame's counter (8 bytes) as nonce (NIST SP 800-38D). Direction and counter make a replayed,
reordered, reflected or spliced frame as invalid as a changed one. The code is verified before a byte of the
payload is parsed.

Errors of trio become `LinkError` here: this module raises nothing but `LinkError` and its kinds.
"""

import hmac
from typing import NoReturn

import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qnode.errors import AuthenticationError, LinkError, ProtocolError
from qnode.link.directions import Direction
from qnode.streams import receive_into

LENGTH_BYTES = 4
CODE_BYTES = 16
LARGEST_PAYLOAD_BYTES = 16 << 20
LARGEST_HELLO_BYTES = 64 << 10
# What has come is read ahead into a buffer; a frame that has no room there, into one of its own.
_HELLO_BUFFER_BYTES = 16 << 10
_BUFFER_BYTES = 256 << 10


class FrameStream:
    """Frames on ``stream``; one task may send while another receives.

    A `send` or `receive` that was cancelled in the middle of a frame leaves the stream unusable.
    """

    def __init__(self, stream: trio.abc.Stream, largest_payload_bytes: int = LARGEST_HELLO_BYTES) -> None:
        self.stream = stream
        self.waiting_since_s: float | None = None
        """Start of the present wait in `receive` (trio's clock); None between frames."""
        self.arriving_bytes = 0
        """Length of the arriving frame by its prefix, not verified yet."""
        self._largest_payload_bytes = largest_payload_bytes
        self._buffer = memoryview(bytearray(_HELLO_BUFFER_BYTES))
        self._begin = self._end = 0  # of what has come and was not returned
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
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._begin, self._end = 0, self._move(buffer)
        self._buffer = buffer

    async def send(self, payload: bytes) -> None:
        """Send ``payload`` as one frame. Callers take turns.

        Raises:
            ValueError: the payload is larger than a frame may be.
            LinkError: the connection is broken.
        """
        if len(payload) > self._largest_payload_bytes:
            raise ValueError(f"a payload of {len(payload)} bytes exceeds {self._largest_payload_bytes}")
        code = self._outgoing.next_code(payload) if self._outgoing else b""
        try:
            await self.stream.send_all(b"".join((len(payload).to_bytes(LENGTH_BYTES, "big"), payload, code)))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _lose(error)

    async def receive(self) -> bytes:
        """Return the payload of the next frame.

        Raises:
            AuthenticationError: the code is wrong: a frame was changed, replayed or omitted, or is not
                from the peer.
            ProtocolError: the frame is larger than allowed.
            LinkError: the connection broke, or ended within a frame or without a goodbye.
        """
        code_bytes = CODE_BYTES if self._incoming else 0
        if self._end - self._begin < LENGTH_BYTES:
            await self._wait_for(LENGTH_BYTES)
        length = int.from_bytes(self._buffer[self._begin : self._begin + LENGTH_BYTES], "big")
        if length > self._largest_payload_bytes:
            raise ProtocolError(f"a frame of {length} bytes exceeds {self._largest_payload_bytes}")
        whole = LENGTH_BYTES + length + code_bytes
        if whole > len(self._buffer):
            rest = await self._wait_for_long(length, length + code_bytes)
            payload, code = bytes(rest[:length]), bytes(rest[length:])
        else:
            if self._end - self._begin < whole:
                await self._wait_for(whole, length)
            begin = self._begin + LENGTH_BYTES
            self._begin += whole
            payload = bytes(self._buffer[begin : begin + length])
            code = bytes(self._buffer[begin + length : self._begin])
        self.waiting_since_s, self.arriving_bytes = None, 0
        if self._incoming and not hmac.compare_digest(self._incoming.next_code(payload), code):
            raise AuthenticationError("the code of a frame does not verify")
        return payload

    async def _wait_for(self, wanted_bytes: int, arriving_bytes: int = 0) -> None:
        """Receive until so many bytes are in the buffer."""
        if self._begin + wanted_bytes > len(self._buffer):
            self._begin, self._end = 0, self._move(self._buffer)
        while self._end - self._begin < wanted_bytes:
            self._end += await self._receive(self._buffer[self._end :], arriving_bytes)

    async def _wait_for_long(self, length: int, wanted_bytes: int) -> memoryview:
        """Receive a frame, without its length, that has no room in the buffer."""
        frame = memoryview(bytearray(wanted_bytes))
        self._begin += LENGTH_BYTES
        received = self._move(frame)
        self._begin = self._end = 0
        while received < wanted_bytes:
            received += await self._receive(frame[received:], length)
        return frame

    def _move(self, target: memoryview) -> int:
        """Copy what is in the buffer to the begin of ``target``; return its number of bytes."""
        size = self._end - self._begin
        target[:size] = self._buffer[self._begin : self._end]
        return size

    async def _receive(self, buffer: memoryview, arriving_bytes: int) -> int:
        """Receive what has come, noting that a frame is awaited."""
        if self.waiting_since_s is None:
            self.waiting_since_s = trio.current_time()
        self.arriving_bytes = arriving_bytes
        try:
            received = await receive_into(self.stream, buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _lose(error)
        if not received:
            within = arriving_bytes or self._end > self._begin
            raise LinkError(
                f"the peer closed the connection {'within a frame' if within else 'without a goodbye'}"
            )
        return received


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


def _lose(error: trio.BrokenResourceError | trio.ClosedResourceError) -> NoReturn:
    if isinstance(error, trio.ClosedResourceError):
        raise LinkError("the connection is closed") from None
    raise LinkError(f"the connection broke: {error.__cause__ or error}") from None
