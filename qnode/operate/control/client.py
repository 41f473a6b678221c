"""The client of the control socket, without trio, so that `qnodectl status` starts fast.

Each line is one JSON object, in both directions. Requests for information change nothing, and no answer has
key material. The frames after a request to record do (`qnode.operate.recorder.site`).
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
from msgspec import Meta, Struct

from qnode.audit.entries import AuditPage, Number
from qnode.devices.status import Exchange
from qnode.errors import QnodeError
from qnode.operate.blocks.row import DecidedBlock
from qnode.operate.status.model import ControllerStatus, NodeStatus, SiteStatus

LONGEST_PRESHARED_BYTES = 1 << 17
LONGEST_REQUEST_BYTES = 1 << 18  # room for a pre-shared key in base64
LONGEST_RESPONSE_BYTES = 1 << 24
LONGEST_USER = 64
# The errors from decoding a line of JSON; the last one comes from thousands of opening brackets.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Request(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A request: ``count`` is for `events` and `blocks`, ``after`` (a block's number) for `blocks`.

    ``interval_s`` is for `subscribe` (the period of the status). `exchanges` are the last bytes to and from
    ``device``. `record` is followed by frames (`qnode.operate.recording.frames`) until the client has
    finished sending, or the recording has ended. `restore` voids every key of a link and loads
    ``preshared_key``, which is secret. `calibrate` tells ``controller`` a ``command``: hold, auto, or a
    value. `audit` asks for entries of the audit's ``chain`` after the number ``after``. `selftest` runs the
    self-test. `reload` reads the site's file and certificates again. `backup` is followed by the bytes of a
    backup, which are secret. ``link``: the link of `blocks`, `exchanges`, `record`, `restore`, `calibrate`,
    `audit` and `backup`; empty: the first one. ``sudo_user``, for the audit: by sudo the client has become
    another user than this one, as it says. Defaults are not sent, so that an older node understands.
    """

    request: Literal[
        "status",
        "events",
        "blocks",
        "subscribe",
        "exchanges",
        "record",
        "restore",
        "calibrate",
        "audit",
        "reload",
        "selftest",
        "backup",
    ]
    count: int = 1000
    after: Number | None = None
    interval_s: float = 1.0
    link: str = ""
    device: str = ""
    preshared_key: bytes = b""
    controller: str = ""
    command: str = ""
    chain: Number = 0
    sudo_user: Annotated[str, Meta(max_length=LONGEST_USER)] = ""

    def __repr__(self) -> str:
        return f"Request({self.request})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        # The inherited method lists every field, and tracebacks with local variables use it.
        return [("request", self.request)]


class Restored(Struct, frozen=True, kw_only=True):
    """The result of a restore: chunks voided, one-time pads of the new pre-shared key."""

    void_chunks: int
    pads_send: int
    pads_receive: int


class BackupSize(Struct, frozen=True, kw_only=True):
    """The size of the backup that follows this line."""

    n_bytes: int


