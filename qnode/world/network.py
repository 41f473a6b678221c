"""The classical channel of the world: Alice listens, Bob connects, and faults come as planned."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from qnode.choices import ROLES
from qnode.errors import LinkError
from qnode.link.tls import Listening
from qnode.world.history import History, Wire
from qnode.world.streams import Connection, End, Faults

_GIVEN_UP_S = 3.0  # connecting through a channel that is down, after so long


@dataclass
class Network:
    """One path between the sites; all chance comes from ``rng``."""

    rng: random.Random
    history: History
    delay_s: float = 0.001
    down: bool = False
    """Nothing passes, and nobody is told."""
    next_faults: list[tuple[Faults, Faults]] = field(default_factory=list)
    """Of the next connections: from Alice, from Bob."""
    connections: list[Connection] = field(default_factory=list)
    _accept: trio.MemorySendChannel[End] | None = None

    def listen(self) -> Listening:
        """Be reachable, for as long as the listener is open."""
        arriving, arrivals = trio.open_memory_channel[End](64)
        self._accept = arriving

        def closed() -> None:
            if self._accept is arriving:
                self._accept = None

        return Listening([_Listener(arrivals, closed)], 0)

    async def connect(self, *, faults: tuple[Faults, Faults] | None = None, heard: bool = True) -> End:
        """Return Bob's end of a new connection; ``heard``: the history has what is said on it.

        Raises:
            LinkError: nobody listens, or nothing passes.
        """
        await trio.sleep(_GIVEN_UP_S if self.down else self.delay_s)
        accept = self._accept
        if self.down or accept is None:
            raise LinkError("the far end does not answer")
        if faults is None and self.next_faults:
            faults = self.next_faults.pop(0)
        from_alice, from_bob = faults or (Faults(self.delay_s), Faults(self.delay_s))
        number = len(self.connections)
        wires = tuple(Wire(site, number, self.history).hear for site in ROLES) if heard else None
        connection = Connection(
            from_alice, from_bob, rng=self.rng, on_sent=None if wires is None else (wires[0], wires[1])
        )
        self.connections.append(connection)
        try:
            accept.send_nowait(connection.a)
        except (trio.WouldBlock, trio.BrokenResourceError):
            raise LinkError("the far end does not answer") from None
        return connection.b

    def cut(self) -> None:
        """Break what is there."""
        for connection in self.connections:
            connection.cut()

    def fall_silent(self, *, from_alice: bool = True, from_bob: bool = True) -> None:
        """Let nothing more arrive on what is there."""
        for connection in self.connections:
            connection.fall_silent(a_to_b=from_alice, b_to_a=from_bob)

    def heal(self, delay_s: float) -> None:
        """Work from now on; what is broken or silent stays so."""
        self.down, self.delay_s = False, delay_s
        self.next_faults.clear()
        for connection in self.connections:
            connection.finish_plan()


class _Listener(trio.abc.Listener[End]):
    def __init__(self, arrivals: trio.MemoryReceiveChannel[End], on_close: Callable[[], None]) -> None:
        self._arrivals = arrivals
        self._on_close = on_close

    async def accept(self) -> End:
        return await self._arrivals.receive()

    async def aclose(self) -> None:
        self._on_close()
        self._arrivals.close()
        await trio.lowlevel.checkpoint()


@dataclass
class NetworkTransport:
    """How one site reaches the other (`qnode.link.tls.Transport`)."""

    network: Network

    def check(self) -> None:
        """Nothing can be wrong with it."""

    def renew(self, *_: object) -> None:
        """There is nothing to renew."""

    async def listen(self) -> Listening:
        """Open for the peer."""
        await trio.lowlevel.checkpoint()
        return self.network.listen()

    async def admit(self, stream: trio.abc.Stream) -> trio.abc.Stream:
        """Return the stream as it is: frames on it prove the far end."""
        await trio.lowlevel.checkpoint()
        return stream

    async def connect(self) -> trio.abc.Stream:
        """Return a stream to the peer. Raises LinkError."""
        return await self.network.connect()
