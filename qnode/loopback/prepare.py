"""Everything two sites need before they start, made in one folder: certificates, secrets, site files.

What exists already is kept, so that a second run continues with the same keys and identities.
"""

import os
import secrets
import socket
from pathlib import Path
from typing import Any

import msgspec
import tomli_w
import trustme
from msgspec import Struct

from qnode.choices import ROLES, Role, peer_of
from qnode.config import LinkParameters, check_link_parameters, convert, tables
from qnode.loopback.data_dir import make_private
from qnode.simulate.parameters import SimulationParameters

PRESHARED_KEY_BYTES = 64 + 16 * 1024  # session root, two hash keys, 512 one-time pads a direction


class LoopbackConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The file of `qnode loopback`: what both sites share, and the simulated world."""

    link: LinkParameters = LinkParameters()
    simulation: SimulationParameters = SimulationParameters()

    def __post_init__(self) -> None:
        check_link_parameters(self.link)


class SiteEndpoints(Struct, frozen=True):
    """Where one site answers."""

    kme_id: str
    url: str
    control_socket: str
    metrics_url: str


class SaeEndpoint(Struct, frozen=True):
    """One encryptor that may ask, with its client certificate."""

    sae_id: str
    kme: str
    peer_sae_id: str
    cert: str
    key: str
    demo: bool


class Endpoints(Struct, frozen=True):
    """`endpoints.json`: how anybody's client reaches the two sites."""

    version: int
    ca: str
    sites: dict[str, SiteEndpoints]
    saes: list[SaeEndpoint]

    def saes_of(self, *, demo: bool) -> tuple[SaeEndpoint, SaeEndpoint]:
        """Return the pair at (Alice, Bob) that is, or is not, loopback's own."""
        pair = [sae for sae in self.saes if sae.demo == demo]
        pair.sort(key=lambda sae: sae.kme != self.sites["alice"].kme_id)
        return pair[0], pair[1]


class LongLine(Struct, frozen=True):
    """A relay between the sites: Bob connects to ``bob_port``, Alice listens on ``alice_port``."""

    bob_port: int
    alice_port: int
    round_trip_s: float


class Prepared(Struct, frozen=True):
    """The folder, ready to run; ``line`` when the classical channel is to be longer than this machine."""

    directory: Path
    site_files: dict[Role, Path]
    endpoints: Endpoints
    line: LongLine | None = None


class Played(Struct, frozen=True):
    """A recording in place of simulated hardware."""

    recording: Path
    loop: bool


_SAES = {
    "alice": (("demo-alice", True), ("sae-alice", False)),
    "bob": (("demo-bob", True), ("sae-bob", False)),
}


class Staging(Struct, frozen=True):
    """How a loopback link is run.

    ``speed``: tag seconds a wall second; None is as fast as possible. ``round_trip_s`` is added to the
    classical channel's. ``played``: what the devices play, instead of simulating. ``most_chunks``: how much
    key a site may hold, if not as shipped.
    """

    speed: float | None = None
    round_trip_s: float = 0.0
    played: Played | None = None
    most_chunks: int | None = None


def prepare(directory: Path, config: LoopbackConfig, staging: Staging) -> Prepared:
    """Make or complete ``directory``, of which the caller has the sole use (`qnode.loopback.data_dir`).

    Raises:
        ConfigError: it cannot be used.
    """
    directory = directory.resolve()
    make_private(directory)
    (directory / "endpoints.json").unlink(missing_ok=True)  # of an earlier run, with other ports
    ports = _free_ports(6)
    addresses = {"alice": ports[1], "bob": ports[2]}
    line = LongLine(ports[5], ports[0], staging.round_trip_s) if staging.round_trip_s else None
    peer_ports = {"alice": ports[0], "bob": line.bob_port if line else ports[0]}
    metrics = {"alice": ports[3], "bob": ports[4]}
    _make_certificates(directory)
    _write_once(directory / "preshared.key", lambda: secrets.token_bytes(PRESHARED_KEY_BYTES))
    site_files: dict[Role, Path] = {}
    for role in ROLES:
        folder = directory / role
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "store").mkdir(mode=0o700, exist_ok=True)
        _write_once(folder / "store.key", lambda: secrets.token_bytes(32))
        devices = (
            _simulated(directory, role, config, staging.speed)
            if staging.played is None
            else _played(role, staging.played, staging.speed)
        )
        site = _site_tables(
            directory, role, config, devices, peer_ports[role], addresses[role], metrics[role]
        )
        if staging.most_chunks is not None:
            site["store"]["most_chunks"] = staging.most_chunks
        site_files[role] = folder / "site.toml"
        site_files[role].write_text(tomli_w.dumps(site))
    endpoints = Endpoints(
        version=1,
        ca=str(directory / "tls" / "etsi014-ca.pem"),
        sites={
            role: SiteEndpoints(
                kme_id=f"kme-{role}",
                url=f"https://127.0.0.1:{addresses[role]}",
                control_socket=str(directory / role / "control.sock"),
                metrics_url=f"http://127.0.0.1:{metrics[role]}/metrics",
            )
            for role in ROLES
        },
        saes=[
            SaeEndpoint(
                sae_id=sae_id,
                kme=f"kme-{role}",
                peer_sae_id=_SAES[peer_of(role)][index][0],
                cert=str(directory / "tls" / f"{sae_id}.pem"),
                key=str(directory / "tls" / f"{sae_id}.key"),
                demo=demo,
            )
            for role in ROLES
            for index, (sae_id, demo) in enumerate(_SAES[role])
        ],
    )
    return Prepared(directory, site_files, endpoints, line)


