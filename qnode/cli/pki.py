"""`qnodectl pki`: a lab's certificates, requests to other authorities, and what is wrong with a file."""

import functools
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qnode.cli.printing import refusals_told, say
from qnode.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509

    from qnode.pki.keys import KeyKind
    from qnode.pki.roles import RoleName

ROLE_NAMES = ("node", "kme", "sae", "agent", "page", "operator")
KEY_NAMES = ("ec", "rsa", "ed25519")
_FILE = click.Path(path_type=Path, dir_okay=False)
_lab = click.option(
    "--lab",
    default="qnode-pki",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the lab's authorities (default: qnode-pki, here).",
)
_hosts = click.option("--host", "hosts", multiple=True, help="Name or address of a kme or page; repeatable.")
_days = click.option(
    "--days", default=365.0, type=click.FloatRange(min=0.001), help="Validity (default: 365)."
)
_kind = click.option(
    "--key", "kind", default="ec", type=click.Choice(KEY_NAMES), help="Kind of key (default: ec)."
)
_force = click.option("--force", is_flag=True, help="Overwrite key and certificate that are there already.")
_role = click.argument("role", type=click.Choice(ROLE_NAMES))


@click.group()
def pki() -> None:
    """Make, renew, revoke and check certificates of nodes, encryptors, agents and operators.

    Roles: node (its link), kme (its key delivery), sae (an encryptor), agent (its line), page (of a node),
    operator (who looks at the page).
    """


def _explained(command: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(command)
    def explained(*arguments: Any, **named: Any) -> int:
        with refusals_told():
            return command(*arguments, **named)

    return explained


@pki.command()
@click.argument("name")
@_lab
@_kind
@click.option("--days", default=3650.0, type=click.FloatRange(min=1), help="Validity (default: 3650).")
@click.option("--crl-days", default=90.0, type=click.FloatRange(min=0.01), help="Validity of the CRLs.")
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase that encrypts the authorities' keys.")
@_explained
def init(name: str, lab: Path, kind: "KeyKind", days: float, crl_days: float, passphrase: bool) -> int:
    """Make the authorities of the lab NAME: of links, key delivery, the agents' lines, and operators."""
    from qnode.pki.authority import make_authorities

    secret = None
    if passphrase:
        secret = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True).encode()
    for one in make_authorities(lab, name, key_kind=kind, days=days, crl_days=crl_days, passphrase=secret):
        say(f"{one.certificate_file}, {one.crl_file.name}: for whoever trusts it; {one.key_file.name} stays")
    return 0


@pki.command()
@_role
@click.argument("name")
@_lab
@_hosts
@_kind
@_days
@click.option("--out", type=click.Path(path_type=Path), help="Where to: OUT.pem and OUT.key (default: NAME).")
@_force
@_explained
def issue(
    role: "RoleName",
    name: str,
    lab: Path,
    hosts: tuple[str, ...],
    kind: "KeyKind",
    days: float,
    out: Path | None,
    force: bool,
) -> int:
    """Make a private key and the lab's certificate for NAME (kme_id, sae_id, agent's or operator's name)."""
    from qnode.pki.authority import certificate_pem
    from qnode.pki.keys import key_pem, make_key
    from qnode.secret_files import PUBLIC_MODE, NewFile, write_files

    stem = out or Path(_file_stem(name))
    key = make_key(kind)
    certificate, copy = issued(lab, role, name, key.public_key(), hosts, days)
    paths = stem.with_name(stem.name + ".pem"), stem.with_name(stem.name + ".key")
    if force:  # the copy is new in any case
        write_files([copy])
    write_files(
        [
            NewFile(paths[0], certificate_pem(certificate), PUBLIC_MODE),
            NewFile(paths[1], key_pem(key)),
            *([] if force else [copy]),
        ],
        replace=force,
        remedy=" without --force",
    )
    _tell(paths[0], certificate)
    say(f"{paths[1]}: private key, only for its owner")
    return 0


