"""One handshake step per turn of the event loop, so that a flood of strangers slows nobody down."""

import trio

from qnode.http._places import Place


class Turnstile(trio.abc.Stream):
    """A stream whose reads take turns with those of all other streams on the same lock.

    Whatever arrives during a handshake costs about a millisecond of public-key arithmetic behind the read.
    Without turns, every stranger whose bytes arrived together would be served before the next request is.
    Who waits for a turn waits for us, so its ``place`` is not taken away: a flood in which each newcomer
    drives out the one about to be served would leave nobody served at all.
    """

    def __init__(self, stream: trio.abc.Stream, turns: trio.Lock, place: Place) -> None:
        self._stream = stream
        self._turns: trio.Lock | None = turns
        self._place = place

    def open(self) -> None:
        """Let reads through from now on."""
        self._turns = None

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Read, then wait for a turn of our own."""
        if self._turns is None:
            return await self._stream.receive_some(max_bytes)
        self._place.wait()
        data = await self._stream.receive_some(max_bytes)
        self._place.work()
        async with self._turns:
            await trio.lowlevel.checkpoint()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send at once."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the stream does."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()
