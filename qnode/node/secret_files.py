"""The secret files of a site."""

from qnode.config import SiteConfig
from qnode.secret_files import read_secret

PRESHARED_KEY_LEAST_BYTES = 96  # session root, two hash keys, one pad a direction


def check_tls_keys(config: SiteConfig) -> None:
    """Refuse private keys that others can read; raises ConfigError."""
    keys = [("peer.tls.key", config.peer.tls.key), ("etsi014.tls.key", config.etsi014.tls.key)]
    if config.page is not None and config.page.tls is not None:
        keys.append(("page.tls.key", config.page.tls.key))
    for where, path in keys:
        read_secret(path, where)
