"""A control socket that only gives information: the status of a daemon and its latest log events."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Never

import msgspec
import trio
from msgspec import Struct

from qnode.operate.control.client import UNREADABLE
from qnode.operate.control.listening import Refusal, serve_socket


class _Request(Struct, frozen=True):
    request: str
    count: int = 1000

    def __post_init__(self) -> None:
        if self.request not in ("status", "events"):
            raise ValueError(f"unknown request {self.request!r}")


class _Status(Struct, frozen=True):
    status: Struct


class _Events(Struct, frozen=True):
    events: list[dict[str, Any]]


async def serve_information(
    path: Path,
    daemon: str,
    status: Callable[[], Struct],
    events: Callable[[int], list[dict[str, Any]]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> Never:
    """Answer the requests `status` and `events` at ``path`` until cancelled; otherwise like `serve_socket`.

    ``daemon``: with its article, for refusals. ``events(count)``: the latest log events, oldest first.

    Raises:
        ConfigError: like `serve_socket`.
    """

    async def respond(_stream: trio.SocketStream, line: bytes) -> Struct:
        try:
            request = msgspec.json.decode(line, type=_Request)
        except UNREADABLE as error:
            return Refusal(f"not a request of {daemon} (known: status, events): {error}")
        if request.request == "events":
            return _Events(events(request.count))
        return _Status(status())

    await serve_socket(path, respond, task_status=task_status)
