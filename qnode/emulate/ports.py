"""Ports behind which an emulator of a device answers: a pseudo-terminal, a TCP port."""

import os
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import trio


class Emulator(Protocol):
    """A device as seen from its port."""

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer one connection until it ends."""
        ...


@asynccontextmanager
async def pty_port(emulator: Emulator) -> AsyncIterator[str]:
    """Put the emulator behind a pseudo-terminal; gives its path, for `serial://PATH`.

    The line stays when it is closed and opened again, as a real one does: one call of ``serve`` sees all.
    """
    master, slave = os.openpty()
    try:
        tty.setraw(slave)
        async with trio.open_nursery() as nursery, trio.lowlevel.FdStream(master) as stream:
            nursery.start_soon(_serve, emulator, stream)
            yield os.ttyname(slave)
            nursery.cancel_scope.cancel()
    finally:
        os.close(slave)


@asynccontextmanager
async def tcp_port(emulator: Emulator, port: int = 0) -> AsyncIterator[str]:
    """Put the emulator behind a TCP port of this machine, any if 0; gives `tcp://127.0.0.1:PORT`."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")

        async def serve(stream: trio.SocketStream) -> None:
            async with stream:
                await _serve(emulator, stream)

        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"tcp://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def _serve(emulator: Emulator, stream: trio.abc.Stream) -> None:
    try:
        await emulator.serve(stream)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the other end has left
