"""What the commands that show the status of an agent or of a front end share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from qnode.cli.exits import EXIT_CANNOT_TELL, EXIT_NOT_RUNNING

Command = TypeVar("Command", bound=Callable[..., Any])


class DaemonStatus(Protocol):
    """What a daemon says of itself."""

    @property
    def exit_code(self) -> int:
        """The exit code of the command that shows it. Raises ValueError: a newer daemon's state."""


Status = TypeVar("Status", bound=DaemonStatus)


def status_options(command: Command) -> Command:
    """Add the options ``as_json`` and ``patience``, in seconds."""
    patience = click.option(
        "--patience", default=5.0, type=click.FloatRange(min=0.01), help="Seconds to wait for an answer."
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object with everything.")
    return as_json(patience(command))


def show_status(
    program: str,
    find: Callable[[], Path],
    kind: type[Status],
    lines: Callable[[Status], list[str]],
    *,
    as_json: bool,
    patience_s: float,
) -> int:
    """Show what the daemon at the control socket ``find()`` says of itself, and return the exit code.

    ``find`` raises NodeNotRunning or NoAnswer if there is not one socket.
    """
    import msgspec

    from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_status
    from qnode.operate.events.line import printable

    try:
        raw = ask_status(find(), patience_s=patience_s)
        told = msgspec.json.decode(raw, type=kind)
        code = told.exit_code
    except NodeNotRunning as error:
        click.echo(f"{program}: {error}", err=True)
        return EXIT_NOT_RUNNING
    except (NoAnswer, msgspec.DecodeError, ValueError) as error:
        click.echo(f"{program}: {error}", err=True)
        return EXIT_CANNOT_TELL
    if as_json:
        click.echo(msgspec.json.format(bytes(raw), indent=2))
    else:
        click.echo("\n".join(printable(line) for line in lines(told)))
    return code
