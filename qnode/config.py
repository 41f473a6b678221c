"""Typed configuration of a site: one TOML file. Its tables `[link]` are the same at both sites.

Everything but `LinkParameters` belongs to one site. Unknown keys are refused with a near match.
"""

import os
import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any

from qnode.choices import ROLES, LogLevel
from qnode.choices import Role as Role
from qnode.config_calibration import CalibrationSection, calibration_faults
from qnode.config_description import Described, Limits, keys_of, limit_faults
from qnode.config_link import BlockParameters as BlockParameters
from qnode.config_link import EstimationParameters as EstimationParameters
from qnode.config_link import KeyParameters as KeyParameters
from qnode.config_link import LinkParameters as LinkParameters
from qnode.config_link import PlausibilityParameters as PlausibilityParameters
from qnode.config_link import ReceiverParameters as ReceiverParameters
from qnode.config_link import ReconciliationParameters as ReconciliationParameters
from qnode.config_link import SourceParameters as SourceParameters
from qnode.config_link import Table, link_faults
from qnode.config_link import check_link_parameters as check_link_parameters
from qnode.config_monitors import MonitorsSection as MonitorsSection
from qnode.config_monitors import PhotocurrentMonitor as PhotocurrentMonitor
from qnode.config_monitors import RandomnessSection as RandomnessSection
from qnode.config_monitors import ReadingMonitor as ReadingMonitor
from qnode.config_monitors import monitor_faults
from qnode.config_reading import Impossible, near_or_known
from qnode.config_reading import convert as convert
from qnode.config_reading import load as load
from qnode.config_reading import tables as tables
from qnode.config_saes import read_site_tables
from qnode.config_telemetry import TelemetrySection as TelemetrySection
from qnode.config_telemetry import telemetry_faults
from qnode.errors import ConfigError

SAE_ID_CHARACTERS = 512


class NodeSection(Table, frozen=True):
    """Who this site is."""

    role: Annotated[Role, Described("the role of this site at its link")]
    kme_id: Annotated[str, Described("name of this site as a key manager (KME); its certificates carry it")]
    allow_simulated: Annotated[
        bool, Described("accept simulated devices. Their keys are marked simulated and protect nothing")
    ] = False
    start_uncertainty_s: Annotated[
        float,
        Described(
            "at Bob: the greatest difference between the wall clocks of the two sites; it sets the "
            "width of the first search for the alignment",
            limits=Limits(1e-6, 0.1),
        ),
    ] = 0.010


class TlsFiles(Table, frozen=True):
    """PEM files of one TLS role."""

    ca: Annotated[Path, Described("certificates of the trusted authorities")]
    certificate: Annotated[Path, Described("certificate of this site, with its chain")]
    key: Annotated[
        Path,
        Described("the private key of this certificate, unencrypted, readable by the daemon's user alone"),
    ]
    crl: Annotated[Path | None, Described("list of the certificates that the authorities have revoked")] = (
        None
    )


class PeerSection(Table, frozen=True):
    """The other site. Alice listens and Bob connects, so that one address is enough."""

    kme_id: Annotated[str, Described("name of the other site; its certificate must carry it")]
    address: Annotated[str, Described("host:port where Alice listens, the same at both sites")]
    tls: Annotated[TlsFiles, Described("", reloaded=True)]
    connects_from: Annotated[
        tuple[str, ...],
        Described(
            "at Alice: the addresses from which Bob connects. Connections from these addresses, and "
            "from Bob's last address, have priority; others are not refused",
            limits="an IP address or network",
        ),
    ] = ()


class PostgresqlSection(Table, frozen=True):
    """A PostgreSQL server that holds the store, instead of a file (extra `postgresql`)."""

    parameters: Annotated[
        str,
        Described(
            "the connection as libpq writes it, without a password: `host=db1,db2 dbname=qnode user=qnode "
            "sslmode=verify-full`"
        ),
    ]
    password_file: Annotated[
        Path | None, Described("the password of this user, readable by the daemon's user alone")
    ] = None
    schema: Annotated[
        str,
        Described(
            "the schema of this store; each link of a site has its own", limits="1 to 63 letters, digits, _"
        ),
    ] = "qnode"


