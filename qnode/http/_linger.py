"""Closing a connection on which the client may still send."""

import contextlib

import trio

_MOST_BYTES = 1 << 20


async def linger(stream: trio.abc.Stream) -> None:
    """Close our side of ``stream``, then read and discard until the client closes.

    The caller sets a deadline. Closing with unread data resets the connection, and the reset overtakes the
    answer with the reason.
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
