"""How the answers of a node look on a terminal."""

from typing import TYPE_CHECKING

import click

from qnode.cli.printing import echo
from qnode.cli.width import columns, fitted

if TYPE_CHECKING:
    from rich.table import Table

    from qnode.operate.status.model import NodeStatus

# Columns of tables that are aligned to the right.
_NUMBERS = frozenset(
    {
        *("chunks", "keys", "refused", "keys/min", "value", "plausible"),
        *("block", "ago", "s", "sifted", "QBER Z", "f_EC", "phase error", "secret"),
    }
)


def show_screen(node: "NodeStatus") -> None:
    """Print the status, warnings in colour on a terminal."""
    from qnode.operate.status.screen import Loud, status_lines

    for line in status_lines(node):
        for part in fitted_lines([line]):
            echo(click.style(part, fg="yellow", bold=True) if isinstance(line, Loud) else part)


def fitted_lines(lines: list[str]) -> list[str]:
    """Wrap lines that are wider than the terminal."""
    from qnode.operate.status.screen import PARTS_COLUMN

    return [part for line in lines for part in fitted(line, columns(), PARTS_COLUMN)]


def table_of(node: "NodeStatus", *headings: str) -> "Table":
    """Return an empty table; its title states `simulated` for a simulated link."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from qnode.operate.status.screen import SIMULATED

    title = SIMULATED if node.simulated else None
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, collapse_padding=True)
    for heading in headings:
        is_number = heading in _NUMBERS
        shown = heading.replace(" ", "\n")  # narrow columns: several lines in a heading
        table.add_column(shown, justify="right" if is_number else "left", no_wrap=is_number)
    return table


def print_table(table: "Table") -> None:
    """Print a table as wide as the terminal."""
    from rich.console import Console

    # Text from outside is not markup.
    console = Console(markup=False, highlight=False, width=columns())
    with console.capture() as text:
        console.print(table)
    echo(text.get().rstrip())
