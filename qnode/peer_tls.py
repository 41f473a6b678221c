"""TLS 1.3 with mutual certificates between two peers that each know the name in the other's certificate."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass

import trio

from qnode.config import TlsFiles
from qnode.errors import ConfigError, LinkError, PeerRefused
from qnode.streams import TlsStream, Wire
from qnode.tls import TrustingContext, certificate_names
from qnode.tls_files import load_own, load_trust

_LINGER_S = 1.0


@dataclass(frozen=True)
class PeerContexts:
    """The TLS contexts of the files: for accepted streams, and for streams to the peer."""

    server: TrustingContext
    client: TrustingContext


def peer_contexts(files: TlsFiles, where: str) -> PeerContexts:
    """Read ``files``; ``where``: their table, for messages.

    Raises:
        ConfigError: names the unusable file or setting.
    """
    return PeerContexts(_context(files, where, server_side=True), _context(files, where, server_side=False))


async def secure(
    stream: trio.abc.Stream,
    contexts: PeerContexts,
    check: Callable[[frozenset[str]], None],
    *,
    server_side: bool,
) -> TlsStream:
    """Secure ``stream``, which belongs to the result from now on; on failure it is closed.

    ``check`` gets the names in the certificate of the far end, and raises PeerRefused.

    Raises:
        PeerRefused: the far end is not the peer.
        LinkError: the handshake failed otherwise.
    """
    secured = False
    wire = Wire.over(stream) if isinstance(stream, trio.SocketStream) else stream
    context = contexts.server if server_side else contexts.client
    tls = TlsStream(wire, context, server_side=server_side)
    try:
        try:
            await tls.handshake()
        except trio.BrokenResourceError as error:
            if server_side:
                await _send_alert(wire, tls.unsent())
            raise _handshake_failure(error.__cause__) from None
        check(certificate_identities(tls.connection.getpeercert(binary_form=True) or b""))
        secured = True
        return tls
    finally:
        if not secured:
            await trio.aclose_forcefully(wire)


def certificate_identities(der: bytes) -> frozenset[str]:
    """Return the names in a certificate.

    Raises:
        PeerRefused: ``der`` is not a certificate.
    """
    try:
        return frozenset(certificate_names(der))
    except ValueError as error:
        raise PeerRefused(f"the certificate cannot be read: {error}") from None


def _context(files: TlsFiles, where: str, *, server_side: bool) -> TrustingContext:
    context = TrustingContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the identity is pinned by name, not by address
    if server_side:
        context.num_tickets = 0  # a resumed session would skip the certificate and the CRL
    try:
        context.trusted = load_trust(context, files.ca, files.crl)
        load_own(context, files.certificate, files.key)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return context


def _handshake_failure(cause: BaseException | None) -> LinkError:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return PeerRefused(f"the certificate is not accepted: {cause.verify_message}")
    if isinstance(cause, ssl.SSLEOFError) or cause is None:
        return LinkError("the far end hung up during the TLS handshake")
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return LinkError(f"the TLS handshake failed: {cause.reason.lower().replace('_', ' ')}")
    return LinkError("the connection broke during the TLS handshake")


async def _send_alert(stream: trio.abc.Stream, alert: bytes) -> None:
    with trio.move_on_after(_LINGER_S):
        try:
            await stream.send_all(alert)
            # Unread data at close would reset the connection, and the alert could be lost with it.
            while await stream.receive_some(1 << 14):
                pass
        except trio.BrokenResourceError:
            return
