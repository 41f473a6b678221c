"""The reload on SIGHUP: reads the site file and its certificates again, and applies everything or nothing.

Everything is read and checked before anything is replaced. A file that cannot be used, or an expired file in
the place of a valid one, changes nothing: the node continues as before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from qnode.addresses import host_and_port
from qnode.config import OF_EACH_LINK, SaeSection, SiteConfig, load_site
from qnode.config.description import is_table, keys_of
from qnode.delivery import SaeDirectory
from qnode.devices.supervisor import check_devices
from qnode.http import TlsSettings, read_server_tls
from qnode.link.tls import link_contexts
from qnode.node.monitoring.randomness import health_tests
from qnode.node.page import check_page
from qnode.node.secret_files import check_tls_keys
from qnode.peer_tls import PeerContexts
from qnode.tls import TrustingContext
from qnode.tls_files import refuse_weaker, validities
from qnode.tls_validity import Validity

# Tables and keys that a reload applies. Every other change waits for a restart.
APPLIED = tuple(
    f"{table.name}.{key.name}"
    for table in keys_of(SiteConfig)
    if is_table(table.kind)
    for key in keys_of(table.kind)
    if key.described.reloaded
)


@dataclass(frozen=True)
class Trust:
    """The trusted authorities and the own certificates of a site, from its files.

    ``link_contexts``: per link, for TLS with its peer.
    """

    key_delivery: TlsSettings
    key_delivery_context: TrustingContext
    page: TlsSettings | None
    page_context: TrustingContext | None
    link_contexts: tuple[PeerContexts, ...]
    validities: list[Validity]


def read_trust(configs: Sequence[SiteConfig]) -> Trust:
    """Read all certificates, keys and CRLs of a site; ``configs``: the configuration of each link.

    Raises:
        ConfigError: names the file that cannot be used.
    """
    section = configs[0].etsi014.tls
    settings, context = read_server_tls(section, "etsi014.tls")
    viewing = configs[0].page.tls if configs[0].page is not None else None
    page, page_context = read_server_tls(viewing, "page.tls") if viewing is not None else (None, None)
    contexts = tuple(link_contexts(config.peer.tls) for config in configs)
    held = validities("etsi014.tls", ca=section.ca, certificate=section.certificate, crl=section.crl)
    for config in configs:
        files, where = config.peer.tls, _named("peer.tls", config, several=len(configs) > 1)
        held += validities(where, ca=files.ca, certificate=files.certificate, crl=files.crl)
    if viewing is not None:
        held += validities("page.tls", ca=viewing.ca, certificate=viewing.certificate, crl=viewing.crl)
    return Trust(settings, context, page, page_context, contexts, held)


def read_directory(configs: Sequence[SiteConfig]) -> SaeDirectory:
    """Return the encryptors of a site and those at the other ends of its links; raises ConfigError."""
    site = configs[0]
    return SaeDirectory(site.node.kme_id, site.etsi014.sae, [config.peer.kme_id for config in configs])


def check_addresses(config: SiteConfig) -> None:
    """Refuse invalid addresses already at a reload; raises ConfigError."""
    host_and_port(config.peer.address, "peer.address")
    host_and_port(config.etsi014.listen, "etsi014.listen")
    if config.skip is not None:
        host_and_port(config.skip.listen, "skip.listen")
    if config.etsi004 is not None:
        host_and_port(config.etsi004.listen, "etsi004.listen")
    if config.page is not None:
        check_page(config.page)
    if config.operate.metrics_listen is not None:
        host_and_port(config.operate.metrics_listen, "operate.metrics_listen")


def encryptor_identities(config: SiteConfig) -> frozenset[str]:
    """Return every name that identifies a certificate as that of an encryptor."""
    return frozenset(name for sae in config.etsi014.sae for name in (sae.sae_id, *sae.identities))


@dataclass(frozen=True)
class Reload:
    """The complete, usable result of reading. ``configs``: the configuration after its application.

    ``applied``: keys that change now. ``waiting``: keys in which the file differs from the running node.
    """

    configs: tuple[SiteConfig, ...]
    directory: SaeDirectory
    trust: Trust
    applied: list[str]
    waiting: list[str]


def read_again(path: Path, in_force: Sequence[SiteConfig], trusted: Trust) -> Reload:
    """Read the site file at ``path`` and all files that it names.

    Raises:
        ConfigError: it cannot replace the present configuration; the message states the reason.
    """
    written = load_site(path)
    for config in written:
        check_addresses(config)
        check_devices(dict(config.devices))
        check_tls_keys(config)
        if config.randomness is not None:
            health_tests(config.randomness)
    read_directory(written)
    same_links = len(written) == len(in_force) and (
        len(written) == 1 or [one.link.name for one in written] == [one.link.name for one in in_force]
    )
    # Links change only with a restart. Until then the settings of a link stay.
    pairs = [
        (old, written[index] if same_links else _with_site(old, written[0]))
        for index, old in enumerate(in_force)
    ]
    changed = [list(changed_keys(old, new)) for old, new in pairs]
    # Encryptors refer to sites by name: if the names of the sites change, they wait for the restart.
    renamed = _site_names(written) != _site_names(in_force)
    keys_applied = tuple(key for key in APPLIED if not (renamed and key == "etsi014.sae"))
    configs = [_put(old, new, keys_applied) for old, new in pairs]
    trust = read_trust(configs)
    refuse_weaker(trusted.validities, trust.validities)
    applied: list[str] = []
    waiting: list[str] = []
    for config, (old, new), keys in zip(configs, pairs, changed, strict=True):
        left = set(changed_keys(config, new))
        for key in keys:
            named = _named(key, old, several=len(in_force) > 1)
            (waiting if key in left else applied).append(named)
    return Reload(
        configs=tuple(configs),
        directory=read_directory(configs),
        trust=trust,
        applied=list(dict.fromkeys(applied)),
        waiting=list(dict.fromkeys(waiting)) + ([] if same_links else ["link"]),
    )


def audited(before: SiteConfig, found: Reload) -> list[tuple[str, str, str]]:
    """Return what a reload changes, for the audit: what, its subject, and how."""
    old = {sae.sae_id: sae for sae in before.etsi014.sae}
    new = {sae.sae_id: sae for sae in found.configs[0].etsi014.sae}
    changes = [("sae.added", name, _sae_words(new[name])) for name in new if name not in old]
    changes += [("sae.removed", name, "") for name in old if name not in new]
    changes += [
        ("sae.changed", name, _sae_words(new[name])) for name in new if name in old and new[name] != old[name]
    ]
    changes += [("settings.changed", key, "") for key in found.applied if key != "etsi014.sae"]
    return changes


def _sae_words(sae: SaeSection) -> str:
    limit = "" if sae.keys_per_minute is None else f", at most {sae.keys_per_minute} keys a minute"
    return f"at {sae.kme_id}, shares keys with {', '.join(sae.peers)}{limit}"


def _with_site(link: SiteConfig, site: SiteConfig) -> SiteConfig:
    """Return ``link`` with the tables of ``site`` that are common to all its links."""
    node = msgspec.structs.replace(site.node, role=link.node.role)
    return msgspec.structs.replace(
        link,
        node=node,
        etsi014=site.etsi014,
        skip=site.skip,
        etsi004=site.etsi004,
        page=site.page,
        telemetry=site.telemetry,
        operate=site.operate,
        audit=site.audit,
    )


def _site_names(configs: Sequence[SiteConfig]) -> tuple[str, frozenset[str]]:
    """Return the names of this site and of those at the other ends of its links."""
    return configs[0].node.kme_id, frozenset(config.peer.kme_id for config in configs)


def _named(key: str, config: SiteConfig, *, several: bool) -> str:
    """Return the displayed name of a key: with the name of the link, if there are several."""
    of_link = several and key.partition(".")[0] in ("link", *OF_EACH_LINK)
    return f"{config.link.name}: {key}" if of_link else key


def changed_keys(old: SiteConfig, new: SiteConfig) -> Iterator[str]:
    """Yield the dotted name of every key, or whole list, that differs."""
    yield from _differences(_plain(old), _plain(new), "")


def _differences(old: Any, new: Any, where: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield where


def _put(old: SiteConfig, new: SiteConfig, keys: tuple[str, ...]) -> SiteConfig:
    """Return ``old`` with ``keys`` taken from ``new``."""
    config = old
    for key in keys:
        table, name = key.split(".")
        if getattr(old, table) is None or getattr(new, table) is None:
            continue  # a table that comes or goes waits for a restart
        if key == "page.tls" and (old.page.tls is None or new.page.tls is None):  # type: ignore[union-attr]
            continue  # and so does another way to look at the page
        section = msgspec.structs.replace(
            getattr(config, table), **{name: getattr(getattr(new, table), name)}
        )
        config = msgspec.structs.replace(config, **{table: section})
    return config


def _plain(config: SiteConfig) -> Any:
    return msgspec.to_builtins(config, enc_hook=str)
