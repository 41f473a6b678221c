"""The server: listeners, the supervisor of connections, reload and orderly end."""

import contextlib
import traceback
from collections.abc import Sequence
from typing import Any

import structlog
import trio

from qnode.errors import QnodeError
from qnode.http._asgi import Application
from qnode.http._connection import ClientGone, Connection
from qnode.http._limits import Counters, Limits
from qnode.http._linger import linger
from qnode.http._places import Place, Places
from qnode.http._tls import HandshakeError, TlsSettings, handshake, scope_extension, server_context
from qnode.tls import AlertingContext

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
        self._turns = trio.Lock()
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
        """Read certificates and CRL again; connections judged by the old ones close at their next rest.

        Raises:
            ConfigError: a file cannot be used; the server goes on with what it had.
        """
        if self._tls is not None:
            self.renew(self._tls, server_context(self._tls))

    def renew(self, tls: TlsSettings, context: AlertingContext) -> None:
        """Judge clients by ``context``, made of ``tls``, from now on; else as `reload`."""
        self._tls, self._context = tls, context
        self._places.retire()
        log.info("http.reloaded", addresses=self.addresses)

    def stop(self) -> None:
        """Take no more connections and requests; `serve` returns behind the last answer under way."""
        self._accepting.cancel()
        self._places.retire()

    async def run(
        self,
        listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
        task_status: trio.TaskStatus["Server"] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on open ``listeners``, once, as `serve_listeners` does."""
        for listener in listeners:
            if isinstance(listener, trio.SocketListener):
                self._addresses.append(listener.socket.getsockname()[:2])
        async with trio.open_nursery() as connections:
            log.info("http.listening", addresses=self.addresses, tls=self._context is not None)
            task_status.started(self)
            with self._accepting:
                await trio.serve_listeners(self._supervise, list(listeners), handler_nursery=connections)

    async def _supervise(self, stream: trio.abc.Stream) -> None:
        """Keep one connection: whatever goes wrong in it stays in it."""
        client, server = _address(stream, "getpeername"), _address(stream, "getsockname")
        place = self._places.take(client[0]) if client is not None else None
        if client is None or place is None:
            await trio.aclose_forcefully(stream)
            return
        with place.scope:
            try:
                await self._converse(stream, place, client, server)
            finally:
                self._places.leave(place)
                await trio.aclose_forcefully(stream)

    async def _converse(
        self, stream: trio.abc.Stream, place: Place, client: tuple[str, int], server: tuple[str, int] | None
    ) -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "scheme": "http",
            "root_path": "",
            "client": client,
            "server": server,
            "extensions": {},
        }
        if self._context is not None:
            try:
                with trio.fail_after(self._limits.handshake_s):
                    secured = await handshake(stream, self._context, self._turns, place)
            except trio.TooSlowError:
                self._note_stranger(client, "handshake took too long")
                return
            except HandshakeError as error:
                self._note_stranger(client, str(error))
                place.wait()
                await self._turn_away(stream, error.alert)
                return
            if place.last_request:  # judged by certificates that were replaced meanwhile
                return
            scope["scheme"] = "https"
            scope["extensions"] = {"tls": scope_extension(secured)}
            stream = secured
        place.proven = True
        place.wait()
        connection = Connection(stream, self._app, self._limits, self.counters, place, scope)
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
            log.info("http.client_gone", client=client[0], reason=connection.lost)

    def _note_stranger(self, client: tuple[str, int], reason: str) -> None:
        self.counters.handshakes_failed += 1
        log.info("http.handshake_failed", client=client[0], reason=reason)

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


def _address(stream: trio.abc.Stream, getter: str) -> tuple[str, int] | None:
    if not isinstance(stream, trio.SocketStream):
        return ("local", 0)
    try:
        name = getattr(stream.socket, getter)()
    except OSError:  # the client has gone before we looked
        return None
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else ("local", 0)


async def serve_listeners(
    app: Application,
    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
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
