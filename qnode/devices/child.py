"""A maker's library in a process of its own: when it hangs or crashes, the process is killed, not the node.

    async with open_child("Time Tagger", "qnode_drivers.swabian_library:SwabianLibrary") as child:
        said = await child.ask("identify", limit_s=5.0, serial="")

The class is in a module that imports the library; its methods take values and return dictionaries of values
and numpy arrays. Every answer has a deadline. The process sees no more of the environment than it needs, and
what it prints is kept for diagnosis.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import trio

from qnode.devices.child_frames import (
    LENGTH,
    Answer,
    DamagedAnswer,
    Request,
    decoded,
    encoded,
    frame_bytes,
    result_of,
)
from qnode.devices.transport.transcript import KEPT_BYTES, PRESENT
from qnode.errors import DeviceError, DeviceGone, TransientDeviceError

FIRST_ANSWER_LIMIT_S: Final = 60.0  # the process starts and imports the library
CLOSING_LIMIT_S: Final = 2.0
ENDING_LIMIT_S: Final = 2.0
SHOWN_CHARACTERS: Final = 300
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # of a terminal
# Nothing else is passed on: no credentials, no sockets of the service manager.
ENVIRONMENT: Final = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR"),
    *("LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHASHSEED", "VIRTUAL_ENV"),
)


class Child:
    """The process of one library. Requests of several tasks wait for each other."""

    def __init__(
        self, device: str, process: trio.Process, channel: trio.SocketStream, remedy: str = ""
    ) -> None:
        self._device = device
        self._remedy = remedy
        self._process = process
        self._channel = channel
        self._lock = trio.Lock()
        self._pending = bytearray()
        self._number = 0
        self._printed = bytearray()
        self._transcript = PRESENT.get()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    async def ask(self, call: str, *, limit_s: float, **arguments: Any) -> dict[str, Any]:
        """Call a method of the library's adapter and return what it returned.

        Raises:
            DeviceError: the library is not installed, or raised an exception.
            DeviceGone: the process ended.
            TransientDeviceError: no answer within ``limit_s``, or a damaged one; the process is killed.
        """
        async with self._lock:
            self._number += 1
            answer = None
            with trio.move_on_after(limit_s):
                try:
                    await self._channel.send_all(encoded(Request(self._number, call, arguments)))
                    answer = await self._answer(self._number)
                    result = result_of(answer)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise DeviceGone(await self._obituary(call)) from None
                except DamagedAnswer as error:
                    self.kill()
                    raise TransientDeviceError(
                        f"{self._device}: a damaged answer to {call}, its process was killed: {error}"
                        f"{self._said()}"
                    ) from None
            if answer is None:
                self.kill()
                raise TransientDeviceError(
                    f"{self._device}: no answer to {call} within {limit_s:g} s, its process was killed"
                    f"{self._said()}"
                )
        if answer.fault_kind == "missing":
            raise DeviceError(
                f"{self._device}: the maker's library cannot be imported: {answer.fault}{self._remedy}"
            )
        if answer.fault_kind:
            raise DeviceError(f"{self._device}: {call} failed: {answer.fault_kind}: {answer.fault}")
        return result

    def kill(self) -> None:
        """End the process, and those that it started, at once."""
        if self._process.returncode is None:  # else its number may belong to another one by now
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _answer(self, number: int) -> Answer:
        """Return the answer to request ``number``; drop those to requests that were given up."""
        while True:
            while len(self._pending) < LENGTH.size or len(self._pending) < frame_bytes(self._pending):
                data = await self._channel.receive_some(1 << 20)
                if not data:
                    raise trio.BrokenResourceError
                self._pending += data
            end = frame_bytes(self._pending)
            answer = decoded(self._pending[LENGTH.size : end])
            del self._pending[:end]
            if answer.number == number:
                return answer

    async def _obituary(self, call: str) -> str:
        with trio.move_on_after(ENDING_LIMIT_S):
            await self._process.wait()
        code = self._process.returncode
        if code is None:
            how = "closed its channel"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        return f"{self._device}: the process of the maker's library {how} in {call}{self._said()}"

    def _said(self) -> str:
        """Return the end of what the process printed, to be added to a message."""
        text = _COLOUR.sub("", self._printed.decode(errors="replace"))
        lines = ["".join(filter(str.isprintable, line)).strip() for line in text.splitlines()]
        said = [line for line in lines if line]
        return f"; it said: {said[-1][-SHOWN_CHARACTERS:]}" if said else ""

    async def keep_what_it_prints(self) -> None:
        """Read the output of the process until it ends, so that it never waits for a reader."""
        output = self._process.stdout
        assert output is not None
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await output.receive_some(65536):
                self._printed = (self._printed + data)[-KEPT_BYTES:]
                if self._transcript is not None:
                    self._transcript.note_received(bytes(data))

    async def end(self) -> None:
        """Let the adapter close the device, then kill the process; within 4 s."""
        with suppress(DeviceError):
            await self.ask("close", limit_s=CLOSING_LIMIT_S)
        self.kill()
        with trio.move_on_after(ENDING_LIMIT_S):
            await self._process.wait()


@asynccontextmanager
async def open_child(device: str, target: str, remedy: str = "") -> AsyncIterator[Child]:
    """Start the process of ``target`` (MODULE:CLASS); it is killed on every way out.

    ``device`` begins the messages; ``remedy`` says what to do if the library is missing. The adapter has a
    method ``close``, which is called first on the way out.

    Raises:
        DeviceError: the process cannot be started.
    """
    ours, theirs = socket.socketpair()
    channel = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    async with channel:
        with theirs:
            try:
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-P", "-m", "qnode.devices.child_main", str(theirs.fileno()), target],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
                    start_new_session=True,
                )
            except OSError as error:
                raise DeviceError(f"{device}: its process cannot be started: {error.strerror}") from None
        child = Child(device, process, channel, f"; {remedy}" if remedy else "")
        trio.lowlevel.spawn_system_task(child.keep_what_it_prints)
        try:
            yield child
        finally:
            with trio.CancelScope(shield=True):
                await child.end()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        await stream.aclose()
