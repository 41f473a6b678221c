"""Prepares the sites in one folder: certificates, secrets, site files.

Existing files are kept, so that a second run continues with the same keys and identities.
"""

import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import tomli_w
from msgspec import Struct

from qnode.addresses import free_ports
from qnode.choices import ROLES, Role, peer_of
from qnode.config import LinkParameters, check_link_parameters, convert, tables
from qnode.config.calibration import CalibrationSection, calibration_at, calibration_faults
from qnode.config.reading import Impossible
from qnode.errors import ConfigError
from qnode.loopback.data_dir import make_private
from qnode.loopback.expected import expected_tables
from qnode.loopback.hardware import (
    Played,
    devices_at,
    emulated,
    emulated_instruments,
    instruments,
    played,
    simulated,
)
from qnode.pki.authority import Authority, certificate_pem, new_authority
from qnode.pki.keys import key_pem, make_key
from qnode.pki.roles import ROLES as CERTIFICATE_ROLES
from qnode.pki.roles import CertificateRole
from qnode.secret_files import write_secret
from qnode.simulate.parameters import SimulationParameters

PORTS_PER_SITE = 5
PRESHARED_KEY_BYTES = 64 + 16 * 1024  # session root, two hash keys, 512 one-time pads a direction


class LoopbackConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The file of `qnode loopback`: the link, the simulated world, and the controllers of both sites."""

    link: LinkParameters = LinkParameters()
    simulation: SimulationParameters = SimulationParameters()
    calibration: CalibrationSection = CalibrationSection()

    def __post_init__(self) -> None:
        check_link_parameters(self.link)
        Impossible.check(
            fault
            for role in ROLES
            for fault in calibration_faults(
                calibration_at(self.calibration, role),
                role,
                devices_at(role, self.calibration),
                self.link.source,
            )
        )


class SiteEndpoints(Struct, frozen=True):
    """The addresses of one site."""

    kme_id: str
    url: str
    control_socket: str
    metrics_url: str
    skip_url: str = ""
    etsi004_address: str = ""
    page_url: str = ""


class SaeEndpoint(Struct, frozen=True):
    """One encryptor with its client certificate."""

    sae_id: str
    kme: str
    peer_sae_id: str
    cert: str
    key: str
    demo: bool


class LinkEndpoints(Struct, frozen=True):
    """One link: the addresses of its two sites, and the encryptors of this link."""

    name: str
    sites: dict[str, SiteEndpoints]
    saes: list[SaeEndpoint]

    def saes_of(self, *, demo: bool) -> tuple[SaeEndpoint, SaeEndpoint]:
        """Return the pair at (Alice, Bob) that is, or is not, loopback's own."""
        pair = [sae for sae in self.saes if sae.demo == demo]
        pair.sort(key=lambda sae: sae.kme != self.sites["alice"].kme_id)
        return pair[0], pair[1]


class Endpoints(Struct, frozen=True):
    """`endpoints.json`: the data for clients of the sites. ``sites`` and ``saes`` are of the first link."""

    version: int
    ca: str
    sites: dict[str, SiteEndpoints]
    saes: list[SaeEndpoint]
    links: list[LinkEndpoints]

    def saes_of(self, *, demo: bool) -> tuple[SaeEndpoint, SaeEndpoint]:
        """Return the pair of the first link at (Alice, Bob) that is, or is not, loopback's own."""
        return self.links[0].saes_of(demo=demo)


class LongLine(Struct, frozen=True):
    """A relay between the sites: Bob connects to ``bob_port``, Alice listens on ``alice_port``."""

    bob_port: int
    alice_port: int
    round_trip_s: float


class Prepared(Struct, frozen=True):
    """The folder, ready to run; ``site_files`` by the name of the site: ``alice``, ``bob``, ``bob-2`` ...

    ``lines``: one per link, if the classical channel is lengthened. ``benches``: the files of the emulated
    devices by the name of the site.
    """

    directory: Path
    site_files: dict[str, Path]
    endpoints: Endpoints
    lines: list[LongLine] = []
    benches: dict[str, Path] = {}

    @property
    def line(self) -> LongLine | None:
        """The line of the first link."""
        return self.lines[0] if self.lines else None