def write_endpoints(prepared: Prepared) -> Path:
    """Write `endpoints.json` whole (a reader never sees half of it) and return its path."""
    path = prepared.directory / "endpoints.json"
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(prepared.endpoints), indent=2) + b"\n")
    partial.replace(path)
    return path


def _simulated(directory: Path, role: Role, config: LoopbackConfig, speed: float | None) -> dict[str, Any]:
    """Return the device tables of simulated hardware, and make the folder of its fibre."""
    fibre = directory / "fibre"
    fibre.mkdir(mode=0o700, exist_ok=True)
    shared = {
        "fibre": str(fibre / "fibre.sock"),
        "source": tables(config.link.source),
        "simulation": tables(
            msgspec.structs.replace(config.simulation, speed="max" if speed is None else speed)
        ),
    }
    if role == "alice":
        return {"transmitter": {"driver": "simulated-transmitter", "config": shared}}
    receiver = {"receiver_p_z": config.link.receiver.p_z}
    return {"tdc": {"driver": "simulated-tdc", "config": {**shared, **receiver}}}


def _played(role: Role, played: Played, speed: float | None) -> dict[str, Any]:
    """Return the device tables of recorded hardware."""
    shared = {"recording": str(played.recording.resolve()), "loop": played.loop}
    if role == "alice":
        return {"transmitter": {"driver": "replay-transmitter", "config": shared}}
    pace = {} if speed is None else {"speed": speed}
    return {"tdc": {"driver": "replay-tdc", "config": {**shared, **pace}}}


def _site_tables(
    directory: Path,
    role: Role,
    config: LoopbackConfig,
    devices: dict[str, Any],
    peer_port: int,
    etsi014_port: int,
    metrics_port: int,
) -> dict[str, Any]:
    tls = directory / "tls"
    return {
        "node": {"role": role, "kme_id": f"kme-{role}", "allow_simulated": True},
        "link": tables(config.link),
        "peer": {
            "kme_id": f"kme-{peer_of(role)}",
            "address": f"127.0.0.1:{peer_port}",
            "tls": {
                "ca": str(tls / "link-ca.pem"),
                "certificate": str(tls / f"link-{role}.pem"),
                "key": str(tls / f"link-{role}.key"),
            },
        },
        "store": {
            "path": str(directory / role / "store" / "keys.sqlite"),
            "anchor": str(directory / role / "anchor"),
            "store_key": str(directory / role / "store.key"),
            "preshared_key": str(directory / "preshared.key"),
        },
        "etsi014": {
            "listen": f"127.0.0.1:{etsi014_port}",
            "tls": {
                "ca": str(tls / "etsi014-ca.pem"),
                "certificate": str(tls / f"kme-{role}.pem"),
                "key": str(tls / f"kme-{role}.key"),
            },
            "sae": [
                {"sae_id": sae_id, "kme_id": f"kme-{side}", "peers": [_SAES[peer_of(side)][index][0]]}
                for side in ROLES
                for index, (sae_id, _) in enumerate(_SAES[side])
            ],
        },
        "operate": {
            "control_socket": str(directory / role / "control.sock"),
            "metrics_listen": f"127.0.0.1:{metrics_port}",
            "log_level": "info",
            "allow_recording": True,  # simulated keys protect nothing
        },
        "devices": devices,
    }


def _make_certificates(directory: Path) -> None:
    """Two authorities, so that an encryptor's certificate opens nothing on the link, nor the reverse."""
    tls = directory / "tls"
    if (tls / "complete").exists():
        return
    tls.mkdir(mode=0o700, exist_ok=True)
    link, etsi = trustme.CA(), trustme.CA()
    link.cert_pem.write_to_path(str(tls / "link-ca.pem"))
    etsi.cert_pem.write_to_path(str(tls / "etsi014-ca.pem"))
    certificates: dict[str, tuple[trustme.CA, tuple[str, ...]]]
    certificates = {f"link-{role}": (link, (f"kme-{role}",)) for role in ROLES}
    certificates |= {f"kme-{role}": (etsi, (f"kme-{role}", "127.0.0.1", "localhost")) for role in ROLES}
    certificates |= {sae_id: (etsi, (sae_id,)) for saes in _SAES.values() for sae_id, _ in saes}
    for name, (authority, identities) in certificates.items():
        issued = authority.issue_cert(*identities, common_name=identities[0])
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        _write_secret(tls / f"{name}.pem", chain)
        _write_secret(tls / f"{name}.key", issued.private_key_pem.bytes())
    _write_secret(tls / "complete", b"")


def _write_once(path: Path, make: Any) -> None:
    if not path.exists():
        _write_secret(path, make())


def _write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    partial.replace(path)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for candidate in sockets:
            candidate.bind(("127.0.0.1", 0))
        return [candidate.getsockname()[1] for candidate in sockets]
    finally:
        for candidate in sockets:
            candidate.close()


def parse_loopback_config(raw: dict[str, Any], where: str) -> LoopbackConfig:
    """Check the tables of a loopback file.

    Raises:
        ConfigError: as `qnode.config.convert`.
    """
    return convert(raw, LoopbackConfig, where=where)
