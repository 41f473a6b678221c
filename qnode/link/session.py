"""One authenticated session with the peer: messages out and in, transcripts, keep-alive.

`open_session` takes a stream after the hello and runs the session for the duration of an ``async with``. One
task reads messages and feeds the transcripts in the order of arrival; two tasks keep the session alive. A
wrong code, a protocol error, silence or a broken connection cancels the body and leaves the ``async with`` as
one `LinkError`. Leaving the body ends the session with a goodbye; cancelling it closes the connection at
once.
"""

import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import trio

from qnode.errors import AuthenticationError, LinkError, ProtocolError
from qnode.link.authentication import TranscriptHash
from qnode.link.codec import decode, encode
from qnode.link.directions import outgoing_direction
from qnode.link.frames import FrameStream
from qnode.link.hello import Greeted, LocalEnd, Standing
from qnode.link.messages import (
    DialogueMessage,
    Goodbye,
    Hello,
    Message,
    NodeMessage,
    Ping,
    Pong,
    printable,
)
from qnode.link.protocol import check_said, protocol_of
from qnode.link.transcripts import Transcripts

PING_INTERVAL_S = 3.0
SILENCE_LIMIT_S = 9.0
SLOWEST_BYTES_PER_S = 1 << 20  # for one long frame; a shorter one is within the limit of silence in any case
_CLOSING_S = 1.0
_INBOX_MESSAGES = 16
_ROUND_TRIPS = 100  # five minutes of pings
# So many are read, or sent, before the other tasks have their turn. A reply takes half a millisecond at most.
_MESSAGES_A_TURN = 8


def deliver_later(message: NodeMessage) -> bool:
    """Deliver nothing at once."""
    return False


