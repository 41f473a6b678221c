"""A longer classical fibre for the loopback link: a TCP relay that delays every byte by half a round trip.

Bob connects to it instead of to Alice. Bandwidth is not limited, order and flow control stay TCP's.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

_PIECE_BYTES = 256 << 10
# The limit of data in transit in one direction: more than any link here sends in a tenth of a second.
_PIECES_UNDER_WAY = 256


@asynccontextmanager
async def delay_line(listen_port: int, target_port: int, round_trip_s: float) -> AsyncIterator[None]:
    """Relay connections on ``listen_port`` to ``target_port``, both on this machine, until the body ends."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(listen_port, host="127.0.0.1")

        async def carry(near: trio.SocketStream) -> None:
            await _carry(near, target_port, round_trip_s / 2.0)

        nursery.start_soon(trio.serve_listeners, carry, listeners)
        yield
        nursery.cancel_scope.cancel()


async def _carry(near: trio.SocketStream, target_port: int, delay_s: float) -> None:
    """Relay one connection in both directions until either end closes it."""
    async with near:
        try:
            far = await trio.open_tcp_stream("127.0.0.1", target_port)
        except OSError:
            return  # nobody listens there yet: the client's connection is closed
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(_one_way, near, far, delay_s, nursery.cancel_scope)
            nursery.start_soon(_one_way, far, near, delay_s, nursery.cancel_scope)


async def _one_way(
    source: trio.SocketStream, target: trio.SocketStream, delay_s: float, both: trio.CancelScope
) -> None:
    """Relay the data of ``source`` to ``target``, each piece ``delay_s`` after its arrival."""
    put, take = trio.open_memory_channel[tuple[float, bytes]](_PIECES_UNDER_WAY)

    async def read() -> None:
        async with put:
            while piece := await source.receive_some(_PIECE_BYTES):
                await put.send((trio.current_time() + delay_s, piece))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            async for due_s, piece in take:
                await trio.sleep_until(due_s)
                await target.send_all(piece)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    both.cancel()
