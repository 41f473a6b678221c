"""The line between the two agents: TCP and TLS 1.3 with mutual certificates, one agent listens.

The certificate of the other agent must name it exactly. Strangers cost little (`qnode.unproven`). There is
one conversation at a time: a newer proven connection replaces an older one, which may be dead unnoticed.
"""

import socket
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog
import trio

from qnode.accepting import accept_all, open_listeners
from qnode.addresses import host_and_port
from qnode.agent.config import LineSection
from qnode.agent.messages import LONGEST_MESSAGE_BYTES, Line, Message, decode, encode
from qnode.errors import LinkError, PeerRefused, ProtocolError, first_of
from qnode.peer_tls import PeerContexts, secure
from qnode.strangers import StrangersLog, network_of
from qnode.unproven import Unproven, address_of

HANDSHAKE_LIMIT_S: Final = 10.0
SEND_LIMIT_S: Final = 8.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
_LENGTH_BYTES: Final = 4
_MOST_WAITING: Final = 64

log = structlog.get_logger()


class Converses(Protocol):
    """What holds a conversation over a line until it is lost (LinkError)."""

    line_trouble: str

    async def converse(self, line: Line) -> None:
        """Hold one conversation."""
        ...


class StreamLine:
    """Messages over a byte stream, each after its length; `read` must run beside."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._turn = trio.Lock()
        self._put, self._take = trio.open_memory_channel[Message](_MOST_WAITING)
        self._lost = "the other agent closed the line"
        self._kind: type[LinkError] = LinkError

    async def send(self, message: Message) -> None:
        """Send a message. Raises LinkError."""
        data = encode(message)
        try:
            async with self._turn:
                with trio.fail_after(SEND_LIMIT_S):
                    await self._stream.send_all(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LinkError("the line broke") from None
        except trio.TooSlowError:
            raise LinkError(f"the other agent takes nothing for {SEND_LIMIT_S:g} s") from None

    async def receive(self) -> Message:
        """Return the next message; may be cancelled. Raises LinkError."""
        try:
            return await self._take.receive()
        except trio.EndOfChannel:
            raise self._kind(self._lost) from None

    async def read(self) -> None:
        """Take messages from the stream until it ends."""
        pending = bytearray()
        with self._put:
            try:
                while data := await self._stream.receive_some():
                    pending += data
                    while (message := _cut(pending)) is not None:
                        await self._put.send(message)
            except ProtocolError as error:
                self._lost, self._kind = str(error), ProtocolError
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._lost = "the line broke"


def _cut(pending: bytearray) -> Message | None:
    """Take one message from the bytes that have come; None if it is not whole. Raises ProtocolError."""
    if len(pending) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(pending[:_LENGTH_BYTES], "big")
    if length > LONGEST_MESSAGE_BYTES:
        raise ProtocolError(
            f"the other agent sent a message of {length} bytes; most is {LONGEST_MESSAGE_BYTES}"
        )
    end = _LENGTH_BYTES + length
    if len(pending) < end:
        return None
    data = bytes(pending[_LENGTH_BYTES:end])
    del pending[:end]
    return decode(data)


@dataclass
class LineKeeper:
    """Holds the line of an agent. `renew` replaces its TLS contexts for later connections."""

    section: LineSection
    contexts: PeerContexts
    agent: Converses
    port: int | None = None
    _unproven: Unproven = field(default_factory=Unproven)
    _strangers: StrangersLog = field(default_factory=StrangersLog)
    _present: trio.CancelScope | None = None
    _free: trio.Lock = field(default_factory=trio.Lock)

    def renew(self, contexts: PeerContexts) -> None:
        """Use ``contexts`` from the next connection on."""
        self.contexts = contexts

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold a conversation whenever there is a line, until cancelled."""
        if self.section.listen is not None:
            await self._listen(self.section.listen, task_status)
        elif self.section.connect is not None:
            task_status.started()
            await self._connect(self.section.connect)

    async def _listen(self, address: str, task_status: trio.TaskStatus[None]) -> None:
        host, port = host_and_port(address, "line.listen")

        def note(because: str | None) -> None:
            if because:
                self._tell(f"line.listen: cannot listen on {address}: {because}; trying again")

        listeners = await open_listeners(host, port, note)
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        async with trio.open_nursery() as nursery:

            def admit(accepted: socket.socket) -> None:
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
                if self._unproven.admits(address_of(stream)):
                    nursery.start_soon(self._admit, stream)
                else:
                    accepted.close()

            for listener in listeners:
                nursery.start_soon(accept_all, listener, admit)

    async def _admit(self, stream: trio.SocketStream) -> None:
        """Prove an accepted connection, and hold the conversation if it is the other agent."""
        address = address_of(stream)
        secured: trio.abc.Stream | None = None

        def evicted() -> None:
            self._note_stranger(address, "gave way to a newer connection")

        try:
            with self._unproven.place(address, evicted) as place, trio.fail_after(HANDSHAKE_LIMIT_S):
                await self._unproven.wait_for_turn(stream, place)
                secured = await secure(stream, self.contexts, self._check, server_side=True)
        except LinkError as error:
            self._note_stranger(address, str(error))
        except trio.TooSlowError:
            self._note_stranger(address, f"no TLS handshake within {HANDSHAKE_LIMIT_S:g} s")
        finally:
            if secured is None:
                await trio.aclose_forcefully(stream)
        if secured is not None:
            self._unproven.proven(address)
            await self._hold(secured)

    async def _connect(self, address: str) -> None:
        """Connect again and again: first soon, then after pauses twice as long each time."""
        host, port = host_and_port(address, "line.connect")
        pause_s = FIRST_PAUSE_S
        while True:
            began = trio.current_time()
            try:
                with trio.fail_after(HANDSHAKE_LIMIT_S):
                    try:
                        stream = await trio.open_tcp_stream(host, port)
                    except OSError as error:
                        raise LinkError(f"{address} does not answer: {error}") from None
                    secured = await secure(stream, self.contexts, self._check, server_side=False)
            except LinkError as error:
                self._tell(str(error))
            except trio.TooSlowError:
                self._tell(f"{address}: no TLS handshake within {HANDSHAKE_LIMIT_S:g} s")
            else:
                await self._hold(secured)
            if trio.current_time() - began >= LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _hold(self, stream: trio.abc.Stream) -> None:
        """End the present conversation, if any, and hold one over ``stream`` to its end."""
        if self._present is not None:
            self._present.cancel()
        with trio.CancelScope() as scope:
            self._present = scope
            try:
                async with self._free:
                    await self._talk(stream)
            except LinkError as error:
                log.warning("line.lost", kind=type(error).__name__, reason=str(error))
            finally:
                await trio.aclose_forcefully(stream)
                if self._present is scope:
                    self._present = None
        if scope.cancelled_caught:
            log.warning("line.lost", kind="LinkError", reason="replaced by a newer line")

    async def _talk(self, stream: trio.abc.Stream) -> None:
        line = StreamLine(stream)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(line.read)
                await self.agent.converse(line)
        except BaseExceptionGroup as group:
            raise first_of(group) from None

    def _check(self, names: frozenset[str]) -> None:
        if self.section.peer_name not in names:
            named = ", ".join(sorted(names)) or "nobody"
            expected = f"expected {self.section.peer_name} (line.peer_name)"
            raise PeerRefused(f"the certificate names {named}, {expected}")

    def _tell(self, reason: str) -> None:
        if reason != self.agent.line_trouble:
            log.warning("line.failed", reason=reason)
        self.agent.line_trouble = reason

    def _note_stranger(self, address: str, reason: str) -> None:
        now_s = trio.current_time()
        self._strangers.write(
            "warning", "line.refused", network_of(address), now_s, address=address, reason=reason
        )
        if self._present is None:
            self.agent.line_trouble = f"a connection from {address} was refused: {reason}"
