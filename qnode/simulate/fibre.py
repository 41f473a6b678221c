"""The simulated fibre: what Alice's simulated devices tell Bob's, over a connection of their own.

Neither daemon sees it. Alice's end listens; Bob's connects, and tries again until it is there, so that the
order of start does not matter (`qnode.simulate.fibre_address`). Messages are lines of JSON.

Simulated time is counted in knots of 10 ms since 1970 and belongs to *the world*, which lives as long as one
of the two processes does; whoever joins takes it over. Bob's end makes time pass: it announces how far it is
going to generate before it does (`Claim`), so that Alice's end always knows a time that Bob has not passed.

* Both fresh: the world begins at Alice's wall clock. Alice's end has a run from the start.
* Bob killed and restarted: his tag time starts anew; the world's time goes on where he had claimed, plus the
  wall time since (times the speed), and Alice's run goes on in it.
* Alice killed: the light goes out at the next knot. A new process of hers begins a new run (new random run_id
  and symbol key) at the time Bob tells. Bob alone counts dark counts, at most at real time.
* Bob started before Alice: the same. Alice's first run, which nobody saw, is replaced by one in his world.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec
import trio
from msgspec import Meta, Struct

from qnode.errors import DeviceError
from qnode.simulate.parameters import Change

_LONGEST_LINE = 1 << 16
# Of 10 ms since 1970: some ten thousand years. What a stranger sends must not overflow our arithmetic.
Knot = Annotated[int, Meta(ge=0, le=1 << 45)]


class World(Struct, frozen=True, forbid_unknown_fields=True):
    """Simulated time: when it began (the schedule counts from there) and the first knot not claimed yet."""

    began_knot: Knot
    next_knot: Knot


class Hello(Struct, frozen=True, tag="hello", forbid_unknown_fields=True):
    """Bob to Alice, first: his world, if he has one, and the last run he saw."""

    world: World | None
    run_id: int | None


class Claim(Struct, frozen=True, tag="claim", forbid_unknown_fields=True):
    """Bob to Alice: every knot before ``next_knot`` may have been generated."""

    next_knot: Knot


class Run(Struct, frozen=True, tag="run", forbid_unknown_fields=True):
    """Alice to Bob: what is being sent, and the world as she knows it."""

    run_id: int
    symbol_key: int
    first_knot: Knot
    world: World

    def __repr__(self) -> str:
        return f"Run(run_id={self.run_id}, first_knot={self.first_knot})"


class Set(Struct, frozen=True, tag="set", forbid_unknown_fields=True):
    """Alice to Bob: change settings from the next knot that he has not generated."""

    change: Change


Message = Hello | Claim | Run | Set
_decoder = msgspec.json.Decoder(Message)


class Line:
    """One end of a connection: messages as lines."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._sending = trio.Lock()
        self._waiting: list[bytes] = []
        self._partial = b""

    async def send(self, message: Message) -> None:
        """Send ``message`` whole.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the other end is gone.
        """
        async with self._sending:
            await self._stream.send_all(msgspec.json.encode(message) + b"\n")

    async def receive(self) -> Message | None:
        """Return the next message; None when the other end is gone.

        Raises:
            DeviceError: what came is no message.
        """
        while not self._waiting:
            try:
                data = await self._stream.receive_some(_LONGEST_LINE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not data:
                return None
            *self._waiting, self._partial = (self._partial + data).split(b"\n")
            if len(self._partial) > _LONGEST_LINE:
                raise DeviceError("simulated fibre: a line without end")
        try:
            message: Message = _decoder.decode(self._waiting.pop(0))
        except msgspec.DecodeError as error:
            raise DeviceError(f"simulated fibre: not a message: {error}") from None
        return message

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that is cancelled when the body ends; a lone error leaves it as itself, in no group."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        error = group.exceptions[0]
        raise error from error.__cause__
