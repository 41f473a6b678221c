"""What the streams of this room have in common: they receive into a buffer of their caller."""

import operator
from abc import abstractmethod
from typing import Final

import trio

RECEIVE_BYTES: Final = 64 << 10
# So many calls in a row may do their work without a turn of the scheduler.
CALLS_WITHOUT_A_TURN = 16


class LeanStream(trio.abc.Stream):
    """A stream that receives into a buffer. One task may send while another receives.

    Each call can be cancelled; unlike trio's own streams, not each one gives way to other tasks. No buffer is
    kept for a connection that waits to receive. After a cancelled `send_all` it is unknown what was sent.
    """

    _calls = 0

    @property
    def can_send_at_once(self) -> bool:
        """Whether `send_at_once` may be called."""
        return True

    @abstractmethod
    async def receive_into(self, buffer: memoryview) -> int:
        """Put into ``buffer`` what has come, 1 byte or more; return its number of bytes, 0 at the end.

        Raises:
            BusyResourceError: another task waits for what comes.
            BrokenResourceError: the connection broke.
            ClosedResourceError: this stream was closed.
        """

    @abstractmethod
    def send_at_once(self, data: bytes) -> bool:
        """Send as much of ``data`` as need not wait; return whether that is all.

        The next `send_all` sends the rest first; it has to come before another `send_at_once`. Raises as
        `send_all`.
        """

    async def _turn(self) -> None:
        """Give way to other tasks if there was no wait for long; in any case be cancelled if that is due."""
        self._calls += 1
        if self._calls > CALLS_WITHOUT_A_TURN:
            self._calls = 0
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()


async def receive_into(stream: trio.abc.ReceiveStream, buffer: memoryview) -> int:
    """Receive into ``buffer`` from any stream; as `LeanStream.receive_into`."""
    if isinstance(stream, LeanStream):
        return await stream.receive_into(buffer)
    data = await stream.receive_some(len(buffer))
    buffer[: len(data)] = data
    return len(data)


def wanted_bytes(max_bytes: int | None) -> int:
    """Return how much `receive_some` returns at most; ValueError or TypeError for no such number."""
    if max_bytes is None:
        return RECEIVE_BYTES
    if operator.index(max_bytes) < 1:
        raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
    return max_bytes
