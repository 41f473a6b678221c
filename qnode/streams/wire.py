"""A connected socket as a stream."""

import errno
import select
import socket
from contextlib import suppress
from typing import Final

import trio

from qnode.streams.lean import LeanStream, wanted_bytes

# The kernel reports a socket as writable when it holds less than this that it has not sent.
_UNSENT_BYTES: Final = 128 << 10
# Linux distinguishes a received end from bytes that wait to be read; elsewhere only a reset is visible.
_GONE: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class Wire(LeanStream, trio.abc.HalfCloseableStream):
    """A connected TCP or Unix socket, which it owns from now on."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        with suppress(OSError):  # not TCP
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        self._socket = connected
        self._sending = False
        self._rest = b""  # of what was to be sent at once
        self._half_closed = False
        self.sent_bytes = 0
        """The number of bytes of which some may have reached the other end."""

    @classmethod
    def over(cls, stream: trio.SocketStream) -> "Wire":
        """Return the wire of trio's stream, which must not be used any more."""
        return cls(socket.socket(fileno=stream.socket.detach()))

    @property
    def gone(self) -> bool:
        """Whether the other end has closed its side or reset the connection; reads nothing."""
        poll = select.poll()
        try:
            poll.register(self._socket.fileno(), _GONE)
        except ValueError:  # closed here
            return True
        return bool(poll.poll(0))

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive as `LeanStream` says."""
        await self._turn()
        while (received := self.receive_now(buffer)) is None:
            await self.wait_to_receive()
        return received

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has come, as trio's streams do; raises as `receive_into`."""
        size = wanted_bytes(max_bytes)
        await self._turn()
        while True:
            try:
                return self._socket.recv(size)
            except BlockingIOError:
                await self.wait_to_receive()
            except OSError as error:
                raise _trouble(error) from error

    def receive_now(self, buffer: memoryview) -> int | None:
        """Receive what is here already, as `receive_into`; None if nothing is."""
        try:
            return self._socket.recv_into(buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _trouble(error) from error

    async def wait_to_receive(self) -> None:
        """Wait until there is something to receive; raises as `receive_into`."""
        await trio.lowlevel.wait_readable(self._socket)
        self._calls = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``; if the first byte cannot be sent, ``sent_bytes`` shows it.

        Raises:
            BusyResourceError: another task is sending.
            BrokenResourceError: the connection broke.
            ClosedResourceError: this stream was closed.
        """
        self._begin_to_send()
        try:
            await self._turn()
            if self._rest:
                unsent, self._rest = self._rest, b""
                await self._send(memoryview(unsent))
            with memoryview(data) as rest:
                await self._send(rest)
        finally:
            self._sending = False

    def send_at_once(self, data: bytes) -> bool:
        """Send as `LeanStream` says."""
        if self._rest:
            raise trio.BusyResourceError("a rest has to be sent first")
        self._begin_to_send()
        self._sending = False
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise _trouble(error) from error
        self.sent_bytes += sent
        self._rest = data[sent:]
        return not self._rest

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until something can be sent; raises as `send_all`."""
        self._begin_to_send()
        try:
            await trio.lowlevel.wait_writable(self._socket)
        except OSError as error:
            raise _trouble(error) from error
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Close this side; the other end can still send. Raises as `send_all`."""
        if not self._half_closed:
            self._begin_to_send()
            self._sending = False
            self._half_closed = True
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                raise _trouble(error) from error
        await self._turn()

    def _begin_to_send(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this connection")
        if self._half_closed or self._socket.fileno() < 0:
            raise trio.ClosedResourceError("this connection was closed")
        self._sending = True

    async def _send(self, rest: memoryview) -> None:
        begun = False
        while rest:
            try:
                sent = self._socket.send(rest)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
                self._calls = 0
            except OSError as error:
                raise _trouble(error) from error
            else:
                if not begun:  # from here on it is unknown how much of the rest was sent
                    begun = True
                    self.sent_bytes += len(rest)
                rest = rest[sent:]

    def cut(self) -> None:
        """Break the connection: both ends see its end after what has already arrived."""
        with suppress(OSError):  # it is broken already, or closed
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection, without a turn of the scheduler."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def aclose(self) -> None:
        """Close the connection."""
        self.close()
        await trio.lowlevel.checkpoint()


def _trouble(error: OSError) -> trio.BrokenResourceError | trio.ClosedResourceError:
    if error.errno in (errno.EBADF, errno.ENOTSOCK):
        return trio.ClosedResourceError("this connection was closed")
    return trio.BrokenResourceError("connection lost")
