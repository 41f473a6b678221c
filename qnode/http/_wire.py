"""A client's bare connection: the bytes sent so far, and whether the client is still connected."""

import errno
import select

import trio

# Linux distinguishes a received end from bytes that wait to be read; elsewhere only a reset is visible.
_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class Wire(trio.abc.HalfCloseableStream):
    """``stream``, with a count of what was sent."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.sent_bytes = 0
        """The number of bytes of which some may have reached the client."""

    @property
    def client_gone(self) -> bool:
        """Whether the client has closed its side or reset the connection; reads nothing."""
        poll = select.poll()
        try:
            poll.register(self._stream.socket.fileno(), _GONE)
        except ValueError:  # closed here
            return True
        return bool(poll.poll(0))

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Read as the stream does."""
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send as the stream does; if the first byte cannot be sent, ``sent_bytes`` shows it."""
        with memoryview(data) as rest:
            if not rest:
                await self._stream.send_all(rest)
                return
            try:
                first = await self._stream.socket.send(rest)
            except OSError as error:
                if error.errno in (errno.EBADF, errno.ENOTSOCK):
                    raise trio.ClosedResourceError("this connection was closed") from None
                raise trio.BrokenResourceError("connection lost") from error
            self.sent_bytes += len(rest)  # from here on it is unknown how much of the rest was sent
            if first < len(rest):
                await self._stream.send_all(rest[first:])

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the stream does."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Close our side."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()
