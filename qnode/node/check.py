"""Checks a site file and all files that it names: finds every error at once, and changes nothing."""

import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from qnode.addresses import host_and_port
from qnode.config import (
    DeviceSection,
    Etsi004Section,
    Etsi014Section,
    NodeSection,
    OperateSection,
    PageSection,
    PeerSection,
    RandomnessSection,
    SaeSection,
    SiteConfig,
    SkipSection,
    StoreSection,
    TelemetrySection,
    links_faults,
    links_of,
    tables_by_link,
)
from qnode.config.reading import reading_faults, usable
from qnode.config.saes import read_site_tables
from qnode.config_checks import Findings, check_tls, is_there
from qnode.delivery import SaeDirectory
from qnode.devices.supervisor import check_devices
from qnode.errors import ConfigError
from qnode.keys import check_address
from qnode.link.tls import TlsTransport
from qnode.node.monitoring.randomness import health_tests
from qnode.node.page import check_page
from qnode.node.secret_files import PRESHARED_KEY_LEAST_BYTES
from qnode.secret_files import read_secret, read_store_key
from qnode.tls import certificate_names
from qnode.tls_files import certificates_in


def check_site(path: Path, at: float | None = None, tables: dict[str, Any] | None = None) -> Findings:
    """Check the site file at ``path``; ``at``: the present time in Unix seconds.

    ``tables``: instead of those in the file.
    """
    findings = Findings()
    with findings.gather():
        folder, now_s = path.resolve().parent, time.time() if at is None else at
        site = read_site_tables(path) if tables is None else tables
        if "simulation" in site and "node" not in site:
            findings.faults.append("this is a file of qnode loopback, not of a site: it has no [node]")
            return findings
        by_link = tables_by_link(site, str(path))
        peers = tuple(usable(raw.get("peer"), PeerSection, folder) for _, raw in by_link)
        # Encryptors are compared with the names of the other sites if all of these are known.
        known = [peer.kme_id for peer in peers if peer is not None]
        kme_ids = tuple(dict.fromkeys(known)) if len(known) == len(peers) else None
        of_links = []
        for name, raw in by_link:
            of_link = Findings()
            of_link.faults += reading_faults(raw, SiteConfig)
            _check_tables(of_link, raw, folder, now_s, kme_ids)
            of_links.append((name, of_link))
        findings.faults += _by_link([(name, found.faults) for name, found in of_links])
        findings.notes += _by_link([(name, found.notes) for name, found in of_links])
        if not any(reading_faults(raw, SiteConfig) for _, raw in by_link):
            findings.faults += links_faults(links_of(site, path))
    return findings


def _by_link(found: list[tuple[str, list[str]]]) -> list[str]:
    """Return the findings of the links: once if common to all, otherwise with the name of the link."""
    shared = set.intersection(*(set(texts) for _, texts in found))
    result = [text for text in found[0][1] if text in shared]
    return result + [f"{name}: {text}" for name, texts in found for text in texts if text not in shared]


def _check_tables(
    findings: Findings, raw: dict[str, Any], folder: Path, now_s: float, kme_ids: tuple[str, ...] | None
) -> None:
    """Check each table separately: an error in one must not hide errors in others."""
    node = usable(raw.get("node"), NodeSection, folder)
    peer = usable(raw.get("peer"), PeerSection, folder)
    store = usable(raw.get("store"), StoreSection, folder)
    etsi014 = usable(raw.get("etsi014"), Etsi014Section, folder)
    operate = usable(raw.get("operate"), OperateSection, folder)
    devices = raw.get("devices")
    for name, table in devices.items() if isinstance(devices, dict) else ():
        section = usable(table, DeviceSection, folder)
        if section is not None:
            with findings.gather():
                check_devices({name: section})
    saes = etsi014.sae if etsi014 is not None else ()
    randomness = usable(raw.get("randomness"), RandomnessSection, folder)
    if randomness is not None:
        with findings.gather():
            health_tests(randomness)
    if node is not None and peer is not None:
        _check_names(findings, node, peer, saes, kme_ids)
    if peer is not None:
        with findings.gather():
            TlsTransport(peer.address, peer.tls, peer.kme_id).host_and_port()
        check_tls(findings, "peer.tls", peer.tls, now_s)
    if etsi014 is not None:
        with findings.gather():
            host_and_port(etsi014.listen, "etsi014.listen")
        check_tls(findings, "etsi014.tls", etsi014.tls, now_s)
    skip = usable(raw.get("skip"), SkipSection, folder)
    if skip is not None:
        with findings.gather():
            host_and_port(skip.listen, "skip.listen")
    etsi004 = usable(raw.get("etsi004"), Etsi004Section, folder)
    if etsi004 is not None:
        with findings.gather():
            host_and_port(etsi004.listen, "etsi004.listen")
    page = usable(raw.get("page"), PageSection, folder)
    if page is not None:
        with findings.gather():
            check_page(page)
        if page.tls is not None:
            check_tls(findings, "page.tls", page.tls, now_s)
    if operate is not None and operate.metrics_listen is not None:
        with findings.gather():
            host_and_port(operate.metrics_listen, "operate.metrics_listen")
    telemetry = usable(raw.get("telemetry"), TelemetrySection, folder)
    if telemetry is not None:
        _check_telemetry(findings, telemetry)
    if store is not None:
        _check_store(findings, store)


