"""TLS 1.3 with mutual certificates between two peers that each know the name in the other's certificate."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass

import trio

from qnode.config import TlsFiles
from qnode.errors import ConfigError, LinkError, PeerRefused
from qnode.tls import AlertingContext, certificate_names, release
from qnode.tls_files import load_own, load_trust

_LINGER_S = 1.0


@dataclass(frozen=True)
class PeerContexts:
    """The TLS contexts of the files: for accepted streams, and for streams to the peer."""

    server: AlertingContext
    client: AlertingContext


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
) -> tuple["trio.SSLStream[trio.abc.Stream]", ssl.SSLObject]:
    """Secure ``stream``; return it with the state of its TLS. On failure it is closed.

    ``check`` gets the names in the certificate of the far end, and raises PeerRefused.

    Raises:
        PeerRefused: the far end is not the peer.
        LinkError: the handshake failed otherwise.
    """
    secured = False
    context = contexts.server if server_side else contexts.client
    tls: trio.SSLStream[trio.abc.Stream] = trio.SSLStream(stream, context, server_side=server_side)
    outgoing, connection = context.outgoing, context.connection  # of this stream, until the next is wrapped
    try:
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError as error:
            if server_side:
                await _send_alert(stream, outgoing)
            raise _handshake_failure(error.__cause__) from None
        check(certificate_identities(tls.getpeercert(binary_form=True) or b""))
        secured = True
        return tls, connection
    finally:
        if not secured:
            await trio.aclose_forcefully(stream)
            release(tls)


def certificate_identities(der: bytes) -> frozenset[str]:
    """Return the names in a certificate.

    Raises:
        PeerRefused: ``der`` is not a certificate.
    """
    try:
        return frozenset(certificate_names(der))
    except ValueError as error:
        raise PeerRefused(f"the certificate cannot be read: {error}") from None


def _context(files: TlsFiles, where: str, *, server_side: bool) -> AlertingContext:
    context = AlertingContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
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


async def _send_alert(stream: trio.abc.Stream, outgoing: ssl.MemoryBIO) -> None:
    with trio.move_on_after(_LINGER_S):
        try:
            await stream.send_all(outgoing.read())
            # Unread data at close would reset the connection, and the alert could be lost with it.
            while await stream.receive_some(1 << 14):
                pass
        except trio.BrokenResourceError:
            return
