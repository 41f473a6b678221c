"""The server: listeners, the supervisor of connections, reload and orderly end."""

import contextlib
import socket
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import structlog
import trio

from qnode.accepting import accept_all
from qnode.errors import QnodeError
from qnode.http._asgi import Application
from qnode.http._connection import ClientGone, Connection
from qnode.http._limits import Counters, Limits
from qnode.http._linger import linger
from qnode.http._places import Place, Places
from qnode.http._tls import HandshakeError, TlsSettings, handshake, scope_extension, server_context
from qnode.http._wire import Wire
from qnode.strangers import Budget, StrangersLog, network_of
from qnode.tls import AlertingContext, release

_Name: TypeAlias = tuple[str, int]

log = structlog.get_logger()

_DEFAULT_LIMITS = Limits()


class Server:
    """A running server, as `serve` hands it to its starter."""

    def __init__(self, app: Application, tls: TlsSettings | None, limits: Limits) -> None:
        self._app = app
        self._tls = tls
        self._context = server_context(tls) if tls is not None else None
        self._limits = limits
        self._accepting = trio.CancelScope()
        # Who came from where clients have proven themselves before does not queue with strangers.
        self._turns = {True: trio.Lock(), False: trio.Lock()}
        self._handshakes = Budget(rate_hz=limits.failed_handshakes_hz, burst=limits.failed_handshakes_at_once)
        self._handshakes_of_unknown = Budget(
            rate_hz=limits.unknown_handshakes_hz, burst=limits.unknown_handshakes_at_once
        )
        self._strangers = StrangersLog()
        self._addresses: list[tuple[str, int]] = []
        self.counters = Counters()
        self._places = Places(limits, self.counters)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each TCP listener."""
        return list(self._addresses)

    @property
    def port(self) -> int:
        """Port of the first TCP listener."""
        return self._addresses[0][1]

    @property
    def open_connections(self) -> int:
        """Connections that have a place now."""
        return len(self._places)

    def reload(self) -> None:
        """Read certificates and CRL again; connections that these may not let in close at their next rest.

        Raises:
            ConfigError: a file cannot be used; the server goes on with what it had.
        """
        if self._tls is not None:
            self.renew(self._tls, server_context(self._tls))

    def renew(self, tls: TlsSettings, context: AlertingContext) -> None:
        """Judge clients by ``context``, made of ``tls``, from now on; else as `reload`."""
        self._tls, self._context = tls, context
        # Who is in his handshake is judged at its end; cutting him off would look like a lost answer to him.
        self._places.retire(lambda place: not place.proven or self._still_admits(place))
        log.info("http.reloaded", addresses=self.addresses)

    def limit(self, limits: Limits) -> None:
        """Hold connections that come from now on to ``limits``."""
        self._limits = self._places.limits = limits
        self._handshakes.burst = limits.failed_handshakes_at_once
        self._handshakes_of_unknown.burst = limits.unknown_handshakes_at_once

    def stop(self) -> None:
        """Take no more connections and requests; `serve` returns behind the last answer under way."""
        self._accepting.cancel()
        self._places.retire()

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        task_status: trio.TaskStatus["Server"] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on open ``listeners``, once, as `serve_listeners` does."""
        self._addresses += [listener.socket.getsockname()[:2] for listener in listeners]
        async with trio.open_nursery() as connections:
            log.info("http.listening", addresses=self.addresses, tls=self._context is not None)
            task_status.started(self)
            with self._accepting:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        admit = partial(self._admit, connections)
                        accepting.start_soon(accept_all, listener, admit)

    def _admit(self, connections: trio.Nursery, accepted: socket.socket) -> None:
        """Give a connection a place, or close it before it costs anything."""
        client, server = _address(accepted.getpeername), _address(accepted.getsockname)
        wait_s = self._wait_for_handshake_s(client[0]) if client is not None else None
        place = self._places.take(client[0]) if client is not None and wait_s is not None else None
        if client is None or wait_s is None or place is None:
            accepted.close()
            return
        wire = Wire(trio.SocketStream(trio.socket.from_stdlib_socket(accepted)))
        connections.start_soon(self._supervise, wire, place, wait_s, client, server)

    def _wait_for_handshake_s(self, host: str) -> float | None:
        """Charge a client for a handshake; return how long he must wait for it, None if he is refused."""
        if self._context is None:
            return 0.0
        network, now_s, longest_s = network_of(host), trio.current_time(), self._limits.handshake_wait_s
        wait_s = self._handshakes.spend(network, now_s, longest_wait_s=longest_s)
        if wait_s is not None and not self._places.knows(network):
            all_wait_s = self._handshakes_of_unknown.spend("", now_s, longest_wait_s=longest_s)
            if all_wait_s is None:
                self._handshakes.give_back(network)
            wait_s = None if all_wait_s is None else max(wait_s, all_wait_s)
        if wait_s is None:
            self.counters.connections_refused += 1
        return wait_s

    async def _supervise(
        self, wire: Wire, place: Place, wait_s: float, client: _Name, server: _Name | None
    ) -> None:
        """Keep one connection: whatever goes wrong in it stays in it."""
        with place.scope:
            try:
                await trio.sleep(wait_s)
                await self._converse(wire, place, client, server)
            finally:
                self._places.leave(place)
                await trio.aclose_forcefully(wire)

    async def _converse(self, wire: Wire, place: Place, client: _Name, server: _Name | None) -> None:
        """Speak with a client, over TLS if the server does."""
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "scheme": "http",
            "root_path": "",
            "client": client,
            "server": server,
            "extensions": {},
        }
        if self._context is None:
            await self._answer(wire, wire, place, scope)
            return
        secured = await self._secure(wire, self._context, place, client)
        if secured is None:
            return
        try:
            scope["scheme"] = "https"
            scope["extensions"] = {"tls": scope_extension(secured)}
            await self._answer(secured, wire, place, scope)
        finally:
            release(secured)

    async def _secure(
        self, stream: trio.abc.Stream, context: AlertingContext, place: Place, client: _Name
    ) -> trio.SSLStream[trio.abc.Stream] | None:
        """Return the stream once the client has proven itself, None if it has not."""
        turns = self._turns[self._places.knows(place.network)]
        try:
            with trio.fail_after(self._limits.handshake_s):
                secured = await handshake(stream, context, turns, place)
        except trio.TooSlowError:
            self._note_stranger(client, place, "handshake took too long")
            return None
        except HandshakeError as error:
            self._note_stranger(client, place, str(error))
            place.wait()
            await self._turn_away(stream, error.alert)
            return None
        der = secured.getpeercert(binary_form=True)
        if der is not None and context.trusted is not None:
            place.admitted = (der, context.trusted)
        if place.last_request or (context is not self._context and not self._still_admits(place)):
            release(secured)
            return None
        self._handshakes.give_back(place.network)
        if not self._places.knows(place.network):
            self._handshakes_of_unknown.give_back("")
        self._places.prove(place)
        return secured

    def _still_admits(self, place: Place) -> bool:
        """Say whether the present certificates and CRL would let in who came in by earlier ones."""
        trusted = self._context.trusted if self._context is not None else None
        return trusted is None or (place.admitted is not None and trusted.still_admits(*place.admitted))

    async def _answer(self, stream: trio.abc.Stream, wire: Wire, place: Place, scope: dict[str, Any]) -> None:
        """Answer requests until either end has had enough; ``stream`` is TLS over ``wire``, or itself it."""
        client = scope["client"]
        place.proven = True
        place.wait()
        connection = Connection(
            stream, wire, self._app, self._limits, self.counters, place, scope, self._strangers
        )
        try:
            await connection.run()
            with trio.move_on_after(self._limits.linger_s):
                await stream.aclose()
        except Exception as error:  # noqa: BLE001 - the supervisor of HTTP connections
            if connection.lost is None:
                self.counters.connections_failed += 1
                log.error("http.connection_failed", client=client[0], **_told(error))
                with contextlib.suppress(ClientGone):
                    await connection.apologise()
        if connection.lost is not None:
            now_s = trio.current_time()
            self._strangers.write(
                "info", "http.client_gone", place.network, now_s, client=client[0], reason=connection.lost
            )

    def _note_stranger(self, client: _Name, place: Place, reason: str) -> None:
        self.counters.handshakes_failed += 1
        now_s = trio.current_time()
        self._strangers.write(
            "info", "http.handshake_failed", place.network, now_s, client=client[0], reason=reason
        )

    async def _turn_away(self, stream: trio.abc.Stream, alert: bytes) -> None:
        """Tell a client why TLS failed."""
        with trio.move_on_after(self._limits.linger_s), contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(alert)
            await linger(stream)


