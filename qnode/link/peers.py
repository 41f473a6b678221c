"""Keep one session with the peer: Alice listens, Bob connects again and again.

These two are the supervisors of the link. They catch `LinkError`, report it, and go on; every other error
of the node ends them. There is at most one session: a newer connection that has proven itself replaces an
older one, which may be half open without our knowing. Nothing unproven does more than close its own
connection.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from qnode.errors import LinkError
from qnode.link.frames import FrameStream
from qnode.link.hello import Greeted, LocalEnd, exchange_hello
from qnode.link.session import Session, open_session
from qnode.link.tls import Transport

HANDSHAKE_LIMIT_S = 10.0
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 5.0
STRANGERS_LIMIT = 32

Handle = Callable[[Session], Awaitable[None]]


@dataclass(frozen=True)
class LinkFailure:
    """Why a connection came to nothing, or why a session (``proven``) ended."""

    error: LinkError
    proven: bool


def log_failure(failure: LinkFailure) -> None:
    """Write the failure to the event log."""
    event = "link.lost" if failure.proven else "link.failed"
    structlog.get_logger().warning(event, kind=type(failure.error).__name__, reason=str(failure.error))


async def serve_peer(
    local: LocalEnd,
    transport: Transport,
    handle: Handle,
    *,
    on_failure: Callable[[LinkFailure], None] = log_failure,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Alice: wait for the peer and call ``handle`` with each session, until cancelled.

    The task status is the bound port. A session ends when ``handle`` returns.

    Raises:
        ConfigError: address or TLS files cannot be used.
    """
    transport.check()
    listening = await transport.listen()
    place = _OneSession()
    strangers = trio.CapacityLimiter(STRANGERS_LIMIT)

    async def admit(stream: trio.abc.Stream) -> None:
        try:
            strangers.acquire_on_behalf_of_nowait(stream)
        except trio.WouldBlock:
            await trio.aclose_forcefully(stream)
            return
        try:
            greeted = await _greet(lambda: transport.admit(stream), local, on_failure, connected=False)
        finally:
            strangers.release_on_behalf_of(stream)
        if greeted is not None:
            await place.hold(greeted, local, handle, on_failure)

    task_status.started(listening.port)
    await trio.serve_listeners(admit, list(listening.listeners))


async def connect_to_peer(
    local: LocalEnd,
    transport: Transport,
    handle: Handle,
    *,
    on_failure: Callable[[LinkFailure], None] = log_failure,
) -> None:
    """Bob: connect to the peer and call ``handle`` with each session, until cancelled.

    Between attempts it pauses 0.02 s (of two sites that start together one is first), doubling to 5 s, and
    starts from 0.02 s again after each session that lasted 5 s: one that always ends at once, because a
    site's disk is full, is not tried many times a second.

    Raises:
        ConfigError: address or TLS files cannot be used.
    """
    transport.check()
    place = _OneSession()
    pause_s = FIRST_PAUSE_S
    while True:
        greeted = await _greet(transport.connect, local, on_failure, connected=True)
        if greeted is not None:
            began = trio.current_time()
            await place.hold(greeted, local, handle, on_failure)
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
    connected: bool,
) -> _GreetedStream | None:
    """Secure a stream and say hello; None when that failed, which is reported and the stream closed."""
    stream: trio.abc.Stream | None = None
    greeted: Greeted | None = None
    try:
        with trio.fail_after(HANDSHAKE_LIMIT_S):
            stream = await secure()
            frames = FrameStream(stream)
            greeted = await exchange_hello(frames, local, connected=connected)
            return _GreetedStream(frames, greeted)
    except LinkError as error:
        on_failure(LinkFailure(error, proven=False))
    except trio.TooSlowError:
        on_failure(LinkFailure(LinkError(f"no hello within {HANDSHAKE_LIMIT_S:g} s"), proven=False))
    finally:
        if stream is not None and greeted is None:
            await trio.aclose_forcefully(stream)
    return None


class _OneSession:
    """The place for one session: the latest that has proven itself."""

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
        """End the session that is in place, if any, and run ``handle`` on the new one to its end."""
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
