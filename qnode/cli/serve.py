"""`qnode serve`: a front end of a site, which delivers keys from the store of a node.

The exit codes of `qnode serve status` are an interface: 0 serving, 1 waiting or without its node, 2 not
running, 3 cannot tell, 64 usage.
"""

from pathlib import Path

import click

from qnode.cli.daemon import run_daemon
from qnode.cli.daemon_status import show_status, status_options
from qnode.cli.exits import EXIT_USAGE

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

    def run_front_end() -> int:
        from qnode.serve.process import run_front_end_until_signal  # usage errors should not wait for it

        return run_front_end_until_signal(path, anchor_lost=anchor_lost, stop_at_eof=stop_at_eof)

    return run_daemon(run_front_end)


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
@status_options
def status(path: Path, as_json: bool, patience: float) -> int:
    """Show the state of a running front end.

    Exit codes: 0 serving, 1 waiting or without its node, 2 not running, 3 cannot tell, 64 usage.
    """
    from qnode.serve.status import FrontEndStatus, status_lines

    return show_status(
        "qnode serve", lambda: path, FrontEndStatus, status_lines, as_json=as_json, patience_s=patience
    )
