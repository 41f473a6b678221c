"""The tables of a site's file that belong to one site."""

from pathlib import Path
from typing import Annotated, Any

from qnode.choices import LogLevel, Role
from qnode.config.description import Described, Limits
from qnode.config.link import Table

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
