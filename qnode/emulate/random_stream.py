"""A random number generator as seen from its port: bytes as long as somebody reads them."""

import random

import trio

CHUNK_BYTES = 512


class RandomStreamEmulator:
    """``start`` and ``stop``: its commands, empty if none. ``silent`` and ``stuck`` are faults."""

    def __init__(self, start: bytes = b"", stop: bytes = b"", seed: int = 1) -> None:
        self.start = start
        self.stop = stop
        self.silent = False
        self.stuck = False
        self.streaming = not start
        self.heard = b""
        self._rng = random.Random(seed)  # noqa: S311 - a test repeats it

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, stream)
            pending = b""
            while data := await stream.receive_some():
                self.heard += bytes(data)
                pending += bytes(data)
                for command, streams in ((self.start, True), (self.stop, False)):
                    if command and command in pending:
                        pending, self.streaming = pending.partition(command)[2], streams
            nursery.cancel_scope.cancel()

    async def _send(self, stream: trio.abc.Stream) -> None:
        while True:
            if self.silent or not self.streaming:
                await trio.sleep(0.01)
                continue
            chunk = b"\x00" * CHUNK_BYTES if self.stuck else self._rng.randbytes(CHUNK_BYTES)
            await stream.send_all(chunk)
