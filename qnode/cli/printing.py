"""How commands print: text from outside as text, a closed pipe, and what cannot be used in one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from qnode.errors import ConfigError
from qnode.operate.events.line import printable


def say(text: str) -> None:
    """Print one line; control characters in it are shown as text."""
    click.echo(printable(text))


def echo(text: str | bytes) -> bool:
    """Print ``text``; False when the reader (`head`, `grep -q`) has closed the pipe, which is no error."""
    try:
        click.echo(text)
    except BrokenPipeError:
        # click alone would exit with 1, which means a degraded node.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


@contextmanager
def refusals_told() -> Iterator[None]:
    """Convert what cannot be used to one line and exit code 64."""
    try:
        yield
    except ConfigError as error:
        raise click.UsageError(printable(str(error))) from None
