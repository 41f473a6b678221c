"""The common TLS code of link and key delivery: names in certificates, and trust."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

# The errors from reading a certificate or a CRL, at once or when a part is accessed.
UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)


@lru_cache(maxsize=1024)
def certificate_names(der: bytes) -> tuple[str, ...]:
    """Return the names of a certificate: URIs and DNS names of its subjectAltName, else its common names.

    The common name counts only if there is no alternative name (RFC 6125, 6.4.4): many authorities check
    alternative names only, and allow anything in the subject.

    Raises:
        ValueError: ``der`` is not a certificate, or its encoding is broken in a part that TLS does not check.
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


@dataclass(frozen=True)
class Trusted:
    """The trust of a context: certified by ``anchors`` (DER), not revoked by ``crls``; None: no CRLs."""

    anchors: frozenset[bytes]
    crls: tuple[x509.CertificateRevocationList, ...] | None = None

    def still_admits(self, der: bytes, before: "Trusted") -> bool:
        """Return whether a certificate admitted by ``before`` is certainly admitted by this."""
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


class TrustingContext(ssl.SSLContext):
    """A context that knows whom it trusts; ``trusted`` is None if it admits everybody."""

    trusted: Trusted | None = None
