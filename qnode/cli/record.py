"""`qnode record`: what both ends of a simulated link see, or what a running site decides of its blocks."""

from pathlib import Path

import click

from qnode.cli.main import EXIT_USAGE

_EITHER = (
    "either --out DIR --duration S [--config FILE] [--loopable] [--json] records a simulated link, or "
    "--site SOCKET --blocks FILE [--duration S] writes down the blocks of a running site"
)


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Link and simulation, as for loopback; default: the shipped defaults.",
)
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="The recording of a simulated link, a new folder.",
)
@click.option(
    "--duration",
    "duration_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Simulated seconds, in whole hundredths; with --site seconds, default: until SIGINT or SIGTERM.",
)
@click.option(
    "--loopable",
    is_flag=True,
    help="Let both clocks run steadily, so that the recording's end fits its beginning.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option(
    "--site",
    "socket",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Instead of a simulated link: the control socket of a running site.",
)
@click.option(
    "--blocks",
    "table_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --site: append a line for each block it decides to this CSV file.",
)
def record(
    path: Path | None,
    folder: Path | None,
    duration_s: float | None,
    loopable: bool,
    as_json: bool,
    socket: Path | None,
    table_file: Path | None,
) -> int:
    """Record Bob's time tags and Alice's symbols of a simulated link, or the blocks of a running site.

    With --out a simulated link runs for --duration. With --site and --blocks each block that the site decides
    becomes a line of public counts; the file is continued when it is there, and a site that is away is waited
    for (exit status 1 when it never answered).
    """
    if socket is not None and table_file is not None and not (path or folder or loopable or as_json):
        return _record_site(socket, table_file, duration_s)
    if folder is None or duration_s is None or socket is not None or table_file is not None:
        raise click.UsageError(_EITHER)
    return _record_link(path, folder, duration_s, loopable, as_json)


def _record_link(path: Path | None, folder: Path, duration_s: float, loopable: bool, as_json: bool) -> int:
    # Imported here: numerical libraries take a while, which the blocks of a site do not need.
    import msgspec

    from qnode.cli.loopback import load_loopback
    from qnode.errors import ConfigError
    from qnode.simulate.recorder import record as record_link
    from qnode.simulate.recorder import steady_clocks

    try:
        config = load_loopback(path)
        simulation = steady_clocks(config.simulation) if loopable else config.simulation
        manifest = record_link(folder, simulation, config.link, duration_s)
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    except OSError as error:
        click.echo(f"qnode: {folder}: cannot be written: {error.strerror}", err=True)
        return 1
    if as_json:
        click.echo(msgspec.json.encode(manifest).decode())
    else:
        click.echo(
            f"{folder}: {manifest.slots} slots, {manifest.z_tags} tags in the Z arm, "
            f"{manifest.x_tags} in the X arm, clock drift {manifest.clock_drift_ps:.3g} ps"
        )
    return 0


def _record_site(socket: Path, table_file: Path, duration_s: float | None) -> int:
    import signal

    from qnode.operate.block_recorder import record_blocks
    from qnode.operate.block_table import TableRefused, open_block_table

    # Blocked, the signals arrive only where they are waited for, never within a line of the file.
    ending = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        with open_block_table(table_file) as table:
            written = record_blocks(
                socket,
                table,
                duration_s=duration_s,
                wait=lambda pause_s: signal.sigtimedwait(ending, pause_s) is not None,
                tell=lambda text: click.echo(f"qnode: {text}", err=True),
            )
    except TableRefused as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    except OSError as error:
        click.echo(f"qnode: {table_file}: cannot be written: {error.strerror or error}", err=True)
        return 1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if written is None:
        return 1
    click.echo(f"{table_file}: {written} block{'' if written == 1 else 's'} added")
    return 0
