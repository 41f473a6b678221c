"""A lab's authorities in one folder: of links, of key delivery, of the agents' lines, of operators.

The folder has `link-ca.pem`, `link-ca.key` and `link-ca.crl`, the same for `sae`, `agent` and `operator`, and
in `issued/` a copy of each certificate, so that a lost one can be revoked.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from qnode.errors import ConfigError
from qnode.pki.keys import (
    KeyKind,
    PrivateKey,
    PublicKey,
    key_pem,
    make_key,
    public_bytes,
    read_key,
    signature_hash,
)
from qnode.pki.roles import AUTHORITIES, CertificateRole, alternative_names, subject_of
from qnode.secret_files import PUBLIC_MODE, NewFile, write_files
from qnode.tls_files import certificates_in, crls_in

ISSUED: Final = "issued"
_CLOCKS_DIFFER: Final = timedelta(
    hours=1
)  # a machine whose clock is behind accepts a new certificate at once
_SERIAL_BITS_SHOWN: Final = 64


def make_authorities(
    folder: Path,
    lab: str,
    *,
    key_kind: KeyKind = "ec",
    days: float = 3650,
    crl_days: float = 90,
    passphrase: bytes | None = None,
    at: datetime | None = None,
) -> list["Authority"]:
    """Make all authorities of ``lab`` in ``folder``, with empty CRLs; ``at``: the present time.

    Raises:
        ConfigError: there are some already, or the folder cannot be written.
    """
    now = at or datetime.now(UTC)
    made, files = [], []
    for name in AUTHORITIES:
        key = make_key(key_kind)
        authority = new_authority(folder, lab, name, key, days=days, at=now)
        made.append(authority)
        files += [
            NewFile(authority.certificate_file, certificate_pem(authority.certificate), PUBLIC_MODE),
            NewFile(authority.key_file, key_pem(key, passphrase)),
            NewFile(authority.crl_file, authority.signed_crl(key, [], 1, crl_days, now), PUBLIC_MODE),
        ]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / ISSUED).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from None
    write_files(files)
    return made


def new_authority(
    folder: Path, lab: str, name: str, key: PrivateKey, *, days: float = 3650, at: datetime | None = None
) -> "Authority":
    """Return the authority ``name`` of ``lab`` with ``key``; nothing is written.

    Raises:
        ConfigError: a certificate cannot carry the name of the lab.
    """
    now, public = at or datetime.now(UTC), key.public_key()
    try:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{lab} {name} CA")])
    except ValueError as error:
        raise ConfigError(f"name of the lab {lab!r}: {error}") from None
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, signature_hash(key))
    )
    return Authority(folder, name, certificate)


def certificate_pem(*chain: x509.Certificate) -> bytes:
    """Return certificates in PEM, in this order."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain)


