"""`qnode record`: the data of a simulated link, or tags, symbols and blocks of a running site."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from qnode.cli.exits import EXIT_USAGE
from qnode.cli.secrets import forbid_core_dumps

_EITHER = (
    "either --out DIR --duration S [--config FILE] [--loopable] [--json] records a simulated link, or "
    "--site SOCKET [--out DIR] [--blocks FILE] [--duration S] a running site: its tags or symbols, its blocks"
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
    help="A new folder for the recording of a simulated link, or with --site of one site's tags or symbols.",
)
@click.option(
    "--duration",
    "duration_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Simulated seconds, in whole hundredths; with --site seconds (with --out: from the first recorded "
    "block on), default: until SIGINT or SIGTERM.",
)
@click.option(
    "--loopable",
    is_flag=True,
    help="Keep both clocks steady, so that the end of the recording fits its beginning.",
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
    help="With --site: append a line for each decided block to this CSV file.",
)
@click.option(
    "--link", default="", help="With --site: of this link of a site with several; default: the first."
)
def record(
    path: Path | None,
    folder: Path | None,
    duration_s: float | None,
    loopable: bool,
    as_json: bool,
    socket: Path | None,
    table_file: Path | None,
    link: str,
) -> int:
    """Record Bob's time tags and Alice's symbols of a simulated link, or a running site.

    With --out alone a simulated link runs for --duration. With --site and --out the command records the data
    of the site from the next block on: Bob's tags, or Alice's symbols of announced slots. Everyone who reads
    the recording knows the keys. With --site and --blocks each decided block becomes a line of public counts.
    An existing file is continued. Without --out the command waits for a site that is not running (exit status
    1 when the site never answered).
    """
    forbid_core_dumps()
    if socket is not None and (folder or table_file) and not (path or loopable or as_json):
        if folder is not None:
            # Before any import that starts threads: the threads would take the signals.
            with _told_to_end() as told:
                return _record_tags(socket, folder, table_file, duration_s, told, link)
        assert table_file is not None
        return _record_site(socket, table_file, duration_s, link)
    if folder is None or duration_s is None or socket is not None or table_file is not None:
        raise click.UsageError(_EITHER)
    return _record_link(path, folder, duration_s, loopable, as_json)


def _record_link(path: Path | None, folder: Path, duration_s: float, loopable: bool, as_json: bool) -> int:
    # Imported here: numerical libraries load slowly, and the blocks of a site do not need them.
    import msgspec

    from qnode.cli.loopback import load_loopback
    from qnode.errors import ConfigError
    from qnode.simulate.recorder import record as record_link
    from qnode.simulate.recorder import steady_clocks

    told = _EndingSignals()
    try:
        config = load_loopback(path)
        simulation = steady_clocks(config.simulation) if loopable else config.simulation
        manifest = record_link(folder, simulation, config.link, duration_s, ending=told)
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
    return 0 if told.first is None else 128 + told.first


class _EndingSignals:
    """Takes SIGINT and SIGTERM while it is entered; ``first``: the first of them, if any.

    Blocking the signals is not enough: threads that libraries have started would take them.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self._before: list[tuple[int, Any]] = []

    def __enter__(self) -> Callable[[], bool]:
        self._before = [(n, signal.signal(n, self._take)) for n in (signal.SIGINT, signal.SIGTERM)]
        return lambda: self.first is not None

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _take(self, number: int, _frame: object) -> None:
        if self.first is None:
            self.first = number


def _record_site(socket: Path, table_file: Path, duration_s: float | None, link: str) -> int:
    from qnode.operate.blocks.table_file import TableRefused, open_block_table
    from qnode.operate.recorder.blocks import record_blocks

    try:
        with _told_to_end() as told, open_block_table(table_file) as table:
            written = record_blocks(
                socket,
                table,
                duration_s=duration_s,
                wait=told,
                tell=_tell,
                link=link,
            )
    except TableRefused as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    except OSError as error:
        click.echo(f"qnode: {table_file}: cannot be written: {error.strerror or error}", err=True)
        return 1
    if written is None:
        return 1
    _tell_added(table_file, written)
    return 0


def _record_tags(
    socket: Path,
    folder: Path,
    table_file: Path | None,
    duration_s: float | None,
    told: Callable[[float], bool],
    link: str,
) -> int:
    from qnode.errors import ConfigError
    from qnode.operate.blocks.table_file import TableRefused
    from qnode.operate.control.client import NoAnswer, NodeNotRunning
    from qnode.operate.recorder.site import record_site
    from qnode.tags.site_recording import SiteRecordingWriter

    try:
        with SiteRecordingWriter(folder) as writer, _blocks_meanwhile(socket, table_file, link):
            recorded = record_site(socket, writer, duration_s=duration_s, wait=told, tell=_tell, link=link)
    except (ConfigError, TableRefused) as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    except (NodeNotRunning, NoAnswer) as error:
        click.echo(f"qnode: {error}", err=True)
        return 1
    except OSError as error:
        where = error.filename or folder
        click.echo(f"qnode: {where}: cannot be written: {error.strerror or error}", err=True)
        return 1
    manifest = recorded.manifest
    if manifest is None:
        _tell(f"{folder}: no block began, nothing is recorded ({recorded.because})")
        return 1
    blocks = manifest.blocks
    click.echo(
        f"{folder}: {manifest.entries} {'symbols' if manifest.role == 'alice' else 'tags'}, "
        + (
            f"{len(blocks)} whole blocks, {blocks[0].block_id} to {blocks[-1].block_id}"
            if blocks
            else "no whole block"
        )
        + f" ({recorded.because})"
    )
    return 0 if recorded.whole else 1


@contextmanager
def _blocks_meanwhile(socket: Path, table_file: Path | None, link: str) -> Iterator[None]:
    """Record the site's blocks in a separate thread: a busy site may answer slowly."""
    if table_file is None:
        yield
        return
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    from qnode.operate.blocks.table_file import open_block_table
    from qnode.operate.recorder.blocks import record_blocks

    over = Event()
    with open_block_table(table_file) as table, ThreadPoolExecutor(1) as pool:
        record = partial(record_blocks, socket, table, wait=over.wait, tell=_tell, link=link)
        work = pool.submit(record, duration_s=None)
        try:
            yield
        finally:
            over.set()
        try:
            written = work.result() or 0
            # The blocks decided since the last request.
            written += record(duration_s=0.0) or 0
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(table_file)) from None
        _tell_added(table_file, written)


@contextmanager
def _told_to_end() -> Iterator[Callable[[float], bool]]:
    """Provide a function that waits a given number of seconds for a signal; True when it has come.

    The signals are blocked, so they arrive only during this wait, never while a file is written.
    """
    ending = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield lambda pause_s: signal.sigtimedwait(ending, pause_s) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tell(text: str) -> None:
    click.echo(f"qnode: {text}", err=True)


def _tell_added(table_file: Path, written: int) -> None:
    click.echo(f"{table_file}: {written} block{'' if written == 1 else 's'} added")
