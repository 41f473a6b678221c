"""`qnode loopback`: both sites on this machine, simulated hardware, keys delivered at both ends."""

import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import trio

from qnode.cli.exits import EXIT_USAGE
from qnode.cli.interrupted import ending_signals
from qnode.errors import ConfigError, first_of
from qnode.loopback.data_dir import sole_use
from qnode.loopback.drills import drill_named, drill_schedule, drill_times, with_schedule
from qnode.loopback.hardware import Played
from qnode.loopback.prepare import (
    LoopbackConfig,
    Prepared,
    Staging,
    parse_loopback_config,
    prepare,
    write_endpoints,
)
from qnode.loopback.progress import progress_line, progress_view
from qnode.loopback.result import result_of_links
from qnode.loopback.run import POLL_S, LoopbackLink, sites_running
from qnode.loopback.sites import SiteFailed
from qnode.operate.status.model import NodeStatus

LINE_PERIOD_S = 5.0
# After a recording's last block its keys are still fetched. After this time without a key, all are compared.
LAST_KEYS_S = 3.0


@dataclass(frozen=True)
class Wanted:
    """The values of the options that `loopback` and `replay` share."""

    data_dir: Path | None
    speed: str
    until_keys: int | None
    duration_s: float | None
    rtt_ms: float
    as_json: bool


@dataclass
class Run:
    """One run of the loopback link: its goal, and whether the goal was reached."""

    config: LoopbackConfig
    prepared: Prepared
    until_keys: int | None
    duration_s: float | None
    ends_by_itself: bool = False
    reached: bool = False


