"""TLS over any stream.

The records are made and read by OpenSSL in memory. Receiving never sends: what OpenSSL has to say after the
handshake (the answer to a new key of the other end) goes out before the next data, in order. The connection
breaks if the other end asks for new keys without limit.
"""

import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from qnode.streams import lean
from qnode.streams.lean import LeanStream, wanted_bytes
from qnode.streams.wire import Wire

# Encrypted at once. Larger slices leave the caches of the processor; smaller ones cost more calls.
_SLICE_BYTES: Final = 128 << 10
_ARRIVED_BYTES: Final = 256 << 10
# A stream in between, as during the handshakes of a server, keeps a buffer of this size while it waits.
_BETWEEN_BYTES: Final = 16 << 10
_MOST_UNSENT_BYTES: Final = 64 << 10
# Records that are decrypted without a turn of the scheduler; small ones cost as much as large ones.
_RECORDS_A_TURN: Final = 64

# One for each event loop: encrypted bytes stay in it only from the socket to OpenSSL, without a turn between.
_arrived: trio.lowlevel.RunVar[memoryview] = trio.lowlevel.RunVar("qnode.streams.arrived")


class TlsStream(LeanStream):
    """TLS over ``transport``, after `handshake`.

    An end without TLS's own end is an end like any other: the protocols above have ends of their own.
    ``connection``: OpenSSL's view, for the certificate of the other end and the version. ``transport`` may be
    replaced while nothing is sent or received.
    """

    def __init__(self, transport: trio.abc.Stream, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.connection: ssl.SSLObject = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side
        )
        # OpenSSL returns a number of bytes if it gets a buffer; its type does not say so.
        self._read_into: Callable[[int, memoryview], int] = self.connection.read  # type: ignore[assignment]
        self._sending = False
        self._cut_off = False  # what was encrypted was perhaps not sent: nothing can follow it
        self._rest_is_left = False  # of what was to be sent at once; the transport has it
        self._closed = False
        self._ended = False
        self._drained = True  # OpenSSL has nothing from which it could make another byte
        self._failure: ssl.SSLError | None = None
        self._secured = False
        self._arrived: memoryview | None = None

    async def handshake(self) -> None:
        """Do the handshake.

        Raises:
            BrokenResourceError: it failed; the cause is OpenSSL's error, and `unsent` the alert for the
                other end. If the connection broke, the cause is what the transport gives.
        """
        while True:
            try:
                self.connection.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._arrive()
            except (ssl.SSLError, ssl.CertificateError) as error:
                raise trio.BrokenResourceError("the TLS handshake failed") from error
            else:
                await self._flush()
                self._secured = True
                return

    def unsent(self) -> bytes:
        """Return, once, what OpenSSL has to say and was not sent: the alert after a failed handshake."""
        return self._outgoing.read()

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive as `LeanStream` says."""
        if self._closed:
            raise trio.ClosedResourceError("this connection was closed")
        await self._turn()
        received = None if self._drained else self._decrypt(buffer)
        while received is None:
            await self._arrive()
            received = self._decrypt(buffer)
        return received

    async def receive_some(self, max_bytes: int | None = None) -> bytearray:
        """Return what has come, as trio's streams do; raises as `receive_into`."""
        size = wanted_bytes(max_bytes)
        if self._closed:
            raise trio.ClosedResourceError("this connection was closed")
        await self._turn()
        while True:
            if not self._drained:
                data = bytearray(size)
                with memoryview(data) as buffer:
                    received = self._decrypt(buffer)
                if received is not None:
                    del data[received:]
                    return data
            await self._arrive()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``.

        Raises:
            BusyResourceError: another task is sending.
            BrokenResourceError: the connection broke.
            ClosedResourceError: this stream was closed.
        """
        self._check_sending()
        self._sending = self._cut_off = True
        try:
            with memoryview(data) as rest:
                for begin in range(0, max(1, len(rest)), _SLICE_BYTES):
                    self._encrypt(rest[begin : begin + _SLICE_BYTES])
                    await self.transport.send_all(self._outgoing.read())
            self._cut_off = self._rest_is_left = False
        finally:
            self._sending = False

    @property
    def can_send_at_once(self) -> bool:
        """Whether the transport can."""
        return isinstance(self.transport, LeanStream)

    def send_at_once(self, data: bytes) -> bool:
        """Send as `LeanStream` says."""
        self._check_sending()
        if self._rest_is_left:
            raise trio.BusyResourceError("a rest has to be sent first")
        assert isinstance(self.transport, LeanStream)
        self._encrypt(data)
        self._rest_is_left = not self.transport.send_at_once(self._outgoing.read())
        return not self._rest_is_left

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the transport does."""
        await self.transport.wait_send_all_might_not_block()

    def cut(self) -> None:
        """Break the connection as `Wire.cut` does; only over a `Wire`."""
        if isinstance(self.transport, Wire):
            self.transport.cut()

    async def aclose(self) -> None:
        """Say TLS's end, if nothing else is being sent, and close the transport."""
        closed, self._closed = self._closed, True
        try:
            if self._secured and not closed and not self._cut_off:
                with suppress(ssl.SSLError):
                    self.connection.unwrap()
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._flush()
        finally:
            await self.transport.aclose()

    def _check_sending(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this connection")
        if self._closed:
            raise trio.ClosedResourceError("this connection was closed")
        if self._cut_off:
            raise trio.BrokenResourceError("an earlier message was cut off, so nothing more can be sent")

    def _encrypt(self, data: bytes | memoryview) -> None:
        written = 0
        try:
            while written < len(data):  # a record each time
                written += self.connection.write(data[written:] if written else data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError("TLS cannot send") from error

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self.transport.send_all(self._outgoing.read())

    def _more(self) -> bool:
        """Whether something is there that is not decrypted or not returned; perhaps not a whole record."""
        return self._incoming.pending > 0 or self.connection.pending() > 0

    def _decrypt(self, buffer: memoryview) -> int | None:
        """Decrypt what has arrived; None if no record is whole, 0 at the end."""
        if self._failure is not None:
            raise trio.BrokenResourceError("TLS cannot receive") from self._failure
        received = records = 0
        try:
            while not self._ended:
                records += 1
                count = self._read_into(len(buffer) - received, buffer[received:] if received else buffer)
                self._ended = not count
                received += count
                if not self._more():
                    self._drained = not (self._ended or self._incoming.eof)
                    break
                if received == len(buffer):
                    break
                if records == _RECORDS_A_TURN:
                    self._calls = lean.CALLS_WITHOUT_A_TURN  # the next call has a turn first
                    break
        except ssl.SSLWantReadError:
            self._drained = True
            return received or None
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLEOFError:  # without TLS's own end
            self._ended = True
        except ssl.SSLError as error:
            # For the next call, if some data came before it. Its traceback would keep the caller's buffer.
            self._failure = error.with_traceback(None)
            if not received:
                raise trio.BrokenResourceError("TLS cannot receive") from error
        return received

    def _shared(self) -> memoryview:
        """Return the buffer of this event loop."""
        try:
            self._arrived = _arrived.get()
        except LookupError:
            self._arrived = memoryview(bytearray(_ARRIVED_BYTES))
            _arrived.set(self._arrived)
        return self._arrived

    async def _arrive(self) -> None:
        """Pass what comes from the transport to OpenSSL."""
        if self._outgoing.pending > _MOST_UNSENT_BYTES:
            raise trio.BrokenResourceError("the other end asks for too many new keys")
        if isinstance(self.transport, Wire):
            arrived = self._arrived or self._shared()
            while (received := self.transport.receive_now(arrived)) is None:
                await self.transport.wait_to_receive()
                self._calls = 0
            self._incoming.write(arrived[:received])
        else:
            data = await self.transport.receive_some(_BETWEEN_BYTES)
            received = len(data)
            self._incoming.write(data)
            self._calls = 0  # the transport gives way
        self._drained = False
        if not received:
            self._incoming.write_eof()
