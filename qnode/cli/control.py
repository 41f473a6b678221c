"""The `qnodectl` command: show a running node through its control socket, and make it do something."""

import sys
from pathlib import Path

import click

from qnode.cli.audit import audit
from qnode.cli.backup import backup
from qnode.cli.exits import EXIT_CANNOT_TELL, EXIT_NOT_RUNNING, EXIT_OK, EXIT_USAGE
from qnode.cli.interrupted import end_interrupted
from qnode.cli.look import align, blocks, checks, devices, doctor, events, keys, status, watch
from qnode.cli.orders import calibrate, reload_site, restore, self_test
from qnode.cli.pki import pki
from qnode.cli.preshared import preshared
from qnode.cli.rollback import rollback
from qnode.cli.saes import saes
from qnode.cli.version import version_option
from qnode.cli.where import Where
from qnode.operate.control.client import NoAnswer, NodeNotRunning


@click.group()
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    envvar="QNODE_CONTROL_SOCKET",
    help="Control socket of the node (default: $QNODE_CONTROL_SOCKET, or the only one below /run/qnode).",
)
@click.option(
    "--patience", default=5.0, type=click.FloatRange(min=0.01), help="Seconds to wait for an answer."
)
@click.option("--link", default="", help="Ask about this link of a site with several (default: the first).")
@version_option
@click.pass_context
def qnodectl(context: click.Context, path: Path | None, patience: float, link: str) -> None:
    """Show a running node of a QKD link.

    Exit codes: 0 ok, 1 degraded, 2 not running, 3 cannot tell, 64 usage.
    """
    context.obj = Where(path, patience, link)


for _command in (
    *(status, watch, align, keys, devices, doctor, events, blocks, checks),
    *(reload_site, self_test, calibrate, restore),
    *(saes, audit, backup, rollback, pki, preshared),
):
    qnodectl.add_command(_command)


def main() -> None:
    """Run the command line with the documented exit codes."""
    try:
        code = qnodectl.main(standalone_mode=False)
    except click.UsageError as error:
        error.show()
        code = EXIT_USAGE
    except NodeNotRunning as error:
        click.echo(f"not running: {error}", err=True)
        code = EXIT_NOT_RUNNING
    except NoAnswer as error:
        click.echo(f"cannot tell: {error}", err=True)
        code = EXIT_CANNOT_TELL
    except (click.Abort, KeyboardInterrupt):
        end_interrupted()
    sys.exit(code if isinstance(code, int) else EXIT_OK)


if __name__ == "__main__":
    main()