class Reloaded(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of a reload: the keys applied, and those that wait for a restart.

    ``fault``: why the node continues as before instead.
    """

    fault: str | None = None
    applied: list[str] = []
    waiting: list[str] = []


class SelfTested(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of a self-test: the time that it took, or the step that failed; the node then ends."""

    took_s: float = 0.0
    fault: str | None = None


class Response(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An answer: it has one of its fields. ``status`` stays raw, so that fields of a newer node survive."""

    status: msgspec.Raw = msgspec.Raw()
    events: list[dict[str, Any]] | None = None
    blocks: list[DecidedBlock] | None = None
    exchanges: list[Exchange] | None = None
    recording: SiteStatus | None = None
    restored: Restored | None = None
    controller: ControllerStatus | None = None
    audit: AuditPage | None = None
    reloaded: Reloaded | None = None
    self_tested: SelfTested | None = None
    backup: BackupSize | None = None
    error: str | None = None


class NodeNotRunning(QnodeError):
    """No node serves the control socket."""


class NoAnswer(QnodeError):
    """The control socket is not accessible, or the answer is not valid."""


def ask_status(path: Path, *, patience_s: float) -> msgspec.Raw:
    """Return the node's status as raw JSON.

    Raises:
        NodeNotRunning: no node serves ``path``.
        NoAnswer: no permission, no answer for ``patience_s`` seconds, or an invalid answer.
    """
    with _conversation(path, Request(request="status"), patience_s) as lines:
        return status_in(read_response(next(lines)))


def ask_events(path: Path, count: int, *, patience_s: float) -> list[dict[str, Any]]:
    """Return the latest ``count`` log events, oldest first; raises like `ask_status`."""
    with _conversation(path, Request(request="events", count=count), patience_s) as lines:
        events = read_response(next(lines)).events
        if events is None:
            raise NoAnswer("the node answered something else than events")
        return events


def ask_blocks(
    path: Path, count: int, *, after: int | None = None, link: str = "", patience_s: float
) -> list[DecidedBlock]:
    """Return the latest ``count`` decided blocks, oldest first; raises like `ask_status`.

    With ``after`` only those decided after that block; all kept blocks if the node no longer has it.
    """
    request = Request(request="blocks", count=count, after=after, link=link)
    with _conversation(path, request, patience_s) as lines:
        blocks = read_response(next(lines)).blocks
        if blocks is None:
            raise NoAnswer("the node answered something else than blocks")
        return blocks


def ask_exchanges(path: Path, device: str, *, link: str = "", patience_s: float) -> list[Exchange]:
    """Return the last bytes to and from a device, oldest first; raises like `ask_status`."""
    request = Request(request="exchanges", device=device, link=link)
    with _conversation(path, request, patience_s) as lines:
        exchanges = read_response(next(lines)).exchanges
        if exchanges is None:
            raise NoAnswer("the node answered something else than the bytes of a device")
        return exchanges


def ask_audit(path: Path, chain: int, after: int, *, link: str = "", patience_s: float) -> AuditPage:
    """Return the next entries of a chain of the audit (chain 0: only which chains there are).

    Raises like `ask_status`.
    """
    request = Request(request="audit", chain=chain, after=after, link=link)
    with _conversation(path, request, patience_s) as lines:
        page = read_response(next(lines)).audit
        if page is None:
            raise NoAnswer("the node answered something else than its audit")
        return page


def ask_restore(path: Path, preshared_key: bytes, *, link: str = "", patience_s: float) -> Restored:
    """Make the node void every key of a link and start with ``preshared_key``; raises like `ask_status`.

    NoAnswer also states why the node refused; nothing has changed then.
    """
    request = Request(request="restore", preshared_key=preshared_key, link=link, sudo_user=_sudo_user())
    with _conversation(path, request, patience_s) as lines:
        restored = read_response(next(lines)).restored
        if restored is None:
            raise NoAnswer("the node answered something else than what it restored")
        return restored


def ask_calibrate(
    path: Path, controller: str, command: str, *, link: str = "", patience_s: float
) -> ControllerStatus:
    """Tell a controller to `hold`, to go on by itself (`auto`), or to hold a value; raises like `ask_status`.

    NoAnswer also states why the node refused; nothing has changed then.
    """
    request = Request(
        request="calibrate", controller=controller, command=command, link=link, sudo_user=_sudo_user()
    )
    with _conversation(path, request, patience_s) as lines:
        told = read_response(next(lines)).controller
        if told is None:
            raise NoAnswer("the node answered something else than a controller")
        return told


def ask_reload(path: Path, *, patience_s: float) -> Reloaded:
    """Have the node read its site's file and certificates again; raises like `ask_status`."""
    with _conversation(path, Request(request="reload", sudo_user=_sudo_user()), patience_s) as lines:
        reloaded = read_response(next(lines)).reloaded
        if reloaded is None:
            raise NoAnswer("the node answered something else than a reload")
        return reloaded


def ask_self_test(path: Path, *, patience_s: float) -> SelfTested:
    """Have the node run its self-test; raises like `ask_status`."""
    with _conversation(path, Request(request="selftest"), patience_s) as lines:
        tested = read_response(next(lines)).self_tested
        if tested is None:
            raise NoAnswer("the node answered something else than a self-test")
        return tested


def follow_status(path: Path, *, interval_s: float, patience_s: float) -> Iterator[NodeStatus]:
    """Yield the status every ``interval_s`` seconds until the node ends; raises like `ask_status`."""
    request = Request(request="subscribe", interval_s=interval_s)
    with _conversation(path, request, patience_s + interval_s) as lines:
        for line in lines:
            yield decode_status(status_in(read_response(line)))


@contextmanager
def open_recording_stream(
    path: Path, *, link: str = "", patience_s: float
) -> Iterator[tuple[socket.socket, SiteStatus]]:
    """Request a recording; yield the connection, which then has only frames, and the site.

    Raises:
        NodeNotRunning: no node serves ``path``.
        NoAnswer: the site refuses, or does not answer.
    """
    with _stream(path, Request(request="record", link=link, sudo_user=_sudo_user()), patience_s) as (
        connection,
        answer,
    ):
        if answer.recording is None:
            raise NoAnswer("the node answered something else than a recording")
        yield connection, answer.recording


def fetch_backup(path: Path, to: BinaryIO, *, link: str = "", patience_s: float) -> None:
    """Have the node make a backup of a link, and write it ``to`` a file.

    Raises like `ask_status`; NoAnswer also states why the node refused. Raises OSError if the file cannot be
    written.
    """
    with _stream(path, Request(request="backup", link=link, sudo_user=_sudo_user()), patience_s) as (
        connection,
        answer,
    ):
        if answer.backup is None:
            raise NoAnswer("the node answered something else than a backup")
        missing = answer.backup.n_bytes
        while missing:
            with _explained(path, patience_s):
                piece = connection.recv(min(missing, 1 << 20))
            if not piece:
                raise NoAnswer("the node broke off its backup")
            to.write(piece)
            missing -= len(piece)


@contextmanager
def _stream(path: Path, request: Request, patience_s: float) -> Iterator[tuple[socket.socket, Response]]:
    """Send a request; yield the connection behind the line of the answer, and the answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        with _explained(path, patience_s):
            connection.settimeout(patience_s)
            _send(connection, path, request)
            line = bytearray()
            # One byte at a time: the data after the line is not read here.
            while (byte := connection.recv(1)) and byte != b"\n" and len(line) < LONGEST_REQUEST_BYTES:
                line += byte
        yield connection, read_response(line)


def decode_status(raw: msgspec.Raw | bytes) -> NodeStatus:
    """Decode a status; fields unknown to this version are left out.

    Raises:
        NoAnswer: it is not a status.
    """
    try:
        return msgspec.json.decode(raw, type=NodeStatus)
    except msgspec.DecodeError as error:
        raise NoAnswer(f"the node's status cannot be read: {error}") from None


def read_response(line: bytes | bytearray) -> Response:
    """Decode one line of an answer.

    Raises:
        NoAnswer: the line is not an answer, or the answer is an error.
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


def _sudo_user() -> str:
    """Return the user from whom sudo has made the present one; empty without sudo."""
    name = os.environ.get("SUDO_USER", "")
    return name.encode("ascii", "backslashreplace").decode()[:LONGEST_USER]


@contextmanager
def _conversation(path: Path, request: Request, patience_s: float) -> Iterator[Iterator[bytes]]:
    """Send one request and yield the lines of the answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience_s)
        with _explained(path, patience_s):
            _send(connection, path, request)
            yield _lines(connection)


def _send(connection: socket.socket, path: Path, request: Request) -> None:
    """Connect and send; the reason of a node that has already closed can still be read."""
    connection.connect(str(path))
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(msgspec.json.encode(request) + b"\n")


@contextmanager
def _explained(path: Path, patience_s: float) -> Iterator[None]:
    """Convert errors of the socket at ``path`` to clear messages."""
    try:
        yield
    except TimeoutError:
        raise NoAnswer(f"{path}: no answer within {patience_s:g} s") from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            raise NodeNotRunning(f"{path}: nobody answers here") from None
        raise NoAnswer(f"{path}: {error.strerror or error}") from None


def _lines(connection: socket.socket) -> Iterator[bytes]:
    """Yield whole lines; a connection that ends before the first, or within a line, is an error."""
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