class Staging(Struct, frozen=True):
    """The options of a loopback run.

    ``speed``: tag seconds a wall second; None is as fast as possible. ``round_trip_s`` is added to that of
    the classical channel. ``played``: a recording instead of a simulation. ``most_chunks``: the limit of the
    store, if not as shipped. ``links``: the number of links, from one Alice to as many Bobs. ``emulated``:
    the hardware is behind ports, in processes of its own, in real time. ``alice_host``: the address at which
    Bob reaches Alice.
    """

    speed: float | None = None
    round_trip_s: float = 0.0
    played: Played | None = None
    most_chunks: int | None = None
    links: int = 1
    emulated: bool = False
    alice_host: str = "127.0.0.1"


class _Link(Struct, frozen=True):
    """The names of one link, ``number`` from 1 on, and its options in this run."""

    number: int
    config: LoopbackConfig
    listen_port: int
    device_port: int
    line: LongLine | None

    @property
    def suffix(self) -> str:
        """The suffix that distinguishes its names from those of the first link."""
        return f"-{self.number}" if self.number > 1 else ""

    def site(self, role: Role) -> str:
        """Return the name of its site."""
        return role if role == "alice" else role + self.suffix

    def saes(self, role: Role) -> tuple[tuple[str, bool], ...]:
        """Return its encryptors at a site, each with whether it is loopback's own."""
        return ((f"demo-{role}{self.suffix}", True), (f"sae-{role}{self.suffix}", False))

    def peer_port(self, role: Role) -> int:
        """Return the port that a site listens on, or connects to."""
        return self.line.bob_port if role == "bob" and self.line else self.listen_port


def prepare(directory: Path, config: LoopbackConfig, staging: Staging) -> Prepared:
    """Make or complete ``directory``, which the caller has locked (`qnode.loopback.data_dir`).

    Raises:
        ConfigError: it cannot be used.
    """
    _check_devices(config, staging)
    directory = directory.resolve()
    make_private(directory)
    (directory / "endpoints.json").unlink(missing_ok=True)  # from an earlier run with other ports
    links = _links(config, staging)
    site_names = ["alice", *(link.site("bob") for link in links)]
    ports = free_ports(PORTS_PER_SITE * len(site_names))
    sites = {
        name: SiteEndpoints(
            kme_id=f"kme-{name}",
            url=f"https://127.0.0.1:{ports[PORTS_PER_SITE * index]}",
            control_socket=str(directory / name / "control.sock"),
            metrics_url=f"http://127.0.0.1:{ports[PORTS_PER_SITE * index + 1]}/metrics",
            skip_url=f"https://127.0.0.1:{ports[PORTS_PER_SITE * index + 2]}",
            etsi004_address=f"127.0.0.1:{ports[PORTS_PER_SITE * index + 3]}",
            page_url=f"http://127.0.0.1:{ports[PORTS_PER_SITE * index + 4]}/",
        )
        for index, name in enumerate(site_names)
    }
    _make_certificates(directory, links)
    site_files, benches = {}, {}
    for name in site_names:
        folder = directory / name
        folder.mkdir(mode=0o700, exist_ok=True)
        own = [link for link in links if name in (link.site("alice"), link.site("bob"))]
        site_files[name] = folder / "site.toml"
        site_files[name].write_text(tomli_w.dumps(_site_tables(directory, name, sites[name], own, staging)))
        if staging.emulated:
            role: Role = "alice" if name == "alice" else "bob"
            benches[name] = folder / "bench.toml"
            on_bench = [device for link in own for device in _emulated(directory, role, link)[1]]
            benches[name].write_text(tomli_w.dumps({"device": on_bench}))
    by_link = [_endpoints(directory, link, sites) for link in links]
    endpoints = Endpoints(
        version=1,
        ca=str(directory / "tls" / "etsi014-ca.pem"),
        sites=by_link[0].sites,
        saes=by_link[0].saes,
        links=by_link,
    )
    lines = [link.line for link in links if link.line is not None]
    return Prepared(directory, site_files, endpoints, lines, benches)


def _check_devices(config: LoopbackConfig, staging: Staging) -> None:
    """Refuse controllers of instruments that only the emulated bench has.

    Raises:
        ConfigError: there are such controllers.
    """
    missing = ", ".join(instruments(config.calibration))
    if missing and not staging.emulated:
        raise ConfigError(
            f"calibration: no device {missing}: instruments besides the transmitter need --devices emulated"
        )