def _told(error: Exception) -> dict[str, Any]:
    """Describe a failure without values: other libraries' messages and local variables may hold key bytes."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "message": str(error) if isinstance(error, QnodeError) else None,
        "where": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-6:]],
    }


def _address(get_name: Callable[[], Any]) -> _Name | None:
    try:
        name = get_name()
    except OSError:  # the client has gone before we looked
        return None
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else ("local", 0)


async def serve_listeners(
    app: Application,
    listeners: Sequence[trio.SocketListener],
    *,
    tls: TlsSettings | None = None,
    limits: Limits = _DEFAULT_LIMITS,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` on open ``listeners``, which are closed at the end, until cancelled or `Server.stop`.

    Cancellation drops all connections at once, also those of clients that do not read.

    Raises:
        ConfigError: the TLS files cannot be used.
    """
    try:
        server = Server(app, tls, limits)
    except BaseException:
        for listener in listeners:
            await trio.aclose_forcefully(listener)
        raise
    await server.run(listeners, task_status)


async def serve(
    app: Application,
    *,
    host: str,
    port: int,
    tls: TlsSettings | None = None,
    limits: Limits = _DEFAULT_LIMITS,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` on TCP ``host`` and ``port`` (0: any free one, see `Server.port`); see `serve_listeners`.

    Raises:
        ConfigError: the TLS files cannot be used.
        OSError: the address cannot be bound.
    """
    listeners = await trio.open_tcp_listeners(port, host=host)
    await serve_listeners(app, listeners, tls=tls, limits=limits, task_status=task_status)
