"""`qnode setup`: a site's file, secrets, and certificates or requests for them, all or nothing."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qnode.choices import ROLES, Role, peer_of
from qnode.cli.preshared import fingerprint, new_preshared_key, read_preshared_key
from qnode.cli.printing import refusals_told, say
from qnode.cli.site_file import SiteAnswers, site_text
from qnode.errors import ConfigError
from qnode.secret_files import PUBLIC_MODE, STORE_KEY_BYTES, NewFile, write_files

if TYPE_CHECKING:
    from qnode.pki.roles import CertificateRole

_SECRETS = ("store", "preshared", "peer-tls", "etsi014-tls", "page-tls")


@click.command()
@click.argument("role", type=click.Choice(ROLES))
@click.option("--folder", default="/etc/qnode", type=click.Path(path_type=Path), help="Default: /etc/qnode.")
@click.option("--kme-id", help="Name of this site as a key manager.")
@click.option("--peer-kme-id", help="Name of the other site.")
@click.option("--link-name", help="Name of the link, the same at both sites.")
@click.option("--address", help="host:port where Alice listens for Bob, the same at both sites.")
@click.option("--listen", help="host:port where encryptors connect to this site.")
@click.option("--host", "hosts", multiple=True, help="Name or address that encryptors use; repeatable.")
@click.option("--metrics", default="127.0.0.1:9400", help="host:port of the metrics.")
@click.option(
    "--page", help="host:port of the operator's page, or unix:/PATH; beyond loopback with certificates."
)
@click.option("--sae", help="Name of the encryptor at this site.")
@click.option("--peer-sae", help="Name of the encryptor at the other site.")
@click.option("--device", "devices", multiple=True, help="NAME=DRIVER; without any: simulated devices.")
@click.option("--fibre", default="tcp://127.0.0.1:7401", help="Address of the simulated fibre, at Alice.")
@click.option("--fibre-peer", help="At Alice: where Bob's end of the simulated fibre connects from.")
@click.option(
    "--preshared-key",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The file that the other site has made; without it this site makes one.",
)
@click.option(
    "--lab",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Authorities of qnodectl pki init on this machine; without it signing requests are made.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Without systemd: folder of store and socket.",
)
def setup(role: Role, folder: Path, hosts: tuple[str, ...], devices: tuple[str, ...], **given: Any) -> int:
    """Make the file, the secrets and the certificates of one site, and say how to start it.

    It asks for what is not given, on a terminal. A site that is there stays as it is.
    """
    with refusals_told():
        folder = folder.absolute()
        present = [path for path in _files_of(role, folder) if os.path.lexists(path)]
        if present:
            raise ConfigError(
                f"{', '.join(map(str, present))}: {role} is set up there already, and nothing was changed; "
                "move the files away to set it up anew"
            )
        answers = _answers(role, folder, devices, given)
        files, then = _files(answers, hosts or (_host(answers.listen),), given["preshared_key"], given["lab"])
        with _new_folders([folder, folder / "tls"], [folder / role, *_state_folders(answers)]):
            write_files(files)
        for line in then:
            say(line)
    return 0


def _answers(role: Role, folder: Path, devices: tuple[str, ...], given: dict[str, Any]) -> SiteAnswers:
    peer = peer_of(role)

    def ask(option: str, question: str, default: str) -> str:
        value = given[option]
        return str(click.prompt(question, default=default, err=True) if value is None else value)

    state = given["state"]
    return SiteAnswers(
        role=role,
        folder=folder,
        kme_id=ask("kme_id", "Name of this site (KME)", f"kme-{role}"),
        peer_kme_id=ask("peer_kme_id", "Name of the other site", f"kme-{peer}"),
        link=ask("link_name", "Name of the link, the same at both sites", "link-1"),
        address=ask(
            "address", "Address where Alice listens for Bob, the same at both sites", "127.0.0.1:7400"
        ),
        listen=ask("listen", "Address where encryptors connect to this site", "0.0.0.0:8443"),
        sae_id=ask("sae", "Name of the encryptor at this site", f"encryptor-{role}"),
        peer_sae_id=ask("peer_sae", "Name of the encryptor at the other site", f"encryptor-{peer}"),
        metrics=given["metrics"],
        fibre=given["fibre"],
        fibre_peer=given["fibre_peer"],
        devices=dict(_device(one) for one in devices),
        page=given["page"],
        revocation=given["lab"] is not None,
        state=None if state is None else state.absolute(),
    )


def _device(given: str) -> tuple[str, str]:
    from qnode.devices.registry import known_drivers

    name, _, driver = given.partition("=")
    if not name or driver not in known_drivers():
        known = ", ".join(sorted(known_drivers()))
        raise ConfigError(f"--device {given}: expected NAME=DRIVER (drivers: {known})")
    return name, driver


def _files_of(role: Role, folder: Path) -> list[Path]:
    """Return what a site consists of, but for what both sites may share."""
    secret = [folder / role / f"{name}.key" for name in _SECRETS]
    return [
        folder / f"{role}.toml",
        *secret,
        folder / "tls" / f"link-{role}.pem",
        *(folder / "tls" / f"{name}-{role}.pem" for name in ("kme", "page")),
    ]


def _files(
    answers: SiteAnswers, hosts: tuple[str, ...], carried: Path | None, lab: Path | None
) -> tuple[list[NewFile], list[str]]:
    """Return the files of a site, and what its operator does then."""
    from qnode.config import links_of
    from qnode.config.reading import tables_in
    from qnode.node.reload import check_addresses
    from qnode.pki.keys import key_pem, make_key
    from qnode.pki.request import make_request
    from qnode.pki.roles import ROLES as CERTIFICATE_ROLES

    role, folder = answers.role, answers.folder
    own, tls, site_file = folder / role, folder / "tls", folder / f"{role}.toml"
    text = site_text(answers)
    for config in links_of(tables_in(text, str(site_file)), site_file):  # refuses wrong answers
        check_addresses(config)
    preshared = new_preshared_key() if carried is None else read_preshared_key(carried)
    files = [
        NewFile(site_file, text.encode(), PUBLIC_MODE),
        NewFile(own / "store.key", secrets.token_bytes(STORE_KEY_BYTES)),
        NewFile(own / "preshared.key", preshared),
    ]
    certificates: list[tuple[CertificateRole, str, str, tuple[str, ...]]] = [
        (CERTIFICATE_ROLES["node"], "peer-tls", f"link-{role}", ()),
        (CERTIFICATE_ROLES["kme"], "etsi014-tls", f"kme-{role}", hosts),
    ]
    if answers.page_is_public:
        certificates.append((CERTIFICATE_ROLES["page"], "page-tls", f"page-{role}", hosts))
    wanted = []
    for kind, key_name, name, more in certificates:
        key = make_key("ec")
        files.append(NewFile(own / f"{key_name}.key", key_pem(key)))
        ca = tls / f"{kind.authority}-ca.pem"
        if lab is None:
            request = tls / f"{name}.csr"
            files.append(NewFile(request, make_request(key, kind, answers.kme_id, more), PUBLIC_MODE))
            listed = "".join(f" --host {host}" for host in more)
            wanted += [
                f"Have {request} signed: your authority, or qnodectl pki sign {kind.name} {answers.kme_id} "
                f"{request.name}{listed}; put the authority's certificate at {ca}, then",
                f"  qnodectl pki install {kind.name} {answers.kme_id} ANSWER.pem --key-file "
                f"{own / f'{key_name}.key'} --ca {ca} --to {tls / f'{name}.pem'}",
            ]
        else:
            files += _issued(lab, kind, answers.kme_id, key.public_key(), more, tls / f"{name}.pem")
            files += _of_authority(lab, ca)
            files += _of_authority(lab, ca.with_suffix(".crl"))
    return files, [
        *_next_steps(answers, fingerprint(preshared), made=carried is None),
        *wanted,
        *_last_steps(answers),
    ]


def _of_authority(lab: Path, path: Path) -> list[NewFile]:
    """Return a file of the lab for ``path``, unless the other site on this machine has put it there."""
    try:
        content = (lab / path.name).read_bytes()
    except OSError as error:
        raise ConfigError(f"{lab / path.name}: {error.strerror}; make it with qnodectl pki init") from None
    if not path.exists():
        return [NewFile(path, content, PUBLIC_MODE)]
    if path.read_bytes() != content:
        raise ConfigError(f"{path}: is there already, and not the lab's; nothing was changed")
    return []


def _issued(
    lab: Path, kind: "CertificateRole", name: str, public: Any, hosts: tuple[str, ...], path: Path
) -> list[NewFile]:
    from qnode.cli.pki import issued
    from qnode.pki.authority import certificate_pem

    certificate, copy = issued(lab, kind.name, name, public, hosts, 365)
    return [NewFile(path, certificate_pem(certificate), PUBLIC_MODE), copy]


def _next_steps(answers: SiteAnswers, shown: str, *, made: bool) -> Iterator[str]:
    role, key = answers.role, answers.folder / answers.role / "preshared.key"
    yield f"{answers.folder / f'{role}.toml'}: the site's file"
    yield f"{key}: fingerprint {shown}"
    if made:
        peer = peer_of(role)
        yield f"Carry a copy of {key} to the other site by hand: qnode setup {peer} --preshared-key COPY ..."
    yield "Read the fingerprint to the operator of the other site. If it differs there, start neither site"


def _last_steps(answers: SiteAnswers) -> Iterator[str]:
    site_file = answers.folder / f"{answers.role}.toml"
    yield f"qnode check {site_file}"
    if answers.state is None:
        yield f"systemctl enable --now qnode@{answers.role}"
    else:
        yield f"qnode run --config {site_file}"
    yield (
        "When qnodectl status shows the peer: qnodectl preshared wipe "
        f"{answers.folder / answers.role / 'preshared.key'}, and the copy that was carried"
    )


def _host(listen: str) -> str:
    """Return the host of an address if encryptors can use it."""
    host = listen.rpartition(":")[0].strip("[]")
    return "localhost" if host in ("", "0.0.0.0", "::") else host  # noqa: S104


def _state_folders(answers: SiteAnswers) -> tuple[Path, ...]:
    if answers.state is None:
        return ()
    return answers.state / answers.role, answers.state / f"{answers.role}-anchor"


@contextmanager
def _new_folders(public: Sequence[Path], private: Sequence[Path]) -> Iterator[None]:
    """Make missing folders; after an error or an interrupt those are gone again."""
    made: list[Path] = []
    try:
        for folder in (*public, *private):
            for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
                made.append(missing)
                missing.mkdir(mode=0o700)
                missing.chmod(0o700 if missing in private else 0o755)
        yield
    except BaseException as error:  # also an interrupt leaves nothing half done
        for folder in reversed(made):
            if folder.is_dir():
                folder.rmdir()
        if isinstance(error, OSError):
            raise ConfigError(f"{error.filename}: {error.strerror}") from None
        raise
