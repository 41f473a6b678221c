"""`qnode run`: the daemon of one site."""

import ctypes
import gc
import importlib
import os
import sys
from pathlib import Path

import click

from qnode.cli.daemon import run_daemon

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of arrays of tags, which are made and freed many times a second.

    Two arenas, not one for each worker thread: all threads share freed memory, which halves a busy daemon.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another libc has no such setting
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 1 << 28)
        mallopt(_M_TRIM_THRESHOLD, 1 << 28)


def _import_sparingly() -> None:
    """Import costly modules without the parts that a daemon never uses."""
    gc.disable()  # until the site runs: an import leaves no garbage
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start one thread per core for matrices
    if "rich" not in sys.modules:  # structlog imports it if it is installed, for coloured tracebacks
        sys.modules["rich"] = None  # type: ignore[assignment]
        importlib.import_module("structlog")
        del sys.modules["rich"]


@click.command()
@click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The site's TOML.",
)
@click.option("--stop-at-eof", is_flag=True, help="Stop also when standard input ends.")
def run(path: Path, stop_at_eof: bool) -> int:
    """Run one site until SIGTERM or SIGINT; SIGHUP reloads FILE and certificates."""

    def run_site() -> int:
        _keep_freed_memory()
        _import_sparingly()
        # Imported here: numerical libraries load slowly, and usage errors should not wait for them.
        from qnode.node.process import run_site_until_signal

        return run_site_until_signal(path, stop_at_eof=stop_at_eof)

    return run_daemon(run_site)
