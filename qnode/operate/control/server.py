"""The server of the control socket: a Unix stream socket with one JSON object per line.

File permissions decide who may connect. Requests for information change nothing in the node, and no answer
has key material. Six other requests are allowed to root and the daemon's own user only. `record` sends tags
or symbols, which discloses the keys of these blocks; the keys state that, and the site file must allow it.
`backup` sends the store without its keys. `restore` voids every key and loads a new pre-shared key.
`calibrate` tells a controller what to hold. `reload` reads the site's file again, as SIGHUP does. `selftest`
runs the self-test.
"""

import difflib
import errno
from contextlib import suppress
from pathlib import Path
from typing import Never

import msgspec
import trio

from qnode.operate.control.answers import Answers
from qnode.operate.control.client import (
    LONGEST_RESPONSE_BYTES,
    UNREADABLE,
    NoAnswer,
    NodeNotRunning,
    Request,
    Response,
    decode_status,
    read_response,
    status_in,
)
from qnode.operate.control.listening import Lines, LineTooLong, serve_socket
from qnode.operate.control.requests import REQUESTS, Asked, answer
from qnode.operate.status.model import NodeStatus


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

    async def respond(stream: trio.SocketStream, line: bytes) -> Response | None:
        return await _response(stream, answers, line)

    await serve_socket(path, respond, task_status=task_status)


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


async def _response(stream: trio.SocketStream, answers: Answers, line: bytes) -> Response | None:
    try:
        request = msgspec.json.decode(line, type=Request)
    except UNREADABLE as error:
        return Response(error=_refusal(line, error))
    link = answers.of_link(request.link)
    if link is None:
        return Response(error=f"no link {request.link!r} (links: {', '.join(answers.links)})")
    return await answer(Asked(stream, request, answers, link))


def _refusal(line: bytes, error: Exception) -> str:
    """Say what is wrong with a request, with a near match for its name."""
    try:
        asked = msgspec.json.decode(line)
    except UNREADABLE:
        return "a request is one line of JSON"
    name = asked.get("request") if isinstance(asked, dict) else None
    if not isinstance(name, str) or name in REQUESTS:
        return f"not a request: {error}"
    near = difflib.get_close_matches(name, REQUESTS, 1, 0.5)
    return f"unknown request{f', did you mean {near[0]}?' if near else ''} (known: {', '.join(REQUESTS)})"