class StoreSection(Table, frozen=True):
    """Where keys are kept, the secret that encrypts them, and the files that detect a restored database."""

    path: Annotated[
        Path,
        Described("the database; with `[store.postgresql]` only the place beside which small files lie"),
    ]
    anchor: Annotated[
        Path, Described("a small file that detects a restored database; outside the database's folder")
    ]
    store_key: Annotated[Path, Described("the key that encrypts the database, 32 random bytes")]
    preshared_key: Annotated[
        Path,
        Described(
            "the secret of both sites for the first authentication; it is read once, for a new database"
        ),
    ]
    witness: Annotated[
        Path | None,
        Described(
            "a file on another machine (a network mount); it detects that this whole machine was "
            "restored from a backup"
        ),
    ] = None
    postgresql: Annotated[PostgresqlSection | None, Described("")] = None
    key_lifetime_s: Annotated[
        float,
        Described(
            "keys that nobody has fetched after this time are destroyed",
            limits=Limits(1.0, 1e9),
            reloaded=True,
        ),
    ] = 7 * 86400.0
    most_chunks: Annotated[
        int,
        Described(
            "while the store holds this many chunks, new blocks are discarded",
            "chunks of 256 bits",
            limits=Limits(1, 1e9),
            reloaded=True,
        ),
    ] = 1 << 20


class SaeSection(Table, frozen=True):
    """One encryptor (SAE) of either site. A change of a site's `kme_id` delays this table until a restart."""

    sae_id: Annotated[str, Described("name of the encryptor", limits=f"1 to {SAE_ID_CHARACTERS} characters")]
    kme_id: Annotated[str, Described("the site to which it is connected")]
    peers: Annotated[tuple[str, ...], Described("the encryptors with which it shares keys")]
    identities: Annotated[tuple[str, ...], Described("other names that its certificate may carry")] = ()
    system_id: Annotated[
        str | None,
        Described(
            "its name in SKIP, if it is not its `sae_id`; the same at both sites",
            limits=f"1 to {SAE_ID_CHARACTERS} characters",
        ),
    ] = None
    keys_per_minute: Annotated[
        int | None,
        Described(
            "most keys that it gets as master at its site: so many at once, and as many in each minute after "
            "that. A key counts as one for each 256 bits begun",
            "keys per minute",
            limits=Limits(1, 1e6),
        ),
    ] = None


class Etsi014Section(Table, frozen=True):
    """The key delivery interface of this site, ETSI GS QKD 014."""

    listen: Annotated[str, Described("host:port where encryptors connect")]
    tls: Annotated[TlsFiles, Described("", reloaded=True)]
    stock_per_pair: Annotated[
        int,
        Described(
            "most keys reserved for a pair that requests keys, so that it still gets keys while the "
            "link is cut. All pairs together have at most an eighth of the site's keys. Half of it also "
            "serves for answers without a round trip; 0: no keys are agreed ahead",
            "keys",
            limits=Limits(0, 4096),
            reloaded=True,
        ),
    ] = 256
    most_connections: Annotated[
        int,
        Described(
            "most connections open at a time; each takes about 50 KB of memory. At the limit the node "
            "closes idle connections; without an idle connection it answers 503",
            "connections",
            limits=Limits(8, 4096),
            reloaded=True,
        ),
    ] = 512
    most_connections_per_address: Annotated[
        int,
        Described(
            "most connections of one IPv4 address or one IPv6 /64; many encryptors may share an address",
            "connections",
            limits=Limits(4, 4096),
            reloaded=True,
        ),
    ] = 256
    saes_file: Annotated[
        Path | None,
        Described(
            "a file of further encryptors, which `qnodectl saes` writes; it has tables `[[sae]]` with the "
            "keys of `[[etsi014.sae]]`, and need not exist",
            reloaded=True,
        ),
    ] = None
    sae: Annotated[tuple[SaeSection, ...], Described("", reloaded=True)] = ()


