"""In-memory connections whose faults are planned: what TCP does to a link, without a socket.

A `Connection` is two ends (`trio.abc.Stream`) and two ways between them. Each way has its `Faults`: how long
bytes travel, into which pieces they fall, after which byte the way breaks, ends or falls silent, which bytes
are changed. The world can also break or silence a connection at any moment. All times are trio's, so a
virtual clock makes them exact; all chance comes from the generator that is handed in.

As with TCP, a sender waits while `WINDOW_BYTES` are under way; closing an end ends the other's reading in
order once it has read all; closing with bytes unread breaks the connection instead.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import trio

from qnode.streams import LeanStream

WINDOW_BYTES = 1 << 20
NO_CHANGES: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True)
class Faults:
    """What befalls the bytes of one way, counted from 0 in the order in which they are sent.

    ``delay_s`` and up to ``jitter_s`` more: how long each piece travels, never overtaking the one before.
    ``largest_piece_bytes``: a reader gets random pieces up to this. At byte ``cut_after`` the whole
    connection breaks, at ``end_after`` this way ends as if its sender had closed, from ``silent_after`` on
    nothing arrives and nobody is told. ``changes``: by place, what a byte is XORed with.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    largest_piece_bytes: int | None = None
    cut_after: int | None = None
    end_after: int | None = None
    silent_after: int | None = None
    changes: Mapping[int, int] = field(default_factory=lambda: NO_CHANGES)


def drawn_faults(rng: random.Random, delay_s: float, among_bytes: int) -> Faults:
    """Return the faults of one way: a delay up to ``delay_s``, and often one fault in the first bytes."""
    faults = Faults(
        delay_s=rng.uniform(0.0, delay_s),
        jitter_s=rng.choice((0.0, delay_s)),
        largest_piece_bytes=rng.choice((None, None, 1, 7, 1000)),
    )
    at = rng.randrange(among_bytes)
    match rng.choice(("none", "none", "cut", "end", "silent", "change")):
        case "cut":
            return replace(faults, cut_after=at)
        case "end":
            return replace(faults, end_after=at)
        case "silent":
            return replace(faults, silent_after=at)
        case "change":
            return replace(faults, changes=MappingProxyType({at: rng.randrange(1, 256)}))
    return faults


@dataclass
class _Piece:
    data: bytes
    arrives_s: float


class _Way:
    """One direction of a connection."""

    def __init__(self, faults: Faults, rng: random.Random, on_sent: Callable[[bytes], None]) -> None:
        self.faults = faults
        self.sent_bytes = 0
        self.silent = False
        self.ended = False
        """Its sender has closed, or the plan says so: after what is under way comes the end."""
        self.nobody_reads = False
        """Its reader has closed: what is sent breaks the connection."""
        self._rng = rng
        self._on_sent = on_sent
        self._pieces: deque[_Piece] = deque()
        self._under_way_bytes = 0
        self._latest_s = -math.inf
        self._senders = trio.lowlevel.ParkingLot()
        self._reader: trio.CancelScope | None = None

    def wake(self) -> None:
        """Have a sender who waits for room look again, and the reader once there is something for it."""
        self._senders.unpark_all()
        if self._reader is not None:
            self._reader.deadline = self._next_look_s()

    def _next_look_s(self) -> float:
        if self._pieces:
            return self._pieces[0].arrives_s
        return -math.inf if self.ended else math.inf

    async def wait_to_read(self) -> None:
        """Wait until the next byte is there, or the end, or all that was under way is lost."""
        try:
            with trio.CancelScope(deadline=self._next_look_s()) as self._reader:
                await trio.sleep_forever()
        finally:
            self._reader = None

    @property
    def is_empty(self) -> bool:
        return not self._pieces

    @property
    def room_bytes(self) -> int:
        return WINDOW_BYTES - self._under_way_bytes

    async def wait_for_room(self) -> None:
        await self._senders.park()

    def put(self, data: bytes) -> bool:
        """Take the bytes of one send; False if the connection breaks at one of them."""
        self._on_sent(data)
        first, self.sent_bytes = self.sent_bytes, self.sent_bytes + len(data)
        cut = _beyond(self.faults.cut_after, first, len(data))
        passing = data if cut is None else data[:cut]
        for place, change in self.faults.changes.items():
            at = place - first
            if 0 <= at < len(passing):
                passing = passing[:at] + bytes([passing[at] ^ change]) + passing[at + 1 :]
        silent = _beyond(self.faults.silent_after, first, len(passing))
        if silent is not None:
            self._travel(passing[:silent])
            self.silent = True
            self._travel(passing[silent:])
        elif (end := _beyond(self.faults.end_after, first, len(passing))) is not None:
            self._travel(passing[:end])
            self.ended = True
        else:
            self._travel(passing)
        self.wake()
        return cut is None

    def _travel(self, data: bytes) -> None:
        if self.silent:
            self._under_way_bytes += len(data)  # never acknowledged
        if not data or self.silent or self.ended:
            return
        late_s = self._rng.uniform(0.0, self.faults.jitter_s) if self.faults.jitter_s else 0.0
        self._latest_s = max(self._latest_s, trio.current_time() + self.faults.delay_s + late_s)
        self._pieces.append(_Piece(data, self._latest_s))
        self._under_way_bytes += len(data)

    def lose_all(self) -> None:
        """Drop what is under way."""
        self._pieces.clear()
        self._under_way_bytes = 0
        self.wake()
        if self._reader is not None:
            self._reader.deadline = -math.inf

    @property
    def has_arrived(self) -> bool:
        """Tell whether a byte is there."""
        return bool(self._pieces) and self._pieces[0].arrives_s <= trio.current_time()

    def take(self, most_bytes: int) -> bytes:
        """Return bytes that have arrived."""
        if self.faults.largest_piece_bytes is not None:
            most_bytes = min(most_bytes, self._rng.randint(1, self.faults.largest_piece_bytes))
        taken = bytearray()
        now_s = trio.current_time()
        while self._pieces and self._pieces[0].arrives_s <= now_s and len(taken) < most_bytes:
            piece = self._pieces[0]
            room = most_bytes - len(taken)
            taken += piece.data[:room]
            if len(piece.data) > room:
                piece.data = piece.data[room:]
            else:
                self._pieces.popleft()
        self._under_way_bytes -= len(taken)
        self.wake()
        return bytes(taken)


