"""What the link and the key delivery interface share of TLS: names in certificates, and alerts."""

import ssl
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID


@lru_cache(maxsize=1024)
def certificate_names(der: bytes) -> tuple[str, ...]:
    """Return the names of a certificate: URIs and DNS names of its subjectAltName, else its common names.

    The common name counts only where there is no alternative name, as RFC 6125 (6.4.4) has it: many
    authorities check alternative names only and let anything stand in the subject.

    Raises:
        ValueError: ``der`` is not a certificate, or its encoding is broken where TLS does not look.
    """
    certificate = x509.load_der_x509_certificate(der)
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names: list[str] = []
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
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


class AlertingContext(ssl.SSLContext):
    """A context that lets the alert of a failed handshake be sent.

    `trio.SSLStream` drops what OpenSSL wrote when a handshake fails, so the far end would see a silent close.
    ``outgoing`` is the buffer of the stream that was wrapped last, ``connection`` its TLS state.
    """

    outgoing: ssl.MemoryBIO
    connection: ssl.SSLObject

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **named: Any
    ) -> ssl.SSLObject:
        """Wrap as usual and remember."""
        self.outgoing = outgoing
        self.connection = super().wrap_bio(incoming, outgoing, *args, **named)
        return self.connection
