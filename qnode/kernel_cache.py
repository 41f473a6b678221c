"""The cache of the kernels' machine code: its place, its trust, and its age.

The cache is a directory named by package version and processor, with a folder for each module. The folder is
named by a digest of the module's source and of all qnode modules that it imports, directly or not. A change
in any of them, helpers and constants included, thus makes the code stale. (numba itself checks only the file
of the outermost function.) Cached machine code is trusted code: it is loaded only if it and every directory
above it belong to root or to this user, and no other user can write there. A damaged, full or missing cache
costs the time to compile, but never prevents the start.
"""

import hashlib
import os
import re
import shutil
import stat
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import llvmlite
import numba
from llvmlite.binding import get_host_cpu_name
from numba.core import config as numba_config
from numba.core.codegen import get_host_cpu_features

from qnode import __version__

_ROOT: Final = Path(__file__).parent
PACKAGE: Final = _ROOT.name
_IMPORT: Final = re.compile(
    rf"^\s*(?:from\s+({PACKAGE}(?:\.\w+)*|\.+[\w.]*)\s+import\s+(\([^)]*\)|[^\n]*)|import\s+({PACKAGE}[\w.]*))",
    re.MULTILINE,
)
_OURS: Final = tuple(_ROOT / name for name in ("kernels.py", "kernel_cache.py", "kernel_code.py"))
_KEPT: Final = 8  # generations of a module's code, and versions of all: several checkouts share a cache


class UntrustedCache(Exception):
    """Code from this place is not loaded; the message states the reason."""


def cache_base() -> Path:
    """Return the folder of all versions: `$QNODE_CACHE_DIR`, systemd's or the user's cache."""
    named = os.environ.get("QNODE_CACHE_DIR") or os.environ.get("CACHE_DIRECTORY")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / PACKAGE


def processor() -> str:
    """Return the name of the code generator's target: model, and a digest of its instruction sets."""
    settings: Any = numba_config
    name = settings.CPU_NAME or get_host_cpu_name()
    return f"{name}-{hashlib.sha256(target_features().encode()).hexdigest()[:8]}"


def target_features() -> str:
    """Return the instruction sets of the target of the code generator, as ``+one,-other``."""
    settings: Any = numba_config
    if settings.CPU_FEATURES is not None:
        return str(settings.CPU_FEATURES)
    return "" if settings.CPU_NAME else _host_features()


@cache
def _host_features() -> str:
    return str(get_host_cpu_features())  # type: ignore[no-untyped-call]


def cache_directory(module: str) -> Path:
    """Return the folder of the machine code of the kernels of ``module``."""
    version = f"kernels-{__version__}-{processor()}"
    return cache_base() / version / f"{module.removeprefix(f'{PACKAGE}.')}-{sources_digest(module)}"


@cache
def sources_digest(module: str) -> str:
    """Return the digest of all qnode sources that enter the code of ``module``."""
    digest = hashlib.sha256(f"{sys.version} {numba.__version__} {llvmlite.__version__}".encode())
    for path in sorted({*_OURS, *_sources(module)}):
        digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(module: str) -> set[Path]:
    """Return the files of ``module`` and of all modules of this package that it imports, directly or not."""
    found: set[Path] = set()
    pending = [module]
    while pending:
        path = _file_of(pending.pop())
        if path is not None and path not in found:
            found.add(path)
            pending += _imports(path)
    return found


@cache
def _imports(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for source, imported, plain in _IMPORT.findall(path.read_text()):
        if source.startswith("."):
            raise ImportError(f"{path}: name modules of {PACKAGE} in full, so that kernel caches can follow")
        names.append(source or plain)
        names += [f"{source}.{name}" for name in re.findall(r"\w+", imported) if source]
    return tuple(names)


@cache
def _file_of(name: str) -> Path | None:
    """Return the file of a module or package; None for other importable objects."""
    place = _ROOT.joinpath(*name.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def trusted(directory: Path) -> None:
    """Make ``directory`` if necessary and check that no other user can put code there.

    Raises:
        UntrustedCache: another user can, or the directory cannot be made.
    """
    try:
        is_new = not directory.exists()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (directory, *directory.parents):
            check_owner(path)
        with suppress(PermissionError):  # root has filled the cache for this user
            os.utime(directory)
        if is_new:
            _forget_old(directory.parent, directory.name.rpartition("-")[0] + "-")
            _forget_old(directory.parent.parent, "kernels-")
    except OSError as error:
        raise UntrustedCache(
            f"{directory}: {error.strerror}; name a folder of this user in QNODE_CACHE_DIR"
        ) from None


def check_owner(path: Path) -> None:
    """Refuse a path that others own or may write; a sticky directory protects this user's entries."""
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise UntrustedCache(f"{path} belongs to user {status.st_uid}, neither to root nor to this process")
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if writable and not sticky:
        raise UntrustedCache(f"{path} can be written by others: chmod go-w {path}")


def _forget_old(directory: Path, prefix: str) -> None:
    """Remove all but the latest of this user's folders whose names begin with ``prefix``."""
    folders = [path for path in directory.glob(f"{prefix}*") if path.is_dir() and not path.is_symlink()]
    folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in folders[_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
