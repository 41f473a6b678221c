"""What is wrong with a certificate, private key, request or revocation list: one line for each fault."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from qnode.errors import ConfigError
from qnode.pki.keys import describe_key, key_weakness, public_bytes, read_key
from qnode.pki.request import read_request
from qnode.pki.roles import USAGE_NAMES, CertificateRole
from qnode.tls import UNREADABLE, certificate_names
from qnode.tls_files import certificates_in, crls_in

_WEAK_HASHES = ("md5", "sha1")
_LONGEST_CHAIN = 8
_ANY_USAGE = x509.oid.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE


@dataclass(frozen=True)
class Expected:
    """What a certificate should be; what is not given is not looked at.

    ``anchors``: the certificates of the trusted authorities. ``crls``: their lists. ``key``: the public part
    of the private key beside it, in DER.
    """

    role: CertificateRole | None = None
    name: str | None = None
    anchors: Sequence[x509.Certificate] = ()
    crls: Sequence[x509.CertificateRevocationList] = ()
    key: bytes | None = None


@dataclass
class Inspected:
    """A file, what it holds, in words, and what is wrong with it."""

    path: Path
    holds: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def certificate_faults(chain: Sequence[x509.Certificate], expected: Expected, at: datetime) -> list[str]:
    """Return what is wrong with ``chain``, own certificate first, at the time ``at``."""
    try:
        own = chain[0]
        found = [*_validity_faults(own, at), *_role_faults(own, expected.role)]
        found += _name_faults(own, expected.name)
        weak = key_weakness(own.public_key())
        if weak is not None:
            found.append(f"weak: {weak}")
        if expected.key is not None and expected.key != public_bytes(own.public_key()):
            found.append("key does not belong: the private key is another certificate's")
        if expected.anchors:
            found += _chain_faults(chain, expected.anchors, at)
        for crl in expected.crls:
            if crl.issuer == own.issuer and crl.get_revoked_certificate_by_serial_number(own.serial_number):
                found.append("revoked")
    except UNREADABLE as error:
        return [f"cannot be read: {error}"]
    return found


def inspect_file(path: Path, expected: Expected, at: datetime | None = None) -> Inspected:
    """Return what the file at ``path`` holds, and what is wrong with it; ``at``: the present time."""
    now = at or datetime.now(UTC)
    result = Inspected(path)
    try:
        content = path.read_bytes()
        if b"PRIVATE KEY-----" in content and b"-----BEGIN CERTIFICATE-----" not in content:
            _inspect_key(result, expected)
        elif b"CERTIFICATE REQUEST-----" in content:
            public, names = read_request(path)
            listed = ", ".join(sorted(str(name.value) for name in names)) or "nobody"
            result.holds.append(f"signing request for {listed}, {describe_key(public)}")
        elif b"X509 CRL-----" in content:
            _inspect_crls(result, expected, now)
        else:
            _inspect_certificates(result, expected, now)
    except OSError as error:
        result.faults.append(f"cannot be read: {error.strerror}")
    except ConfigError as error:
        result.faults.append(str(error).removeprefix(f"{path}: "))
    return result


def describe_certificate(one: x509.Certificate) -> str:
    """Return the names, usages, kind of key, issuer and validity of a certificate, for people."""
    try:
        authority = _is_authority(one)
        names = ", ".join(certificate_names(one.public_bytes(Encoding.DER))) or "nobody"
        usages = " and ".join(USAGE_NAMES.get(usage, usage.dotted_string) for usage in _usages(one) or ())
        kind = "authority" if authority else usages or "any use"
        return (
            f"certificate of {names} ({kind}, {describe_key(one.public_key())}), issued by "
            f"{one.issuer.rfc4514_string() or '(no name)'}, {_date(one.not_valid_before_utc)} to "
            f"{_date(one.not_valid_after_utc)}, serial {one.serial_number:x}"
        )
    except UNREADABLE as error:
        return f"certificate that cannot be read: {error}"


def _inspect_certificates(result: Inspected, expected: Expected, now: datetime) -> None:
    chain = certificates_in(result.path)
    result.holds += [describe_certificate(one) for one in chain]
    if expected.role is None and _is_authority(chain[0]):  # trusted authorities: each stands for itself
        for one in chain:
            result.faults += _validity_faults(one, now)
    else:
        result.faults += certificate_faults(chain, expected, now)


def _inspect_key(result: Inspected, expected: Expected) -> None:
    key = read_key(result.path)
    result.holds.append(f"private key, {describe_key(key.public_key())}")
    weak = key_weakness(key.public_key())
    if weak is not None:
        result.faults.append(f"weak: {weak}")
    if expected.key is not None and expected.key != public_bytes(key):
        result.faults.append("key does not belong: the certificate is another key's")


def _inspect_crls(result: Inspected, expected: Expected, now: datetime) -> None:
    for crl in crls_in(result.path, expected.anchors):
        ends = crl.next_update_utc
        until = "for ever" if ends is None else f"until {_date(ends)}"
        issuer = crl.issuer.rfc4514_string() or "(no name)"
        result.holds.append(f"CRL of {issuer}, {len(crl)} revoked, {until}")
        if ends is not None and ends <= now:
            result.faults.append(f"expired on {_date(ends)}: fetch the next one")
        if crl.last_update_utc > now:
            result.faults.append(f"not yet valid before {_date(crl.last_update_utc)}: look at this clock")


def _validity_faults(one: x509.Certificate, at: datetime) -> Iterator[str]:
    if one.not_valid_after_utc <= at:
        yield f"expired on {_date(one.not_valid_after_utc)}: renew it"
    if one.not_valid_before_utc > at:
        yield f"not yet valid before {_date(one.not_valid_before_utc)}: look at this machine's clock"


def _role_faults(own: x509.Certificate, role: CertificateRole | None) -> Iterator[str]:
    if role is None:
        return
    if _is_authority(own):
        yield f"wrong role: it is an authority's, expected that of {role.meaning}"
        return
    usages = _usages(own)
    if usages is None or _ANY_USAGE in usages:
        return  # without the extension any use is allowed
    missing = [USAGE_NAMES[usage] for usage in role.usages if usage not in usages]
    if missing:
        has = " and ".join(USAGE_NAMES.get(usage, usage.dotted_string) for usage in usages)
        yield f"wrong role: {role.meaning} needs use as {' and '.join(missing)}, this is for {has}"


def _name_faults(own: x509.Certificate, name: str | None) -> Iterator[str]:
    if name is None:
        return
    names = certificate_names(own.public_bytes(Encoding.DER))
    if name not in names:
        yield f"name missing: expected {name}, it names {', '.join(names) or 'nobody'}"


def _chain_faults(
    chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], at: datetime
) -> Iterator[str]:
    """Follow the chain from the own certificate to an anchor."""
    present = chain[0]
    for _ in range(_LONGEST_CHAIN):
        if present.signature_hash_algorithm is not None and (
            present.signature_hash_algorithm.name in _WEAK_HASHES
        ):
            yield f"weak: signed with {present.signature_hash_algorithm.name}"
        if present in anchors:
            return
        issuer = next((one for one in (*anchors, *chain[1:]) if _signed(present, one)), None)
        if issuer is None:
            wanted = present.issuer.rfc4514_string() or "(no name)"
            yield f"chain broken: the certificate of its issuer, {wanted}, is neither in the file nor trusted"
            return
        if not _is_authority(issuer):
            yield f"chain broken: {issuer.subject.rfc4514_string()} is no authority, yet has signed"
            return
        yield from (
            f"chain broken: {issuer.subject.rfc4514_string()}: {fault}"
            for fault in _validity_faults(issuer, at)
        )
        present = issuer
    yield f"chain broken: longer than {_LONGEST_CHAIN} certificates"


def _signed(one: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        one.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True


def _is_authority(one: x509.Certificate) -> bool:
    try:
        return one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _usages(one: x509.Certificate) -> list[x509.ObjectIdentifier] | None:
    try:
        return list(one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return None


def _date(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