def _links(config: LoopbackConfig, staging: Staging) -> list[_Link]:
    """Return the links of one run: equal, but each with its own name and noise."""
    ports = free_ports(4 * staging.links)
    links = []
    for number in range(1, staging.links + 1):
        listen, alice, bob, device = ports[4 * number - 4 : 4 * number]
        line = LongLine(bob, alice, staging.round_trip_s) if staging.round_trip_s else None
        own = config
        if number > 1:
            name = f"{config.link.name}-{number}"
            seed = (config.simulation.seed + number - 1) % 2**63
            own = msgspec.structs.replace(
                config,
                link=msgspec.structs.replace(config.link, name=name),
                simulation=msgspec.structs.replace(config.simulation, seed=seed),
            )
        links.append(_Link(number, own, alice if line else listen, device, line))
    return links


def _endpoints(directory: Path, link: _Link, sites: dict[str, SiteEndpoints]) -> LinkEndpoints:
    return LinkEndpoints(
        name=link.config.link.name,
        sites={role: sites[link.site(role)] for role in ROLES},
        saes=[
            SaeEndpoint(
                sae_id=sae_id,
                kme=sites[link.site(role)].kme_id,
                peer_sae_id=link.saes(peer_of(role))[index][0],
                cert=str(directory / "tls" / f"{sae_id}.pem"),
                key=str(directory / "tls" / f"{sae_id}.key"),
                demo=demo,
            )
            for role in ROLES
            for index, (sae_id, demo) in enumerate(link.saes(role))
        ],
    )


def write_endpoints(prepared: Prepared) -> Path:
    """Write `endpoints.json` atomically and return its path."""
    path = prepared.directory / "endpoints.json"
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(prepared.endpoints), indent=2) + b"\n")
    partial.replace(path)
    return path


def _site_tables(
    directory: Path, name: str, endpoints: SiteEndpoints, links: list[_Link], staging: Staging
) -> dict[str, Any]:
    """Return the file of a site: the tables of its only link at the top, or several in ``[[link]]``."""
    role: Role = "alice" if name == "alice" else "bob"
    tls = directory / "tls"
    of_links = [_link_tables(directory, name, role, link, staging) for link in links]
    if len(links) == 1:
        tables_of_links = of_links[0]
    else:
        tables_of_links = {"link": [{**one.pop("link"), **one} for one in of_links]}
    return {
        "node": {"role": role, "kme_id": endpoints.kme_id, "allow_simulated": True},
        "etsi014": {
            "listen": endpoints.url.removeprefix("https://"),
            "tls": {
                "ca": str(tls / "etsi014-ca.pem"),
                "certificate": str(tls / f"kme-{name}.pem"),
                "key": str(tls / f"kme-{name}.key"),
            },
            "sae": [
                {
                    "sae_id": sae_id,
                    "kme_id": f"kme-{link.site(side)}",
                    "peers": [link.saes(peer_of(side))[index][0]],
                }
                for link in links
                for side in ROLES
                for index, (sae_id, _) in enumerate(link.saes(side))
            ],
        },
        "skip": {"listen": endpoints.skip_url.removeprefix("https://")},
        "etsi004": {"listen": endpoints.etsi004_address},
        "page": {"listen": urlsplit(endpoints.page_url).netloc},
        "operate": {
            "control_socket": endpoints.control_socket,
            "metrics_listen": urlsplit(endpoints.metrics_url).netloc,
            "log_level": "info",
            "allow_recording": True,  # simulated keys protect nothing
        },
        **tables_of_links,
    }


