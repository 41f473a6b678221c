"""The asking end of the control socket, without trio, so that `qnodectl status` starts fast.

One JSON object a line in both directions. Questions change nothing, and no answer holds key material; what
follows a request to record does (`qnode.operate.recording.site_recorder`).
"""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from qnode.errors import QnodeError
from qnode.operate.blocks.row import DecidedBlock
from qnode.operate.status.model import NodeStatus, SiteStatus

LONGEST_PRESHARED_BYTES = 1 << 17
LONGEST_REQUEST_BYTES = 1 << 18  # room for a pre-shared key in base64
LONGEST_RESPONSE_BYTES = 1 << 24
# What decoding a line of JSON can raise; the last one by a few thousand opening brackets.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Request(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A question: ``count`` is for `events` and `blocks`, ``after`` (a block's number) for `blocks`.

    ``interval_s`` is for `subscribe` (a status every so often). `record` is followed by frames
    (`qnode.operate.recording.frames`) until this end has finished sending, or the recording has ended.
    `restore` voids every key of a link and loads ``preshared_key``, which is secret. ``link``: of which link
    `blocks`, `record` and `restore` are; empty: of the first.
    """

    request: Literal["status", "events", "blocks", "subscribe", "record", "restore"]
    count: int = 1000
    after: int | None = None
    interval_s: float = 1.0
    link: str = ""
    preshared_key: bytes = b""

    def __repr__(self) -> str:
        return f"Request({self.request})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        # The inherited one lists every field, and tracebacks with local variables use it.
        return [("request", self.request)]


class Restored(Struct, frozen=True, kw_only=True):
    """What a restore has done: chunks that are void now, one-time pads of the new pre-shared key."""

    void_chunks: int
    pads_send: int
    pads_receive: int


class Response(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An answer: one of its fields is there. ``status`` stays raw, so that a newer node's fields survive."""

    status: msgspec.Raw = msgspec.Raw()
    events: list[dict[str, Any]] | None = None
    blocks: list[DecidedBlock] | None = None
    recording: SiteStatus | None = None
    restored: Restored | None = None
    error: str | None = None


class NodeNotRunning(QnodeError):
    """Nobody serves the control socket."""


class NoAnswer(QnodeError):
    """The control socket cannot be asked, or what came back is no answer."""


def ask_status(path: Path, *, patience_s: float) -> msgspec.Raw:
    """Return the node's status as raw JSON.

    Raises:
        NodeNotRunning: nobody serves ``path``.
        NoAnswer: no permission, silence for ``patience_s`` seconds, or an answer that is none.
    """
    with _conversation(path, Request(request="status"), patience_s) as lines:
        return status_in(read_response(next(lines)))


def ask_events(path: Path, count: int, *, patience_s: float) -> list[dict[str, Any]]:
    """Return the latest ``count`` log events, oldest first; raises as `ask_status`."""
    with _conversation(path, Request(request="events", count=count), patience_s) as lines:
        events = read_response(next(lines)).events
        if events is None:
            raise NoAnswer("the node answered something else than events")
        return events


def ask_blocks(
    path: Path, count: int, *, after: int | None = None, link: str = "", patience_s: float
) -> list[DecidedBlock]:
    """Return the latest ``count`` decided blocks, oldest first; raises as `ask_status`.

    With ``after`` only those decided after that block: all that the node keeps, if it has forgotten it.
    """
    request = Request(request="blocks", count=count, after=after, link=link)
    with _conversation(path, request, patience_s) as lines:
        blocks = read_response(next(lines)).blocks
        if blocks is None:
            raise NoAnswer("the node answered something else than blocks")
        return blocks


def ask_restore(path: Path, preshared_key: bytes, *, link: str = "", patience_s: float) -> Restored:
    """Have the node void every key of a link and begin anew with ``preshared_key``; raises as `ask_status`.

    NoAnswer also says why the node refused; nothing has changed there then.
    """
    request = Request(request="restore", preshared_key=preshared_key, link=link)
    with _conversation(path, request, patience_s) as lines:
        restored = read_response(next(lines)).restored
        if restored is None:
            raise NoAnswer("the node answered something else than what it restored")
        return restored