def _beyond(after: int | None, first: int, length: int) -> int | None:
    """Return how many of ``length`` bytes from place ``first`` on come before ``after``, None if all do."""
    if after is None or after >= first + length:
        return None
    return max(0, after - first)


class Connection:
    """Two ends and what lies between them; ``on_sent``: what each end sends, before anything befalls it."""

    def __init__(
        self,
        a_to_b: Faults | None = None,
        b_to_a: Faults | None = None,
        *,
        rng: random.Random | None = None,
        on_sent: tuple[Callable[[bytes], None], Callable[[bytes], None]] | None = None,
    ) -> None:
        rng = rng or random.Random(0)
        tell_a, tell_b = on_sent or (_nobody, _nobody)
        self.a_to_b = _Way(a_to_b or Faults(), rng, tell_a)
        self.b_to_a = _Way(b_to_a or Faults(), rng, tell_b)
        self.broken = ""
        self.a = End(self, self.a_to_b, self.b_to_a)
        self.b = End(self, self.b_to_a, self.a_to_b)

    def cut(self, why: str = "reset by peer") -> None:
        """Break the connection at both ends; what is under way is lost."""
        self.broken = self.broken or why
        for way in (self.a_to_b, self.b_to_a):
            way.lose_all()

    def fall_silent(self, *, a_to_b: bool = True, b_to_a: bool = True) -> None:
        """Lose all that is sent from here on, and tell nobody: a half-open connection."""
        self.a_to_b.silent |= a_to_b
        self.b_to_a.silent |= b_to_a

    def finish_plan(self) -> None:
        """Let no further fault of the plan happen; what has happened stays."""
        for way in (self.a_to_b, self.b_to_a):
            way.faults = Faults(delay_s=way.faults.delay_s)


class End(LeanStream):
    """One end of a connection."""

    def __init__(self, connection: Connection, outgoing: _Way, incoming: _Way) -> None:
        self.connection = connection
        self._outgoing = outgoing
        self._incoming = incoming
        self._closed = False
        self._sending = self._receiving = False
        self._rest = b""  # of what was to be sent at once

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``; waits while too much is under way.

        Raises:
            BrokenResourceError: the connection is broken, or the far end was closed.
            ClosedResourceError: this end was closed.
        """
        if self._sending:
            raise trio.BusyResourceError("another task sends on this stream")
        self._sending = True
        try:
            await self._turn()
            left, self._rest = self._rest + bytes(data), b""
            while left := self._put(left):
                await self._outgoing.wait_for_room()
        finally:
            self._sending = False

    def send_at_once(self, data: bytes) -> bool:
        """Send as `LeanStream` says."""
        if self._sending or self._rest:
            raise trio.BusyResourceError("a rest has to be sent first")
        self._rest = self._put(data)
        return not self._rest

    def _put(self, data: bytes) -> bytes:
        """Send what there is room for; return the rest."""
        self._check()
        if self._outgoing.nobody_reads and not self._outgoing.silent:
            self.connection.cut("the far end was closed")
            self._check()
        room = self._outgoing.room_bytes
        part, left = data[:room], data[room:]
        if part and not self._outgoing.put(part):
            self.connection.cut()
            self._check()
        return left

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room to send."""
        await trio.lowlevel.checkpoint()
        self._check()
        while self._outgoing.room_bytes <= 0:
            await self._outgoing.wait_for_room()
            self._check()

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive as `LeanStream` says."""
        data = await self.receive_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return bytes that have arrived, nothing at the end.

        Raises:
            BrokenResourceError: the connection is broken.
            ClosedResourceError: this end was closed.
        """
        if self._receiving:
            raise trio.BusyResourceError("another task reads from this stream")
        self._receiving = True
        try:
            await self._turn()
            while True:
                self._check()
                if self._incoming.has_arrived:
                    return self._incoming.take(max_bytes or 1 << 16)
                if self._incoming.is_empty and self._incoming.ended:
                    return b""
                await self._incoming.wait_to_read()
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        """Close this end: in order if all that came was read, else the connection breaks."""
        if not self._closed:
            self._closed = True
            if not self._incoming.is_empty:
                self.connection.cut("closed with bytes unread")
            self._outgoing.ended = True
            self._incoming.nobody_reads = True
            self._incoming.lose_all()
            self._outgoing.wake()
        await trio.lowlevel.checkpoint()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this end was closed")
        if self.connection.broken:
            raise trio.BrokenResourceError(self.connection.broken)


def _nobody(_data: bytes) -> None:
    """Tell nobody what was sent."""
