"""The file of a site, as each of its links sees it. Unknown keys are refused with a near match."""

import os
import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from qnode.choices import ROLES
from qnode.config.calibration import CalibrationSection, calibration_faults
from qnode.config.description import keys_of, limit_faults
from qnode.config.link import LinkParameters, Table, link_faults
from qnode.config.monitors import MonitorsSection, RandomnessSection, monitor_faults
from qnode.config.reading import Impossible, convert, near_or_known
from qnode.config.saes import read_site_tables
from qnode.config.sections import (
    SAE_ID_CHARACTERS,
    AuditSection,
    DeviceSection,
    Etsi004Section,
    Etsi014Section,
    ExpectedSection,
    NodeSection,
    OperateSection,
    PageSection,
    PeerSection,
    SkipSection,
    StoreSection,
)
from qnode.config.telemetry import TelemetrySection, telemetry_faults
from qnode.errors import ConfigError


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
