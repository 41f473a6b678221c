"""Typed configuration of an agent: one TOML file. Unknown keys are refused with a near match."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct

from qnode.addresses import host_and_port
from qnode.agent.tunnel import Role, TunnelKind
from qnode.agent.tunnels import KINDS, tunnel_kind
from qnode.choices import LogLevel
from qnode.config import SAE_ID_CHARACTERS, TlsFiles
from qnode.config.description import Described, Limits, Rule, limit_faults
from qnode.config.link import Table
from qnode.config.reading import convert, near_or_known, read_tables, reading_faults, usable
from qnode.config_checks import Findings, check_tls
from qnode.errors import ConfigError
from qnode.tls import certificate_names
from qnode.tls_files import certificates_in

WhenTooOld = Literal["take_down", "keep"]
FirstKey = Literal["required", "not_required"]
Method = Literal["POST", "GET"]

LONGEST_NAME_CHARACTERS: Final = 64
_SHORT_NAME: Final = Rule(
    f"1 to {LONGEST_NAME_CHARACTERS} characters", lambda name: 0 < len(name) <= LONGEST_NAME_CHARACTERS
)
_SAE_ID: Final = Rule(
    f"1 to {SAE_ID_CHARACTERS} characters", lambda sae_id: 0 < len(sae_id) <= SAE_ID_CHARACTERS
)


class AgentSection(Table, frozen=True):
    """Who this agent is."""

    name: Annotated[
        str, Described("name of this agent; its certificate of `[line]` carries it", limits=_SHORT_NAME)
    ]
    role: Annotated[
        Role, Described("one agent of a tunnel is the initiator, which begins each change of key")
    ]
    run_dir: Annotated[Path, Described("folder of the control socket, in memory (below /run)")]
    log_level: Annotated[LogLevel, Described("the lowest level that is written")] = "info"


class KmeSection(Table, frozen=True):
    """The key manager of this site, by ETSI GS QKD 014."""

    url: Annotated[str, Described("https://host:port, without a path")]
    ca: Annotated[Path, Described("certificates of the authorities of the key manager's certificate")]
    certificate: Annotated[Path, Described("certificate of this encryptor (SAE)")]
    key: Annotated[Path, Described("the private key of this certificate, readable by the agent's user alone")]
    sae_id: Annotated[str, Described("name of this encryptor", limits=_SAE_ID)]
    peer_sae_id: Annotated[str, Described("name of the encryptor at the other end", limits=_SAE_ID)]
    crl: Annotated[Path | None, Described("list of the certificates that the authorities have revoked")] = (
        None
    )
    method: Annotated[Method, Described("how keys are asked for; some key managers know one way only")] = (
        "POST"
    )
    connect_timeout_s: Annotated[
        float, Described("longest wait for a connection", limits=Limits(0.1, 60.0))
    ] = 5.0
    answer_timeout_s: Annotated[float, Described("longest wait for an answer", limits=Limits(0.1, 60.0))] = (
        10.0
    )

    def tls(self) -> TlsFiles:
        """Return the files of TLS with the key manager."""
        return TlsFiles(ca=self.ca, certificate=self.certificate, key=self.key, crl=self.crl)


class LineSection(Table, frozen=True):
    """The line to the agent at the other site: one of the two listens, the other one connects."""

    ca: Annotated[Path, Described("certificates of the authorities of the other agent's certificate")]
    certificate: Annotated[Path, Described("certificate of this agent")]
    key: Annotated[Path, Described("the private key of this certificate, readable by the agent's user alone")]
    peer_name: Annotated[
        str, Described("name of the other agent; its certificate must carry it", limits=_SHORT_NAME)
    ]
    listen: Annotated[str | None, Described("host:port where this agent waits for the other one")] = None
    connect: Annotated[str | None, Described("host:port where the other agent listens")] = None
    crl: Annotated[Path | None, Described("list of the certificates that the authorities have revoked")] = (
        None
    )

    def tls(self) -> TlsFiles:
        """Return the files of TLS with the other agent."""
        return TlsFiles(ca=self.ca, certificate=self.certificate, key=self.key, crl=self.crl)


class RotationSection(Table, frozen=True):
    """When the key is changed. Both agents must have the same `period_s`."""

    period_s: Annotated[
        float,
        Described(
            "time from one change of key to the next; longer while few keys are stored",
            limits=Limits(1.0, 86400.0),
        ),
    ] = 30.0
    volume_bytes: Annotated[
        int,
        Described(
            "at the initiator: also change the key after so many bytes through the tunnel; 0: never",
            limits=Limits(0, 2**63),
        ),
    ] = 0
    longest_s: Annotated[
        float,
        Described("the greatest age of a key, at least twice `period_s`", limits=Limits(2.0, 30 * 86400.0)),
    ] = 600.0
    when_too_old: Annotated[
        WhenTooOld, Described("what becomes of the tunnel when its key is older than `longest_s`")
    ] = "take_down"
    first_key: Annotated[
        FirstKey, Described("`required`: the tunnel is held down until the first key comes")
    ] = "required"


class MetricsSection(Table, frozen=True):
    """Figures for Prometheus."""

    listen: Annotated[str, Described("host:port; everyone who reaches it can read the metrics")]


class _Tables(Table, frozen=True):
    agent: AgentSection
    kme: KmeSection
    line: LineSection
    rotation: RotationSection = RotationSection()
    metrics: MetricsSection | None = None


class AgentConfig(Struct, frozen=True, kw_only=True):
    """An agent's whole file. ``kind``: of the tunnel; ``tunnel``: the rest of the table ``[tunnel]``."""

    agent: AgentSection
    kme: KmeSection
    line: LineSection
    rotation: RotationSection
    metrics: MetricsSection | None
    kind: str
    tunnel: Struct

    @property
    def control_socket(self) -> Path:
        """The socket of `qnode agent status`."""
        return self.agent.run_dir / "control.sock"

    def make_tunnel(self) -> TunnelKind:
        """Return the tunnel, not yet open. Raises ConfigError."""
        return tunnel_kind(self.kind)(self.tunnel, self.agent.role)