class SkipSection(Table, frozen=True):
    """The interface for Cisco's Secure Key Integration Protocol (SKIP): the encryptors of `[etsi014]`.

    Certificates, encryptors and the limits of connections are those of `[etsi014]`.
    """

    listen: Annotated[str, Described("host:port where encryptors connect by SKIP")]


class Etsi004Section(Table, frozen=True):
    """The interface for key streams, ETSI GS QKD 004: the encryptors of `[etsi014]`.

    Certificates, encryptors and the limits of connections are those of `[etsi014]`.
    """

    listen: Annotated[str, Described("host:port where applications connect by ETSI GS QKD 004")]
    most_streams_per_sae: Annotated[
        int,
        Described(
            "most streams to which one encryptor is connected at a time", "streams", limits=Limits(1, 1024)
        ),
    ] = 64
    idle_limit_s: Annotated[
        float,
        Described("a stream that neither end has used for this time is closed", limits=Limits(60, 1e7)),
    ] = 86_400.0
    uris: Annotated[
        dict[str, str],
        Described(
            "the `sae_id` of applications whose URIs in OPEN_CONNECT do not contain it, by their URIs",
            limits="URI = sae_id",
        ),
    ] = {}  # noqa: RUF012


class OperateSection(Table, frozen=True):
    """The interfaces for the operators of this site."""

    control_socket: Annotated[Path, Described("the socket of `qnodectl`")]
    metrics_listen: Annotated[
        str | None,
        Described("host:port of the metrics for Prometheus; everyone who reaches it can read them"),
    ] = None
    allow_recording: Annotated[
        bool,
        Described("allow root and the daemon's own user to record tags or symbols; they then know the keys"),
    ] = False
    log_level: Annotated[LogLevel, Described("the lowest level that is written", reloaded=True)] = "info"


class ExpectedSection(Table, frozen=True):
    """What the link should give, for comparison with what it gives; no key depends on it."""

    secret_bits_per_s: Annotated[
        float | None,
        Described(
            "secret key rate that `qnode plan` predicts", "bits/s", limits=Limits(0.0, 1e12), reloaded=True
        ),
    ] = None
    loss_db: Annotated[
        float | None,
        Described(
            "loss of the fibre and everything else between the sites",
            limits=Limits(0.0, 200.0),
            reloaded=True,
        ),
    ] = None
    z_arm_efficiency: Annotated[
        float,
        Described(
            "at Bob: the chance that a photon in the Z arm clicks (loss of the arm and efficiency of its "
            "detector). The loss in the status is computed with it; with 1 that loss includes the arm's",
            "probability",
            limits=Limits(1e-6, 1.0),
            reloaded=True,
        ),
    ] = 1.0


class PageSection(Table, frozen=True):
    """The operator's page for browsers, read-only: [the page](page.md)."""

    listen: Annotated[
        str,
        Described(
            "host:port, a loopback address unless there is `[page.tls]`; or `unix:/PATH`, for your proxy"
        ),
    ]
    tls: Annotated[
        TlsFiles | None,
        Described("", reloaded=True),
    ] = None
    operators: Annotated[
        tuple[str, ...],
        Described(
            "with `[page.tls]`: the names in the certificates of those who may look; none: everyone with a "
            "certificate of its authority",
            reloaded=True,
        ),
    ] = ()


class AuditSection(Table, frozen=True):
    """The record of deliveries and of changes by operators, in the database of each link."""

    keep_days: Annotated[
        float,
        Described(
            "entries are deleted at this age, at most a day later",
            "days",
            limits=Limits(1.0, 36_500.0),
            reloaded=True,
        ),
    ] = 730.0


