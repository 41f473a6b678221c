"""The folder of a loopback link, for one run at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qnode.errors import ConfigError

LOCK_NAME = "lock"


def make_private(directory: Path) -> None:
    """Make ``directory``, or use an existing one, readable by its owner only.

    Raises:
        ConfigError: it cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be used as data folder: {error.strerror}") from None


@contextmanager
def sole_use(directory: Path) -> Iterator[None]:
    """Make ``directory`` and lock it against other runs until the body ends.

    Raises:
        ConfigError: another run uses it (the message names its process), or it cannot be used.
    """
    make_private(directory)
    try:
        lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be used as data folder: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"{directory}: in use by pid {holder}; stop that first, or name another folder (--data-dir)"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)
