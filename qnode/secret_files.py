"""Secret files that no other user may read."""

import os
import stat
from pathlib import Path

from qnode.errors import ConfigError
from qnode.tls_files import CREDENTIALS


def read_secret(path: Path, where: str) -> bytes:
    """Read a secret file; other users must not be able to read it.

    Raises:
        ConfigError: it cannot be read, or others can read it.
    """
    try:
        # systemd protects its credentials by an access list, which appears as group bits.
        credentials = os.environ.get("CREDENTIALS_DIRECTORY", CREDENTIALS)
        guarded = path.is_relative_to(credentials)
        if not guarded and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{where}: {path} can be read by others; run chmod 600 {path}")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: {path}: {error.strerror}") from None
