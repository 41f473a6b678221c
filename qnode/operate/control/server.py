"""The server of the control socket: a Unix stream socket with one JSON object per line.

File permissions decide who may connect. Requests for information change nothing in the node, and no answer
has key material. Five other requests are allowed to root and the daemon's own user only. `record` sends tags
or symbols, which discloses the keys of these blocks; the keys state that, and the site file must allow it.
`restore` voids every key and loads a new pre-shared key. `calibrate` tells a controller what to hold.
`reload` reads the site's file again, as SIGHUP does. `selftest` runs the self-test.
"""

import difflib
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Never, get_args

import msgspec
import structlog
import trio

from qnode.audit.entries import AuditPage
from qnode.audit.operator import acting
from qnode.devices.status import Exchange
from qnode.errors import QnodeError
from qnode.operate.blocks.row import DecidedBlock
from qnode.operate.control.client import (
    LONGEST_REQUEST_BYTES,
    LONGEST_RESPONSE_BYTES,
    UNREADABLE,
    BackupSize,
    NoAnswer,
    NodeNotRunning,
    Reloaded,
    Request,
    Response,
    Restored,
    SelfTested,
    decode_status,
    read_response,
    status_in,
)
from qnode.operate.control.listening import (
    SEND_LIMIT_S,
    Lines,
    LineTooLong,
    send_or_leave,
    serve_socket,
)
from qnode.operate.recording.recordings import Recording, RecordingRefused, Recordings
from qnode.operate.status.model import ControllerStatus, NodeStatus

SILENCE_LIMIT_S = 60.0  # the longest wait for the next request of a client
SHORTEST_INTERVAL_S = 0.1
LONGEST_INTERVAL_S = 60.0
RECORDING_PAUSE_S = 0.05
AUDIT_LIMIT_S = 2.0
ROOT = 0
_CREDENTIALS = struct.Struct("iII")  # of SO_PEERCRED: process, user, group

log = structlog.get_logger()


async def _nothing_recorded(*changes: tuple[str, str, str]) -> None:
    """Stand for the audit of a link that has none."""


@dataclass(frozen=True)
class LinkAnswers:
    """The sources of answers about one link.

    ``blocks(count, after)``: the latest decided blocks, of those decided after block ``after`` unless that is
    None. ``recordings``: the recordings of the link. ``restore(preshared_key)`` and
    ``calibrate(controller, command)``: raise QnodeError with the reason if nothing has changed.
    ``exchanges(device)``: the last bytes to and from a device, never key material; None if there is no such
    device. ``audit(chain, after)``: entries of the audit; ``record_changes(*changes)`` adds entries. Both
    raise QnodeError. ``backup()``: a new backup, an open file; raises QnodeError.
    """

    blocks: Callable[[int, int | None], list[DecidedBlock]]
    recordings: Recordings = field(default_factory=Recordings)
    restore: Callable[[bytes], Awaitable[Restored]] | None = None
    calibrate: Callable[[str, str], ControllerStatus] | None = None
    exchanges: Callable[[str], list[Exchange] | None] = lambda device: None
    audit: Callable[[int, int], Awaitable[AuditPage]] | None = None
    record_changes: Callable[..., Awaitable[None]] = _nothing_recorded
    backup: Callable[[], Awaitable[BinaryIO]] | None = None


@dataclass(frozen=True)
class Answers:
    """The sources of answers, called for each request.

    ``events(count)``: the latest log events, oldest first. ``links``: by name; the first one is
    the default. ``reload``: as on SIGHUP; raises QnodeError if it cannot be tried at present.
    ``self_test``: returns its duration in seconds; raises QnodeError if a step gave a wrong result.
    """

    status: Callable[[], NodeStatus]
    events: Callable[[int], list[dict[str, Any]]]
    links: Mapping[str, LinkAnswers]
    reload: Callable[[], Awaitable[Reloaded]] | None = None
    self_test: Callable[[], Awaitable[float]] | None = None

    def of_link(self, name: str) -> LinkAnswers | None:
        """Return the sources of a link; None if there is no link of this name."""
        return self.links.get(name) if name else next(iter(self.links.values()))


