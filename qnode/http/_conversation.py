"""One accepted client, and what a server speaks with it: HTTP, or another protocol over the same TLS."""

from typing import Any, NamedTuple, Protocol

import trio

from qnode.http._limits import Counters, Limits
from qnode.http._slots import ConnectionSlot
from qnode.strangers import StrangersLog
from qnode.streams import Wire


class ClientGone(OSError):
    """The client closed, reset, or stopped reading; an OSError because ASGI requires one."""


class Client(NamedTuple):
    """An accepted client. ``stream`` is TLS over ``wire``, or ``wire`` itself; ``scope`` is that of ASGI."""

    stream: trio.abc.Stream
    wire: Wire
    limits: Limits
    counters: Counters
    slot: ConnectionSlot
    scope: dict[str, Any]
    strangers: StrangersLog


class Conversation(Protocol):
    """One connection in the protocol of its server; ``lost``: why the client was lost, if it was."""

    lost: str | None

    async def run(self) -> None:
        """Answer requests until one end closes; raises ClientGone, or what an answer raised."""

    async def apologise(self) -> None:
        """Tell the client of an error of this server, if no answer has begun yet; raises ClientGone."""
