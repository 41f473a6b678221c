"""The end of a connection that the client has not agreed to."""

import contextlib

import trio

_MOST_BYTES = 1 << 20


async def linger(stream: trio.abc.Stream) -> None:
    """End our side of ``stream``, then read and forget until the client ends his, as long as the caller lets.

    Closing with unread data resets the connection, and the reset overtakes the answer that says why.
    """
    budget = _MOST_BYTES
    with contextlib.suppress(trio.BrokenResourceError):
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
        while budget > 0:
            data = await stream.receive_some(1 << 16)
            if not data:
                return
            budget -= len(data)
