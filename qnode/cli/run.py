"""`qnode run`: the daemon of one site."""

import ctypes
import gc
import importlib
import os
import signal
import sys
from pathlib import Path

import click

from qnode.cli.main import EXIT_USAGE
from qnode.cli.secrets import forbid_core_dumps
from qnode.errors import ConfigError, QnodeError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


def _keep_freed_memory() -> None:
    """Have glibc reuse the memory of arrays of tags, which come and go many times a second.

    Two arenas, not one for each worker thread: what one frees serves the others, which halves a busy daemon.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another libc has its own ways
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 1 << 28)
        mallopt(_M_TRIM_THRESHOLD, 1 << 28)


def _import_sparingly() -> None:
    """Import what costs a start more than it is worth to a daemon, without the part that it never uses."""
    gc.disable()  # until the site runs: nothing that is imported is garbage
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start a thread a core, for matrices
    if "rich" not in sys.modules:  # structlog takes it in where it is installed, for tracebacks in colour
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
    # A reload that is asked for before the node can do it, or while it stops, must not kill it.
    signal.signal(signal.SIGHUP, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # Key material must not reach other users' files, nor a core dump.
    os.umask(0o077)
    forbid_core_dumps()
    _keep_freed_memory()
    _import_sparingly()
    # Imported here: numerical libraries take a while, and usage errors should not wait for them.
    from qnode.node.process import run_site_until_signal

    try:
        return run_site_until_signal(path, stop_at_eof=stop_at_eof)
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    except QnodeError as error:
        click.echo(f"qnode: {error}", err=True)
        return 1
    finally:
        # The interpreter's end takes back every handler; what is ignored stays so.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
