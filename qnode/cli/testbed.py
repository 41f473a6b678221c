"""`qnode testbed`: two sites with a tunnel and a sensor chain between them, in three network namespaces."""

import secrets
import shlex
import signal
import sys
from pathlib import Path

import click
import msgspec
import trio

from qnode.cli.exits import EXIT_USAGE
from qnode.cli.interrupted import ending_signals
from qnode.cli.loopback import load_loopback, parse_speed
from qnode.errors import ConfigError, QnodeError, first_of
from qnode.loopback.prepare import LoopbackConfig
from qnode.testbed.figures import check_figures, write_png
from qnode.testbed.needs import check_needs
from qnode.testbed.network import NAME, NetworkRefused, check_network, open_network
from qnode.testbed.outcome import Outcome
from qnode.testbed.page import page_of, summary, title_of
from qnode.testbed.progress import Progress
from qnode.testbed.relay import LineQuality
from qnode.testbed.run import Asked, Source, run_testbed
from qnode.testbed.tunnels import KITS, TunnelName

# The block table of a node keeps so many hours of the Turin link.
MOST_HOURS = 140.0
_SHIPPED = Path("config", "turin.toml")


@click.command()
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.5, max=10_000),
    default=60.0,
    show_default=True,
    help="Real time for which the plant is read.",
)
@click.option("--outages", is_flag=True, help="One outage each of tunnel, database and collector.")
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True, max=MOST_HOURS),
    help="First run the link over this simulated time, for its key rate.",
)
@click.option(
    "--speed", default="max", show_default=True, help="Of --hours: realtime, max, or a multiple of real time."
)
@click.option(
    "--link-speed",
    default="realtime",
    show_default=True,
    help="Of the link that feeds the tunnel: realtime, or a multiple of it for an early first key.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Link and simulation; default: config/turin.toml.",
)
@click.option(
    "--tunnel", type=click.Choice(list(KITS)), default="wireguard", show_default=True, help="Kind of tunnel."
)
@click.option(
    "--period",
    "period_s",
    type=click.FloatRange(min=1, max=3600),
    default=30.0,
    show_default=True,
    help="Seconds from one change of key to the next.",
)
@click.option(
    "--line-delay-ms",
    type=click.FloatRange(0, 1000),
    default=0.0,
    show_default=True,
    help="Delay of the operator's line, each way.",
)
@click.option(
    "--line-jitter-ms",
    type=click.FloatRange(0, 1000),
    default=0.0,
    show_default=True,
    help="Up to so much more delay.",
)
@click.option(
    "--line-loss-percent",
    type=click.FloatRange(0, 50),
    default=0.0,
    show_default=True,
    help="Packets that the operator's line loses.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("testbed"),
    show_default=True,
    help="Each run has a folder of its own in here.",
)
@click.option(
    "--name", help="Of the run, its folder and namespaces: up to 8 of a-z and 0-9; default: random."
)
@click.option(
    "--source",
    type=click.Choice(["modbus", "opcua"]),
    default="modbus",
    show_default=True,
    help="How the reader reads the power meter.",
)
@click.option("--json", "as_json", is_flag=True, help="On stdout print one JSON object at the end.")
def testbed(
    *,
    minutes: float,
    outages: bool,
    hours: float | None,
    speed: str,
    link_speed: str,
    config_file: Path | None,
    tunnel: TunnelName,
    period_s: float,
    source: Source,
    line_delay_ms: float,
    line_jitter_ms: float,
    line_loss_percent: float,
    data_dir: Path,
    name: str | None,
    as_json: bool,
) -> int:
    """Run two sites with a tunnel and a sensor chain between them (root).

    Exit 0 if all that was asked for was reached: every sample stored, none lost, the key changed.
    """
    try:
        name = secrets.token_hex(3) if name is None else name
        if NAME.fullmatch(name) is None:
            raise ConfigError(f"--name: expected 1 to 8 of a-z and 0-9, got {name!r}")
        speeds = [
            parse_speed(text, option) for option, text in (("--speed", speed), ("--link-speed", link_speed))
        ]
        config = _config(config_file)
        check_network()
        check_needs(tunnel)
        folder = run_folder(data_dir, name)
        check_figures(folder)
        asked = Asked(
            command=shlex.join(["qnode", *sys.argv[1:]]),
            minutes=minutes,
            outages=outages,
            hours=hours,
            speed=speeds[0],
            link_speed=speeds[1],
            config=config,
            tunnel=tunnel,
            period_s=period_s,
            source=source,
            line=LineQuality(
                loss=line_loss_percent / 100.0,
                delay_s=line_delay_ms / 1000.0,
                jitter_s=line_jitter_ms / 1000.0,
            ),
            folder=folder,
        )
    except (ConfigError, NetworkRefused) as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    outcome = None
    try:
        outcome = _run(asked, name)
    except* QnodeError as failed:
        click.echo(f"qnode: {first_of(failed)}", err=True)
    if outcome is None:
        click.echo(f"logs: {folder}", err=True)
        return 1
    _write(outcome, folder)
    click.echo(msgspec.json.encode(outcome).decode() if as_json else summary(outcome))
    click.echo(f"page: {folder / 'testbed.html'}", err=as_json)
    return 1 if outcome.faults else 0


def _config(path: Path | None) -> LoopbackConfig:
    """Read the file of the link: the one given, or the shipped one in the source tree or where pip put it."""
    if path is not None:
        return load_loopback(path)
    beside = Path(__file__).parent.parent.parent / _SHIPPED
    installed = Path(sys.prefix, "share", "qnode") / _SHIPPED
    return load_loopback(beside if beside.exists() else installed)


def run_folder(data_dir: Path, name: str) -> Path:
    """Make the folder of this run, which begins empty.

    Raises:
        ConfigError: it exists, or cannot be made.
    """
    folder = data_dir.resolve() / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise ConfigError(f"{folder}: has an earlier run; give another --name") from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made: {error.strerror}") from None
    return folder


def _run(asked: Asked, name: str) -> Outcome | None:
    """Run in namespaces that are removed on every way out; None: a signal ended it."""

    async def until_signal() -> Outcome | None:
        outcome = None
        async with trio.open_nursery() as nursery:

            async def cancel_on_signal() -> None:
                with trio.open_signal_receiver(*ending_signals()) as signals:
                    async for _ in signals:
                        progress.stage("interrupted; everything is removed")
                        nursery.cancel_scope.cancel()

            nursery.start_soon(cancel_on_signal)
            outcome = await run_testbed(asked, network, progress)
            nursery.cancel_scope.cancel()
        return outcome

    # Before and after the event loop, a request to end is an exception, so that everything is removed.
    for number in ending_signals():
        signal.signal(number, signal.default_int_handler)
    with open_network(name) as network, Progress(on_terminal=sys.stderr.isatty()) as progress:
        return trio.run(until_signal)


def _write(outcome: Outcome, folder: Path) -> None:
    (folder / "testbed.json").write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=1))
    (folder / "testbed.html").write_text(page_of(outcome))
    write_png(folder / "testbed.png", outcome, title_of(outcome))
