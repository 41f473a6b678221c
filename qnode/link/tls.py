"""TCP and TLS 1.3 with mutual certificates: keeps strangers and accidents away from the hello.

The peer's certificate must come from the link's authority and name exactly the pinned ``peer_kme_id``: in a
URI or DNS name of its subjectAltName, or in its common name when it has neither. A certificate that names
an encryptor is refused even if it names the peer as well: the roles are disjoint even under one authority.
The security of the key does not depend on TLS.
"""

import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakSet

import structlog
import trio

from qnode.addresses import host_and_port
from qnode.config import TlsFiles
from qnode.errors import ConfigError, LinkError, PeerRefused
from qnode.peer_tls import PeerContexts, peer_contexts, secure
from qnode.tls import Trusted

log = structlog.get_logger()


@dataclass(frozen=True)
class Listening:
    """Open listeners and the port they are bound to."""

    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]
    port: int


class Transport(Protocol):
    """Makes streams to the peer. The simulated world has its own implementation."""

    def check(self) -> None:
        """Raise ConfigError if this transport can never work."""

    def renew(self, contexts: PeerContexts, encryptor_identities: frozenset[str]) -> None:
        """Use these from the next connection on; a session continues if they still admit its peer."""

    async def listen(self) -> Listening:
        """Listen for the peer. Raises LinkError: not possible at present."""

    async def admit(self, stream: trio.abc.Stream) -> trio.abc.Stream:
        """Secure an accepted stream; its far end is proven to be the peer. Raises LinkError."""

    async def connect(self) -> trio.abc.Stream:
        """Return a secured stream to the peer, proven. Raises LinkError."""


def link_contexts(files: TlsFiles) -> PeerContexts:
    """Read ``files``.

    Raises:
        ConfigError: names the unusable file or setting.
    """
    return peer_contexts(files, "peer.tls")


@dataclass
class TlsTransport:
    """TLS to the pinned peer over TCP at ``address`` ("host:port", "[v6]:port"; port 0 to listen on any).

    The files are read by `check`, and not again: `renew` replaces them for later connections.
    """

    address: str
    files: TlsFiles
    peer_kme_id: str
    encryptor_identities: frozenset[str] = frozenset()
    _contexts: PeerContexts | None = field(default=None, init=False, repr=False)
    _streams: "WeakSet[_BulkStream]" = field(default_factory=WeakSet, init=False, repr=False)

    def check(self) -> None:
        """Check the address and read the files.

        Raises:
            ConfigError: names the unusable file or setting.
        """
        self.host_and_port()
        if self._contexts is None:
            self._contexts = link_contexts(self.files)

    def renew(self, contexts: PeerContexts, encryptor_identities: frozenset[str]) -> None:
        """Use these from the next connection on; cut streams to a peer that they do not admit any more."""
        self._contexts = contexts
        self.encryptor_identities = encryptor_identities
        for stream in self._streams:
            self._cut_unless_admitted(stream, contexts)

    async def listen(self) -> Listening:
        """Bind to the address.

        Raises:
            LinkError: at present it cannot be bound, or its name cannot be resolved.
        """
        host, port = self.host_and_port()
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            told = error.strerror or error
            raise LinkError(f"peer.address: cannot listen on {self.address}: {told}; trying again") from None
        return Listening(listeners, listeners[0].socket.getsockname()[1])

    async def admit(self, stream: trio.abc.Stream) -> trio.abc.Stream:
        """Secure an accepted stream; on failure it is closed.

        Raises:
            PeerRefused: the far end is not the peer.
            LinkError: the handshake failed otherwise, or our files cannot be used.
        """
        return await self._secure(stream, server_side=True)

    async def connect(self) -> trio.abc.Stream:
        """Connect to the address and secure the stream.

        Raises:
            PeerRefused: the far end is not the peer.
            LinkError: no answer, the handshake failed, or our files cannot be used.
        """
        host, port = self.host_and_port()
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError as error:
            raise LinkError(f"{self.address} does not answer: {error}") from None
        return await self._secure(stream, server_side=False)

    async def _secure(self, stream: trio.abc.Stream, *, server_side: bool) -> trio.abc.Stream:
        try:
            contexts = self._contexts or link_contexts(self.files)
        except ConfigError as error:
            await trio.aclose_forcefully(stream)
            raise LinkError(str(error)) from None
        tls, connection = await secure(stream, contexts, self._check_identities, server_side=server_side)
        trusted = contexts.server.trusted
        assert trusted is not None, "link_contexts loads it"
        secured = _BulkStream(tls, connection, stream, trusted)
        self._streams.add(secured)
        self._cut_unless_admitted(secured, self._contexts or contexts)  # a reload during the handshake
        return secured

    def _cut_unless_admitted(self, stream: "_BulkStream", contexts: PeerContexts) -> None:
        trusted = contexts.server.trusted
        if trusted is not None and not trusted.still_admits(stream.peer, stream.admitted_by):
            log.warning("link.cut", reason="the certificate of the peer is not accepted any more")
            stream.cut()

    def _check_identities(self, identities: frozenset[str]) -> None:
        named = ", ".join(sorted(identities)) or "nobody"
        encryptors = identities & self.encryptor_identities
        if encryptors:
            raise PeerRefused(f"the certificate is an encryptor's ({named}), not a node's")
        if self.peer_kme_id not in identities:
            raise PeerRefused(f"the certificate names {named}, expected {self.peer_kme_id} (peer.kme_id)")

    def host_and_port(self) -> tuple[str, int]:
        """Return both parts of the address; raises ConfigError."""
        return host_and_port(self.address, "peer.address")


class _BulkStream(trio.abc.Stream):
    """A `trio.SSLStream` that returns all arrived records, not one per call.

    A record has 16 KiB at most, and each trio call costs a turn of its scheduler. For bulk messages this was
    a third of the work of the event loop.
    """

    def __init__(
        self,
        tls: "trio.SSLStream[trio.abc.Stream]",
        connection: ssl.SSLObject,
        wire: trio.abc.Stream,
        admitted_by: Trusted,
    ) -> None:
        self.tls = tls
        self._connection = connection
        self._wire = wire
        self.peer = tls.getpeercert(binary_form=True) or b""
        self.admitted_by = admitted_by

    def cut(self) -> None:
        """Break the connection, so that both ends see it at once."""
        if isinstance(self._wire, trio.SocketStream):
            with suppress(OSError):  # it is broken already
                self._wire.socket.shutdown(trio.socket.SHUT_RDWR)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``."""
        await self.tls.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` might not block."""
        await self.tls.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return what has arrived, at most ``max_bytes``; nothing at the end of the connection."""
        first = await self.tls.receive_some(max_bytes)
        if max_bytes is None or not first:
            return first
        data = bytearray(first)
        # Decrypt the received data without waiting. The next call will see again what stops this (the end, an
        # error, an incomplete record).
        with suppress(ssl.SSLError):
            while len(data) < max_bytes and (more := self._connection.read(max_bytes - len(data))):
                data += more
        return data

    async def aclose(self) -> None:
        """Close the connection in order."""
        await self.tls.aclose()
