"""Length-prefixed frames over any trio stream, with a code on each once the session has keys.

A frame is a 4-byte length (big endian, of the payload alone), the payload, and after the hello a 16-byte
code: AES-256-GMAC of the payload under the key of the direction, with direction (1 byte), three zero bytes
and the frame's counter (8 bytes) as nonce (NIST SP 800-38D). Direction and counter make a replayed,
reordered, reflected or spliced frame as invalid as a changed one. The code is verified before a byte of the
payload is parsed.

Errors of a connection become `LinkError` or one of its kinds here.
"""

import hmac
import struct
from typing import NoReturn

import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qnode.errors import AuthenticationError, LinkError, ProtocolError
from qnode.link.directions import Direction
from qnode.streams import LeanStream, receive_into

_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size
CODE_BYTES = 16
_NONCE = struct.Struct(">B3xQ")
LARGEST_PAYLOAD_BYTES = 16 << 20
LARGEST_HELLO_BYTES = 64 << 10
# What has come is read ahead into a buffer; a frame that has no room there, into one of its own.
_HELLO_BUFFER_BYTES = 16 << 10
_BUFFER_BYTES = 256 << 10
_SHORT_BYTES = 64 << 10  # sent at once if possible


class FrameStream:
    """Frames on ``stream``; one task may send while another receives.

    A `send` that was cancelled in the middle of a frame leaves the stream unusable for sending.
    """

    def __init__(self, stream: trio.abc.Stream, largest_payload_bytes: int = LARGEST_HELLO_BYTES) -> None:
        self.stream = stream
        self.waits_since_s: float | None = None
        """When `wait` was first called for the next frame; None while that is not needed."""
        self.received_frames = 0
        self.arriving_bytes = 0
        """Length of the arriving frame by its prefix, not verified yet."""
        self._largest_payload_bytes = largest_payload_bytes
        self._buffer = memoryview(bytearray(_HELLO_BUFFER_BYTES))
        self._begin = self._end = 0  # of what has come and was not returned
        self._long: memoryview | None = None  # a frame of its own, of which so much has come
        self._long_end = 0
        self._held: list[bytes] = []
        self._rest_is_left = False  # of what was to be sent at once
        self._outgoing: _Coder | None = None
        self._incoming: _Coder | None = None
        self._code_bytes = 0

    @property
    def stream(self) -> trio.abc.Stream:
        """The stream, which tests replace."""
        return self._stream

    @stream.setter
    def stream(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._lean = stream if isinstance(stream, LeanStream) else None

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
        self._code_bytes = CODE_BYTES
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
        if len(payload) > _SHORT_BYTES:
            assert not self._held, "held frames go out before any wait"
            for part in self._parts(payload):  # without a copy of the payload
                await self._send_all(part)
        elif self.can_hold:
            self.hold(payload)
            if not self.send_held():
                await self.send_rest()
        else:
            await self._send_all(b"".join(self._parts(payload)))

    @property
    def can_hold(self) -> bool:
        """Whether frames can be held and then sent at once."""
        return self._lean is not None and self._lean.can_send_at_once and not self._rest_is_left

    def hold(self, payload: bytes) -> None:
        """Keep a frame of ``payload``, if `can_hold`, for `send_held`, which is to be called before any wait.

        Raises:
            ValueError: the payload is larger than a frame may be.
        """
        self._held.append(b"".join(self._parts(payload)))

    def send_held(self) -> bool:
        """Send all frames that are held, as far as that need not wait; return whether nothing was left.

        What is left goes out before the next frame, or by `send_rest`. No other task may be sending.

        Raises:
            LinkError: the connection is broken.
        """
        if not self._held:
            return True
        assert self._lean is not None, "see can_hold"
        data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held.clear()
        try:
            self._rest_is_left = not self._lean.send_at_once(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _lose(error)
        return not self._rest_is_left

    async def send_rest(self) -> None:
        """Send what `send_held` has left. Callers take turns with those of `send`. Raises LinkError."""
        await self._send_all(b"")

    async def _send_all(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _lose(error)
        self._rest_is_left = False

    def _parts(self, payload: bytes) -> tuple[bytes, bytes, bytes]:
        """Return length, payload and code."""
        if len(payload) > self._largest_payload_bytes:
            raise ValueError(f"a payload of {len(payload)} bytes exceeds {self._largest_payload_bytes}")
        code = self._outgoing.next_code(payload) if self._outgoing else b""
        return _LENGTH.pack(len(payload)), payload, code

    async def receive(self) -> bytes:
        """Return the payload of the next frame; raises as `next` and `wait`."""
        while (payload := self.next()) is None:
            await self.wait()
        return bytes(payload)

    def next(self) -> bytes | memoryview | None:
        """Return the payload of the next frame if it is here; otherwise None, and `wait` has to be called.

        The payload of a long frame is not copied once more: it is a view of a buffer of its own.

        Raises:
            AuthenticationError: the code is wrong: a frame was changed, replayed or omitted, or is not
                from the peer.
            ProtocolError: the frame is larger than allowed.
        """
        if self._long is not None:
            if self._long_end < len(self._long):
                return None
            frame, self._long = self._long, None
            begin, length = 0, self.arriving_bytes
        else:
            begin, here = self._begin, self._end - self._begin
            if here < LENGTH_BYTES:
                return None
            frame = self._buffer
            (length,) = _LENGTH.unpack_from(frame, begin)
            if length > self._largest_payload_bytes:
                raise ProtocolError(f"a frame of {length} bytes exceeds {self._largest_payload_bytes}")
            if here < LENGTH_BYTES + length + self._code_bytes:
                self.arriving_bytes = length
                return None
            begin += LENGTH_BYTES
            self._begin = begin + length + self._code_bytes
        end = begin + length
        payload = frame[begin:end] if frame is not self._buffer else bytes(frame[begin:end])
        self.waits_since_s, self.arriving_bytes = None, 0
        self.received_frames += 1
        if self._incoming and not hmac.compare_digest(
            self._incoming.next_code(payload), frame[end : end + CODE_BYTES]
        ):
            raise AuthenticationError("the code of a frame does not verify")
        return payload

    async def wait(self) -> None:
        """Receive more of what comes.

        Raises:
            LinkError: the connection broke, or ended within a frame or without a goodbye.
        """
        if self.waits_since_s is None:
            self.waits_since_s = trio.current_time()
        buffer = self._room()
        try:
            if self._lean is not None:
                received = await self._lean.receive_into(buffer)
            else:
                received = await receive_into(self._stream, buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _lose(error)
        if not received:
            within = self._long is not None or self._end > self._begin
            raise LinkError(
                f"the peer closed the connection {'within a frame' if within else 'without a goodbye'}"
            )
        if self._long is not None:
            self._long_end += received
        else:
            self._end += received

    def _room(self) -> memoryview:
        """Return where the rest of the arriving frame has room, and perhaps others behind it."""
        wanted_bytes = LENGTH_BYTES + self.arriving_bytes + self._code_bytes
        if self._long is None and wanted_bytes > len(self._buffer):
            frame = memoryview(bytearray(self.arriving_bytes + self._code_bytes))
            self._begin += LENGTH_BYTES
            self._long, self._long_end = frame, self._move(frame)
            self._begin = self._end = 0
        if self._long is not None:
            return self._long[self._long_end :]
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._begin + wanted_bytes > len(self._buffer):
            self._begin, self._end = 0, self._move(self._buffer)
        return self._buffer[self._end :]

    def _move(self, target: memoryview) -> int:
        """Copy what is in the buffer to the begin of ``target``; return its number of bytes."""
        size = self._end - self._begin
        target[:size] = self._buffer[self._begin : self._end]
        return size


class _Coder:
    """The code of successive frames of one direction; a key serves one session, so no nonce occurs twice."""

    def __init__(self, direction: Direction, key: bytes) -> None:
        self._direction = int(direction)
        self._counter = 0
        self._cipher = AESGCM(key)

    def next_code(self, payload: bytes | memoryview) -> bytes:
        nonce = _NONCE.pack(self._direction, self._counter)
        self._counter += 1
        return self._cipher.encrypt(nonce, b"", payload)


def _lose(error: trio.BrokenResourceError | trio.ClosedResourceError) -> NoReturn:
    if isinstance(error, trio.ClosedResourceError):
        raise LinkError("the connection is closed") from None
    raise LinkError(f"the connection broke: {error.__cause__ or error}") from None
