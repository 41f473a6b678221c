"""The server: listeners, supervision of connections, reload and orderly stop."""

import contextlib
import socket
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import structlog
import trio

from qnode.accepting import accept_all
from qnode.asgi import Application
from qnode.errors import QnodeError
from qnode.http._connection import Connection
from qnode.http._conversation import Client, ClientGone, Conversation
from qnode.http._limits import Counters, Limits
from qnode.http._linger import linger
from qnode.http._slots import ConnectionSlot, ConnectionSlots
from qnode.http._tls import HandshakeError, TlsSettings, handshake, scope_extension, server_context
from qnode.strangers import Budget, StrangersLog, network_of
from qnode.streams import TlsStream, Wire
from qnode.tls import TrustingContext

_Name: TypeAlias = tuple[str, int]

log = structlog.get_logger()

_DEFAULT_LIMITS = Limits()


class Server:
    """A running server, as `serve` passes it to `task_status.started`.

    It speaks HTTP for ``app``; `ConversationServer` speaks another protocol.
    """

    def __init__(self, app: Application, tls: TlsSettings | None, limits: Limits) -> None:
        self._set_up(partial(Connection, app), tls, limits)

    def _set_up(
        self, converse: Callable[[Client], Conversation], tls: TlsSettings | None, limits: Limits
    ) -> None:
        self._converse = converse
        self._tls = tls
        self._context = server_context(tls) if tls is not None else None
        self._limits = limits
        self._accepting = trio.CancelScope()
        # Networks with proven clients do not queue with strangers.
        self._turns = {True: trio.Lock(), False: trio.Lock()}
        self._handshakes = Budget(rate_hz=limits.failed_handshakes_hz, burst=limits.failed_handshakes_at_once)
        self._handshakes_of_unknown = Budget(
            rate_hz=limits.unknown_handshakes_hz, burst=limits.unknown_handshakes_at_once
        )
        self._strangers = StrangersLog()
        self._addresses: list[tuple[str, int]] = []
        self.counters = Counters()
        self._slots = ConnectionSlots(limits, self.counters)

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
        """The number of connections with a slot."""
        return len(self._slots)

    def reload(self) -> None:
        """Read certificates and CRL again; connections that these do not admit close when they next wait.

        Raises:
            ConfigError: a file cannot be used; the server continues with the former files.
        """
        if self._tls is not None:
            self.renew(self._tls, server_context(self._tls))

    def renew(self, tls: TlsSettings, context: TrustingContext) -> None:
        """Check clients against ``context``, made from ``tls``, from now on; otherwise like `reload`."""
        self._tls, self._context = tls, context
        # A client in its handshake is checked at the end of it; if we close now, the client sees a lost
        # answer.
        self._slots.retire(lambda slot: not slot.proven or self._still_admits(slot))
        log.info("http.reloaded", addresses=self.addresses)

    def limit(self, limits: Limits) -> None:
        """Apply ``limits`` to new connections."""
        self._limits = self._slots.limits = limits
        self._handshakes.burst = limits.failed_handshakes_at_once
        self._handshakes_of_unknown.burst = limits.unknown_handshakes_at_once

    def stop(self) -> None:
        """Accept no more connections and requests; `serve` returns after the last answer."""
        self._accepting.cancel()
        self._slots.retire()

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        task_status: trio.TaskStatus["Server"] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on open ``listeners``, once, as `serve_listeners` does."""
        names = (listener.socket.getsockname() for listener in listeners)
        self._addresses += [name[:2] for name in names if isinstance(name, tuple)]
        async with trio.open_nursery() as connections:
            log.info("http.listening", addresses=self.addresses, tls=self._context is not None)
            task_status.started(self)
            with self._accepting:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        admit = partial(self._admit, connections)
                        accepting.start_soon(accept_all, listener, admit)

    def _admit(self, connections: trio.Nursery, accepted: socket.socket) -> None:
        """Give a slot to a connection, or close it before it causes costs."""
        client, server = _address(accepted.getpeername), _address(accepted.getsockname)
        wait_s = self._wait_for_handshake_s(client[0]) if client is not None else None
        if client is None or wait_s is None:
            accepted.close()
            return
        # Whoever has to wait takes nobody's slot: else those that wait would drive each other out for ever.
        slot = self._slots.take(client[0], evicting=wait_s == 0.0)
        if slot is None:
            self._give_back(network_of(client[0]))
            accepted.close()
            return
        wire = Wire(accepted)
        connections.start_soon(self._supervise, wire, slot, wait_s, client, server)

    def _wait_for_handshake_s(self, host: str) -> float | None:
        """Charge a client for a handshake; return the time that it must wait, None if it is refused."""
        if self._context is None:
            return 0.0
        network, now_s, longest_s = network_of(host), trio.current_time(), self._limits.handshake_wait_s
        wait_s = self._handshakes.spend(network, now_s, longest_wait_s=longest_s)
        if wait_s is not None and not self._slots.knows(network):
            all_wait_s = self._handshakes_of_unknown.spend("", now_s, longest_wait_s=longest_s)
            if all_wait_s is None:
                self._handshakes.give_back(network)
            wait_s = None if all_wait_s is None else max(wait_s, all_wait_s)
        if wait_s is None:
            self.counters.connections_refused += 1
        return wait_s

    def _give_back(self, network: str) -> None:
        """Take back what a handshake was charged."""
        self._handshakes.give_back(network)
        if not self._slots.knows(network):
            self._handshakes_of_unknown.give_back("")

    async def _supervise(
        self, wire: Wire, slot: ConnectionSlot, wait_s: float, client: _Name, server: _Name | None
    ) -> None:
        """Run one connection, so that its failure affects no other one."""
        with slot.scope:
            try:
                if wait_s:
                    await trio.sleep(wait_s)
                await self._serve(wire, slot, client, server)
            finally:
                self._slots.leave(slot)
                wire.close()

    async def _serve(self, wire: Wire, slot: ConnectionSlot, client: _Name, server: _Name | None) -> None:
        """Serve a client, over TLS if the server uses it."""
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
            await self._answer(wire, wire, slot, scope)
            return
        secured = await self._secure(wire, self._context, slot, client)
        if secured is None:
            return
        scope["scheme"] = "https"
        scope["extensions"] = {"tls": scope_extension(secured)}
        await self._answer(secured, wire, slot, scope)

    async def _secure(
        self, wire: Wire, context: TrustingContext, slot: ConnectionSlot, client: _Name
    ) -> TlsStream | None:
        """Return the TLS stream of a proven client; None if the handshake failed."""
        turns = self._turns[self._slots.knows(slot.network)]
        try:
            with trio.fail_after(self._limits.handshake_s):
                secured = await handshake(wire, context, turns, slot)
        except trio.TooSlowError:
            self._note_stranger(client, slot, "handshake took too long")
            return None
        except HandshakeError as error:
            self._note_stranger(client, slot, str(error))
            slot.wait()
            await self._turn_away(wire, error.alert)
            return None
        der = secured.connection.getpeercert(binary_form=True)
        if der is not None and context.trusted is not None:
            slot.admitted = (der, context.trusted)
        if slot.last_request or (context is not self._context and not self._still_admits(slot)):
            return None
        self._give_back(slot.network)
        self._slots.prove(slot)
        return secured

    def _still_admits(self, slot: ConnectionSlot) -> bool:
        """Return whether the present certificates and CRL admit a client that earlier ones admitted."""
        trusted = self._context.trusted if self._context is not None else None
        return trusted is None or (slot.admitted is not None and trusted.still_admits(*slot.admitted))

    async def _answer(
        self, stream: trio.abc.Stream, wire: Wire, slot: ConnectionSlot, scope: dict[str, Any]
    ) -> None:
        """Answer requests until one end closes; ``stream`` is TLS over ``wire``, or ``wire`` itself."""
        client = scope["client"]
        slot.proven = True
        slot.wait()
        connection = self._converse(
            Client(stream, wire, self._limits, self.counters, slot, scope, self._strangers)
        )
        try:
            await connection.run()
            with trio.move_on_after(self._limits.linger_s):
                await stream.aclose()
        except Exception as error:  # noqa: BLE001 - the supervisor of HTTP connections
            if connection.lost is None:
                self.counters.connections_failed += 1
                log.error("http.connection_failed", client=client[0], **_described(error))
                with contextlib.suppress(ClientGone):
                    await connection.apologise()
        if connection.lost is not None:
            now_s = trio.current_time()
            self._strangers.write(
                "info", "http.client_gone", slot.network, now_s, client=client[0], reason=connection.lost
            )

    def _note_stranger(self, client: _Name, slot: ConnectionSlot, reason: str) -> None:
        self.counters.handshakes_failed += 1
        now_s = trio.current_time()
        self._strangers.write(
            "info", "http.handshake_failed", slot.network, now_s, client=client[0], reason=reason
        )

    async def _turn_away(self, stream: trio.abc.Stream, alert: bytes) -> None:
        """Send the TLS alert with the reason to the client, and close."""
        with trio.move_on_after(self._limits.linger_s), contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(alert)
            await linger(stream)


class ConversationServer(Server):
    """The same server for another protocol: ``converse`` speaks it with one client."""

    def __init__(
        self, converse: Callable[[Client], Conversation], tls: TlsSettings | None, limits: Limits
    ) -> None:
        self._set_up(converse, tls, limits)


def _described(error: Exception) -> dict[str, Any]:
    """Describe a failure without values: messages of libraries and local variables may contain key bytes."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "message": str(error) if isinstance(error, QnodeError) else None,
        "where": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-6:]],
    }


def _address(get_name: Callable[[], Any]) -> _Name | None:
    try:
        name = get_name()
    except OSError:  # the client has already disconnected
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

    Cancellation closes all connections at once, including those of clients that do not read.

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
