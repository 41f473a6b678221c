"""How a numba kernel is declared, and where its machine code is kept.

``@kernel`` compiles without the GIL and caches the machine code on disk. The cache lies in a directory
named by package version, processor and a digest of all modules of the kernel's room and of the rooms below
it: a change in any of them, helpers and constants included, makes the cache stale by construction (numba
itself only looks at the file of the outermost function). Cached machine code is trusted code, so a
directory that somebody else could write to is not used.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding
import numba
from numba.core import config as numba_config

from qnode import __version__

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile ``function`` with numba: no GIL, cached. Arguments are arrays and scalars only.

    Division is numpy's (by zero: inf, or 0 of integers): a check would keep loops from becoming vectors.
    """
    # The digest knows our own rooms only; a kernel declared elsewhere is compiled anew each time.
    ours = function.__module__.startswith("qnode.")
    usable = ours and _use_cache(cache_directory(function.__module__))
    return cast("F", numba.njit(nogil=True, cache=usable, boundscheck=False, error_model="numpy")(function))


def inline_kernel(function: F) -> F:
    """Compile a small helper that is inlined into the kernels that call it."""
    return cast("F", numba.njit(nogil=True, inline="always")(function))


# Rooms whose code or constants end up in the kernels of another room.
_BELOW = {"distill": ("tags",), "simulate": ("tags",)}


@cache
def _sources_digest(room: str) -> str:
    digest = hashlib.sha256()
    root = Path(__file__).parent
    files = [root / "kernels.py", root / "units.py"]
    for name in (room, *_BELOW.get(room, ())):
        files += sorted((root / name).rglob("*.py"))
    for path in files:
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def cache_directory(module: str) -> Path:
    """Return where kernels of ``module`` are kept: in `$QNODE_CACHE_DIR`, systemd's or the user's cache."""
    base = (
        os.environ.get("QNODE_CACHE_DIR")
        or os.environ.get("CACHE_DIRECTORY")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qnode"
    )
    room = module.split(".")[1]
    cpu = llvmlite.binding.get_host_cpu_name()
    return Path(base) / f"kernels-{__version__}-{cpu}-{room}-{_sources_digest(room)}"


@cache
def _trusted(directory: Path) -> bool:
    """Make the cache directory; return False when code from it could not be trusted."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (directory, directory.parent):
            status = path.stat()
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return False
    except (OSError, RuntimeError):
        return False
    return True


def _use_cache(directory: Path) -> bool:
    """Point numba to ``directory`` for the kernel that is declared next."""
    numba_config.CACHE_DIR = str(directory)  # type: ignore[attr-defined]  # set by numba at import
    return _trusted(directory)
