"""What the commands that run a daemon share."""

import os
import signal
from collections.abc import Callable

import click

from qnode.cli.exits import EXIT_USAGE
from qnode.cli.secrets import forbid_core_dumps
from qnode.errors import ConfigError, QnodeError


def run_daemon(run: Callable[[], int]) -> int:
    """Return what ``run`` returns, or the exit status of its error, which is told.

    ``run`` begins with SIGHUP blocked; it unblocks it when it can reload.
    """
    # A request to reload that comes too early, or during the stop, must not kill the daemon.
    signal.signal(signal.SIGHUP, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # Key material must reach neither other users' files nor a core dump.
    os.umask(0o077)
    forbid_core_dumps()
    try:
        return run()
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    except QnodeError as error:
        click.echo(f"qnode: {error}", err=True)
        return 1
    finally:
        # The interpreter removes every handler at its end; an ignored signal stays ignored.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
