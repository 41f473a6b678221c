"""TLS of the server: settings, contexts, the handshake, and the client data for the application."""

import ssl
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import trio
from msgspec import Struct

from qnode.config import TlsFiles
from qnode.errors import ConfigError
from qnode.http._handshake_queue import QueuedHandshake
from qnode.http._slots import ConnectionSlot
from qnode.streams import TlsStream, Wire
from qnode.tls import TrustingContext
from qnode.tls_files import load_own, load_trust

_VERSION_NUMBERS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


class TlsSettings(Struct, frozen=True, kw_only=True):
    """PEM files of a server. With ``client_ca`` clients must prove themselves; ``crl`` names revoked ones."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    crl: Path | None = None

    @classmethod
    def of(cls, files: TlsFiles) -> Self:
        """Return the settings of a server whose clients must prove themselves."""
        return cls(certificate=files.certificate, key=files.key, client_ca=files.ca, crl=files.crl)


class HandshakeError(Exception):
    """A handshake failed; the message is the reason, for the log.

    ``alert`` is the TLS alert for the client.
    """

    def __init__(self, reason: str, alert: bytes) -> None:
        super().__init__(reason)
        self.alert = alert


def read_server_tls(files: TlsFiles, where: str) -> tuple[TlsSettings, TrustingContext]:
    """Return the settings of the table ``where``, and a fresh context (`server_context`).

    Raises:
        ConfigError: naming the table and the file that cannot be used.
    """
    settings = TlsSettings.of(files)
    try:
        return settings, server_context(settings)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def server_context(settings: TlsSettings) -> TrustingContext:
    """Return a fresh context: at least TLS 1.2, no session tickets, clients checked against the CRL.

    A context is built again for each reload because OpenSSL ignores a CRL that is not newer than one it has.

    Raises:
        ConfigError: naming the file that cannot be used.
    """
    context = TrustingContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # A resumed session skips the certificate and the CRL, and would admit a revoked client. Python cannot
    # forbid TLS 1.2 resumption by session ID. It ends with this context, and `handshake` checks it.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    load_own(context, settings.certificate, settings.key)
    if settings.client_ca is not None:
        context.trusted = load_trust(context, settings.client_ca, settings.crl)
    elif settings.crl is not None:
        raise ConfigError(f"{settings.crl}: a CRL needs the client CA that signed it")
    return context


async def handshake(
    wire: Wire, context: TrustingContext, turns: trio.Lock, slot: ConnectionSlot
) -> TlsStream:
    """Perform the handshake on ``wire``, queued with all other handshakes.

    Raises:
        HandshakeError: the client's certificate is not acceptable, or the handshake failed otherwise.
    """
    secured = TlsStream(QueuedHandshake(wire, turns, slot), context, server_side=True)
    try:
        await secured.handshake()
    except trio.BrokenResourceError as error:
        raise HandshakeError(_reason(error.__cause__), secured.unsent()) from None
    client = secured.connection
    if client.session_reused and certificate_expired(client.getpeercert() or {}, time.time()):
        raise HandshakeError("certificate has expired since its session began", b"")
    secured.transport = wire
    return secured


def certificate_expired(peer: Mapping[str, Any], now_s: float) -> bool:
    """Return whether ``peer``, a certificate as decoded by `ssl`, has expired at ``now_s`` (Unix time)."""
    return "notAfter" in peer and ssl.cert_time_to_seconds(peer["notAfter"]) < now_s


def _reason(cause: BaseException | None) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_message
    if isinstance(cause, ssl.SSLEOFError):
        return "client hung up"
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return cause.reason.lower().replace("_", " ")
    return "connection lost"


@lru_cache(maxsize=1024)
def _pem(der: bytes) -> str:
    return ssl.DER_cert_to_PEM_cert(der)


def scope_extension(stream: TlsStream) -> dict[str, Any]:
    """Return a connection's ASGI extension ``tls``; all but ``client_cert_der`` is standard."""
    der: bytes | None = stream.connection.getpeercert(binary_form=True)
    return {
        "client_cert_der": der,
        "client_cert_chain": [_pem(der)] if der else [],
        "tls_version": _VERSION_NUMBERS.get(stream.connection.version() or ""),
        "cipher_suite": None,
    }
