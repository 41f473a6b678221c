"""`qnode bench`: the speed of each stage and of the whole link on this machine, with the machine's limits."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from qnode.cli.exits import EXIT_USAGE
from qnode.cli.width import columns

if TYPE_CHECKING:
    from rich.table import Table

    from qnode.bench.results import BenchReport, BenchResult, Machine


@click.command()
@click.option("--json", "as_json", is_flag=True, help="On stdout print one JSON object, and nothing else.")
@click.option("--only", "names", multiple=True, metavar="NAME", help="Measure this stage; may be repeated.")
@click.option("--quick", is_flag=True, help="Few runs, and no large blocks.")
@click.option(
    "--scaling",
    "figure",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw the cost over the amount of work instead, as PNG or SVG (needs the extra `plots`).",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Run this code and the checkout DIR in turn, and print the ratios.",
)
@click.option(
    "--pairs",
    type=click.IntRange(min=4),
    default=6,
    show_default=True,
    help="Pairs of runs of each case (with --against).",
)
def bench(
    as_json: bool,
    names: tuple[str, ...],
    quick: bool,
    figure: Path | None,
    against: Path | None,
    pairs: int,
) -> int:
    """Measure every stage on one core, and the whole link on this machine.

    Stages are measured in processor time, so other work disturbs them little. The whole link is measured in
    wall time. NAME is sift, cascade, ldpc, verify, amplify, help, start, turin or pair.

    With --against, both checkouts run in turn, by the same Python and its packages. Processor time of all
    daemons counts. Each ratio (this over the other) has the interval that holds the true one with a
    probability of 95 %. NAME is pair, turin, channel, announcement, delivery, far-away, amplify, sift,
    cascade, ldpc or verify.
    """
    if against is not None:
        from qnode.cli.bench_against import bench_against

        if figure is not None:
            click.echo("qnode: --against: not together with --scaling", err=True)
            return EXIT_USAGE
        return bench_against(against, names, pairs=pairs, quick=quick, as_json=as_json)
    # Imported here: numerical libraries load slowly, and usage errors should not wait for them.
    from qnode.bench.limits import measure_machine
    from qnode.bench.results import BenchReport
    from qnode.bench.stages import effort, stages

    known = stages(quick=quick)
    for name in names:
        if name not in known:
            click.echo(f"qnode: --only: unknown stage {name!r}; there are {', '.join(known)}", err=True)
            return EXIT_USAGE
    if figure is not None:
        return _draw(figure, quick=quick)
    how = effort(quick=quick)
    machine = measure_machine(how)
    chosen = [stage for name, stage in known.items() if name in (names or known)]
    results = list(_measured(stage(machine, how) for stage in chosen))
    report = BenchReport(machine, results)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(report).decode())
    else:
        from rich.console import Console

        Console(width=columns()).print(table_of(report))
    return 0


def _measured(found: "Iterator[Iterator[BenchResult]]") -> "Iterator[BenchResult]":
    for results in found:
        for result in results:
            click.echo(f"{_case(result)}: {result.median:.4g} {result.unit}", err=True)
            yield result


def _draw(figure: Path, *, quick: bool) -> int:
    from qnode.bench.scaling import draw_scaling
    from qnode.errors import ConfigError

    try:
        draw_scaling(figure, quick=quick)
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    click.echo(f"{figure}: drawn")
    return 0


def _case(result: "BenchResult") -> str:
    parts = [result.name]
    if result.n_bits:
        parts.append(f"{result.n_bits:,} bits")
    if result.qber is not None:
        parts.append(f"QBER {result.qber:.1%}")
    added_ms = _added_ms(result)
    if added_ms:
        parts.append(f"round trip + {added_ms:.0f} ms")
    return ", ".join(parts)


def _added_ms(result: "BenchResult") -> float:
    return 1000.0 * float(getattr(result, "round_trip_s", 0.0))


def table_of(report: "BenchReport") -> "Table":
    """Return the report for people: it fits 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from qnode.operate.status.screen import si

    caption = "p10 .. p90: of the runs; limit: of this machine, one core"
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, title=_title(report.machine), caption=caption)
    for heading in ("stage", "bits", "QBER", "median", "p10 .. p90", "unit", "runs", "f", "limit"):
        justify: Literal["left", "right"] = "left" if heading in ("stage", "unit") else "right"
        longest_word = {"stage": 8, "unit": 9}.get(heading)
        table.add_column(heading, justify=justify, no_wrap=justify == "right", min_width=longest_word)
    for one in report.results:
        table.add_row(
            f"{one.name} + {_added_ms(one):.0f} ms" if _added_ms(one) else one.name,
            si(one.n_bits).rstrip() if one.n_bits else "",
            f"{one.qber:.1%}" if one.qber is not None else "",
            _rounded(one.median),
            f"{_rounded(one.p10)} .. {_rounded(one.p90)}",
            one.unit,
            str(one.runs),
            f"{one.f:.3f}" if one.f is not None else "",
            _rounded(one.limit) if one.limit is not None else "",
        )
    return table


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _title(machine: "Machine") -> str:
    products = f"{machine.clmul_per_s / 1e9:.1f}" if machine.clmul_per_s else "no"
    return (
        f"{machine.processor}, {machine.cores} cores. In a second one core does at most {products} G "
        f"products of 64-bit polynomials, counts {machine.popcount_bits_per_s / 1e9:.0f} Gbit, "
        f"copies {machine.copy_bytes_per_s / 1e9:.0f} GB"
    )
