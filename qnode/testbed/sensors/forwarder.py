"""A line between collector and spool for a chain without a tunnel: forwards TCP, and can fall silent."""

import trio

_CHUNK_BYTES = 65_536


class Forwarder:
    """Forwards connections to ``port`` on this machine; while cut it passes nothing, and closes nothing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = trio.Event()
        self._open.set()

    def cut(self) -> None:
        """Pass nothing from now on."""
        self._open = trio.Event()

    def mend(self) -> None:
        """Pass everything again, also what waits."""
        self._open.set()

    async def serve(self, listener: trio.SocketListener) -> None:
        """Forward until cancelled."""
        await trio.serve_listeners(self._forward, [listener])

    async def _forward(self, near: trio.SocketStream) -> None:
        try:
            async with (
                near,
                await trio.open_tcp_stream("127.0.0.1", self._port) as far,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._pump, near, far, nursery.cancel_scope)
                nursery.start_soon(self._pump, far, near, nursery.cancel_scope)
        except OSError:  # nobody listens: the collector sees a closed connection
            return

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            while piece := await source.receive_some(_CHUNK_BYTES):
                await self._open.wait()
                await sink.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()