def follow_status(path: Path, *, interval_s: float, patience_s: float) -> Iterator[NodeStatus]:
    """Yield the status every ``interval_s`` seconds until the node ends; raises as `ask_status`."""
    request = Request(request="subscribe", interval_s=interval_s)
    with _conversation(path, request, patience_s + interval_s) as lines:
        for line in lines:
            yield decode_status(status_in(read_response(line)))


@contextmanager
def open_recording_stream(
    path: Path, *, link: str = "", patience_s: float
) -> Iterator[tuple[socket.socket, SiteStatus]]:
    """Ask for a recording, and hand out the connection, from which only frames come, and whose it is.

    Raises:
        NodeNotRunning: nobody serves ``path``.
        NoAnswer: the site refuses, or does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        with _explained(path, patience_s):
            connection.settimeout(patience_s)
            _send(connection, path, Request(request="record", link=link))
            line = bytearray()
            # One by one: what follows the line is not for here.
            while (byte := connection.recv(1)) and byte != b"\n" and len(line) < LONGEST_REQUEST_BYTES:
                line += byte
        site = read_response(line).recording
        if site is None:
            raise NoAnswer("the node answered something else than a recording")
        yield connection, site


def decode_status(raw: msgspec.Raw | bytes) -> NodeStatus:
    """Decode a status; fields that this version does not know are left out.

    Raises:
        NoAnswer: it is no status.
    """
    try:
        return msgspec.json.decode(raw, type=NodeStatus)
    except msgspec.DecodeError as error:
        raise NoAnswer(f"the node's status cannot be read: {error}") from None


def read_response(line: bytes | bytearray) -> Response:
    """Decode one line of an answer.

    Raises:
        NoAnswer: the line is no answer, or the answer is an error.
    """
    try:
        response = msgspec.json.decode(line, type=Response)
    except UNREADABLE as error:
        raise NoAnswer(f"not an answer of a node: {error}") from None
    if response.error is not None:
        raise NoAnswer(response.error)
    return response


def status_in(response: Response) -> msgspec.Raw:
    """Return the raw status of an answer."""
    if not bytes(response.status):
        raise NoAnswer("the node answered something else than its status")
    return response.status


@contextmanager
def _conversation(path: Path, request: Request, patience_s: float) -> Iterator[Iterator[bytes]]:
    """Ask once and hand out the answering lines."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience_s)
        with _explained(path, patience_s):
            _send(connection, path, request)
            yield _lines(connection)


def _send(connection: socket.socket, path: Path, request: Request) -> None:
    """Connect and send; a node that has hung up already has said why, which can still be read."""
    connection.connect(str(path))
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(msgspec.json.encode(request) + b"\n")


@contextmanager
def _explained(path: Path, patience_s: float) -> Iterator[None]:
    """Say what is wrong with the socket at ``path``."""
    try:
        yield
    except TimeoutError:
        raise NoAnswer(f"{path}: no answer within {patience_s:g} s") from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            raise NodeNotRunning(f"{path}: nobody answers here") from None
        raise NoAnswer(f"{path}: {error.strerror or error}") from None


def _lines(connection: socket.socket) -> Iterator[bytes]:
    """Yield whole lines; a connection that ends before the first one, or a line without end, is no answer."""
    pending, answered = bytearray(), False
    while received := connection.recv(1 << 16):
        searched = len(pending)
        pending += received
        while (end := pending.find(b"\n", searched)) >= 0:
            line = bytes(pending[:end])
            del pending[: end + 1]
            searched, answered = 0, True
            yield line
        if len(pending) > LONGEST_RESPONSE_BYTES:
            raise NoAnswer("an answer longer than any node gives")
    if pending or not answered:
        raise NoAnswer("the node hung up before it answered")
