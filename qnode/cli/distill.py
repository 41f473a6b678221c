"""`qnode distill`: the whole way from recorded tags and symbols to key, in one process."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qnode.cli.main import EXIT_USAGE

if TYPE_CHECKING:
    from rich.table import Table

    from qnode.offline.report import DistillReport


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="How to distil; source and receiver as they were recorded. Default: as it was recorded.",
)
@click.option("--json", "as_json", is_flag=True, help="On stdout print one JSON object, and nothing else.")
@click.option(
    "--csv",
    "table_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Also write a line for each block to this file (- for stdout, which then has nothing else).",
)
def distill(folder: Path, path: Path | None, as_json: bool, table_file: Path | None) -> int:
    """Distil what `qnode record` has left in FOLDER, both sites at once, and say what each block gives.

    No key is kept: this is for studying a link, or a way to distil.
    """
    # Imported here: numerical libraries take a while, and usage errors should not wait for them.
    from qnode.cli.replay import played_config
    from qnode.errors import ConfigError
    from qnode.offline.distillation import distilled
    from qnode.offline.recorded import recorded_link
    from qnode.offline.report import report_of, row_of, write_csv
    from qnode.offline.synchronise import synchronised

    if as_json and table_file == Path("-"):
        click.echo("qnode: --json and --csv - both want stdout", err=True)
        return EXIT_USAGE
    try:
        link = played_config(folder, path, loop=False).link
        recorded = recorded_link(folder)
        began_s = time.process_time()
        results = synchronised(recorded.tags(), recorded.symbols, link, recorded.start)
        rows = [row_of(block, link) for block in distilled(results, recorded.symbols, link)]
        report = report_of(
            rows,
            link=link,
            simulated=recorded.manifest.simulated,
            tags=int(recorded.recording.times_ps.shape[0]),
            processor_s=time.process_time() - began_s,
        )
        if table_file is not None and table_file != Path("-"):
            with table_file.open("w", newline="") as file:
                write_csv(rows, file)
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    except OSError as error:
        click.echo(f"qnode: {table_file}: cannot be written: {error.strerror}", err=True)
        return EXIT_USAGE
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(report).decode())
    elif table_file == Path("-"):
        write_csv(rows, sys.stdout)
    else:
        from rich.console import Console

        Console(width=max(120, Console().width)).print(_table(report))
    return 0 if report.blocks_accepted else 1


def _table(report: "DistillReport") -> "Table":
    from rich.table import Table

    table = Table(title=_title(report), caption=_caption(report))
    for heading in (
        "block",
        "s",
        "clicks",
        "sifted",
        "QBER_Z",
        "f_EC",
        "rounds",
        "phase error",
        "secret",
        "1/s",
        "",
    ):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in report.blocks:
        table.add_row(
            str(row.block),
            f"{row.seconds:.3g}",
            f"{row.clicks:,}",
            f"{row.sifted_bits:,}",
            f"{row.qber_z:.3%}" if row.qber_z is not None else "",
            f"{row.f_ec:.3f}" if row.f_ec is not None else "",
            str(row.rounds or ""),
            f"{row.phi_z_upper:.2%}" if row.phi_z_upper is not None else "",
            f"{row.secret_bits:,}",
            f"{row.secret_bits_per_s:,.0f}",
            row.lost,
        )
    return table


def _title(report: "DistillReport") -> str:
    kind = "simulated, not keys" if report.simulated else "recorded"
    return f"{report.link} ({kind}): {report.tags:,} tags"


def _caption(report: "DistillReport") -> str:
    lost = ", ".join(f"{number} lost: {reason}" for reason, number in report.blocks_discarded.items())
    return (
        f"{report.seconds:.3g} s in blocks: {report.sifted_bits_per_s:,.0f} sifted and "
        f"{report.secret_bits_per_s:,.0f} secret bits a second; {report.processor_s:.2f} s of one core"
        + (f"; {lost}" if lost else "")
    )