def link_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options for the run of both sites, the fields of `Wanted`."""
    options = (
        click.option(
            "--data-dir",
            type=click.Path(path_type=Path, file_okay=False),
            help="Keep all files here; default: a temporary folder.",
        ),
        click.option(
            "--speed",
            default="realtime",
            show_default=True,
            help="realtime, max, or a multiple of real time.",
        ),
        click.option(
            "--until-keys", type=click.IntRange(min=1), help="Stop when this number of keys was compared."
        ),
        click.option(
            "--duration",
            "duration_s",
            type=click.FloatRange(min=0, min_open=True),
            help="Stop after this many seconds of wall time.",
        ),
        click.option(
            "--rtt-ms",
            type=click.FloatRange(min=0, max=1000),
            default=0.0,
            help="Add this to the round trip of the classical channel.",
        ),
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            help="On stdout print one JSON object at the end, and nothing else.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Link and simulation; default: the shipped defaults.",
)
@click.option("--drill", help="Run this simulated attack (docs/eve.md; a wrong name lists them).")
@click.option(
    "--drill-from",
    "from_s",
    type=click.FloatRange(min=0),
    help="Start of the attack, in simulated seconds; default: in block 3.",
)
@click.option(
    "--drill-until",
    "until_s",
    type=click.FloatRange(min=0),
    help="End of the attack; default: three blocks later.",
)
@click.option(
    "--links",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Number of links from one Alice, each to its own Bob.",
)
@click.option(
    "--devices",
    type=click.Choice(["simulated", "emulated"]),
    default="simulated",
    show_default=True,
    help="emulated: real drivers, and emulated devices behind their ports, in real time.",
)
@link_options
def loopback(
    path: Path | None,
    devices: str,
    drill: str | None,
    from_s: float | None,
    until_s: float | None,
    links: int,
    **options: Any,
) -> int:
    """Run both sites of a link on this machine, with simulated hardware."""
    try:
        config = load_loopback(path)
        if drill is not None:
            config = drilled(config, drill, from_s, until_s)
        elif (from_s, until_s) != (None, None):
            raise ConfigError("--drill-from, --drill-until: of which --drill?")
        wanted = Wanted(**options)
        if devices == "emulated" and wanted.speed != "realtime":
            raise ConfigError("--devices emulated: only in real time, leave --speed away")
        return run_both_sites(config, wanted, links=links, emulated=devices == "emulated")
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE


def drilled(
    config: LoopbackConfig, name: str, from_s: float | None = None, until_s: float | None = None
) -> LoopbackConfig:
    """Return ``config`` with the changes of a drill added to its own schedule.

    Raises:
        ConfigError: there is no such drill, or it would end before it begins.
    """
    drill = drill_named(name, config.link)
    begin, end = drill_schedule(drill, config.link, *drill_times(config, from_s, until_s))
    return with_schedule(config, *config.simulation.schedule, begin, end)


def run_both_sites(
    config: LoopbackConfig,
    wanted: Wanted,
    played: Played | None = None,
    *,
    links: int = 1,
    emulated: bool = False,
) -> int:
    """Run both sites as ``wanted``, with simulated or emulated hardware or with the recording ``played``.

    With several ``links`` there is one Alice, and one Bob per link.

    Returns the exit status.

    Raises:
        ConfigError: a file or port that the sites need cannot be used.
    """
    speed = parse_speed(wanted.speed)
    with _data_dir(wanted.data_dir) as directory, sole_use(directory):
        staging = Staging(speed, wanted.rtt_ms / 1000.0, played, links=links, emulated=emulated)
        prepared = prepare(directory, config, staging)
        ends_by_itself = played is not None and not played.loop
        run = Run(config, prepared, wanted.until_keys, wanted.duration_s, ends_by_itself)
        try:
            trio.run(_run, run, wanted.as_json)
        except* SiteFailed as failed:
            raise ConfigError(str(first_of(failed))) from None
        return 0 if run.reached else 1


def parse_speed(text: str, option: str = "--speed") -> float | None:
    """Return seconds of tags per second of wall time; None means as fast as possible.

    Raises:
        ConfigError: it is none; the message names ``option``.
    """
    if text in ("realtime", "max"):
        return 1.0 if text == "realtime" else None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0.0 < speed < 1e6:
        raise ConfigError(f"{option}: expected realtime, max or a positive number, got {text!r}")
    return speed


def load_loopback(path: Path | None) -> LoopbackConfig:
    """Read a loopback file; without one, the shipped defaults.

    Raises:
        ConfigError: it cannot be used.
    """
    if path is None:
        return LoopbackConfig()
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    return parse_loopback_config(raw, str(path))


@contextmanager
def _data_dir(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="qnode-") as directory:
        yield Path(directory)


async def _run(run: Run, as_json: bool) -> None:
    """Start the sites, run the encryptors, and stop when the goal is reached or a signal comes."""
    number = len(run.prepared.endpoints.links)
    links = [LoopbackLink(run.prepared, run.config.link.source.p_z, index) for index in range(number)]
    live = not as_json and sys.stdout.isatty()

    def tell(site: str, line: str) -> None:
        if not live:
            print(f"{site:5} | {line}", file=sys.stderr, flush=True)
        with (run.prepared.directory / site / "qnode.log").open("a") as log:
            log.write(line + "\n")

    async with trio.open_nursery() as nursery:
        scope = nursery.cancel_scope
        nursery.start_soon(_stop_on_signal, scope, run)
        async with sites_running(run.prepared, tell):
            endpoints = write_endpoints(run.prepared)
            fetch = how_to_fetch(run.prepared)
            pages = "\n".join(f"page of {name}: {url}" for name, url in page_urls(run.prepared))
            print(
                f"endpoints: {endpoints}\n{fetch}\n{pages}",
                file=sys.stderr if as_json else sys.stdout,
                flush=True,
            )
            nursery.start_soon(_exchange_keys, scope, run, links)
            nursery.start_soon(_watch, links, live)
            if run.ends_by_itself:
                nursery.start_soon(_stop_when_over, scope, run, links[0])
            if run.duration_s is None:
                await trio.sleep_forever()
            else:
                await trio.sleep_until(links[0].started_s + run.duration_s)
                run.reached = run.until_keys is None
                scope.cancel()
    if as_json:
        result = result_of_links([(link.ledger, link.result()) for link in links])
        print(msgspec.json.encode(result).decode(), flush=True)
        return
    for link in links:
        if link.status is not None:
            print(_line(link, link.status, several=number > 1), flush=True)


def _line(link: LoopbackLink, status: NodeStatus, *, several: bool) -> str:
    line = progress_line(link.result(), status)
    return f"{link.endpoints.name}: {line}" if several else line


async def _stop_on_signal(scope: trio.CancelScope, run: Run) -> None:
    with trio.open_signal_receiver(*ending_signals()) as signals:
        async for _ in signals:
            run.reached = run.until_keys is None and run.duration_s is None
            scope.cancel()
            return


async def _exchange_keys(scope: trio.CancelScope, run: Run, links: list[LoopbackLink]) -> None:
    """Compare keys from both ends of each link, until their number reaches the goal."""
    async with trio.open_nursery() as nursery:
        for index, link in enumerate(links):
            wanted = None
            if run.until_keys is not None:  # each link contributes its share
                wanted = run.until_keys // len(links) + (index < run.until_keys % len(links))
            nursery.start_soon(link.exchange_keys, wanted)
    for link in links:
        await link.look()  # the present figures may be older than the block of these keys
    run.reached = True
    scope.cancel()


async def _stop_when_over(scope: trio.CancelScope, run: Run, link: LoopbackLink) -> None:
    """End the run when the recording has ended, its blocks are decided and their keys are compared."""
    compared, since_s = -1, 0.0
    while True:
        await trio.sleep(POLL_S)
        status, now_s = link.status, trio.current_time()
        is_over = status is not None and source_is_over(status)
        if not is_over or link.comparison.compared != compared:
            compared, since_s = link.comparison.compared, now_s
        elif now_s - since_s >= LAST_KEYS_S:
            print("the recording is over", file=sys.stderr, flush=True)
            run.reached = run.until_keys is None
            scope.cancel()
            return


def source_is_over(bob: NodeStatus) -> bool:
    """Return whether Bob's source of tags has ended and all its blocks are decided."""
    return any(device.finished for device in bob.devices) and not bob.block.in_flight


