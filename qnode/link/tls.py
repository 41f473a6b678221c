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

import trio

from qnode.addresses import host_and_port
from qnode.config import TlsFiles
from qnode.errors import ConfigError, LinkError, PeerRefused
from qnode.tls import AlertingContext, certificate_names, release
from qnode.tls_files import load_own, load_trust

_LINGER_S = 1.0


@dataclass(frozen=True)
class Listening:
    """Open listeners and the port they are bound to."""

    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]
    port: int


class Transport(Protocol):
    """Makes streams to the peer. The simulated world has its own implementation."""

    def check(self) -> None:
        """Raise ConfigError if this transport can never work."""

    def renew(self, contexts: "LinkContexts", encryptor_identities: frozenset[str]) -> None:
        """Use these from the next connection on; an existing session continues."""

    async def listen(self) -> Listening:
        """Listen for the peer. Raises LinkError: not possible at present."""

    async def admit(self, stream: trio.abc.Stream) -> trio.abc.Stream:
        """Secure an accepted stream; its far end is proven to be the peer. Raises LinkError."""

    async def connect(self) -> trio.abc.Stream:
        """Return a secured stream to the peer, proven. Raises LinkError."""


@dataclass(frozen=True)
class LinkContexts:
    """The TLS contexts of the files: for accepted streams, and for streams to the peer."""

    server: AlertingContext
    client: AlertingContext


def link_contexts(files: TlsFiles) -> LinkContexts:
    """Read ``files``.

    Raises:
        ConfigError: names the unusable file or setting.
    """
    return LinkContexts(_context(files, server_side=True), _context(files, server_side=False))


@dataclass
class TlsTransport:
    """TLS to the pinned peer over TCP at ``address`` ("host:port", "[v6]:port"; port 0 to listen on any).

    The files are read by `check`, and not again: `renew` replaces them for later connections.
    """

    address: str
    files: TlsFiles
    peer_kme_id: str
    encryptor_identities: frozenset[str] = frozenset()
    _contexts: LinkContexts | None = field(default=None, init=False, repr=False)

    def check(self) -> None:
        """Check the address and read the files.

        Raises:
            ConfigError: names the unusable file or setting.
        """
        self.host_and_port()
        if self._contexts is None:
            self._contexts = link_contexts(self.files)

    def renew(self, contexts: LinkContexts, encryptor_identities: frozenset[str]) -> None:
        """Use these from the next connection on; an existing session continues."""
        self._contexts = contexts
        self.encryptor_identities = encryptor_identities

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
        secured = False
        tls: trio.SSLStream[trio.abc.Stream] | None = None
        try:
            try:
                contexts = self._contexts or link_contexts(self.files)
            except ConfigError as error:
                raise LinkError(str(error)) from None
            context = contexts.server if server_side else contexts.client
            tls = trio.SSLStream(stream, context, server_side=server_side)
            outgoing, connection = (
                context.outgoing,
                context.connection,
            )  # of this stream, until the next is wrapped
            try:
                await tls.do_handshake()
            except trio.BrokenResourceError as error:
                if server_side:
                    await _send_alert(stream, outgoing)
                raise _handshake_failure(error.__cause__) from None
            self._check_identity(tls.getpeercert(binary_form=True))
            secured = True
            return _BulkStream(tls, connection)
        finally:
            if not secured:
                await trio.aclose_forcefully(stream)
                if tls is not None:
                    release(tls)

    def _check_identity(self, der: bytes | None) -> None:
        identities = certificate_identities(der or b"")
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

    def __init__(self, tls: "trio.SSLStream[trio.abc.Stream]", connection: ssl.SSLObject) -> None:
        self.tls = tls
        self._connection = connection

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


def certificate_identities(der: bytes) -> frozenset[str]:
    """Return the names in a certificate.

    Raises:
        PeerRefused: ``der`` is not a certificate.
    """
    try:
        return frozenset(certificate_names(der))
    except ValueError as error:
        raise PeerRefused(f"the certificate cannot be read: {error}") from None


def _context(files: TlsFiles, *, server_side: bool) -> AlertingContext:
    context = AlertingContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the identity is pinned by kme_id, not by address
    if server_side:
        context.num_tickets = 0  # a resumed session would skip the certificate and the CRL
    try:
        load_trust(context, files.ca, files.crl)
        load_own(context, files.certificate, files.key)
    except ConfigError as error:
        raise ConfigError(f"peer.tls: {error}") from None
    return context


def _handshake_failure(cause: BaseException | None) -> LinkError:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return PeerRefused(f"the certificate is not accepted: {cause.verify_message}")
    if isinstance(cause, ssl.SSLEOFError) or cause is None:
        return LinkError("the far end hung up during the TLS handshake")
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return LinkError(f"the TLS handshake failed: {cause.reason.lower().replace('_', ' ')}")
    return LinkError("the connection broke during the TLS handshake")


async def _send_alert(stream: trio.abc.Stream, outgoing: ssl.MemoryBIO) -> None:
    with trio.move_on_after(_LINGER_S):
        try:
            await stream.send_all(outgoing.read())
            # Unread data at close would reset the connection, and the alert could be lost with it.
            while await stream.receive_some(1 << 14):
                pass
        except trio.BrokenResourceError:
            return
