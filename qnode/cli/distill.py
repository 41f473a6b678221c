"""`qnode distill`: from recorded tags and symbols to key, in one process."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qnode.cli.exits import EXIT_USAGE
from qnode.cli.secrets import forbid_core_dumps
from qnode.cli.tag_file_options import (
    opened_tag_file,
    refuse_without_tag_file,
    tag_file_options,
    tell_faults,
)
from qnode.cli.width import columns

if TYPE_CHECKING:
    from rich.table import Table

    from qnode.offline.recorded import Recorded
    from qnode.offline.report import DistillReport


@click.command()
@click.argument("recordings", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration of the link; source and receiver must be those of the recording. Default: as "
    "recorded.",
)
@click.option("--json", "as_json", is_flag=True, help="On stdout print one JSON object, and nothing else.")
@click.option(
    "--csv",
    "table_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Also write a line for each block to this file (- for stdout, which then has nothing else).",
)
@tag_file_options
def distill(
    recordings: tuple[Path, ...],
    path: Path | None,
    as_json: bool,
    table_file: Path | None,
    **of_file: Any,
) -> int:
    """Distil RECORDINGS of `qnode record`, both sites at once, and show each block's result.

    One folder is the recording of a simulated link. Two folders are the recordings of the two sites of a
    running link, in either order. A folder and a tag file are what Alice sent, and what Bob's time tagger
    recorded (docs/tag-files.md). No key is kept: the command serves to study a link or a method.
    """
    forbid_core_dumps()
    # Imported here: numerical libraries load slowly, and usage errors should not wait for them.
    from qnode.block.span_policy import RecentBlocks
    from qnode.cli.replay import config_over
    from qnode.errors import ConfigError, DeviceError
    from qnode.offline.distillation import distilled_blocks
    from qnode.offline.recorded_file import RecordedFile
    from qnode.offline.report import report_of, row_of, write_csv
    from qnode.offline.seen import Seen
    from qnode.offline.synchronise import NotAligned, synchronised

    if as_json and table_file == Path("-"):
        click.echo("qnode: --json and --csv - both want stdout", err=True)
        return EXIT_USAGE
    try:
        recorded = _opened(recordings, of_file)
        of_recorder = not isinstance(recorded, RecordedFile)
        link = config_over(recorded.link, recordings[0], path, receiver=of_recorder).link
        if isinstance(recorded, RecordedFile):
            tell_faults(recorded.file, recorded.survey, link)
        began_s = time.process_time()
        astray_s = list[float]()
        results = synchronised(
            recorded.tags(), recorded.symbols, link, recorded.start, astray=astray_s.append
        )
        recent, seen = RecentBlocks(), Seen()
        sifted = recorded.sifted(seen.through(results), link, recent)
        rows = [row_of(block, link) for block in distilled_blocks(sifted, link, recent)]
        report = report_of(
            rows,
            link=link,
            simulated=recorded.simulated,
            tags=recorded.n_tags,
            processor_s=time.process_time() - began_s,
        )
        if table_file is not None and table_file != Path("-"):
            with table_file.open("w", newline="") as file:
                write_csv(rows, file)
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    except (NotAligned, DeviceError) as error:
        click.echo(f"qnode: {' and '.join(map(str, recordings))}: {error}", err=True)
        return 1
    except OSError as error:
        click.echo(f"qnode: {table_file}: cannot be written: {error.strerror}", err=True)
        return EXIT_USAGE
    if astray_s:
        click.echo(
            f"qnode: Alice's slots were {abs(astray_s[0]):.3f} s from where the times of day put them, and "
            "were found all the same: set both sites' clocks (NTP)",
            err=True,
        )
    left_out = sorted(set(recorded.block_ids) - {row.block for row in rows})
    if left_out:
        numbers = ", ".join(map(str, left_out))
        click.echo(
            f"qnode: left out, for want of lock at its beginning or its end: block {numbers}", err=True
        )
    elif not rows:
        click.echo(f"qnode: {seen.why_no_block(link)}", err=True)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(report).decode())
    elif table_file == Path("-"):
        write_csv(rows, sys.stdout)
    else:
        from rich.console import Console

        if rows:
            Console(width=columns(), highlight=False).print(_table(report))
    return 0 if report.blocks_accepted else 1


def _opened(paths: tuple[Path, ...], of_file: dict[str, Any]) -> "Recorded":
    """Open the recordings; ``of_file``: the options of a tag file.

    Raises:
        ConfigError: a recording cannot be read, or the two do not fit together.
    """
    from qnode.errors import ConfigError
    from qnode.offline.recorded import recorded_link
    from qnode.offline.recorded_file import recorded_file
    from qnode.offline.recorded_sites import recorded_sites
    from qnode.tags.site_recording import is_site_recording

    folders = [path for path in paths if not path.is_file()]
    files = [path for path in paths if path.is_file()]
    if len(files) == 1 and len(folders) == 1:
        return recorded_file(folders[0], opened_tag_file(files[0], **of_file))
    refuse_without_tag_file(**of_file)
    if files:
        raise ConfigError(
            f"{files[0]} is a file: a tag file is what Bob recorded; name the folder with what Alice sent as "
            "well, and nothing else"
        )
    if len(folders) > 2:
        raise ConfigError(f"{len(folders)} folders: expected one of a simulated link, or two of two sites")
    if len(folders) == 2:
        return recorded_sites(*folders)
    (folder,) = folders
    if is_site_recording(folder):
        raise ConfigError(f"{folder} is the recording of one site: name the other site's folder as well")
    return recorded_link(folder)


def _table(report: "DistillReport") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, title=_title(report), caption=_caption(report))
    for heading in (
        *("block", "s", "clicks", "sifted", "QBER_Z", "f_EC", "rounds", "phase\nerror", "secret", "1/s"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
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
            row.lost or f"{row.secret_bits:,}",
            f"{row.secret_bits_per_s:,.0f}",
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