class Session:
    """An open session. Any task may send; received messages are taken one by one.

    ``peer`` is the peer's hello, proven; ``protocol`` the version that both know. While no task receives, at
    most 16 messages wait here and the others in the connection; none is lost. The peer's silence
    counts only while this side is reading.
    """

    def __init__(self, frames: FrameStream, local: LocalEnd, greeted: Greeted) -> None:
        self.peer: Hello = greeted.peer
        self.protocol: int = greeted.protocol
        self.standing: Standing = greeted.standing
        """The statement of this site in the hello."""
        self.round_trip_s: float = math.nan
        """The latest measured round trip, queues included; nan before the first."""
        self.goodbye: str | None = None
        """The peer's reason, if it has ended the session in order."""
        self._round_trips_s = deque[float](maxlen=_ROUND_TRIPS)
        self._frames = frames
        self._transcripts = Transcripts(greeted.hash_keys, outgoing_direction(local.role), greeted.hellos)
        self._turn = trio.Lock()
        self._unbroken = 0
        self._delivering = False
        self._cut_off = False
        self._rest_to_send = trio.Event()
        self._leaving = False
        self._heard_all = trio.Event()
        self.deliver_at_once: Callable[[NodeMessage], bool] = deliver_later
        """Asked first for each message: deliver it without waiting, or return False to have it wait here.

        It is not asked while an earlier message waits or is handled, so that the order stays.
        """
        self._inbox_in, self._inbox = trio.open_memory_channel[NodeMessage](_INBOX_MESSAGES)
        self._waiting = 0  # in the inbox, or taken from it and being handled
        self._handling = False
        self._pings_in, self._pings = trio.open_memory_channel[Ping](1)

    def __repr__(self) -> str:
        return f"Session(with {self.peer.kme_id}, protocol {self.protocol})"

    def __aiter__(self) -> "Session":
        return self

    async def __anext__(self) -> NodeMessage:
        try:
            return await self._take()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def knows(self, kind: type[Message], field: str = "") -> bool:
        """Return whether the protocol of this session has a kind of message, or a field of it."""
        return protocol_of(kind, field) <= self.protocol

    async def receive(self) -> NodeMessage:
        """Return the next message. Cancelling loses none.

        Raises:
            LinkError: the peer sent a goodbye.
        """
        try:
            return await self._take()
        except trio.EndOfChannel:
            raise LinkError(f"the peer said goodbye: {self.goodbye}") from None

    async def _take(self) -> NodeMessage:
        # Whoever takes a message has handled the one before.
        if self._handling:
            self._waiting -= 1
            self._handling = False
        message = await self._inbox.receive()
        self._handling = True
        return message

    async def send(self, message: Message) -> None:
        """Send ``message`` in order; a dialogue message enters its transcript.

        A dialogue message whose block has been dropped is not sent: the end of a block is a race between
        tasks. Cancelling may leave half a frame on the wire: the session can only receive after that.

        Raises:
            ValueError: a field is outside its limits; nothing was sent.
            ProtocolError: the session's protocol does not have the message or a field of it, or the
                transcripts do not allow it (`Transcripts.enter`); nothing was sent.
            LinkError: the connection is broken, the peer sent a goodbye, or an earlier send was interrupted.
        """
        check_said(message, self.protocol)
        payload = encode(message)
        await self._take_turn()
        try:
            if not self._enter(message, payload):
                return
            self._cut_off = True
            await self._frames.send(payload)
            self._cut_off = False
        finally:
            self._turn.release()

    def send_at_once(self, message: Message) -> bool:
        """Send a short message without waiting: it goes out when the reader has read all that has come.

        Only within `deliver_at_once`, as the reader calls it: whatever another task would have kept could be
        overtaken. False, and nothing is sent, elsewhere, and while another message is being sent. Raises as
        `send`.
        """
        if not self._delivering or self._turn.locked() or not self._frames.can_hold:
            return False
        check_said(message, self.protocol)
        payload = encode(message)
        if self._enter(message, payload):
            self._frames.hold(payload)
        return True

    @property
    def path_round_trip_s(self) -> float:
        """The round trip of the path itself: the least of the last five minutes; nan before the first.

        Under load, each measurement includes waiting behind other messages.
        """
        return min(self._round_trips_s, default=math.nan)

    def transcript_hash(self, block_id: int, *, outgoing: bool) -> TranscriptHash:
        """Finish one direction's transcript of a block and return its hash, for `make_tag` and `verify_tag`.

        Raises:
            ProtocolError: the block is not open.
        """
        return self._transcripts.finish(block_id, outgoing=outgoing)

    def statement_hash(self, block_id: int, statement: bytes, *, outgoing: bool) -> TranscriptHash:
        """Return the hash of a statement on a block outside its dialogue, such as ``b"prepared"``.

        It is the same in every session, so that the statement can be repeated after a reconnection.
        """
        return self._transcripts.statement(block_id, statement, outgoing=outgoing)

    def drop_transcript(self, block_id: int) -> None:
        """Forget a block, finished or discarded; later messages about it are ignored."""
        self._transcripts.drop(block_id)

    @property
    def stale_messages(self) -> int:
        """The number of dialogue messages ignored because their block had been dropped."""
        return self._transcripts.stale_messages

    async def _take_turn(self) -> None:
        # A free lock is taken without a turn of the scheduler, which costs more than the encoding. But tasks
        # that send without a wait must let the others have their turn now and then.
        self._unbroken += 1
        if self._unbroken < _MESSAGES_A_TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._unbroken = 0
            await trio.lowlevel.checkpoint()
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            await self._turn.acquire()

    def _enter(self, message: Message, payload: bytes) -> bool:
        """Enter a dialogue message into its transcript; return whether the message is to be sent."""
        if self.goodbye is not None and not isinstance(message, Goodbye):
            raise LinkError(f"the peer said goodbye: {self.goodbye}")
        if self._cut_off:
            raise LinkError("an earlier message was cut off, so nothing more can be sent")
        if not isinstance(message, DialogueMessage):
            return True
        return self._transcripts.enter(message, payload, outgoing=True)

    def _send_held(self) -> None:
        """Send what was said at once, as far as that need not wait; `_send_rests` does the rest."""
        try:
            if not self._frames.send_held():
                self._rest_to_send.set()
        except LinkError:  # the reader sees this error too, after all earlier messages of the peer
            self._cut_off = True

    async def _send_rests(self) -> None:
        with suppress(LinkError):
            while True:
                await self._rest_to_send.wait()
                self._rest_to_send = trio.Event()
                await self._take_turn()
                try:
                    if not self._cut_off:
                        self._cut_off = True
                        await self._frames.send_rest()
                        self._cut_off = False
                finally:
                    self._turn.release()

    async def _read(self) -> None:
        """Read messages, for `deliver_at_once` or the inbox, until the peer sends a goodbye."""
        try:
            await self._read_until_goodbye()
        except LinkError:
            if not self._leaving:
                raise
        self._heard_all.set()

    async def _read_until_goodbye(self) -> None:
        unbroken = 0
        while self.goodbye is None:
            payload = self._frames.next()
            if payload is None:
                self._send_held()
                await self._frames.wait()
                continue
            unbroken += 1
            if unbroken == _MESSAGES_A_TURN:
                unbroken = 0
                self._send_held()
                await trio.lowlevel.checkpoint()
            message = decode(payload)
            check_said(message, self.protocol)
            if isinstance(message, DialogueMessage):
                if not self._transcripts.enter(message, payload, outgoing=False):
                    continue
            elif isinstance(message, Goodbye | Ping | Pong):
                await self._keep_alive(message)
                continue
            if not self._delivered_at_once(message):
                await self._deliver(message)

    def _delivered_at_once(self, message: NodeMessage) -> bool:
        if self._waiting:
            return False
        self._delivering = True
        try:
            return self.deliver_at_once(message)
        finally:
            self._delivering = False

    async def _deliver(self, message: NodeMessage) -> None:
        """Put a message into the inbox, as soon as there is room."""
        self._send_held()
        self._waiting += 1
        # After the end of the body no task takes the message.
        with suppress(trio.BrokenResourceError):
            try:
                self._inbox_in.send_nowait(message)
            except trio.WouldBlock:
                await self._inbox_in.send(message)

    async def _keep_alive(self, message: Goodbye | Ping | Pong) -> None:
        if isinstance(message, Ping):
            self._answer_later(message)
        elif isinstance(message, Pong):
            self.round_trip_s = max(0.0, trio.current_time() - message.sent_ns / 1e9)
            self._round_trips_s.append(self.round_trip_s)
        else:
            self._send_held()
            self.goodbye = printable(message.reason)
            # Closed here only: after an error the body must be cancelled, not see an orderly end.
            self._inbox_in.close()
            if not self._leaving:
                with suppress(LinkError):
                    await self.send(Goodbye("heard"))

    def _answer_later(self, ping: Ping) -> None:
        # The reader must never wait to send: two sites that both wait would block each other for ever.
        try:
            self._pings_in.send_nowait(ping)
        except trio.WouldBlock:
            return

    async def _answer_pings(self) -> None:
        # The reader also sees this error, after all earlier messages of the peer.
        with suppress(LinkError):
            async for ping in self._pings:
                await self.send(Pong(ping.sent_ns))

    async def _send_pings(self) -> None:
        with suppress(LinkError):
            while True:
                await self.send(Ping(int(trio.current_time() * 1e9)))
                await trio.sleep(PING_INTERVAL_S)

    async def _watch_for_silence(self) -> None:
        """Raise LinkError if the peer, which should ping, is silent: after 9 s.

        Only a complete frame with a verified code counts: bytes alone may come from anybody. While a long
        frame arrives, the limit is a second longer for each MiB of its prefix, which may be forged: 25 s at
        most.
        """
        while self.goodbye is None:
            limit_s = SILENCE_LIMIT_S + self._frames.arriving_bytes / SLOWEST_BYTES_PER_S
            now_s, since_s = trio.current_time(), self._frames.waits_since_s
            if since_s is None:  # the peer may be silent from this moment on
                since_s = now_s
            if now_s >= since_s + limit_s:
                raise LinkError(f"nothing was heard from the peer for {limit_s:.0f} s")
            await trio.sleep_until(since_s + limit_s)

    async def _leave(self, reason: str) -> None:
        self._leaving = True
        self._inbox.close()
        if self.goodbye is not None:
            return
        with trio.move_on_after(_CLOSING_S), suppress(LinkError):
            await self.send(Goodbye(reason))
            # Unread bytes at the close would reset the connection, and could lose our last message.
            await self._heard_all.wait()