async def _watch(links: list[LoopbackLink], live: bool) -> None:
    """Read and show the figures of the links repeatedly."""
    from rich.console import Group
    from rich.live import Live

    view = Live(refresh_per_second=4) if live else None
    said = trio.current_time()
    if view is not None:
        view.start()
    try:
        while True:
            looked = [(link, await link.look()) for link in links]
            if view is not None:
                view.update(Group(*(progress_view(link.result(), status) for link, status in looked)))
            elif trio.current_time() - said >= LINE_PERIOD_S:
                said = trio.current_time()
                for link, status in looked:
                    line = _line(link, status, several=len(links) > 1)
                    print(f"link  | {line}", file=sys.stderr, flush=True)
            await trio.sleep(POLL_S)
    finally:
        if view is not None:
            view.stop()


def page_urls(prepared: Prepared) -> list[tuple[str, str]]:
    """Return the operator's page of each site, by its KME."""
    sites = [site for link in prepared.endpoints.links for site in link.sites.values()]
    return list({site.kme_id: (site.kme_id, site.page_url) for site in sites}.values())


def how_to_fetch(prepared: Prepared) -> str:
    """Return shell commands that fetch one key at Alice and the same key at Bob."""
    endpoints = prepared.endpoints
    alice, bob = endpoints.saes_of(demo=False)
    at_alice, at_bob = endpoints.sites["alice"].url, endpoints.sites["bob"].url

    def curl(cert: str, key: str) -> str:
        return f"curl -s --cacert {endpoints.ca} --cert {cert} --key {key}"

    key_id = '"$(printf %s "$K" | sed \'s/.*"key_ID":"\\([^"]*\\)".*/\\1/\')"'
    return (
        "Fetch a key at Alice's site, then the same key at Bob's:\n"
        f'  K=$({curl(alice.cert, alice.key)} {at_alice}/api/v1/keys/{bob.sae_id}/enc_keys); echo "$K"\n'
        f"  {curl(bob.cert, bob.key)} {at_bob}/api/v1/keys/{alice.sae_id}/dec_keys?key_ID={key_id}; echo"
    )
