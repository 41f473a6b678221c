"""A transport over a file descriptor that does not block: a serial line, a socket."""

import os
from collections.abc import Callable

import trio

from qnode.devices.transport.base import RECEIVE_BYTES, Transport
from qnode.devices.transport.transcript import Transcript
from qnode.errors import DeviceGone


class DescriptorTransport(Transport):
    """Reads and writes ``descriptor``, which its opener closes.

    ``why_gone``: the reason for the end of the stream, if the opener knows more than its errors say.
    """

    def __init__(
        self,
        address: str,
        transcript: Transcript,
        descriptor: int,
        *,
        secret: bool,
        why_gone: Callable[[], str] = str,
    ) -> None:
        super().__init__(address, transcript, secret=secret)
        self._descriptor = descriptor
        self._why_gone = why_gone

    async def _send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._descriptor)
            except OSError as error:
                raise self._gone(error) from None

    async def _receive(self, most_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            data = self._read(most_bytes)
            if data is not None:
                return data
            await trio.lowlevel.wait_readable(self._descriptor)

    async def _receive_now(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._read(RECEIVE_BYTES)

    def _read(self, most_bytes: int) -> bytes | None:
        """Return what has come, None if nothing has."""
        try:
            data = os.read(self._descriptor, most_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._gone(error) from None
        if not data:
            raise self._gone(None)
        return data

    def _gone(self, error: OSError | None) -> DeviceGone:
        return self.gone(
            self._why_gone() or (f"{error.strerror}" if error else "the device closed the connection")
        )

    def gone(self, why: str) -> DeviceGone:
        """Return the error that tells the end."""
        return DeviceGone(f"{self.address}: gone ({why}): plug it in or switch it on, the node tries again")
