"""`qnodectl preshared`: the secret that both sites need before they meet, from its making to its end."""

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

import click

from qnode.cli.printing import refusals_told, say
from qnode.errors import ConfigError

# The session root, two hash keys and 512 one-time pads a direction. The rest fills no pad and is used for
# nothing else: it keeps the fingerprint from telling anything about the key.
USED_BYTES: Final = 64 + 2 * 512 * 16
BLIND_BYTES: Final = 31
_GROUPS, _GROUP_DIGITS = 8, 4
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def preshared() -> None:
    """Make the pre-shared key of a link, compare it by voice, and wipe it after it was loaded."""


@preshared.command()
@click.argument("path", metavar="FILE", type=_FILE)
def make(path: Path) -> int:
    """Make a new pre-shared key in FILE (mode 0600); carry a copy to the other site by hand."""
    from qnode.secret_files import NewFile, write_files

    with refusals_told():
        content = new_preshared_key()
        write_files([NewFile(path, content)])
    say(f"{path}: {fingerprint(content)}")
    return 0


@preshared.command("fingerprint")
@click.argument("path", metavar="FILE", type=_FILE)
def show_fingerprint(path: Path) -> int:
    """Show the fingerprint of FILE: both operators read it to each other before they start their sites."""
    with refusals_told():
        say(fingerprint(read_preshared_key(path)))
    return 0


@preshared.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=_FILE)
def wipe(paths: tuple[Path, ...]) -> int:
    """Overwrite each FILE and leave it empty, so that the service still finds its credential.

    Do it at both sites, and with every copy, when `qnodectl status` shows the peer. A flash drive may keep
    what was overwritten: destroy it, or carry the key in memory of the machine alone.
    """
    with refusals_told():
        for path in paths:
            _wipe(path)
            say(f"{path}: overwritten, and empty now")
    return 0


def new_preshared_key() -> bytes:
    """Return a new pre-shared key."""
    return secrets.token_bytes(USED_BYTES + BLIND_BYTES)


def read_preshared_key(path: Path) -> bytes:
    """Return the pre-shared key in ``path``.

    Raises:
        ConfigError: it cannot be read, others can read it, or its length is not that of `make`.
    """
    from qnode.secret_files import read_secret

    content = read_secret(path, "pre-shared key")
    if len(content) != USED_BYTES + BLIND_BYTES:
        raise ConfigError(
            f"{path}: expected {USED_BYTES + BLIND_BYTES:,} bytes as qnodectl preshared make writes them, "
            f"got {len(content):,}"
        )
    return content


def fingerprint(content: bytes) -> str:
    """Return what both operators compare: 128 bits of a hash, in groups to be read aloud."""
    digits = hashlib.sha256(b"qnode pre-shared key\0" + content).hexdigest()
    return " ".join(digits[_GROUP_DIGITS * n : _GROUP_DIGITS * (n + 1)] for n in range(_GROUPS))


def _wipe(path: Path) -> None:
    try:
        with path.open("r+b") as file:
            file.write(secrets.token_bytes(os.fstat(file.fileno()).st_size))
            file.flush()
            os.fsync(file.fileno())
            file.truncate(0)
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