@pki.command()
@_role
@click.argument("name")
@_hosts
@_kind
@click.option("--out", type=click.Path(path_type=Path), help="Where to: OUT.csr and OUT.key (default: NAME).")
@click.option("--key-file", type=_FILE, help="The private key (default: OUT.key); used if it is there.")
@_explained
def request(
    role: "RoleName",
    name: str,
    hosts: tuple[str, ...],
    kind: "KeyKind",
    out: Path | None,
    key_file: Path | None,
) -> int:
    """Make a signing request for NAME, and its private key unless there is one.

    Send the request to an authority, then `qnodectl pki install` what comes back.
    """
    from qnode.pki.keys import key_pem, make_key, read_key
    from qnode.pki.request import make_request
    from qnode.pki.roles import ROLES
    from qnode.secret_files import PUBLIC_MODE, NewFile, write_files

    stem = out or Path(_file_stem(name))
    key_path = key_file or stem.with_name(stem.name + ".key")
    known = key_path.exists()
    key = read_key(key_path) if known else make_key(kind)
    target = stem.with_name(stem.name + ".csr")
    content = make_request(key, ROLES[role], name, hosts)
    if not known:
        write_files([NewFile(key_path, key_pem(key))])
    write_files([NewFile(target, content, PUBLIC_MODE)], replace=True)
    say(f"{key_path}: {'the key that was there' if known else 'a new key'}, which stays here")
    say(f"{target}: send it to the authority (a lab's: qnodectl pki sign {role} {name} {target.name})")
    return 0


@pki.command()
@_role
@click.argument("name")
@click.argument("request_file", metavar="REQUEST", type=_FILE)
@_lab
@_hosts
@_days
@click.option("--out", type=_FILE, help="The certificate (default: REQUEST with .pem).")
@_explained
def sign(
    role: "RoleName",
    name: str,
    request_file: Path,
    lab: Path,
    hosts: tuple[str, ...],
    days: float,
    out: Path | None,
) -> int:
    """Sign a REQUEST for NAME with the lab's authority; it must not ask for any other name.

    First make sure, by voice, that it comes from NAME.
    """
    from qnode.pki.authority import certificate_pem
    from qnode.pki.request import read_request
    from qnode.pki.roles import alternative_names
    from qnode.secret_files import PUBLIC_MODE, NewFile, write_files

    public, asked = read_request(request_file)
    more = sorted(str(one.value) for one in asked - frozenset(alternative_names(name, hosts)))
    if more:
        raise ConfigError(
            f"{request_file}: also asks for {', '.join(more)}; name what is right with --host, or refuse it"
        )
    certificate, copy = issued(lab, role, name, public, hosts, days)
    target = out or request_file.with_suffix(".pem")
    write_files([NewFile(target, certificate_pem(certificate), PUBLIC_MODE), copy])
    _tell(target, certificate)
    return 0


@pki.command()
@_role
@click.argument("name")
@click.argument("certificate_file", metavar="CERTIFICATE", type=_FILE)
@click.option("--key-file", required=True, type=_FILE, help="Its private key, as `request` made it.")
@click.option(
    "--ca", required=True, type=_FILE, help="Certificates of the authorities that are to be trusted."
)
@click.option("--to", "target", required=True, type=_FILE, help="Where the site's file expects it.")
@_explained
def install(
    role: "RoleName", name: str, certificate_file: Path, key_file: Path, ca: Path, target: Path
) -> int:
    """Put a CERTIFICATE with its chain where the site's file expects it, if nothing is wrong with it.

    An earlier one is replaced at once. Then reload the service.
    """
    from qnode.pki.authority import certificate_pem
    from qnode.pki.inspection import Expected, certificate_faults
    from qnode.pki.keys import public_bytes, read_key
    from qnode.pki.roles import ROLES
    from qnode.secret_files import PUBLIC_MODE, NewFile, write_files
    from qnode.tls_files import certificates_in

    chain = certificates_in(certificate_file)
    expected = Expected(
        role=ROLES[role],
        name=name,
        anchors=certificates_in(ca),
        key=public_bytes(read_key(key_file)),
    )
    for fault in certificate_faults(chain, expected, datetime.now(UTC)):
        raise ConfigError(f"{certificate_file}: {fault}")
    content = certificate_pem(*chain)
    write_files([NewFile(target, content, PUBLIC_MODE)], replace=True)
    _tell(target, chain[0])
    return 0


