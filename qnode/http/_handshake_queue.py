"""One handshake step per turn of the event loop, so that a flood of strangers delays no other client."""

import trio

from qnode.http._slots import ConnectionSlot


class QueuedHandshake(trio.abc.Stream):
    """A stream whose reads queue with those of all other streams on the same lock.

    Each message of a handshake costs about a millisecond of public-key arithmetic after its read. Without the
    queue, all strangers whose bytes arrived together would be served before the next request. A connection in
    the queue waits for the server, so its ``slot`` is not taken away. Otherwise a flood, in which each new
    connection replaces the next one in the queue, would leave nobody served.
    """

    def __init__(self, stream: trio.abc.Stream, turns: trio.Lock, slot: ConnectionSlot) -> None:
        self._stream = stream
        self._turns = turns
        self._slot = slot

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Read, then wait for the turn of this stream."""
        self._slot.wait()
        data = await self._stream.receive_some(max_bytes)
        self._slot.work()
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
