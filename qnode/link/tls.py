"""TCP and TLS 1.3 with mutual certificates: keeps strangers and accidents away from the hello.

The peer's certificate must come from the link's authority and name exactly the pinned ``peer_kme_id``: in a
URI or DNS name of its subjectAltName, or in its common name when it has neither. A certificate that names
an encryptor is refused even if it names the peer as well: the roles are disjoint even under one authority.
The security of the key does not depend on TLS.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

import structlog
import trio

from qnode.addresses import host_and_port
from qnode.config import TlsFiles
from qnode.errors import ConfigError, LinkError, PeerRefused
from qnode.peer_tls import PeerContexts, peer_contexts, secure
from qnode.streams import TlsStream
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
    _admitted: WeakKeyDictionary[TlsStream, tuple[bytes, Trusted]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )

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
        for stream in list(self._admitted):
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
        secured = await secure(stream, contexts, self._check_identities, server_side=server_side)
        assert contexts.server.trusted is not None, "link_contexts loads it"
        # A closed connection does not know its certificate any more.
        peer = secured.connection.getpeercert(binary_form=True) or b""
        self._admitted[secured] = peer, contexts.server.trusted
        self._cut_unless_admitted(secured, self._contexts or contexts)  # a reload during the handshake
        return secured

    def _cut_unless_admitted(self, stream: TlsStream, contexts: PeerContexts) -> None:
        trusted = contexts.server.trusted
        if trusted is not None and not trusted.still_admits(*self._admitted[stream]):
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
