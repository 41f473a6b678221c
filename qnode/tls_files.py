"""The PEM files of a TLS role: loading into a context, refusal of unusable files by name, and expiry.

OpenSSL accepts useless files: a CRL of another authority, or a certificate in the place of a CRL, which it
would even trust. This module refuses them.
"""

import re
import ssl
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from qnode.errors import ConfigError
from qnode.tls import UNREADABLE, Trusted
from qnode.tls_validity import Kind, Validity

CREDENTIALS = Path("/run/credentials")
# The word that systemd/qnode@.service hands over for a file that is not there.
_NO_CREDENTIAL = b"none"
_CRL_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


def load_own(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load ``certificate`` (with its chain) and ``key`` into ``context``.

    Raises:
        ConfigError: names the unusable file, and the remedy.
    """
    certificates_in(certificate)
    if _read(key) == _NO_CREDENTIAL:
        raise ConfigError(
            f"{key}: the service has no such file: put the private key where LoadCredential= of its unit "
            "names it, and restart"
        )
    try:
        context.load_cert_chain(certificate, key, lambda: _refuse_encrypted(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            handed_over = key.is_relative_to(CREDENTIALS)
            hint = "; systemd hands over a renewed key at a restart only" if handed_over else ""
            raise ConfigError(f"{certificate}: does not belong to the key {key}{hint}") from None
        raise ConfigError(
            f"{certificate}, {key}: not usable for TLS: {error.reason or error}; expected a certificate and "
            f"its private key in PEM"
        ) from None
    except OSError as error:
        raise ConfigError(f"{certificate}, {key}: cannot be read: {error.strerror}") from None


def load_trust(context: ssl.SSLContext, ca: Path, crl: Path | None) -> Trusted:
    """Make ``context`` trust certificates that the authorities in ``ca`` signed and ``crl`` does not revoke.

    Each certificate of ``ca`` is an anchor: an issuing authority needs no root beside it, and the root's
    other authorities are then not trusted. With ``crl`` each certificate needs the CRL of its issuer.

    Raises:
        ConfigError: names the unusable file, and the remedy.
    """
    authorities = certificates_in(ca)
    crls = crls_in(crl, authorities) if crl is not None else []
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if crls:
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    for path in (ca, crl):
        if path is None:
            continue
        try:
            context.load_verify_locations(path)
        except ssl.SSLError as error:
            raise ConfigError(f"{path}: not usable for TLS: {error.reason or error}") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    anchors = frozenset(one.public_bytes(Encoding.DER) for one in authorities)
    return Trusted(anchors, tuple(crls) if crl is not None else None)


def certificates_in(path: Path) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, at least one.

    Raises:
        ConfigError: it cannot be read, or has none.
    """
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except UNREADABLE:
        raise ConfigError(f"{path}: not usable for TLS: expected certificates in PEM") from None


def crls_in(path: Path, authorities: Iterable[x509.Certificate]) -> list[x509.CertificateRevocationList]:
    """Return the CRLs of a PEM file, at least one; those of ``authorities`` are verified.

    Raises:
        ConfigError: it cannot be read, has none or other content, or one is forged or damaged.
    """
    content = _read(path)
    blocks = _CRL_BLOCK.findall(content)
    if not blocks:
        raise ConfigError(f"{path}: holds no CRL in PEM (an empty or failed download?)")
    if content.count(b"-----BEGIN") != len(blocks):
        raise ConfigError(f"{path}: holds more than CRLs, or a CRL that is cut; expected CRLs in PEM only")
    found = []
    for block in blocks:
        try:
            crl = x509.load_pem_x509_crl(block)
            issuer, _ = crl.issuer, crl.next_update_utc  # either may be damaged where the rest is not
            signers = [one.public_key() for one in authorities if one.subject == issuer]
            signed = not signers or any(crl.is_signature_valid(key) for key in signers)  # type: ignore[arg-type]
        except UNREADABLE as error:
            raise ConfigError(f"{path}: holds a CRL that cannot be read or verified: {error}") from None
        if not signed:
            raise ConfigError(f"{path}: the CRL of {_named(crl.issuer)} is not signed by that authority")
        found.append(crl)
    return found


def validities(where: str, *, ca: Path | None, certificate: Path, crl: Path | None) -> list[Validity]:
    """Return the validity of each certificate and CRL of a role; ``where``: its table, as `peer.tls`.

    Raises:
        ConfigError: like `load_own` and `load_trust`.
    """
    own = certificates_in(certificate)
    trusted = certificates_in(ca) if ca is not None else []
    found = [_of_certificate(f"{where}.certificate", one, certificate) for one in own]
    found += [_of_certificate(f"{where}.ca", one, ca) for one in trusted if ca is not None]
    for one in crls_in(crl, trusted) if crl is not None else ():
        if one.next_update_utc is not None:
            begins = one.last_update_utc
            found.append(_validity("crl", f"{where}.crl", one.issuer, begins, one.next_update_utc))
    return found


def weakness(old: list[Validity], new: list[Validity], at: float) -> str | None:
    """Return why ``new`` must not replace ``old``: it is not valid, and ``old`` is. None: it may."""
    for one in new:
        same = [other for other in old if other.file == one.file]
        if not same or any(other.expired(at) or other.begins_at > at for other in same):
            continue
        if one.expired(at):
            return f"{one} has expired, and the one in use has not"
        if one.begins_at > at:
            return f"{one} is not valid yet, and the one in use is"
    anchors = {one.subject for one in new if one.file.endswith(".ca")}
    gone_anchors = {one.subject for one in old if one.file.endswith(".ca")} - anchors
    for other in old:
        issuers = {one.subject for one in new if one.file == other.file}
        if other.kind == "crl" and issuers and other.subject not in issuers | gone_anchors:
            return f"{other} is missing, and without it nobody of that authority would be let in"
    return None


def refuse_weaker(old: list[Validity], new: list[Validity]) -> None:
    """Raise ConfigError if ``new`` must not replace ``old`` now (`weakness`)."""
    if (because := weakness(old, new, time.time())) is not None:
        raise ConfigError(because)


def _of_certificate(file: str, one: x509.Certificate, path: Path) -> Validity:
    try:
        return _validity("certificate", file, one.subject, one.not_valid_before_utc, one.not_valid_after_utc)
    except UNREADABLE as error:
        raise ConfigError(f"{path}: holds a certificate that cannot be read: {error}") from None


def _validity(kind: Kind, file: str, name: x509.Name, begins: datetime, expires: datetime) -> Validity:
    return Validity(
        kind=kind,
        file=file,
        subject=_named(name),
        begins_at=begins.timestamp(),
        expires_at=expires.timestamp(),
    )


def _named(name: x509.Name) -> str:
    return name.rfc4514_string() or "(no name)"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _refuse_encrypted(key: Path) -> str:
    # Without this OpenSSL would ask on the terminal, and the daemon would hang.
    raise ConfigError(f"{key}: is encrypted: give it unencrypted, protected by the file's mode")
