"""`qnode serve`: a front end of a site, which delivers keys from the store of a node.

The exit codes of `qnode serve status` are an interface: 0 serving, 1 waiting or without its node, 2 not
running, 3 cannot tell, 64 usage.
"""

import os
import signal
from pathlib import Path

import click

from qnode.cli.main import EXIT_USAGE
from qnode.cli.secrets import forbid_core_dumps
from qnode.errors import ConfigError, QnodeError

EXIT_NOT_RUNNING, EXIT_CANNOT_TELL = 2, 3

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(invoke_without_command=True)
@click.option("--config", "path", type=_FILE, help="The front end's TOML.")
@click.option(
    "--anchor-lost",
    is_flag=True,
    help="The anchor of this front end is lost for good; if the database may have been set back meanwhile, "
    "every key is voided.",
)
@click.option("--stop-at-eof", is_flag=True, help="Stop also when standard input ends.")
@click.pass_context
def serve(context: click.Context, path: Path | None, anchor_lost: bool, stop_at_eof: bool) -> int | None:
    """Deliver keys from the store of a node until SIGTERM or SIGINT; SIGHUP reloads FILE and certificates."""
    if context.invoked_subcommand is not None:
        return None
    if path is None:
        click.echo("qnode serve: --config is missing", err=True)
        return EXIT_USAGE
    # A request to reload that comes too early, or during the stop, must not end the front end.
    signal.signal(signal.SIGHUP, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    os.umask(0o077)
    forbid_core_dumps()
    from qnode.serve.process import run_front_end_until_signal  # usage errors should not wait for it

    try:
        return run_front_end_until_signal(path, anchor_lost=anchor_lost, stop_at_eof=stop_at_eof)
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    except QnodeError as error:
        click.echo(f"qnode: {error}", err=True)
        return 1
    finally:
        # The interpreter removes every handler at its end; an ignored signal stays ignored.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


@serve.command()
@click.argument("path", metavar="FILE", type=_FILE)
def check(path: Path) -> int:
    """Name every error in a front end's FILE and in the files it names; change nothing.

    Exit 0: no error. 64: a front end would refuse the file.
    """
    from qnode.cli.check import tell_findings
    from qnode.serve.config import check_front_end

    return tell_findings(path, check_front_end(path))


@serve.command()
@click.option(
    "--socket",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    envvar="QNODE_SERVE_SOCKET",
    help="Control socket (default: $QNODE_SERVE_SOCKET).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object with everything.")
@click.option(
    "--patience", default=5.0, type=click.FloatRange(min=0.01), help="Seconds to wait for an answer."
)
def status(path: Path, as_json: bool, patience: float) -> int:
    """Show the state of a running front end.

    Exit codes: 0 serving, 1 waiting or without its node, 2 not running, 3 cannot tell, 64 usage.
    """
    import msgspec

    from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_status
    from qnode.operate.events.line import printable
    from qnode.serve.status import FrontEndStatus, status_lines

    try:
        raw = ask_status(path, patience_s=patience)
        told = msgspec.json.decode(raw, type=FrontEndStatus)
    except NodeNotRunning as error:
        click.echo(f"qnode serve: {error}", err=True)
        return EXIT_NOT_RUNNING
    except (NoAnswer, msgspec.DecodeError) as error:
        click.echo(f"qnode serve: {error}", err=True)
        return EXIT_CANNOT_TELL
    if as_json:
        click.echo(msgspec.json.format(bytes(raw), indent=2))
    else:
        click.echo("\n".join(printable(line) for line in status_lines(told)))
    return told.exit_code
