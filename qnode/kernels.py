"""How a numba kernel is declared, and where its machine code is kept.

``@kernel`` compiles without the GIL and caches the machine code on disk. The cache lies in a directory
named by package version, processor and a digest of every module that holds a kernel: a change in any of
them, helpers included, makes the whole cache stale by construction (numba itself only looks at the file
of the outermost function). Cached machine code is trusted code, so a directory that somebody else could
write to is not used.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding
import numba
from numba.core import config as numba_config

from qnode import __version__

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile ``function`` with numba: no GIL, cached. Arguments are arrays and scalars only."""
    return cast("F", numba.njit(nogil=True, cache=_cache_usable, boundscheck=False)(function))


def inline_kernel(function: F) -> F:
    """Compile a small helper that is inlined into the kernels that call it."""
    return cast("F", numba.njit(nogil=True, inline="always")(function))


def cpu_has(*features: str) -> bool:
    """Tell whether this processor has all the named LLVM features (``"pclmul"``, ``"vpclmulqdq"``, ...)."""
    present = llvmlite.binding.get_host_cpu_features()
    return all(present.get(feature, False) for feature in features)


def _sources_digest() -> str:
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        source = path.read_bytes()
        if b"qnode.kernels import" in source or path.name == "kernels.py":
            digest.update(str(path.relative_to(root)).encode() + b"\0" + source)
    return digest.hexdigest()[:16]


def cache_directory() -> Path:
    """Return where compiled kernels are kept: ``$QNODE_CACHE_DIR``, systemd's cache, or the user's cache."""
    base = (
        os.environ.get("QNODE_CACHE_DIR")
        or os.environ.get("CACHE_DIRECTORY")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qnode"
    )
    cpu = llvmlite.binding.get_host_cpu_name()
    return Path(base) / f"kernels-{__version__}-{cpu}-{_sources_digest()}"


def _prepare_cache() -> bool:
    """Make the cache directory; return False when code from it could not be trusted."""
    directory = cache_directory()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (directory, directory.parent):
            status = path.stat()
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return False
    except (OSError, RuntimeError):
        return False
    numba_config.CACHE_DIR = str(directory)  # type: ignore[attr-defined]  # set by numba at import
    return True


_cache_usable = _prepare_cache()
