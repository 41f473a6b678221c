"""`qnode bench --against DIR`: this code and another checkout in turn, as ratios with their spread."""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qnode.cli.exits import EXIT_USAGE
from qnode.cli.width import columns
from qnode.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from qnode.bench.against.checkout import Checkout
    from qnode.bench.against.compare import AgainstReport, Compared, Side


def bench_against(top: Path, names: tuple[str, ...], *, pairs: int, quick: bool, as_json: bool) -> int:
    """Compare; return the exit status: 1 if a figure could not be had."""
    from qnode.bench.against.checkout import CaseFailed, Checkout
    from qnode.bench.against.compare import CASES, AgainstReport, compare
    from qnode.bench.results import processor_name

    for name in names:
        if name not in CASES:
            click.echo(f"qnode: --only: unknown case {name!r}; there are {', '.join(CASES)}", err=True)
            return EXIT_USAGE
    try:
        this, other = Checkout.this(), Checkout.other(top)
        click.echo("compiling the kernels of both", err=True)
        sides = _side(this), _side(other)
    except (ConfigError, CaseFailed) as error:
        click.echo(f"qnode: --against: {error}", err=True)
        return EXIT_USAGE
    found = compare(
        [name for name in CASES if name in (names or CASES)],
        this,
        other,
        pairs=pairs,
        quick=quick,
        tell=lambda line: click.echo(line, err=True),
    )
    report = AgainstReport(
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        pairs=pairs,
        this=sides[0],
        other=sides[1],
        results=list(found),
    )
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(report).decode())
    else:
        _print(report)
    return 1 if any(one.note for one in report.results) else 0


def _side(checkout: "Checkout") -> "Side":
    """Compile the kernels of a checkout and return what is known of it; raises CaseFailed."""
    from qnode.bench.against.checkout import CaseFailed
    from qnode.bench.against.compare import Side

    try:
        return Side(checkout.prepare(), checkout.commit)
    except CaseFailed as error:
        raise CaseFailed(f"{checkout.top}: its code does not run here: {error}") from None


def _print(report: "AgainstReport") -> None:
    from rich.console import Console

    for word, side in (("this", report.this), ("other", report.other)):
        click.echo(f"{word}: version {side.version}, commit {side.commit or 'unknown'}")
    click.echo(
        f"{report.processor}, {report.cores} cores, Python {report.python}, {report.pairs} pairs of runs"
    )
    Console(width=columns()).print(table_of(report.results))
    for one in report.results:
        if one.note:
            click.echo(f"{one.name}: {one.note}")
        elif one.more_is_better:
            click.echo(f"More is better: {one.name}")


def table_of(results: "list[Compared]") -> "Table":
    """Return the figures as a table of Markdown that fits 80 columns."""
    from rich.box import MARKDOWN
    from rich.table import Table

    table = Table(box=MARKDOWN, pad_edge=True)
    table.add_column("figure", no_wrap=True)
    for heading in ("other", "this", "ratio", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in results:
        if one.note:
            continue
        table.add_row(
            one.name,
            _rounded(one.other),
            _rounded(one.this),
            f"{one.ratio:.3f}",
            f"{one.low:.3f} .. {one.high:.3f}",
        )
    return table


def _rounded(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