def load_agent(path: Path) -> AgentConfig:
    """Read the agent's file at ``path``; relative paths in it are taken from the file's folder.

    Raises:
        ConfigError: one line that names the file, the table, the key, what was expected, and a near match.
    """
    raw, where = read_tables(path), str(path)
    kind, layout, raw = _layout(raw, where)
    tables: Any = convert(raw, layout, where=where, folder=path.resolve().parent)
    values = {name: getattr(tables, name) for name in (*_Tables.__struct_fields__, "tunnel")}
    config = AgentConfig(kind=kind, **values)
    for fault in _faults(config.agent, config.kme, config.line, config.rotation, config.metrics):
        raise ConfigError(f"{where}: {fault}")
    return config


def check_agent(path: Path, at: float | None = None) -> Findings:
    """Check the agent's file at ``path`` and the files that it names; ``at``: the present time (Unix)."""
    findings = Findings()
    now_s, folder = time.time() if at is None else at, path.resolve().parent
    raw: dict[str, Any] = {}
    layout: type[Struct] = _Tables
    kind = ""
    with findings.gather():
        raw = read_tables(path)
    if findings.faults:
        return findings
    with findings.gather():
        kind, layout, raw = _layout(raw, str(path))
    if not kind:
        raw = {name: table for name, table in raw.items() if name != "tunnel"}
    findings.faults += reading_faults(raw, layout)
    agent = usable(raw.get("agent"), AgentSection, folder)
    kme = usable(raw.get("kme"), KmeSection, folder)
    line = usable(raw.get("line"), LineSection, folder)
    rotation = usable(raw.get("rotation", {}), RotationSection, folder)
    metrics = usable(raw.get("metrics"), MetricsSection, folder)
    findings.faults += _faults(agent, kme, line, rotation, metrics)
    if kme is not None:
        check_tls(findings, "kme", kme.tls(), now_s)
    if line is not None:
        check_tls(findings, "line", line.tls(), now_s)
    if line is not None and agent is not None:
        findings.faults += _name_faults(agent, line)
    if kind and agent is not None:
        chosen = tunnel_kind(kind)
        tunnel = usable(raw["tunnel"], chosen.Config, folder)
        if tunnel is not None:
            with findings.gather():
                chosen(tunnel, agent.role)
    return findings