async def serve_control(
    path: Path,
    answers: Answers,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> Never:
    """Answer at ``path`` until cancelled; the socket file is removed at the end.

    Start it with ``nursery.start``.

    Raises:
        ConfigError: another daemon answers at ``path``, a file that is not a socket exists there, or the
            socket cannot be made.
    """
    await serve_socket(path, lambda stream: _converse(stream, answers), task_status=task_status)


async def ask_node(path: Path) -> NodeStatus:
    """Return the status of the node that serves ``path``; the caller sets a deadline.

    Raises:
        NodeNotRunning: no node serves ``path``.
        NoAnswer: no permission, or the answer is not a status.
    """
    async with await _connect(path) as stream:
        try:
            with suppress(trio.BrokenResourceError):  # already closed; the reason can be read
                await stream.send_all(msgspec.json.encode(Request(request="status")) + b"\n")
            line = await Lines(stream, LONGEST_RESPONSE_BYTES).next()
        except (trio.BrokenResourceError, LineTooLong) as error:
            raise NoAnswer(f"the node broke off: {error}") from error
    if line is None:
        raise NoAnswer("the node hung up before it answered")
    return decode_status(status_in(read_response(line)))


async def _connect(path: Path) -> trio.SocketStream:
    try:
        return await trio.open_unix_socket(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            raise NodeNotRunning(f"{path}: nobody answers here") from None
        raise NoAnswer(f"{path}: {error.strerror or error}") from None


async def _converse(stream: trio.SocketStream, answers: Answers) -> None:
    """Answer the requests of one client until it closes, is silent, or violates the framing."""
    lines = Lines(stream, LONGEST_REQUEST_BYTES)
    while True:
        line = None
        with trio.move_on_after(SILENCE_LIMIT_S):
            try:
                line = await lines.next()
            except trio.BrokenResourceError:
                return
            except LineTooLong as error:
                await send_or_leave(stream, Response(error=str(error)))
                return
        if line is None:
            return
        try:
            request = msgspec.json.decode(line, type=Request)
        except UNREADABLE as error:
            if not await send_or_leave(stream, Response(error=_refusal(line, error))):
                return
            continue
        link = answers.of_link(request.link)
        if link is None:
            names = ", ".join(answers.links)
            if not await send_or_leave(stream, Response(error=f"no link {request.link!r} (links: {names})")):
                return
            continue
        if request.request == "record":
            if await _record(stream, answers, link, request):
                return
            continue
        if request.request in ("restore", "backup") and not request.link and len(answers.links) > 1:
            names = ", ".join(answers.links)
            refusal = f"a {request.request} is of one link: name it with --link (links: {names})"
            if not await send_or_leave(stream, Response(error=refusal)):
                return
            continue
        if request.request == "backup":
            if await _backup(stream, link, request):
                return
            continue
        if request.request == "restore":
            if not await send_or_leave(stream, await _restore(stream, link, request)):
                return
            continue
        if request.request == "calibrate":
            if not await send_or_leave(stream, await _calibrate(stream, link, request)):
                return
            continue
        if request.request == "audit":
            if not await send_or_leave(stream, await _audit(link, request)):
                return
            continue
        if request.request == "reload":
            if not await send_or_leave(stream, await _reload(stream, answers, request)):
                return
            continue
        if request.request == "selftest":
            if not await send_or_leave(stream, await _self_test(stream, answers)):
                return
            continue
        while True:
            if not await send_or_leave(stream, _answer(request, answers, link)):
                return
            if request.request != "subscribe":
                break
            await trio.sleep(min(max(request.interval_s, SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S))


def _answer(request: Request, answers: Answers, link: LinkAnswers) -> Response:
    if request.request == "events":
        return Response(events=answers.events(request.count))
    if request.request == "blocks":
        return Response(blocks=link.blocks(request.count, request.after))
    if request.request == "exchanges":
        exchanges = link.exchanges(request.device)
        if exchanges is None:
            return Response(error=f"no device {request.device!r}")
        return Response(exchanges=exchanges)
    return Response(status=msgspec.Raw(msgspec.json.encode(answers.status())))


async def _record(stream: trio.SocketStream, answers: Answers, link: LinkAnswers, request: Request) -> bool:
    """Send a recording until it or the client ends; False if it was refused with an answer."""
    name = request.link
    try:
        process, user = _caller(stream)
        recording = link.recordings.begin(user=user, process=process)
    except RecordingRefused as refused:
        return not await send_or_leave(stream, Response(error=str(refused)))
    because = "the daemon stopped"
    try:
        with acting(_who(user, request)):
            await link.record_changes(("recording.begun", name or "link", ""))
    except QnodeError as refused:
        link.recordings.finish("it cannot be recorded in the audit")
        return not await send_or_leave(stream, Response(error=f"not recorded: the audit refused: {refused}"))
    except BaseException:
        link.recordings.finish(because)
        raise
    try:
        status = answers.status()
        site = status.of_link(name).site if name else status.site
        if await send_or_leave(stream, Response(recording=site)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_with_caller, stream, recording)
                await _send_frames(stream, recording)
                nursery.cancel_scope.cancel()
        because = "the recorder does not take what is sent"
    finally:
        link.recordings.finish(because)
        await _record_end(link, name or "link", recording.ended or because)
    return True


async def _record_end(link: LinkAnswers, name: str, because: str) -> None:
    """Record the end of a recording, also while the daemon stops."""
    with trio.move_on_after(AUDIT_LIMIT_S, shield=True):
        try:
            await link.record_changes(("recording.ended", name, because))
        except QnodeError as error:
            log.error("audit.failed", reason=str(error))


async def _restore(stream: trio.SocketStream, link: LinkAnswers, request: Request) -> Response:
    """Start again with a new pre-shared key, and return the result."""
    try:
        _, user = _caller(stream)
        if link.restore is None:
            return Response(error="this node cannot be restored")
        with acting(_who(user, request)):
            return Response(restored=await link.restore(request.preshared_key))
    except QnodeError as refused:
        return Response(error=str(refused))


async def _backup(stream: trio.SocketStream, link: LinkAnswers, request: Request) -> bool:
    """Send a backup, and end the conversation; False if it was refused with an answer."""
    try:
        _, user = _caller(stream)
        if link.backup is None:
            return not await send_or_leave(stream, Response(error="this node has no backup"))
        with acting(_who(user, request)):
            content = await link.backup()
    except QnodeError as refused:
        return not await send_or_leave(stream, Response(error=str(refused)))
    with content:
        n_bytes = content.seek(0, os.SEEK_END)
        content.seek(0)
        if await send_or_leave(stream, Response(backup=BackupSize(n_bytes=n_bytes))):
            with suppress(OSError):
                await trio.to_thread.run_sync(_send_file, stream.socket.fileno(), content)
    return True


def _send_file(descriptor: int, content: BinaryIO) -> None:
    """Send a file; raises OSError when the caller is gone or does not read."""
    with socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(SEND_LIMIT_S)
        connection.sendfile(content)


async def _audit(link: LinkAnswers, request: Request) -> Response:
    """Return some entries of the audit."""
    if link.audit is None:
        return Response(error="this node has no audit")
    try:
        return Response(audit=await link.audit(request.chain, request.after or 0))
    except QnodeError as trouble:
        return Response(error=str(trouble))


async def _calibrate(stream: trio.SocketStream, link: LinkAnswers, request: Request) -> Response:
    """Tell a controller what to do, and return what it does."""
    try:
        _, user = _caller(stream)
        if link.calibrate is None:
            return Response(error="this node has no controllers")
        done = link.calibrate(request.controller, request.command)
        try:
            with acting(_who(user, request)):
                await link.record_changes(("calibration.changed", request.controller, request.command))
        except QnodeError as error:
            return Response(error=f"done, but the audit could not record it: {error}")
        return Response(controller=done)
    except QnodeError as refused:
        return Response(error=str(refused))


async def _reload(stream: trio.SocketStream, answers: Answers, request: Request) -> Response:
    """Have the site's file read again, and return the result."""
    try:
        _, user = _caller(stream)
        if answers.reload is None:
            return Response(error="this node cannot reload")
        with acting(_who(user, request)):
            return Response(reloaded=await answers.reload())
    except QnodeError as refused:
        return Response(error=str(refused))


async def _self_test(stream: trio.SocketStream, answers: Answers) -> Response:
    """Have the self-test run, and return the result."""
    try:
        _caller(stream)
    except QnodeError as refused:
        return Response(error=str(refused))
    if answers.self_test is None:
        return Response(error="this node has no self-test")
    try:
        return Response(self_tested=SelfTested(took_s=await answers.self_test()))
    except QnodeError as failure:
        return Response(self_tested=SelfTested(fault=str(failure)))


def _caller(stream: trio.SocketStream) -> tuple[int, int]:
    """Return process and user of a client that could read the daemon's secrets anyway.

    Raises:
        RecordingRefused: it is another client.
    """
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(credentials)
    if user not in (ROOT, os.geteuid()):
        raise RecordingRefused(
            f"user {user} may not record, restore or adjust this site: only root and the daemon's own user, "
            f"{os.geteuid()}"
        )
    return process, user


def _who(user: int, request: Request) -> str:
    """Return who asks, for the audit: the kernel knows the user, the rest is what the client says."""
    return f"by user {user}" + (f", SUDO_USER {request.sudo_user}" if request.sudo_user else "")


async def _end_with_caller(stream: trio.SocketStream, recording: Recording) -> None:
    """End the recording when the client finishes or disconnects; on cancellation, end sending at once."""
    try:
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        recording.end("the recorder had enough")
        await trio.sleep_forever()
    finally:
        with suppress(OSError):
            stream.socket.shutdown(socket.SHUT_RDWR)  # what was sent can still be read


async def _send_frames(stream: trio.SocketStream, recording: Recording) -> None:
    """Send frames as they come, until the last one or the caller does not take them."""
    while True:
        ended = recording.ended  # looked at before taking: after the last frame nothing follows
        try:
            # In a thread: a socket holds a tenth of a frame, and the event loop's turns may be far apart. It
            # is waited for, so that the socket's number is not another's before it ends.
            await trio.to_thread.run_sync(_send_held, stream.socket.fileno(), recording)
        except OSError:
            return
        if ended:
            return
        await trio.sleep(RECORDING_PAUSE_S)


def _send_held(descriptor: int, recording: Recording) -> None:
    """Send what is held; raises OSError when the caller is gone or does not read."""
    with socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(SEND_LIMIT_S)
        while (frame := recording.take()) is not None:
            connection.sendall(frame)


def _refusal(line: bytes, error: Exception) -> str:
    """Say what is wrong with a request, with a near match for its name."""
    known = get_args(Request.__annotations__["request"])
    try:
        asked = msgspec.json.decode(line)
    except UNREADABLE:
        return "a request is one line of JSON"
    name = asked.get("request") if isinstance(asked, dict) else None
    if not isinstance(name, str) or name in known:
        return f"not a request: {error}"
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"unknown request{f', did you mean {near[0]}?' if near else ''} (known: {', '.join(known)})"
