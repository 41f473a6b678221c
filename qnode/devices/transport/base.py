"""What all transports have in common."""

from abc import ABC, abstractmethod
from typing import ClassVar, Final

from qnode.devices.transport.transcript import Transcript

RECEIVE_BYTES: Final = 65536
MOST_DISCARDED_BYTES: Final = 1 << 20  # at once: a device that never stops sending is not waited for


class Transport(ABC):
    """Bytes to and from one device; made by `open_transport`.

    One task may send while another receives. Cancelling either loses no byte that was received.
    ``transcript``: the last bytes in both directions. With ``secret`` only what the driver notes itself.
    """

    keeps_messages: ClassVar[bool] = False
    """True when `receive` returns whole messages; else the bytes of a stream, cut anywhere."""

    def __init__(self, address: str, transcript: Transcript, *, secret: bool) -> None:
        self.address = address
        self.transcript = transcript
        self.secret = secret

    async def send(self, data: bytes) -> None:
        """Send all of ``data``; the caller sets a deadline.

        Raises:
            DeviceGone: the device is no longer there.
        """
        if not self.secret:
            self.transcript.note_sent(data)
        await self._send(data)

    async def receive(self, most_bytes: int = RECEIVE_BYTES) -> bytes:
        """Return what has come, 1 byte or more, as soon as there is any; the caller sets a deadline.

        A transport that keeps messages returns one, whatever its length, and b"" if it is empty.

        Raises:
            DeviceGone: the device is no longer there.
        """
        return self._noted(await self._receive(most_bytes))

    async def discard(self) -> int:
        """Drop what has come and was not received; return its number of bytes.

        Raises:
            DeviceGone: the device is no longer there.
        """
        dropped = 0
        while dropped < MOST_DISCARDED_BYTES:
            data = await self._receive_now()
            if data is None:
                break
            dropped += len(self._noted(data))
        return dropped

    def _noted(self, data: bytes) -> bytes:
        if not self.secret:
            self.transcript.note_received(data)
        return data

    @abstractmethod
    async def _send(self, data: bytes) -> None: ...

    @abstractmethod
    async def _receive(self, most_bytes: int) -> bytes: ...

    @abstractmethod
    async def _receive_now(self) -> bytes | None:
        """Return what has come, None if nothing has; do not wait for it."""
