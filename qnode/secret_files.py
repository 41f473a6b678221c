"""Secret files that no other user may read, and files that are written whole or not at all."""

import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from qnode.errors import ConfigError
from qnode.tls_files import CREDENTIALS

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
STORE_KEY_BYTES = 32


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


def read_store_key(path: Path) -> bytes:
    """Read the key of a store (`store.store_key`). Raises ConfigError: like `read_secret`, or its length."""
    key = read_secret(path, "store.store_key")
    if len(key) != STORE_KEY_BYTES:
        raise ConfigError(f"store.store_key: {path}: expected {STORE_KEY_BYTES} bytes, got {len(key)}")
    return key


@dataclass(frozen=True)
class NewFile:
    """A file to write; without ``mode`` only its owner can read it."""

    path: Path
    content: bytes = field(repr=False)
    mode: int = SECRET_MODE


def write_files(
    files: Sequence[NewFile], *, replace: bool = False, remedy: str = "; move it away first"
) -> None:
    """Write all of ``files``, or none after an error or an interrupt; their folders exist.

    Each is complete on the disk before it gets its name. Without ``replace`` no file is overwritten, and
    the error ends with ``remedy``.

    Raises:
        ConfigError: one is there already, or cannot be written.
    """
    present = [str(file.path) for file in files if not replace and os.path.lexists(file.path)]
    if present:
        raise ConfigError(f"{', '.join(present)}: there already, and never overwritten{remedy}")
    staged: list[tuple[NewFile, Path, int]] = []
    former: dict[Path, Path] = {}
    try:
        for file in files:
            staging = file.path.with_name(f".{file.path.name}.{secrets.token_hex(4)}")
            staged.append((file, staging, 0))
            staged[-1] = (file, staging, _write_new(staging, file))
        try:
            for file, staging, _ in staged:
                if replace and os.path.lexists(file.path):
                    former[file.path] = staging.with_name(staging.name + ".former")
                    os.link(file.path, former[file.path], follow_symlinks=False)
                    staging.replace(file.path)
                else:
                    os.link(staging, file.path)  # fails if somebody has made it meanwhile
            for folder in {file.path.parent for file in files}:
                sync_folder(folder)
        except BaseException:
            for file, _, inode in staged:
                _take_back(file.path, inode, former.get(file.path))
            raise
    except OSError as error:
        meant = {str(staging): file.path for file, staging, _ in staged}
        # An error of a write, as on a full disk, names no file.
        failed = str(error.filename2 or error.filename or file.path)
        raise ConfigError(f"{meant.get(failed, failed)}: {error.strerror}") from None
    finally:
        for leftover in (*(staging for _, staging, _ in staged), *former.values()):
            leftover.unlink(missing_ok=True)


def write_secret(path: Path, content: bytes) -> None:
    """Write one file that only its owner can read, in place of any that is there; raises ConfigError."""
    write_files([NewFile(path, content)], replace=True)


def _write_new(path: Path, file: NewFile) -> int:
    """Write a new file to the disk and return its inode."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, SECRET_MODE)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(file.content)
        opened.flush()
        os.fchmod(descriptor, file.mode)  # whatever the umask is
        os.fsync(descriptor)
        return os.fstat(descriptor).st_ino


def _take_back(path: Path, inode: int, former: Path | None) -> None:
    """Undo the writing of ``path`` if it took place."""
    with suppress(OSError):
        if path.lstat().st_ino != inode:
            return
        if former is None:
            path.unlink()
        else:
            former.replace(path)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