@dataclass(frozen=True)
class Authority:
    """One authority of a lab; ``name``: as in the names of its files."""

    folder: Path
    name: str
    certificate: x509.Certificate

    @classmethod
    def at(cls, folder: Path, name: str) -> "Authority":
        """Return the authority ``name`` of the lab in ``folder``; raises ConfigError."""
        return cls(folder, name, certificates_in(folder / f"{name}-ca.pem")[0])

    @property
    def certificate_file(self) -> Path:
        """The certificate, which those who trust this authority have."""
        return self.folder / f"{self.name}-ca.pem"

    @property
    def key_file(self) -> Path:
        """The private key, which never leaves this folder."""
        return self.folder / f"{self.name}-ca.key"

    @property
    def crl_file(self) -> Path:
        """The list of revoked certificates."""
        return self.folder / f"{self.name}-ca.crl"

    def private_key(self, ask_passphrase: Callable[[Path], bytes] | None = None) -> PrivateKey:
        """Read the private key; raises ConfigError like `read_key`."""
        return read_key(self.key_file, ask_passphrase)

    def issue(
        self,
        key: PrivateKey,
        role: CertificateRole,
        name: str,
        public: PublicKey,
        *,
        hosts: Sequence[str] = (),
        days: float = 365,
        at: datetime | None = None,
    ) -> x509.Certificate:
        """Return a new certificate for ``public``, which ends with the authority's at the latest.

        ``key``: of this authority. ``hosts``: more names of a server.

        Raises:
            ConfigError: a name cannot be carried, or this authority has expired.
        """
        assert role.authority == self.name, "each role has one authority"
        now = at or datetime.now(UTC)
        ends = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        if ends <= now:
            raise ConfigError(f"{self.certificate_file}: this authority has expired; make another one")
        subject = subject_of(name)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - _CLOCKS_DIFFER, self.certificate.not_valid_before_utc))
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(role.usages), critical=False)
            .add_extension(alternative_names(name, hosts), critical=not list(subject))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(_issuer_identifier(self.certificate), critical=False)
            .sign(key, signature_hash(key))
        )

    def copy_of(self, role: CertificateRole, name: str, certificate: x509.Certificate) -> NewFile:
        """Return the copy of an issued certificate that this folder keeps."""
        short = re.sub(r"[^A-Za-z0-9.-]", "_", name)[:80]
        serial = f"{certificate.serial_number:x}"[: _SERIAL_BITS_SHOWN // 4]
        path = self.folder / ISSUED / f"{role.name}-{short}-{serial}.pem"
        return NewFile(path, certificate_pem(certificate), PUBLIC_MODE)

    def has_issued(self, certificate: x509.Certificate) -> bool:
        """Return whether this authority has signed ``certificate``."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def renew_crl(
        self, key: PrivateKey, *revoked: x509.Certificate, days: float = 90, at: datetime | None = None
    ) -> None:
        """Sign the list anew for the next ``days``, with ``revoked`` in addition; write it whole.

        Raises:
            ConfigError: the present list cannot be used, or the new one cannot be written.
        """
        now = at or datetime.now(UTC)
        present = crls_in(self.crl_file, [self.certificate])[0]
        entries = {entry.serial_number: entry for entry in present}
        for one in revoked:
            entry = x509.RevokedCertificateBuilder(one.serial_number, now).build()
            entries.setdefault(one.serial_number, entry)
        number = present.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        content = self.signed_crl(key, list(entries.values()), number + 1, days, now)
        write_files([NewFile(self.crl_file, content, PUBLIC_MODE)], replace=True)

    def signed_crl(
        self,
        key: PrivateKey,
        entries: Sequence[x509.RevokedCertificate],
        number: int,
        days: float,
        now: datetime,
    ) -> bytes:
        """Return a list of revoked certificates in PEM."""
        builder = x509.CertificateRevocationListBuilder(
            self.certificate.subject, now - _CLOCKS_DIFFER, now + timedelta(days=days)
        )
        for entry in entries:
            builder = builder.add_revoked_certificate(entry)
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        builder = builder.add_extension(_issuer_identifier(self.certificate), critical=False)
        return builder.sign(key, signature_hash(key)).public_bytes(Encoding.PEM)


def of_same_key(folder: Path, certificate: x509.Certificate) -> list[x509.Certificate]:
    """Return ``certificate`` and every other one that the lab has issued for the same private key.

    Raises:
        ConfigError: a copy in the folder cannot be read.
    """
    copies = [one for path in sorted((folder / ISSUED).glob("*.pem")) for one in certificates_in(path)]
    same = public_bytes(certificate.public_key())
    return [certificate, *(one for one in copies if public_bytes(one.public_key()) == same)]


def issuer_in(folder: Path, certificate: x509.Certificate) -> Authority | None:
    """Return the authority in ``folder`` that has signed ``certificate``; None: none of them."""
    found = (Authority.at(folder, name) for name in AUTHORITIES)
    return next((authority for authority in found if authority.has_issued(certificate)), None)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