@pki.command()
@click.argument("certificate_file", metavar="CERTIFICATE", type=_FILE)
@_lab
@_days
@click.option("--out", type=_FILE, help="The new certificate (default: in place of the old one).")
@_explained
def renew(certificate_file: Path, lab: Path, days: float, out: Path | None) -> int:
    """Make a new certificate of the lab with key, names and role of CERTIFICATE.

    The private key stays, so that a reload applies it. For a new key as well: `issue --force`.
    """
    from cryptography import x509

    from qnode.pki.authority import certificate_pem, issuer_in
    from qnode.pki.keys import PublicKey
    from qnode.pki.roles import ROLES
    from qnode.secret_files import PUBLIC_MODE, NewFile, write_files
    from qnode.tls_files import certificates_in, crls_in

    old = certificates_in(certificate_file)[0]
    authority = issuer_in(lab, old)
    if authority is None:
        raise ConfigError(f"{certificate_file}: no authority in {lab} has signed it; use request and install")
    revoked = crls_in(authority.crl_file, [authority.certificate])[0]
    if revoked.get_revoked_certificate_by_serial_number(old.serial_number) is not None:
        raise ConfigError(f"{certificate_file}: is revoked; issue another one with a new key")
    usages = frozenset(old.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    role = next(
        one for one in ROLES.values() if one.authority == authority.name and frozenset(one.usages) == usages
    )
    names = [
        str(one.value) for one in old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    ]
    public = old.public_key()
    assert isinstance(public, PublicKey), "the lab signs no others"
    certificate, copy = issued(lab, role.name, names[0], public, tuple(names[1:]), days)
    target = out or certificate_file
    write_files([copy])
    write_files([NewFile(target, certificate_pem(certificate), PUBLIC_MODE)], replace=True)
    _tell(target, certificate)
    return 0


@pki.command()
@click.argument("certificate_file", metavar="CERTIFICATE", type=_FILE)
@click.argument("key_file", metavar="KEY", type=_FILE)
@click.option("--out", type=_FILE, help="The file for the browser (default: CERTIFICATE with .p12).")
@_explained
def browser(certificate_file: Path, key_file: Path, out: Path | None) -> int:
    """Pack CERTIFICATE and its private KEY for import into a browser (PKCS#12).

    It asks for a passphrase, which the browser asks for once.
    """
    from qnode.pki.keys import packed_for_browser, public_bytes, read_key
    from qnode.secret_files import NewFile, write_files
    from qnode.tls_files import certificates_in

    own, *chain = certificates_in(certificate_file)
    key = read_key(key_file)
    if public_bytes(key) != public_bytes(own.public_key()):
        raise ConfigError(f"{certificate_file}: does not belong to the key {key_file}")
    secret = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True).encode()
    target = out or certificate_file.with_suffix(".p12")
    write_files([NewFile(target, packed_for_browser(certificate_file.stem, key, own, chain, secret))])
    say(f"{target}: import it into the browser, then delete it")
    return 0


@pki.command()
@click.argument("certificate_file", metavar="CERTIFICATE", type=_FILE)
@_lab
@click.option(
    "--days", default=90.0, type=click.FloatRange(min=0.01), help="Validity of the CRL (default: 90)."
)
@_explained
def revoke(certificate_file: Path, lab: Path, days: float) -> int:
    """Revoke CERTIFICATE, and every other one for the same private key.

    Of a lost one there is a copy in LAB/issued.
    """
    from qnode.pki.authority import issuer_in, of_same_key
    from qnode.tls_files import certificates_in

    certificate = certificates_in(certificate_file)[0]
    authority = issuer_in(lab, certificate)
    if authority is None:
        raise ConfigError(f"{certificate_file}: no authority in {lab} has signed it")
    same = of_same_key(lab, certificate)
    authority.renew_crl(authority.private_key(_ask_passphrase), *same, days=days)
    say(f"{authority.crl_file}: copy it to every site that names it as crl, and reload there")
    return 0