class DeviceSection(Table, frozen=True):
    """One device. You choose NAME."""

    driver: Annotated[str, Described("name of the driver")]
    config: Annotated[dict[str, Any], Described("the table of the driver (see below)")] = {}  # noqa: RUF012
    serial_number: Annotated[
        str | None,
        Described("the serial number that the device must report; another device in its place is refused"),
    ] = None
    silence_limit_s: Annotated[
        float,
        Described(
            "a source of tags that yields nothing, or a device that does not answer, for this time is opened "
            "again",
            limits=Limits(0.1, 1e6),
        ),
    ] = 10.0


class SiteConfig(Table, frozen=True):
    """The file of `qnode run`, as each of its links sees it (`load_site`)."""

    node: NodeSection
    link: LinkParameters
    peer: PeerSection
    store: StoreSection
    etsi014: Etsi014Section
    operate: OperateSection
    devices: dict[str, DeviceSection]
    monitors: MonitorsSection = MonitorsSection()
    randomness: RandomnessSection | None = None
    skip: SkipSection | None = None
    etsi004: Etsi004Section | None = None
    page: PageSection | None = None
    telemetry: TelemetrySection | None = None
    calibration: CalibrationSection = CalibrationSection()
    expected: ExpectedSection = ExpectedSection()
    audit: AuditSection = AuditSection()

    def __post_init__(self) -> None:
        Impossible.check(self._faults())

    def _faults(self) -> Iterator[str]:
        yield from link_faults(self.link)
        if self.link.plausibility.repeats > 1.0 and not self.node.allow_simulated:
            yield "link.plausibility.repeats: more than 1 is for recordings, set allow_simulated"
        server = self.store.postgresql
        if server is not None and not re.fullmatch(r"[A-Za-z0-9_]{1,63}", server.schema):
            yield f"store.postgresql.schema: expected 1 to 63 letters, digits or _, got {server.schema!r}"
        for one in self.peer.connects_from:
            try:
                ip_network(one, strict=False)
            except ValueError:
                yield f"peer.connects_from: expected an IP address or network, got {one!r}"
        yield from limit_faults(self.node, "node")
        for sae in self.etsi014.sae:
            if not 0 < len(sae.sae_id) <= SAE_ID_CHARACTERS:
                shown = sae.sae_id[:20]
                yield f"etsi014.sae: {shown!r}: sae_id: expected 1 to {SAE_ID_CHARACTERS} characters"
            if sae.system_id is not None and not 0 < len(sae.system_id) <= SAE_ID_CHARACTERS:
                shown = sae.sae_id[:20]
                yield f"etsi014.sae: {shown!r}: system_id: expected 1 to {SAE_ID_CHARACTERS} characters"
            yield from limit_faults(sae, f"etsi014.sae: {sae.sae_id[:20]!r}")
        if self.etsi004 is not None:
            yield from limit_faults(self.etsi004, "etsi004")
            known = {sae.sae_id for sae in self.etsi014.sae}
            for uri, sae_id in self.etsi004.uris.items():
                if sae_id not in known:
                    yield f"etsi004.uris: {uri}: expected the sae_id of an encryptor, got {sae_id!r}"
        if self.telemetry is not None:
            yield from telemetry_faults(self.telemetry)
        for name, device in self.devices.items():
            yield from limit_faults(device, f"devices.{name}")
        yield from limit_faults(self.store, "store")
        yield from limit_faults(self.expected, "expected")
        yield from limit_faults(self.audit, "audit")
        yield from limit_faults(self.etsi014, "etsi014")
        if self.node.role == "alice" and self.monitors.photocurrents:
            yield "monitors.photocurrents: they are compared with tags, which only Bob's site has"
        yield from monitor_faults(self.monitors, self.randomness, frozenset(self.devices))
        yield from calibration_faults(
            self.calibration, self.node.role, frozenset(self.devices), self.link.source
        )


# Each of several links has these tables of its own, beside the parameters that it shares with its peer.
OF_EACH_LINK = ("role", "peer", "store", "devices", "monitors", "randomness", "calibration", "expected")


def load_site(path: Path) -> tuple[SiteConfig, ...]:
    """Read the file of `qnode run`: the site as each of its links sees it, at least one.

    Raises:
        ConfigError: one line that names the file, the link, the table, the key and what was expected.
    """
    configs = load_links(path)
    for fault in links_faults(configs):
        raise ConfigError(f"{path}: {fault}")
    return configs


