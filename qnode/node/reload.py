"""What SIGHUP does: read the site's file and its certificates again, all or nothing.

Everything is read and judged before anything is replaced. What cannot be used, or would put what has expired
in the place of what still holds, changes nothing: the node goes on as it was.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from qnode.addresses import host_and_port
from qnode.config import SiteConfig, load_site
from qnode.config_description import is_table, keys_of
from qnode.devices.supervisor import check_devices
from qnode.errors import ConfigError
from qnode.etsi014 import SaeDirectory
from qnode.http import Limits, TlsSettings, server_context
from qnode.link.tls import LinkContexts, link_contexts
from qnode.node.secret_files import check_tls_keys
from qnode.tls import AlertingContext
from qnode.tls_files import validities, weakness
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
    """Whom the site trusts and by what it proves itself, as its files say.

    ``link_contexts``: of each link, for TLS with its peer.
    """

    key_delivery: TlsSettings
    key_delivery_context: AlertingContext
    link_contexts: tuple[LinkContexts, ...]
    validities: list[Validity]


def read_trust(configs: Sequence[SiteConfig]) -> Trust:
    """Read all certificates, keys and CRLs of a site; ``configs``: the site as each of its links sees it.

    Raises:
        ConfigError: naming the file that cannot be used.
    """
    section = configs[0].etsi014.tls
    settings = TlsSettings(
        certificate=section.certificate, key=section.key, client_ca=section.ca, crl=section.crl
    )
    try:
        context = server_context(settings)
    except ConfigError as error:
        raise ConfigError(f"etsi014.tls: {error}") from None
    contexts = tuple(link_contexts(config.peer.tls) for config in configs)
    held = validities("etsi014.tls", ca=section.ca, certificate=section.certificate, crl=section.crl)
    for files in dict.fromkeys(config.peer.tls for config in configs):
        held += validities("peer.tls", ca=files.ca, certificate=files.certificate, crl=files.crl)
    return Trust(settings, context, contexts, held)


def read_directory(configs: Sequence[SiteConfig]) -> SaeDirectory:
    """Return the encryptors of a site and those at the other ends of its links; raises ConfigError."""
    site = configs[0]
    return SaeDirectory(site.node.kme_id, site.etsi014.sae, [config.peer.kme_id for config in configs])


def check_addresses(config: SiteConfig) -> None:
    """Refuse what is no address, before a restart does; raises ConfigError."""
    host_and_port(config.peer.address, "peer.address")
    host_and_port(config.etsi014.listen, "etsi014.listen")
    if config.operate.metrics_listen is not None:
        host_and_port(config.operate.metrics_listen, "operate.metrics_listen")


def connection_limits(config: SiteConfig) -> Limits:
    """Return what clients of the key delivery interface may cost."""
    section, least = config.etsi014, Limits()
    return Limits(
        connections=section.most_connections,
        connections_per_client=section.most_connections_per_address,
        # After a cut or a restart all who may stay come at once.
        failed_handshakes_at_once=max(least.failed_handshakes_at_once, section.most_connections_per_address),
        unknown_handshakes_at_once=max(least.unknown_handshakes_at_once, section.most_connections),
    )


def encryptor_identities(config: SiteConfig) -> frozenset[str]:
    """Return every name by which a certificate is an encryptor's."""
    return frozenset(name for sae in config.etsi014.sae for name in (sae.sae_id, *sae.identities))


@dataclass(frozen=True)
class Reload:
    """What was read, complete and usable. ``configs``: what is in force once it is applied.

    ``applied``: keys that change now. ``waiting``: keys that the file has otherwise than the running node.
    """

    configs: tuple[SiteConfig, ...]
    directory: SaeDirectory
    trust: Trust
    applied: list[str]
    waiting: list[str]


def read_again(path: Path, in_force: Sequence[SiteConfig], trusted: Trust) -> Reload:
    """Read the site's file at ``path`` and all that it names.

    Raises:
        ConfigError: it cannot take the place of what is in force, and why.
    """
    written = load_site(path)
    for config in written:
        check_addresses(config)
        check_devices(dict(config.devices))
        check_tls_keys(config)
    read_directory(written)
    same_links = len(written) == len(in_force) and (
        len(written) == 1 or [one.link.name for one in written] == [one.link.name for one in in_force]
    )
    # Links come and go with a restart. Until then all that is of a link stays as it is.
    shared = {"etsi014": written[0].etsi014, "operate": written[0].operate}
    pairs = [
        (old, written[index] if same_links else msgspec.structs.replace(old, **shared))
        for index, old in enumerate(in_force)
    ]
    changed = [list(changed_keys(old, new)) for old, new in pairs]
    configs = []
    for (old, new), keys in zip(pairs, changed, strict=True):
        # Encryptors stand at sites by name: under another name of a site they wait for it.
        renamed = any(not {"node.kme_id", "peer.kme_id"}.isdisjoint(keys) for keys in changed)
        configs.append(
            _put(old, new, tuple(key for key in APPLIED if not (renamed and key == "etsi014.sae")))
        )
    trust = read_trust(configs)
    weaker = weakness(trusted.validities, trust.validities, time.time())
    if weaker is not None:
        raise ConfigError(weaker)
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


def _named(key: str, config: SiteConfig, *, several: bool) -> str:
    """Return how a key is told: those of one of several links with the link's name."""
    of_link = several and key.partition(".")[0] in ("link", "peer", "store", "devices")
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
        section = msgspec.structs.replace(
            getattr(config, table), **{name: getattr(getattr(new, table), name)}
        )
        config = msgspec.structs.replace(config, **{table: section})
    return config


def _plain(config: SiteConfig) -> Any:
    return msgspec.to_builtins(config, enc_hook=str)
