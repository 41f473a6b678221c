"""Keeps one session with the peer: Alice listens, Bob connects repeatedly.

The two functions are the supervisors of the link. They catch `LinkError`, report it, and continue; every
other error ends them. There is at most one session: a newer proven connection replaces an older one, which
may be half open unnoticed. An unproven connection can only close itself.
"""

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from qnode.accepting import accept_all
from qnode.errors import LinkError
from qnode.link.frames import FrameStream
from qnode.link.hello import Greeted, LocalEnd, exchange_hello
from qnode.link.session import Session, open_session
from qnode.link.tls import Listening, Transport
from qnode.strangers import StrangersLog, network_of
from qnode.unproven import Unproven, address_of

HANDSHAKE_LIMIT_S = 10.0
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 5.0

Handle = Callable[[Session], Awaitable[None]]


@dataclass(frozen=True)
class LinkFailure:
    """The reason why a connection failed, or why a session (``proven``) ended.

    ``address``: the origin of an accepted, unproven connection.
    """

    error: LinkError
    proven: bool
    address: str | None = None


class FailureLog:
    """Writes failures to the event log; those that strangers can cause have a budget of lines."""

    def __init__(self) -> None:
        self._strangers = StrangersLog()

    def write(self, failure: LinkFailure) -> None:
        """Write ``failure``, or count it as omitted."""
        kind, reason = type(failure.error).__name__, str(failure.error)
        if failure.address is None:
            event = "link.lost" if failure.proven else "link.failed"
            structlog.get_logger().warning(event, kind=kind, reason=reason)
            return
        network, now_s = network_of(failure.address), trio.current_time()
        fields = {"kind": kind, "reason": reason, "address": failure.address}
        self._strangers.write("warning", "link.failed", network, now_s, **fields)


async def serve_peer(
    local: LocalEnd,
    transport: Transport,
    handle: Handle,
    *,
    on_failure: Callable[[LinkFailure], None] | None = None,
    connects_from: tuple[str, ...] = (),
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Alice: wait for the peer and call ``handle`` with each session, until cancelled.

    The task status is the bound port. A session ends when ``handle`` returns. ``connects_from``: addresses
    or networks of the peer; connections from there, and from the last address of the peer, have priority over
    those of strangers (`Unproven`). Failures are logged unless ``on_failure`` takes them. If the address is
    not available, as during boot, it is tried again every 5 s.

    Raises:
        ConfigError: address or TLS files can never be used.
    """
    transport.check()
    fail = on_failure or FailureLog().write
    listening = await _listen_patiently(transport, fail)
    sessions = _OneSession()
    unproven = Unproven(connects_from)

    async def admit(stream: trio.abc.Stream) -> None:
        address = address_of(stream)
        greeted: _GreetedStream | None = None

        def evicted() -> None:
            fail(LinkFailure(LinkError("gave way to a newer connection"), proven=False, address=address))

        async def secure() -> trio.abc.Stream:
            await unproven.wait_for_turn(stream, place)
            return await transport.admit(stream)

        try:
            with unproven.place(address, evicted) as place:
                greeted = await _greet(secure, local, fail, address=address)
        finally:
            if greeted is None:
                await trio.aclose_forcefully(stream)
        if greeted is not None:
            unproven.proven(address)
            await sessions.hold(greeted, local, handle, fail)

    task_status.started(listening.port)
    async with trio.open_nursery() as nursery:

        def take_in(accepted: socket.socket) -> None:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
            if unproven.admits(address_of(stream)):
                nursery.start_soon(admit, stream)
            else:
                accepted.close()

        for listener in listening.listeners:
            if isinstance(listener, trio.SocketListener):
                nursery.start_soon(accept_all, listener, take_in)
            else:  # a simulated world without sockets
                nursery.start_soon(trio.serve_listeners, admit, [listener])


async def _listen_patiently(transport: Transport, on_failure: Callable[[LinkFailure], None]) -> Listening:
    while True:
        try:
            return await transport.listen()
        except LinkError as error:
            on_failure(LinkFailure(error, proven=False))
            await trio.sleep(LONGEST_PAUSE_S)


async def connect_to_peer(
    local: LocalEnd,
    transport: Transport,
    handle: Handle,
    *,
    on_failure: Callable[[LinkFailure], None] | None = None,
) -> None:
    """Bob: connect to the peer and call ``handle`` with each session, until cancelled.

    The pause between attempts is 0.02 s at first, because one of two sites starts first, and doubles up to 5
    s. It is 0.02 s again after each session that lasted 5 s. So sessions that end at once, as with a full
    disk, are not repeated many times a second.

    Raises:
        ConfigError: address or TLS files cannot be used.
    """
    transport.check()
    sessions = _OneSession()
    fail = on_failure or FailureLog().write
    pause_s = FIRST_PAUSE_S
    while True:
        greeted = await _greet(transport.connect, local, fail)
        if greeted is not None:
            began = trio.current_time()
            await sessions.hold(greeted, local, handle, fail)
            if trio.current_time() - began >= LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


@dataclass(frozen=True)
class _GreetedStream:
    frames: FrameStream
    greeted: Greeted


async def _greet(
    secure: Callable[[], Awaitable[trio.abc.Stream]],
    local: LocalEnd,
    on_failure: Callable[[LinkFailure], None],
    *,
    address: str | None = None,
) -> _GreetedStream | None:
    """Secure a stream and exchange hellos; None if that failed, which is reported.

    ``address``: of the far end if it was accepted, None if we connected.
    """
    stream: trio.abc.Stream | None = None
    greeted: Greeted | None = None
    try:
        with trio.fail_after(HANDSHAKE_LIMIT_S):
            stream = await secure()
            frames = FrameStream(stream)
            greeted = await exchange_hello(frames, local, connected=address is None)
            return _GreetedStream(frames, greeted)
    except LinkError as error:
        on_failure(LinkFailure(error, proven=False, address=address))
    except trio.TooSlowError:
        slow = LinkError(f"no hello within {HANDSHAKE_LIMIT_S:g} s")
        on_failure(LinkFailure(slow, proven=False, address=address))
    finally:
        if stream is not None and greeted is None:
            await trio.aclose_forcefully(stream)
    return None


class _OneSession:
    """Holds one session: the latest proven one."""

    def __init__(self) -> None:
        self._scope: trio.CancelScope | None = None
        self._free = trio.Lock()

    async def hold(
        self,
        newcomer: _GreetedStream,
        local: LocalEnd,
        handle: Handle,
        on_failure: Callable[[LinkFailure], None],
    ) -> None:
        """End the present session, if any, and run ``handle`` on the new one to its end."""
        if self._scope is not None:
            self._scope.cancel()
        with trio.CancelScope() as scope:
            self._scope = scope
            try:
                async with self._free, open_session(newcomer.frames, local, newcomer.greeted) as session:
                    await handle(session)
            except* LinkError as errors:
                on_failure(LinkFailure(_first(errors), proven=True))
            finally:
                await trio.aclose_forcefully(newcomer.frames.stream)
                if self._scope is scope:
                    self._scope = None
        if scope.cancelled_caught:
            on_failure(LinkFailure(LinkError("replaced by a newer session"), proven=True))


def _first(errors: BaseExceptionGroup[LinkError]) -> LinkError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LinkError)
    return error
