"""The simulated fibre: the connection between Alice's and Bob's simulated devices.

Neither daemon sees this connection. Alice's end listens. Bob's end connects, and tries again until Alice's
end listens, so the order of start does not matter (`qnode.simulate.fibre_address`). Messages are lines of
JSON.

Simulated time is counted in knots of 10 ms since 1970. It belongs to *the world*, which exists as long as one
of the two processes runs; a process that joins takes it over. Bob's end advances the time. It announces the
time up to which it will generate before it does so (`Claim`), so Alice's end always knows a time that Bob has
not passed.

* Both start: the world begins at Alice's wall clock. Alice's end has a run from the start.
* Bob's process restarts: tag time starts again. The time of the world continues from Bob's last claim, plus
  the wall time since then (times the speed), and Alice's run continues in it. In real time, Bob's end waits
  until this time has come.
* Alice's process stops: the light stops at the next knot. A new process begins a new run (new random run_id
  and symbol key) at the time that Bob's end states. Without Alice, Bob's end has dark counts, at most in real
  time.
* Bob's process starts before Alice's: the same. A new run in Bob's world replaces Alice's first run, which
  nobody used.
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
# In units of 10 ms since 1970, for some ten thousand years. Data from a stranger must not cause an overflow.
Knot = Annotated[int, Meta(ge=0, le=1 << 45)]


class World(Struct, frozen=True, forbid_unknown_fields=True):
    """Simulated time: when it began (the schedule counts from there) and the first knot not claimed yet."""

    began_knot: Knot
    next_knot: Knot


class Hello(Struct, frozen=True, tag="hello", forbid_unknown_fields=True):
    """Bob to Alice, the first message: Bob's world, if there is one, and the last run that Bob received."""

    world: World | None
    run_id: int | None


class Claim(Struct, frozen=True, tag="claim", forbid_unknown_fields=True):
    """Bob to Alice: every knot before ``next_knot`` may have been generated."""

    next_knot: Knot


class Run(Struct, frozen=True, tag="run", forbid_unknown_fields=True):
    """Alice to Bob: the present run, and Alice's view of the world."""

    run_id: int
    symbol_key: int
    first_knot: Knot
    world: World

    def __repr__(self) -> str:
        return f"Run(run_id={self.run_id}, first_knot={self.first_knot})"


class Set(Struct, frozen=True, tag="set", forbid_unknown_fields=True):
    """Alice to Bob: change settings from the next knot that is not generated yet."""

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
        """Send ``message`` completely.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the other end has disconnected.
        """
        async with self._sending:
            await self._stream.send_all(msgspec.json.encode(message) + b"\n")

    async def receive(self) -> Message | None:
        """Return the next message; None when the other end has disconnected.

        Raises:
            DeviceError: the data is not a message.
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
    """Open a nursery that is cancelled when the body ends; a single error is raised without a group."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        error = group.exceptions[0]
        raise error from error.__cause__
