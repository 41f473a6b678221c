"""`qnode check`: what is wrong with a site's file, before anything is started or reloaded."""

from pathlib import Path

import click

from qnode.cli.main import EXIT_USAGE


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
def check(path: Path) -> int:
    """Name all that is wrong with a site's FILE and the files it names; touch nothing.

    Exit 0: nothing is wrong. 64: a site would refuse it, or not work as it says.
    """
    from qnode.node.check import check_site  # usage errors should not wait for it

    found = check_site(path)
    for note in found.notes:
        click.echo(f"note: {note}")
    for fault in found.faults:
        click.echo(f"fault: {fault}")
    number = len(found.faults)
    told = "nothing is wrong" if number == 0 else f"{number} fault{'s' if number > 1 else ''}"
    click.echo(f"{path}: {told}")
    return EXIT_USAGE if found.faults else 0