def load_links(path: Path) -> tuple[SiteConfig, ...]:
    """Read the file like `load_site`, without regard to what the links have in common."""
    return links_of(read_site_tables(path), path)


def links_of(site: dict[str, Any], path: Path) -> tuple[SiteConfig, ...]:
    """Return the tables ``site`` of the file at ``path`` as each link sees them; raises ConfigError."""
    folder = path.resolve().parent
    return tuple(
        convert(raw, SiteConfig, where=f"{path}: {name}" if name else str(path), folder=folder)
        for name, raw in tables_by_link(site, str(path))
    )


def tables_by_link(raw: dict[str, Any], where: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the tables of a site as each of its links sees them, with the link's name in messages.

    A file with one link has ``[link]``, ``[peer]``, ``[store]``, ``[devices]`` and ``[calibration]`` side by
    side, and the link has no name in messages. With several, ``[[link]]`` holds everything that belongs to
    one link: the parameters of the link, ``peer``, ``store``, ``devices``, ``calibration``, and ``role`` if
    it differs from ``[node]``.

    Raises:
        ConfigError: there is no link, a link is not a table or has a wrong role or an unknown key, or a table
            of one link stands outside it.
    """
    links = raw.get("link")
    if not isinstance(links, list):
        return [("", raw)]
    outside = [name for name in OF_EACH_LINK if name in raw]
    if outside:
        raise ConfigError(f"{where}: [{outside[0]}] belongs into each [[link]], where there are several")
    if not links or not all(isinstance(link, dict) for link in links):
        raise ConfigError(f"{where}: [[link]]: expected one table or more")
    known = (*(key.name for key in keys_of(LinkParameters)), *OF_EACH_LINK)
    result = []
    for number, link in enumerate(links, 1):
        for key in link:
            if key not in known:
                raise ConfigError(
                    f"{where}: link {number}: [[link]] unknown key {key}{near_or_known(key, known)}"
                )
        if link.get("role", "alice") not in ROLES:
            expected = f"expected {' or '.join(ROLES)}, got {link['role']!r}"
            raise ConfigError(f"{where}: link {number}: [[link]] role: {expected}")
        own = {name: link[name] for name in OF_EACH_LINK if name in link}
        site = {name: table for name, table in raw.items() if name != "link"}
        role = own.pop("role", None)
        if role is not None and isinstance(site.get("node"), dict):
            site["node"] = {**site["node"], "role": role}
        parameters = {name: value for name, value in link.items() if name not in OF_EACH_LINK}
        result.append((f"link {number}", {**site, "link": parameters, **own}))
    return result


def links_faults(configs: Sequence[SiteConfig]) -> Iterator[str]:
    """Yield the values that several links of one site must not share."""
    seen: dict[tuple[str, object], tuple[int, str]] = {}
    for number, config in enumerate(configs, 1):
        for kind, key, value in _of_one_link_alone(config):
            first, same = seen.setdefault((kind, value), (number, key))
            if first != number:
                has = f"link {number} has the {same} of link {first}, {value}"
                yield f"[[link]] {key}: {has}; give it its own"


def _of_one_link_alone(config: SiteConfig) -> Iterator[tuple[str, str, object]]:
    """Yield what no other link may have: the kind of the thing, its key, and its value."""
    yield "name", "name", config.link.name
    yield "site", "peer.kme_id", config.peer.kme_id
    if config.node.role == "alice":
        yield "address", "peer.address", config.peer.address
    store = config.store
    if (server := store.postgresql) is not None:
        yield "store", "store.postgresql", (server.parameters, server.schema)
    # The one-time pads of a pre-shared key are for one link: two links would use the same ones.
    for key in ("path", "anchor", "witness", "preshared_key"):
        if (file := getattr(store, key)) is not None:
            yield "file", f"store.{key}", os.path.abspath(file)  # noqa: PTH100 - its mount may hang