def _link_tables(directory: Path, name: str, role: Role, link: _Link, staging: Staging) -> dict[str, Any]:
    """Return the tables of one link at a site, and make its secrets."""
    tls, folder = directory / "tls", directory / name
    store = folder / f"store{link.suffix if role == 'alice' else ''}"
    store.mkdir(mode=0o700, exist_ok=True)
    shared = directory / f"preshared{link.suffix}.key"
    _write_once(shared, lambda: secrets.token_bytes(PRESHARED_KEY_BYTES))
    _write_once(folder / f"{store.name}.key", lambda: secrets.token_bytes(32))
    return {
        "link": tables(link.config.link),
        "peer": {
            "kme_id": f"kme-{link.site(peer_of(role))}",
            "address": f"{staging.alice_host}:{link.peer_port(role)}",
            "tls": {
                "ca": str(tls / "link-ca.pem"),
                "certificate": str(tls / f"link-{name}.pem"),
                "key": str(tls / f"link-{name}.key"),
            },
        },
        "store": {
            "path": str(store / "keys.sqlite"),
            "anchor": str(folder / store.name.replace("store", "anchor")),
            "store_key": str(folder / f"{store.name}.key"),
            "preshared_key": str(shared),
            **({} if staging.most_chunks is None else {"most_chunks": staging.most_chunks}),
        },
        "devices": _devices(directory, role, link, staging),
        "calibration": tables(calibration_at(link.config.calibration, role)),
        **(
            {}
            if staging.played is not None
            else {"expected": expected_tables(link.config.simulation, link.config.link)}
        ),
    }


def _devices(directory: Path, role: Role, link: _Link, staging: Staging) -> dict[str, Any]:
    """Return the device tables of one link at a site."""
    if staging.played is not None:
        return played(role, staging.played, staging.speed)
    if staging.emulated:
        return _emulated(directory, role, link)[0]
    fibre = directory / "fibre" / f"fibre{link.suffix}.sock"
    return simulated(fibre, role, link.config.link, link.config.simulation, staging.speed)


def _emulated(directory: Path, role: Role, link: _Link) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the device tables of one link at a site, and its devices on the bench."""
    fibre = directory / "fibre" / f"fibre{link.suffix}.sock"
    port = (
        f"tcp://127.0.0.1:{link.device_port}"
        if role == "alice"
        else str(fibre.with_name(f"tdc{link.suffix}"))
    )
    config = link.config
    sections, device = emulated(fibre, role, config.link, config.simulation, port, link.number)
    if role == "bob":
        return sections, [device]
    more, instruments_on_bench = emulated_instruments(
        fibre, config.calibration, config.simulation, link.number
    )
    return {**sections, **more}, [device, *instruments_on_bench]


def _make_certificates(directory: Path, links: list[_Link]) -> None:
    """Make two authorities, so that an encryptor's certificate is not valid on the link, and vice versa.

    With more links than the folder has certificates for, all are made again.
    """
    tls = directory / "tls"
    last = links[-1]
    if (tls / "complete").exists() and (tls / f"link-{last.site('bob')}.pem").exists():
        return
    (tls / "complete").unlink(missing_ok=True)  # an interrupted run leaves certificates of two authorities
    tls.mkdir(mode=0o700, exist_ok=True)
    keys = {name: make_key("ec") for name in ("link", "sae")}
    link, etsi = (new_authority(tls, "loopback", name, keys[name]) for name in ("link", "sae"))
    (tls / "link-ca.pem").write_bytes(certificate_pem(link.certificate))
    (tls / "etsi014-ca.pem").write_bytes(certificate_pem(etsi.certificate))
    sites = ["alice", *(one.site("bob") for one in links)]
    saes = [sae_id for one in links for role in ROLES for sae_id, _ in one.saes(role)]
    certificates: dict[str, tuple[Authority, CertificateRole, str]]
    certificates = {f"link-{name}": (link, CERTIFICATE_ROLES["node"], f"kme-{name}") for name in sites}
    certificates |= {f"kme-{name}": (etsi, CERTIFICATE_ROLES["kme"], f"kme-{name}") for name in sites}
    certificates |= {sae_id: (etsi, CERTIFICATE_ROLES["sae"], sae_id) for sae_id in saes}
    for file, (authority, role, name) in certificates.items():
        key, hosts = make_key("ec"), ("127.0.0.1", "localhost") if role.name == "kme" else ()
        issued = authority.issue(keys[authority.name], role, name, key.public_key(), hosts=hosts, days=3650)
        write_secret(tls / f"{file}.pem", certificate_pem(issued))
        write_secret(tls / f"{file}.key", key_pem(key))
    write_secret(tls / "complete", b"")


def _write_once(path: Path, make: Any) -> None:
    if not path.exists():
        write_secret(path, make())


def parse_loopback_config(raw: dict[str, Any], where: str) -> LoopbackConfig:
    """Check the tables of a loopback file.

    Raises:
        ConfigError: like `qnode.config.convert`.
    """
    return convert(raw, LoopbackConfig, where=where)
