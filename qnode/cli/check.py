"""`qnode check`: all errors of a site's file, before anything is started or reloaded."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qnode.cli.exits import EXIT_USAGE
from qnode.operate.events.line import printable

if TYPE_CHECKING:
    from qnode.config_checks import Findings


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
def check(path: Path) -> int:
    """Name every error in a site's FILE and in the files it names; change nothing.

    Exit 0: no error. 64: a site would refuse the file, or would not work as the file describes.
    """
    from qnode.node.check import check_site  # usage errors should not wait for it

    return tell_findings(path, check_site(path))


def tell_findings(path: Path, found: "Findings") -> int:
    """Print what was found in the file at ``path``, and return the exit code."""
    for note in found.notes:
        click.echo(f"note: {printable(note)}")
    for fault in found.faults:
        click.echo(f"fault: {printable(fault)}")
    number = len(found.faults)
    told = "nothing is wrong" if number == 0 else f"{number} fault{'s' if number > 1 else ''}"
    click.echo(f"{path}: {told}")
    return EXIT_USAGE if found.faults else 0