@pki.command()
@_lab
@click.option("--days", default=90.0, type=click.FloatRange(min=0.01), help="Validity (default: 90).")
@_explained
def crl(lab: Path, days: float) -> int:
    """Sign the revocation lists of all authorities anew, before the present ones expire."""
    from qnode.pki.authority import Authority
    from qnode.pki.roles import AUTHORITIES

    for name in AUTHORITIES:
        authority = Authority.at(lab, name)
        authority.renew_crl(authority.private_key(_ask_passphrase), days=days)
        say(f"{authority.crl_file}: copy it to every site that names it as crl, and reload there")
    return 0


@pki.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=_FILE)
@click.option("--role", type=click.Choice(ROLE_NAMES), help="The certificate must be of this role.")
@click.option("--name", help="The certificate must carry this name.")
@click.option("--ca", type=_FILE, help="The certificate must come from these authorities.")
@click.option("--crl", "crl_file", type=_FILE, help="The certificate must not be on this list.")
@_explained
def check(
    files: tuple[Path, ...], role: "RoleName | None", name: str | None, ca: Path | None, crl_file: Path | None
) -> int:
    """Say in one line what is wrong with each FILE: certificates, keys, requests, CRLs.

    With a certificate and a private key, in this order or the other, also whether they belong together.
    Exit 0: nothing is wrong. 1: something is.
    """
    from qnode.pki.inspection import Expected, inspect_file
    from qnode.pki.roles import ROLES
    from qnode.tls_files import certificates_in, crls_in

    anchors = certificates_in(ca) if ca is not None else []
    expected = Expected(
        role=ROLES[role] if role is not None else None,
        name=name,
        anchors=anchors,
        crls=crls_in(crl_file, anchors) if crl_file is not None else (),
        key=_public_of_key_among(files),
    )
    wrong = 0
    for path in files:
        found = inspect_file(path, expected)
        wrong += bool(found.faults)
        say(f"{path}: {'; '.join(found.faults) or 'ok: ' + '; '.join(found.holds)}")
    return 1 if wrong else 0


@pki.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=_FILE)
@_explained
def show(files: tuple[Path, ...]) -> int:
    """Show what each FILE holds; no secret is shown. Exit 1: something is wrong."""
    from qnode.pki.inspection import Expected, inspect_file

    wrong = 0
    for path in files:
        found = inspect_file(path, Expected())
        wrong += bool(found.faults)
        for line in (*found.holds, *(f"fault: {fault}" for fault in found.faults)):
            say(f"{path}: {line}")
    return 1 if wrong else 0


def issued(
    lab: Path, role: "RoleName", name: str, public: Any, hosts: tuple[str, ...], days: float
) -> "tuple[x509.Certificate, Any]":
    """Return a new certificate of the lab, and the copy that it keeps; raises ConfigError."""
    from qnode.pki.authority import Authority
    from qnode.pki.roles import ROLES

    kind = ROLES[role]
    if hosts and not kind.has_hosts:
        raise ConfigError(f"--host: only a kme and a page have hosts; a {kind.name}'s only name is its own")
    authority = Authority.at(lab, kind.authority)
    key = authority.private_key(_ask_passphrase)
    certificate = authority.issue(key, kind, name, public, hosts=hosts, days=days)
    return certificate, authority.copy_of(kind, name, certificate)


def _public_of_key_among(files: tuple[Path, ...]) -> bytes | None:
    """Return the public part of the only private key among ``files``; None without one."""
    from qnode.pki.keys import public_bytes, read_key

    keys = []
    for path in files:
        try:
            keys.append(public_bytes(read_key(path)))
        except ConfigError:
            continue
    return keys[0] if len(keys) == 1 else None


def _ask_passphrase(path: Path) -> bytes:
    answer: str = click.prompt(f"Passphrase of {path}", hide_input=True, err=True)
    return answer.encode()


def _file_stem(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", name)[:80].lstrip(".") or "certificate"


def _tell(path: Path, certificate: "x509.Certificate") -> None:
    from qnode.pki.inspection import describe_certificate

    say(f"{path}: {describe_certificate(certificate)}")
