"""Unix stream sockets with one JSON object per line; file permissions decide who may connect."""

import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Never

import msgspec
import trio
from msgspec import Struct

from qnode.errors import ConfigError
from qnode.operate.control.client import LONGEST_REQUEST_BYTES

SOCKET_MODE = 0o660
LONGEST_PATH_BYTES = 107  # of sockaddr_un
CONNECTIONS = 32
FULL = (
    f"all {CONNECTIONS} connections to the control socket are taken: end a qnodectl watch or a recorder, or "
    "try again in a minute"
)
SEND_LIMIT_S = 10.0
SILENCE_LIMIT_S = 60.0  # the longest wait for the next request of a client


class Refusal(Struct, frozen=True):
    """The answer to what is not done; ``error`` says why."""

    error: str


async def serve_socket(
    path: Path,
    respond: Callable[[trio.SocketStream, bytes], Awaitable[Struct | None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> Never:
    """Answer each line of each client at ``path`` until cancelled; the socket file is removed at the end.

    Start it with ``nursery.start``. ``respond(stream, line)`` returns the answer, or None to hang up.

    Raises:
        ConfigError: another daemon answers at ``path``, a file that is not a socket exists there, or the
            socket cannot be made.
    """
    places = trio.CapacityLimiter(CONNECTIONS)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                places.acquire_on_behalf_of_nowait(stream)
            except trio.WouldBlock:
                await send_or_leave(stream, Refusal(FULL))
                return
            try:
                await _converse(stream, respond)
            finally:
                places.release_on_behalf_of(stream)

    with listening_at(path, "control_socket") as bound:
        async with trio.SocketListener(trio.socket.from_stdlib_socket(bound)) as listener:
            task_status.started()
            await trio.serve_listeners(serve, [listener])


async def _converse(
    stream: trio.SocketStream, respond: Callable[[trio.SocketStream, bytes], Awaitable[Struct | None]]
) -> None:
    """Answer one client until it closes, is silent, or violates the framing."""
    lines = Lines(stream, LONGEST_REQUEST_BYTES)
    while True:
        line = None
        with trio.move_on_after(SILENCE_LIMIT_S):
            try:
                line = await lines.next()
            except trio.BrokenResourceError:
                return
            except LineTooLong as error:
                await send_or_leave(stream, Refusal(str(error)))
                return
        if line is None:
            return
        response = await respond(stream, line)
        if response is None or not await send_or_leave(stream, response):
            return


@contextmanager
def listening_at(path: Path, where: str) -> Iterator[socket.socket]:
    """Hold a listening socket at ``path``, and remove its file afterwards.

    Raises:
        ConfigError: like `serve_socket`; ``where`` names the key of the file.
    """
    bound = _bind(path, where)
    inode = path.stat().st_ino
    try:
        yield bound
    finally:
        # A successor may have bound the path again; remove only our own file.
        if path.exists() and path.stat().st_ino == inode:
            path.unlink()


def _bind(path: Path, where: str) -> socket.socket:
    """Bind and listen at ``path``, and replace a socket file that no daemon serves."""
    if len(os.fsencode(path)) > LONGEST_PATH_BYTES:
        raise ConfigError(f"{where} {path}: longer than a socket's path may be ({LONGEST_PATH_BYTES} bytes)")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path, where)
        # Bound but not yet listening, the socket refuses all clients, so there is no time with wrong
        # permissions.
        bound.bind(str(path))
        path.chmod(SOCKET_MODE)
        bound.listen(CONNECTIONS)
    except OSError as error:
        bound.close()
        raise ConfigError(f"{where} {path}: {error.strerror or error}") from None
    except ConfigError:
        bound.close()
        raise
    return bound


def _remove_stale(path: Path, where: str) -> None:
    """Remove the socket file of a killed daemon; refuse one that is served, and any other file."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(f"{where} {path}: a file that is no socket lies there; move it away")
    if is_served(path):
        raise ConfigError(f"{where} {path}: another daemon answers there; stop it or choose another path")
    path.unlink()


def is_served(path: Path) -> bool:
    """Return whether a daemon has its control socket at ``path``, also one that hangs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a daemon that hangs has a full queue: EAGAIN means that it runs
        try:
            return probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT)
        except OSError:  # the path is too long
            return False


async def send_or_leave(stream: trio.SocketStream, response: Struct) -> bool:
    """Send one line; False when the caller left or does not read."""
    with trio.move_on_after(SEND_LIMIT_S):
        try:
            await stream.send_all(msgspec.json.encode(response) + b"\n")
        except trio.BrokenResourceError:
            return False
        return True
    return False


class LineTooLong(Exception):
    """The other end sent more than a line may hold."""


class Lines:
    """Cut a stream into lines of at most ``longest`` bytes."""

    def __init__(self, stream: trio.abc.ReceiveStream, longest: int) -> None:
        self._stream = stream
        self._longest = longest
        self._pending = bytearray()

    async def next(self) -> bytes | None:
        """Return the next line without its end; None when the other end has finished."""
        searched = 0
        while (end := self._pending.find(b"\n", searched)) < 0:
            searched = len(self._pending)
            if searched > self._longest:
                raise LineTooLong(f"a line is at most {self._longest} bytes")
            received = await self._stream.receive_some()
            if not received:
                return None
            self._pending += received
        line = bytes(self._pending[:end])
        if end > self._longest:
            raise LineTooLong(f"a line is at most {self._longest} bytes")
        del self._pending[: end + 1]
        return line