@asynccontextmanager
async def open_session(
    frames: FrameStream, local: LocalEnd, greeted: Greeted, *, goodbye: str = "done"
) -> AsyncIterator[Session]:
    """Run a session on ``frames`` after the hello, during the body; the stream is closed in every case.

    Raises:
        AuthenticationError: a frame's code was wrong; nothing of this session may be used further.
        ProtocolError: the peer sent what the protocol does not allow.
        LinkError: the connection broke or fell silent.
        ExceptionGroup: the body failed together with the session, or in several ways.
    """
    session = Session(frames, local, greeted)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session._read)
            nursery.start_soon(session._send_rests)
            nursery.start_soon(session._answer_pings)
            nursery.start_soon(session._send_pings)
            nursery.start_soon(session._watch_for_silence)
            yield session
            await session._leave(goodbye)
            nursery.cancel_scope.cancel()
        with trio.move_on_after(_CLOSING_S):
            await frames.stream.aclose()
    except BaseExceptionGroup as group:
        error = _simplest(group)
        raise error from error.__cause__
    finally:
        await trio.aclose_forcefully(frames.stream)


_MOST_TELLING = (AuthenticationError, ProtocolError, LinkError)


def _simplest(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the most specific error if all are of the link, a single error, or the group."""
    leaves = list(_leaves(group))
    if all(isinstance(leaf, LinkError) for leaf in leaves):
        return next(leaf for kind in _MOST_TELLING for leaf in leaves if isinstance(leaf, kind))
    return leaves[0] if len(leaves) == 1 else group


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
