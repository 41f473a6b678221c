"""`qnode tags`: what is in a file of time tags."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qnode.cli.exits import EXIT_USAGE
from qnode.cli.width import columns, fitted

if TYPE_CHECKING:
    from rich.table import Table

    from qnode.tags.file_report import TagFileReport


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="On stdout print one JSON object, and nothing else.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw rates over time, the histogram folded at the period, and intervals: FILE.png or FILE.svg "
    "(extra plots).",
)
@click.option("--format", "format_name", help="The format of a file that does not show it.")
@click.option(
    "--copy",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what is in the file into a new one, in the open format that its extension names: .ptu, "
    ".qutag, .a1, .tdc1, .npy or .csv.",
)
def tags(file: Path, as_json: bool, picture: Path | None, format_name: str | None, copy: Path | None) -> int:
    """Show what is in the tag FILE of a time tagger: channels, rates, order, gaps, dead times and periods."""
    # Imported here: numerical libraries load slowly, and usage errors should not wait for them.
    import msgspec

    from qnode.cli.tags_picture import write_picture
    from qnode.errors import ConfigError
    from qnode.plan.figure import check_figure
    from qnode.tags.file_report import inspect_file
    from qnode.tags.formats import open_tag_file, write_tag_file

    try:
        if picture is not None:
            check_figure(picture)
        tag_file = open_tag_file(file, format_name)
        if copy is not None:
            write_tag_file(copy, tag_file.blocks())
        findings = inspect_file(tag_file)
        if picture is not None:
            write_picture(picture, file.name, findings)
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    if as_json:
        click.echo(msgspec.json.encode(findings.report).decode())
    else:
        _print(file, findings.report)
    return 0


def _print(file: Path, report: "TagFileReport") -> None:
    from rich.console import Console

    console = Console(width=columns(), highlight=False, markup=False)
    for line in _facts(file, report):
        for part in fitted(line, columns(), 12):
            console.print(part)
    if report.channels:
        console.print(_channel_table(report))
    if report.periods:
        console.print(_period_table(report))
    elif report.channels:
        console.print("No channel has a period that shows.")
    for warning in report.warnings:
        for part in fitted(f"Note: {warning}.", columns(), 6):
            console.print(part)


def _facts(file: Path, report: "TagFileReport") -> list[str]:
    device = f"  {report.device}" if report.device else ""
    gaps = f"{len(report.gaps)}  longest silence " if report.gaps else "none  longest silence "
    markers = ", ".join(f"{count:,} of number {number}" for number, count in report.markers.items())
    order = (
        f"{report.out_of_order:,} steps back  the largest {time_text(report.largest_step_back_ps)}"
        f"  order window at least {time_text(report.disorder_ps)}"
        if report.out_of_order
        else "no step back"
    )
    return [
        f"{file.name}: {report.format}{device}  {report.records:,} records",
        f"unit        {time_text(report.unit_ps, 7)}",
        f"duration    {report.duration_s:.6g} s  from {report.first_ps / 1e12:.6f} s of the counter",
        f"order       {order}",
        f"gaps        {gaps}{time_text(report.longest_gap_s * 1e12)}",
        f"wraps       {report.wraps:,}",
        f"markers     {markers or 'none'}",
    ]


def _channel_table(report: "TagFileReport") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for heading in ("channel", "tags", "tags/s", "shortest\ninterval", "dead time"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=10)
    for name, tags_of in report.channels.items():
        shortest, dead = report.shortest_intervals_ps[name], report.dead_times_ps[name]
        table.add_row(
            name,
            f"{tags_of:,}",
            f"{report.rates_hz[name]:,.1f}",
            time_text(shortest) if shortest is not None else "",
            f"about {time_text(dead)}" if dead is not None else "none seen",
        )
    return table


def _period_table(report: "TagFileReport") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for heading in ("period (ps)", "±", "MHz", "channel", "strength", "width", "found in"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=7)
    for row in report.periods:
        table.add_row(
            f"{row.period_ps:.6f}",
            f"{row.period_sigma_ps:.1g}",
            f"{row.frequency_hz / 1e6:.6f}",
            str(row.channel),
            f"{row.vector_strength:.4f}",
            time_text(row.width_ps),
            f"{row.over_s:.3g} s",
        )
    return table


def time_text(ps: float, digits: int = 3) -> str:
    """Return a time in picoseconds in the unit that suits it."""
    for unit, size in (("s", 1e12), ("ms", 1e9), ("µs", 1e6), ("ns", 1e3)):
        if ps >= size:
            value = ps / size
            return f"{value:.{digits}g} {unit}" if value < 1000.0 else f"{value:,.0f} {unit}"
    return f"{ps:.{digits}g} ps"