def _layout(raw: dict[str, Any], where: str) -> tuple[str, type[Struct], dict[str, Any]]:
    """Return the kind of tunnel, the tables of a file with this kind, and the file without ``kind``."""
    section = raw.get("tunnel")
    if not isinstance(section, dict) or "kind" not in section:
        raise ConfigError(f"{where}: [tunnel] kind: is missing; expected {' or '.join(KINDS)}")
    kind = section["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        near = near_or_known(str(kind), tuple(KINDS))
        raise ConfigError(f"{where}: [tunnel] kind: unknown kind {kind!r}{near}")
    table = tunnel_kind(kind).Config
    layout = msgspec.defstruct(
        "AgentFile",
        [("tunnel", table)],
        bases=(_Tables,),
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )
    rest = {key: value for key, value in section.items() if key != "kind"}
    return kind, layout, {**raw, "tunnel": rest}


def _faults(
    agent: AgentSection | None,
    kme: KmeSection | None,
    line: LineSection | None,
    rotation: RotationSection | None,
    metrics: MetricsSection | None,
) -> list[str]:
    """Return the impossible values of the tables that could be read."""
    named = {"agent": agent, "kme": kme, "line": line, "rotation": rotation}
    faults = [
        fault for name, table in named.items() if table is not None for fault in limit_faults(table, name)
    ]
    addresses = []
    if kme is not None:
        faults += _url_faults(kme.url)
        if kme.sae_id == kme.peer_sae_id:
            faults.append(
                f"kme.peer_sae_id: {kme.peer_sae_id!r} is this encryptor's own; expected the other's"
            )
    if line is not None:
        if (line.listen is None) == (line.connect is None):
            faults.append("line: expected listen at one agent and connect at the other, one of them here")
        addresses += [("line.listen", line.listen), ("line.connect", line.connect)]
        if agent is not None and agent.name == line.peer_name:
            faults.append(
                f"line.peer_name: {line.peer_name!r} is this agent's own name; expected the other's"
            )
    if rotation is not None and rotation.longest_s < 2 * rotation.period_s:
        faults.append(
            f"rotation.longest_s: expected at least twice period_s ({2 * rotation.period_s:g}), "
            f"got {rotation.longest_s:g}"
        )
    if metrics is not None:
        addresses.append(("metrics.listen", metrics.listen))
    for where, address in addresses:
        if address is not None:
            try:
                host_and_port(address, where)
            except ConfigError as error:
                faults.append(str(error))
    return faults


def _url_faults(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        usable_url = parts.scheme == "https" and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")  # as the resolver does: UnicodeError is a ValueError
    except ValueError:
        usable_url = False
    if not usable_url or parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        yield f"kme.url: expected https://host:port, got {url!r}"


def _name_faults(agent: AgentSection, line: LineSection) -> Iterator[str]:
    """Check that the certificate of the line names this agent, as the other agent expects."""
    try:
        names = certificate_names(certificates_in(line.certificate)[0].public_bytes(Encoding.DER))
    except (ConfigError, ValueError):
        return  # which `check_tls` reports
    if agent.name not in names:
        named = ", ".join(names) or "nobody"
        yield f"line.certificate: {line.certificate}: names {named}, but the other agent expects {agent.name}"
