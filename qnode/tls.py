"""What the link and the key delivery interface share of TLS: names in certificates, and alerts."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

# What reading a certificate or a CRL can raise, at once or when a part of it is asked for.
UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)


@lru_cache(maxsize=1024)
def certificate_names(der: bytes) -> tuple[str, ...]:
    """Return the names of a certificate: URIs and DNS names of its subjectAltName, else its common names.

    The common name counts only where there is no alternative name, as RFC 6125 (6.4.4) has it: many
    authorities check alternative names only and let anything stand in the subject.

    Raises:
        ValueError: ``der`` is not a certificate, or its encoding is broken where TLS does not look.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names: list[str] = []
    except (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(str(error)) from None
    else:
        names = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
        names += alternatives.get_values_for_type(x509.DNSName)
    if not names:
        names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return tuple(names)


def release(stream: object) -> None:
    """Free what a `trio.SSLStream` holds, of which nothing may be used any more.

    trio's stream holds a method of its own, so that OpenSSL's buffers, tens of kilobytes a connection, would
    wait for the collector of cycles, which a daemon runs rarely.
    """
    vars(stream).clear()


@dataclass(frozen=True)
class Trusted:
    """What a context lets in: what ``anchors`` (DER) certified, and ``crls`` do not revoke; None: no CRLs."""

    anchors: frozenset[bytes]
    crls: tuple[x509.CertificateRevocationList, ...] | None = None

    def still_admits(self, der: bytes, before: "Trusted") -> bool:
        """Say whether a certificate that was let in by ``before`` would surely be let in by this."""
        if not before.anchors <= self.anchors:
            return False
        if self.crls is None:
            return True
        now = datetime.now(UTC)
        try:
            certificate = x509.load_der_x509_certificate(der)
            crls = [crl for crl in self.crls if crl.issuer == certificate.issuer]
            return bool(crls) and all(
                (crl.next_update_utc is None or crl.next_update_utc > now)
                and crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is None
                for crl in crls
            )
        except UNREADABLE:  # an encoding that only OpenSSL understands
            return False


class AlertingContext(ssl.SSLContext):
    """A context that lets the alert of a failed handshake be sent.

    `trio.SSLStream` drops what OpenSSL wrote when a handshake fails, so the far end would see a silent close.
    ``outgoing`` is the buffer of the stream that was wrapped last, ``connection`` its TLS state.
    ``trusted``: whom it lets in; None: whoever comes.
    """

    outgoing: ssl.MemoryBIO
    connection: ssl.SSLObject
    trusted: Trusted | None = None

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **named: Any
    ) -> ssl.SSLObject:
        """Wrap as usual and remember."""
        self.outgoing = outgoing
        self.connection = super().wrap_bio(incoming, outgoing, *args, **named)
        return self.connection
