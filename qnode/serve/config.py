"""Typed configuration of a front end: one TOML file. Unknown keys are refused with a near match."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

from qnode.addresses import host_and_port
from qnode.choices import LogLevel
from qnode.config import Etsi014Section, PostgresqlSection
from qnode.config.description import Described, Rule, limit_faults
from qnode.config.link import Table
from qnode.config.reading import convert, reading_faults
from qnode.config.saes import read_site_tables
from qnode.config_checks import Findings, check_tls, is_there
from qnode.delivery import SaeDirectory
from qnode.errors import ConfigError
from qnode.keys import check_address
from qnode.secret_files import read_secret, read_store_key

_SCHEMA = re.compile(r"[A-Za-z0-9_]{1,63}")
_NAME: Final = Rule("1 to 64 characters", lambda name: 0 < len(name) <= 64)


class FrontEndSection(Table, frozen=True):
    """Who this front end is."""

    name: Annotated[str, Described("name of this front end; each one of a store has its own", limits=_NAME)]
    kme_id: Annotated[str, Described("the site's name, `node.kme_id` of its node")]
    peer_kme_id: Annotated[str, Described("the other site's name, `peer.kme_id` of the node")]
    allow_simulated: Annotated[
        bool, Described("the node has `allow_simulated`: every answer says that its keys are simulated")
    ] = False


class FrontEndStoreSection(Table, frozen=True):
    """The store of the node."""

    store_key: Annotated[Path, Described("the same 32 bytes as at the node")]
    anchor: Annotated[
        Path, Described("a small file of this front end that detects a restored database; keep it")
    ]
    postgresql: Annotated[PostgresqlSection, Described("the server and the schema, as at the node")]


class FrontEndOperateSection(Table, frozen=True):
    """The interfaces for operators."""

    control_socket: Annotated[Path, Described("the socket of `qnode serve status`")]
    metrics_listen: Annotated[
        str | None,
        Described("host:port of the metrics for Prometheus; everyone who reaches it can read them"),
    ] = None
    log_level: Annotated[LogLevel, Described("the lowest level that is written", reloaded=True)] = "info"


class FrontEndConfig(Table, frozen=True):
    """The file of `qnode serve`. ``etsi014`` is the table of the node; `stock_per_pair` has no effect."""

    front_end: FrontEndSection
    store: FrontEndStoreSection
    etsi014: Etsi014Section
    operate: FrontEndOperateSection

    def directory(self) -> SaeDirectory:
        """Return the encryptors. Raises ConfigError."""
        site = self.front_end
        return SaeDirectory(site.kme_id, self.etsi014.sae, (site.peer_kme_id,))

    def check(self) -> None:
        """Refuse values that cannot be, and files that cannot be used. Raises ConfigError."""
        for fault in self._faults():
            raise ConfigError(fault)
        host_and_port(self.etsi014.listen, "etsi014.listen")
        if self.operate.metrics_listen is not None:
            host_and_port(self.operate.metrics_listen, "operate.metrics_listen")
        read_secret(self.etsi014.tls.key, "etsi014.tls.key")
        check_address(self.store.postgresql)
        read_store_key(self.store.store_key)
        self.directory()

    def _faults(self) -> Iterator[str]:
        yield from limit_faults(self.front_end, "front_end")
        yield from limit_faults(self.etsi014, "etsi014")
        for sae in self.etsi014.sae:
            yield from limit_faults(sae, f"etsi014.sae: {sae.sae_id[:20]!r}")
        schema = self.store.postgresql.schema
        if not _SCHEMA.fullmatch(schema):
            yield f"store.postgresql.schema: expected 1 to 63 letters, digits or _, got {schema!r}"
        if self.front_end.kme_id == self.front_end.peer_kme_id:
            yield f"front_end.peer_kme_id: {self.front_end.kme_id!r} is this site's own; expected the other's"


def load_front_end(path: Path) -> FrontEndConfig:
    """Read the file at ``path``; relative paths in it are taken from the file's folder.

    Raises:
        ConfigError: one line that names the file, the table, the key, what was expected, and a near match.
    """
    raw = read_site_tables(path)
    config = convert(raw, FrontEndConfig, where=str(path), folder=path.resolve().parent)
    try:
        config.check()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def check_front_end(path: Path, at: float | None = None) -> Findings:
    """Check the file at ``path`` and the files that it names; ``at``: the present time (Unix)."""
    findings = Findings()
    raw: dict[str, Any] = {}
    with findings.gather():
        raw = read_site_tables(path)
    if findings.faults:
        return findings
    findings.faults += reading_faults(raw, FrontEndConfig)
    if findings.faults:
        return findings
    config = convert(raw, FrontEndConfig, where=str(path), folder=path.resolve().parent)
    if is_there(findings, "store.store_key", config.store.store_key):
        with findings.gather():
            config.check()
    check_tls(findings, "etsi014.tls", config.etsi014.tls, time.time() if at is None else at)
    return findings
