"""Commands and answers as lines of text, bounded in length and time."""

from typing import Final

import trio

from qnode.devices.transport.base import Transport
from qnode.errors import DeviceError, TransientDeviceError

ANSWER_LIMIT_S: Final = 2.0
SHOWN_BYTES: Final = 60
QUIET_S: Final = 0.1  # after so long a silence, no answer to an earlier question is expected any more
LONGEST_BABBLE_S: Final = 1.0  # a device that never stops sending is not waited for


class Lines:
    """Lines over ``port``.

    ``line_end`` ends a line of the device, ``command_end`` one of ours; a carriage return before ``line_end``
    is dropped. A line is at most ``longest_bytes`` long. A message of a transport that keeps messages is a
    line, with or without its end. Tasks may share it: each question has its answer before the next one.
    """

    def __init__(
        self,
        port: Transport,
        *,
        line_end: bytes = b"\n",
        command_end: bytes = b"\n",
        longest_bytes: int = 4096,
        encoding: str = "ascii",
    ) -> None:
        self.port = port
        self._line_end = line_end
        self._command_end = command_end
        self._longest_bytes = longest_bytes
        self._encoding = encoding
        self._pending = bytearray()
        self._turn = trio.Lock()
        self._owes_answer = True  # perhaps, to an earlier user

    async def tell(self, command: str, *, limit_s: float = ANSWER_LIMIT_S) -> None:
        """Send ``command``.

        Raises:
            DeviceGone: the device is no longer there.
            TransientDeviceError: it did not take the command within ``limit_s``.
            DeviceError: the command is not one line of text.
        """
        line = self._encoded(command)
        async with self._turn:
            await self._send(command, line, limit_s)

    async def _send(self, command: str, line: bytes, limit_s: float) -> None:
        with trio.move_on_after(limit_s) as scope:
            await self.port.send(line + self._command_end)
        if scope.cancelled_caught:
            raise TransientDeviceError(f"{self.port.address}: does not take {command!r} within {limit_s:g} s")

    async def ask(self, command: str, *, limit_s: float = ANSWER_LIMIT_S) -> str:
        """Drop what came unasked, send ``command``, and return the line that answers, without its end.

        The first question, and the one after a question without an answer, wait until the device is quiet:
        the answer to the earlier one may still come.

        Raises:
            DeviceGone: the device is no longer there.
            TransientDeviceError: no whole line within ``limit_s``, one that is too long, or no text.
        """
        line = self._encoded(command)
        async with self._turn:
            self._pending.clear()
            await self.port.discard()
            if self._owes_answer:
                await self._drop_late()
            self._owes_answer = True
            deadline = trio.current_time() + limit_s
            await self._send(command, line, limit_s)
            return await self._line(f"an answer to {command!r}", limit_s, deadline)

    async def receive(self, *, limit_s: float = ANSWER_LIMIT_S) -> str:
        """Return the next line, without its end.

        Raises:
            DeviceGone: the device is no longer there.
            TransientDeviceError: no whole line within ``limit_s``, one that is too long, or no text.
        """
        async with self._turn:
            return await self._line("a line", limit_s, trio.current_time() + limit_s)

    async def _drop_late(self) -> None:
        if self.port.keeps_messages:
            return  # its transport knows which question has no answer yet
        with trio.move_on_after(LONGEST_BABBLE_S):
            while True:
                with trio.move_on_after(QUIET_S) as quiet:
                    await self.port.receive()
                if quiet.cancelled_caught:
                    return

    def _encoded(self, command: str) -> bytes:
        try:
            line = command.encode(self._encoding)
        except UnicodeEncodeError:
            raise DeviceError(f"{self.port.address}: {command!r} is no {self._encoding} text") from None
        if b"\n" in line or b"\r" in line:
            raise DeviceError(f"{self.port.address}: {command!r} has a line end inside, expected one command")
        return line

    async def _line(self, what: str, limit_s: float, deadline: float) -> str:
        line = None
        self._owes_answer = True
        with trio.CancelScope(deadline=deadline):
            line = await self._next(what)
        if line is None:
            raise TransientDeviceError(
                f"{self.port.address}: expected {what} within {limit_s:g} s, {self._came(self._pending)}"
            )
        try:
            text = line.decode(self._encoding)
        except UnicodeDecodeError:
            raise TransientDeviceError(
                f"{self.port.address}: expected {what}, {self._came(line)}, which is no {self._encoding} text"
            ) from None
        self._owes_answer = False
        return text

    async def _next(self, what: str) -> bytes:
        searched = 0
        while True:
            end = self._pending.find(self._line_end, searched)
            length = end if end >= 0 else len(self._pending)
            if length > self._longest_bytes:
                came = self._came(self._pending)
                self._pending.clear()
                raise TransientDeviceError(
                    f"{self.port.address}: expected {what} of at most {self._longest_bytes:,} bytes, {came}"
                )
            if end >= 0:
                line = bytes(self._pending[:end])
                del self._pending[: end + len(self._line_end)]
                return line.removesuffix(b"\r")
            searched = max(0, len(self._pending) - len(self._line_end) + 1)
            data = await self.port.receive()
            self._pending += data
            if self.port.keeps_messages and not data.endswith(self._line_end):
                self._pending += self._line_end

    def _came(self, data: bytes | bytearray) -> str:
        if not data:
            return "nothing came"
        if self.port.secret:
            return f"{len(data):,} bytes came"
        more = f"... ({len(data):,} bytes)" if len(data) > SHOWN_BYTES else ""
        return f"{bytes(data[:SHOWN_BYTES])!r}{more} came"
