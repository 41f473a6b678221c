"""What each request at the control socket does, by its name.

An answer is a `Response`. After None the conversation is over: the client has got all, or has left.
"""

import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog
import trio

from qnode.audit.operator import acting
from qnode.errors import QnodeError
from qnode.operate.control.answers import Answers, LinkAnswers
from qnode.operate.control.client import BackupSize, Request, Response, SelfTested
from qnode.operate.control.listening import send_or_leave
from qnode.operate.control.sending import send_file, send_recording
from qnode.operate.recording.recordings import RecordingRefused

SHORTEST_INTERVAL_S = 0.1
LONGEST_INTERVAL_S = 60.0
AUDIT_LIMIT_S = 2.0
ROOT = 0
_CREDENTIALS = struct.Struct("iII")  # of SO_PEERCRED: process, user, group

log = structlog.get_logger()


@dataclass(frozen=True)
class Asked:
    """A request, the connection of its client, and the sources of its answer."""

    stream: trio.SocketStream
    request: Request
    answers: Answers
    link: LinkAnswers

    def caller(self) -> tuple[int, int]:
        """Return process and user of a client that could read the daemon's secrets anyway.

        Raises:
            RecordingRefused: it is another client.
        """
        credentials = self.stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process, user, _ = _CREDENTIALS.unpack(credentials)
        if user not in (ROOT, os.geteuid()):
            raise RecordingRefused(
                f"user {user} may not record, restore or adjust this site: only root and the daemon's own "
                f"user, {os.geteuid()}"
            )
        return process, user

    def acting(self, user: int) -> AbstractContextManager[None]:
        """Return the context in which the audit records who acts: the rest is what the client says."""
        named = f", SUDO_USER {self.request.sudo_user}" if self.request.sudo_user else ""
        return acting(f"by user {user}{named}")


async def answer(asked: Asked) -> Response | None:
    """Do what a request wants; a refusal is an answer too."""
    name, links = asked.request.request, asked.answers.links
    if name in _OF_ONE_LINK and not asked.request.link and len(links) > 1:
        return Response(error=f"a {name} is of one link: name it with --link (links: {', '.join(links)})")
    try:
        return await REQUESTS[name](asked)
    except QnodeError as refused:
        return Response(error=str(refused))


# Information: it changes nothing


async def _status(asked: Asked) -> Response:
    return Response(status=msgspec.Raw(msgspec.json.encode(asked.answers.status())))


async def _subscribe(asked: Asked) -> None:
    """Send the status again and again, until the client has left."""
    pause_s = min(max(asked.request.interval_s, SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S)
    while True:
        if not await send_or_leave(asked.stream, await _status(asked)):
            return
        await trio.sleep(pause_s)


async def _events(asked: Asked) -> Response:
    return Response(events=asked.answers.events(asked.request.count))


async def _blocks(asked: Asked) -> Response:
    return Response(blocks=asked.link.blocks(asked.request.count, asked.request.after))


async def _exchanges(asked: Asked) -> Response:
    exchanges = asked.link.exchanges(asked.request.device)
    if exchanges is None:
        return Response(error=f"no device {asked.request.device!r}")
    return Response(exchanges=exchanges)


async def _audit(asked: Asked) -> Response:
    """Return some entries of the audit."""
    if asked.link.audit is None:
        return Response(error="this node has no audit")
    return Response(audit=await asked.link.audit(asked.request.chain, asked.request.after or 0))


# For root and the daemon's own user


async def _record(asked: Asked) -> Response | None:
    """Send a recording until it or the client ends."""
    link, name = asked.link, asked.request.link
    process, user = asked.caller()
    recording = link.recordings.begin(user=user, process=process)
    because = "the daemon stopped"
    try:
        with asked.acting(user):
            await link.record_changes(("recording.begun", name or "link", ""))
    except QnodeError as refused:
        link.recordings.finish("it cannot be recorded in the audit")
        return Response(error=f"not recorded: the audit refused: {refused}")
    except BaseException:
        link.recordings.finish(because)
        raise
    try:
        status = asked.answers.status()
        site = status.of_link(name).site if name else status.site
        if await send_or_leave(asked.stream, Response(recording=site)):
            await send_recording(asked.stream, recording)
        because = "the recorder does not take what is sent"
    finally:
        link.recordings.finish(because)
        await _record_end(link, name or "link", recording.ended or because)
    return None


async def _record_end(link: LinkAnswers, name: str, because: str) -> None:
    """Record the end of a recording, also while the daemon stops."""
    with trio.move_on_after(AUDIT_LIMIT_S, shield=True):
        try:
            await link.record_changes(("recording.ended", name, because))
        except QnodeError as error:
            log.error("audit.failed", reason=str(error))


async def _backup(asked: Asked) -> Response | None:
    """Send a backup, and end the conversation."""
    _, user = asked.caller()
    if asked.link.backup is None:
        return Response(error="this node has no backup")
    with asked.acting(user):
        content = await asked.link.backup()
    with content:
        size = BackupSize(n_bytes=content.seek(0, os.SEEK_END))
        if await send_or_leave(asked.stream, Response(backup=size)):
            await send_file(asked.stream, content)
    return None


async def _restore(asked: Asked) -> Response:
    """Start again with a new pre-shared key, and return the result."""
    _, user = asked.caller()
    if asked.link.restore is None:
        return Response(error="this node cannot be restored")
    with asked.acting(user):
        return Response(restored=await asked.link.restore(asked.request.preshared_key))


async def _calibrate(asked: Asked) -> Response:
    """Tell a controller what to do, and return what it does."""
    request, link = asked.request, asked.link
    _, user = asked.caller()
    if link.calibrate is None:
        return Response(error="this node has no controllers")
    done = link.calibrate(request.controller, request.command)
    try:
        with asked.acting(user):
            await link.record_changes(("calibration.changed", request.controller, request.command))
    except QnodeError as error:
        return Response(error=f"done, but the audit could not record it: {error}")
    return Response(controller=done)


async def _reload(asked: Asked) -> Response:
    """Have the site's file read again, and return the result."""
    _, user = asked.caller()
    if asked.answers.reload is None:
        return Response(error="this node cannot reload")
    with asked.acting(user):
        return Response(reloaded=await asked.answers.reload())


async def _self_test(asked: Asked) -> Response:
    """Have the self-test run, and return the result."""
    asked.caller()
    if asked.answers.self_test is None:
        return Response(error="this node has no self-test")
    try:
        return Response(self_tested=SelfTested(took_s=await asked.answers.self_test()))
    except QnodeError as failure:
        return Response(self_tested=SelfTested(fault=str(failure)))


REQUESTS: Final[Mapping[str, Callable[[Asked], Awaitable[Response | None]]]] = {
    "status": _status,
    "events": _events,
    "blocks": _blocks,
    "subscribe": _subscribe,
    "exchanges": _exchanges,
    "record": _record,
    "restore": _restore,
    "calibrate": _calibrate,
    "audit": _audit,
    "reload": _reload,
    "selftest": _self_test,
    "backup": _backup,
}
_OF_ONE_LINK: Final = frozenset({"restore", "backup"})