def _check_names(
    findings: Findings,
    node: NodeSection,
    peer: PeerSection,
    saes: tuple[SaeSection, ...],
    kme_ids: tuple[str, ...] | None,
) -> None:
    """Check the names: of the sites, of the encryptors, and in the link's certificate.

    ``kme_ids``: of the other sites; None if not all are known.
    """
    if node.kme_id == peer.kme_id:
        findings.faults.append(f"[peer] kme_id: {peer.kme_id!r} is this site's own; expected the other's")
    with findings.gather():
        SaeDirectory(node.kme_id, saes, kme_ids or ())
    sites = (node.kme_id, *(kme_ids or ()))
    for sae in saes:
        if kme_ids is not None and sae.kme_id not in sites:
            expected = "expected " + " or ".join(repr(one) for one in sites)
            findings.faults.append(f"[etsi014.sae] {sae.sae_id}: kme_id: {expected}, got {sae.kme_id!r}")
    try:
        own = certificates_in(peer.tls.certificate)[0]
        names = certificate_names(own.public_bytes(Encoding.DER))
    except (ConfigError, ValueError):
        return  # which `check_tls` reports
    where, named = f"peer.tls.certificate: {peer.tls.certificate}", ", ".join(names) or "nobody"
    if node.kme_id not in names:
        findings.faults.append(f"{where}: names {named}, but the peer expects {node.kme_id} (node.kme_id)")
    if not {name for sae in saes for name in (sae.sae_id, *sae.identities)}.isdisjoint(names):
        findings.faults.append(f"{where}: names an encryptor ({named}), which is another role")


def _check_store(findings: Findings, store: StoreSection) -> None:
    if is_there(findings, "store.store_key", store.store_key):
        with findings.gather():
            read_store_key(store.store_key)
    made = store.path
    if (server := store.postgresql) is not None:
        made = store.anchor  # nobody asks the server here
        with findings.gather():
            check_address(server)
        secret = server.password_file
        if secret is not None and is_there(findings, "store.postgresql.password_file", secret):
            with findings.gather():
                read_secret(secret, "store.postgresql.password_file")
    # It is read only once, when the store is made.
    if not _exists(made) and is_there(findings, "store.preshared_key", store.preshared_key):
        with findings.gather():
            shared = read_secret(store.preshared_key, "store.preshared_key")
            if len(shared) < PRESHARED_KEY_LEAST_BYTES:
                expected = f"expected at least {PRESHARED_KEY_LEAST_BYTES} bytes"
                raise ConfigError(
                    f"store.preshared_key: {store.preshared_key}: {expected}, got {len(shared)}"
                )
    if store.anchor.resolve().is_relative_to(store.path.resolve().parent):
        findings.faults.append(
            f"store.anchor: {store.anchor}: must lie outside the store's folder, "
            "or a restore would take it along"
        )
    for where, path in (("store.path", store.path), ("store.anchor", store.anchor)):
        above = next((folder for folder in path.parents if _exists(folder)), None)
        if above is not None and not above.is_dir():
            findings.faults.append(f"{where}: {path}: {above} is no folder")


def _check_telemetry(findings: Findings, telemetry: TelemetrySection) -> None:
    for where, path in (("telemetry.password", telemetry.password), ("telemetry.token", telemetry.token)):
        if path is not None and is_there(findings, where, path):
            with findings.gather():
                read_secret(path, where)
    if telemetry.ca is not None:
        with findings.gather("telemetry.ca"):
            certificates_in(telemetry.ca)


def _exists(path: Path) -> bool:
    """Return whether something exists at ``path``; True if this user is not allowed to see it."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True
