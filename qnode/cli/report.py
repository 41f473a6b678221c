"""`qnode report`: tables for the documentation, by real runs of both daemons or from the analytic model."""

import functools
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import click
import msgspec.structs
import trio

from qnode.cli.configuration_page import configuration_page
from qnode.cli.drift_page import draw_drift, drift_page, drift_runs
from qnode.cli.exits import EXIT_USAGE
from qnode.cli.keylength_page import keylength_page
from qnode.cli.loopback import load_loopback
from qnode.cli.metrics_page import metrics_page
from qnode.cli.monitors_page import monitors_page
from qnode.cli.plausibility_page import plausibility_page
from qnode.cli.validity_page import validity_page
from qnode.errors import ConfigError, first_of
from qnode.loopback.compare import (
    BlockLog,
    Measured,
    RunDisturbed,
    decided,
    measured,
    predicted,
)
from qnode.loopback.drill_page import DrillRun, blocks_of_drill, drill_page, first_lock_s
from qnode.loopback.drills import (
    BLOCKS_WITH_EVE,
    Drill,
    block_span_s,
    drill_named,
    drill_schedule,
    drill_times,
    drills,
    with_schedule,
)
from qnode.loopback.markdown import Case, made_by
from qnode.loopback.pages import (
    LockLook,
    LockTimes,
    attenuation_page,
    clock_page,
    lock_times,
)
from qnode.loopback.prepare import LoopbackConfig, Staging
from qnode.loopback.result import LinkResult
from qnode.loopback.run import LinkOutcome, Until, run_link
from qnode.loopback.sites import SiteFailed
from qnode.operate.status.model import NodeStatus
from qnode.plan.figure import check_figure
from qnode.plan.forecast import USUAL_F_EC
from qnode.simulate.parameters import ScheduledChange

ATTENUATIONS_DB = (5.5, 10.8, 13.5, 16.3, 19.0, 21.8, 25.0, 28.0)
INTERCEPTED = (0.0, 0.02, 0.05, 0.10, 0.20, 1.0)
# A drill's run continues for this many blocks after Eve's end, or until nothing is decided for that time.
BLOCKS_WITHOUT_EVE = 3.2
STALLED_S = 30.0
# The outage of the lock run in simulated time, and its speed: slow enough to time the lock.
DARK_S, LIGHT_S, END_S = 20.0, 30.0, 45.0
LOCK_SPEED = 4.0
LOCK_RESOLUTION_S = 0.4
LINES_OF_FAILURE = 30

P = ParamSpec("P")


@click.group()
def report() -> None:
    """Write the documentation's tables: from real runs of both daemons, or from the model alone."""


def _common(page: Callable[P, str]) -> Callable[..., int]:
    """Give a page's command --output, and turn every error into one line and an exit code."""

    @functools.wraps(page)
    def command(output: Path, *args: P.args, **kwargs: P.kwargs) -> int:
        if not output.parent.is_dir():
            click.echo(f"qnode: {output.parent}: no such folder", err=True)
            return EXIT_USAGE
        try:
            output.write_text(page(*args, **kwargs))
        except* (ConfigError, SiteFailed, RunDisturbed) as failed:
            error = first_of(failed)
            click.echo(f"qnode: {error}", err=True)
            code = 1 if isinstance(error, RunDisturbed) else EXIT_USAGE
        else:
            click.echo(f"{output}: written")
            code = 0
        return code

    return command


_configured = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("config/turin.toml"),
    show_default=True,
    help="Link and simulation.",
)
_beside = click.option(
    "--beside",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("config/fast.toml"),
    show_default=True,
    help="A second link for comparison.",
)


def _output(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--output",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("docs") / f"{name}.md",
        show_default=True,
        help="The page.",
    )


def _options(name: str, blocks: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the options of all pages."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            _output(name),
            click.option(
                "--blocks",
                type=click.IntRange(min=1),
                default=blocks,
                show_default=True,
                help="Counted blocks of each run, after its first block.",
            ),
            _configured,
        ):
            function = option(function)
        return function

    return decorate


@report.command()
@_options("attenuation", blocks=5)
@click.option(
    "--db",
    "attenuations_db",
    type=float,
    multiple=True,
    default=ATTENUATIONS_DB,
    help="An attenuation; may be given more than once. Default: the eight of the reference.",
)
@_common
def attenuation(path: Path, blocks: int, attenuations_db: tuple[float, ...]) -> str:
    """Compare the link with its model over attenuation."""
    config = load_loopback(path)
    cases: list[Case] = []
    for attenuation_db in attenuations_db:
        case = with_schedule(config, ScheduledChange(at_s=0.0, attenuation_db=attenuation_db))
        cases.append(_case(f"{attenuation_db:g} dB", case, blocks, cases))
    chosen = "" if attenuations_db == ATTENUATIONS_DB else "".join(f" --db {db:g}" for db in attenuations_db)
    return attenuation_page(made_by(_command("attenuation", path, blocks) + chosen), blocks, cases)


@report.command()
@_options("eve", blocks=BLOCKS_WITH_EVE)
@click.option("--drill", "names", multiple=True, help="This drill only; may be given more than once.")
@_common
def eve(path: Path, blocks: int, names: tuple[str, ...]) -> str:
    """Run Eve's drills, and show the figures and decisions of the node for each."""
    config = load_loopback(path)
    chosen = [drill_named(name, config.link) for name in names] or list(drills(config.link))
    runs = [_run_drill(config, drill, None, blocks) for drill in chosen]
    runs += [_run_drill(config, drill, 0.0, blocks) for drill in chosen if "blinding" in drill.name]
    intercepted: list[Case] = []
    for share in () if names else INTERCEPTED:
        case = with_schedule(config, ScheduledChange(at_s=0.0, eve_intercept=share))
        intercepted.append(_case(f"{share:.0%}", case, blocks, intercepted))
    made = made_by(_command("eve", path, blocks) + "".join(f" --drill {name}" for name in names))
    return drill_page(made, _shown(path), config.link, runs, intercepted)


@report.command()
@_output("drift")
@_configured
@click.option(
    "--hours", type=click.FloatRange(min=2.0), default=69.0, show_default=True, help="Simulated time."
)
@click.option(
    "--figure",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("docs") / "drift.svg",
    show_default=True,
    help="The picture, PNG or SVG.",
)
@_common
def calibration(path: Path, hours: float, figure: Path) -> str:
    """Show a link over days of drift, with its controllers and without, from the analytic model."""
    check_figure(figure)
    config = load_loopback(path)
    runs = drift_runs(config.link, config.simulation, hours)
    draw_drift(figure, runs)
    shown = _shown(path)
    command = f"qnode report calibration --config {shown} --hours {hours:g}"
    return drift_page(shown, command, hours, runs, figure)


@report.command()
@_options("clock", blocks=28)
@_common
def clock(path: Path, blocks: int) -> str:
    """Show the cost of clocks and fibre, and the time to lock."""
    config = load_loopback(path)
    ideal = _clocks(config, offset_ppm=0.0, walk=0.0, drift_ns=0.0)
    real = _clocks(config, offset_ppm=30.0, walk=1e-9, drift_ns=10.0)
    runs: list[Measured] = []
    cuts_s: list[float] = []
    for name, case in (("ideal clocks", ideal), ("real clocks", real)):
        statuses, outcome = _run_blocks(name, case, blocks + 1)
        runs.append(measured(statuses, case.link, outcome))
        cuts_s.append(statuses[-1].quantum.cut_s - statuses[0].quantum.cut_s)
    made = made_by(_command("clock", path, blocks))
    return clock_page(made, blocks, runs[0], runs[1], (cuts_s[0], cuts_s[1]), _time_lock(real))


@report.command()
@_configured
@click.option(
    "--f-ec", type=click.FloatRange(1, 10), default=1.16, show_default=True, help="Efficiency of correction."
)
@_output("keylength")
@_common
def keylength(path: Path, f_ec: float) -> str:
    """Compare the estimators on a link, from the analytic model alone."""
    return keylength_page(
        load_loopback(path), f_ec, f"qnode report keylength --config {_shown(path)} --f-ec {f_ec:g}"
    )


@report.command()
@_output("configuration")
@_common
def configuration() -> str:
    """List every key of the configuration files."""
    return configuration_page("qnode report configuration")


@report.command()
@_output("metrics")
@_common
def metrics() -> str:
    """List the metrics and alarms of a site, and the reasons for discarded blocks."""
    return metrics_page("qnode report metrics")


@report.command()
@_configured
@_beside
@click.option(
    "--blocks",
    default=100_000,
    show_default=True,
    type=click.IntRange(100),
    help="Synthetic honest blocks a link.",
)
@_output("plausibility")
@_common
def plausibility(path: Path, beside: Path, blocks: int) -> str:
    """Show every plausibility check, its false alarms, and the effect of wrong intensities."""
    return plausibility_page(
        [load_loopback(path), load_loopback(beside)],
        blocks,
        f"qnode report plausibility --config {_shown(path)} --beside {_shown(beside)} --blocks {blocks}",
        _say,
    )


@report.command()
@_output("monitors")
@_common
def monitors() -> str:
    """Show every monitor over readings of devices, its false alarms, and its attack."""
    return monitors_page("qnode report monitors", _say)


@report.command()
@_configured
@_beside
@_output("validity")
@_common
def validity(path: Path, beside: Path) -> str:
    """Compare the claimed and the real failure probability of each bound of the estimators."""
    return validity_page(
        [load_loopback(path), load_loopback(beside)],
        f"qnode report validity --config {_shown(path)} --beside {_shown(beside)}",
    )


def _case(name: str, config: LoopbackConfig, blocks: int, before: list[Case]) -> Case:
    """Run the link and compare it with the model; a run without an efficiency takes the previous one."""
    statuses, outcome = _run_blocks(name, config, blocks + 1)
    found = measured(statuses, config.link, outcome)
    f_ec = found.row.f_ec
    if f_ec is None:
        f_ec = (before[-1].model.row.f_ec if before else None) or USUAL_F_EC
    return Case(name, found, predicted(config, config.simulation.settings_at(0.0), f_ec))


def _run_blocks(name: str, config: LoopbackConfig, blocks: int) -> tuple[list[NodeStatus], LinkOutcome]:
    """Run the link at full speed until ``blocks`` blocks were decided."""
    log = BlockLog(blocks, lambda status: _say(f"{name}: block {decided(status)} of {blocks}"))
    return log.statuses, _run(config, None, log.until)


def _run_drill(config: LoopbackConfig, drill: Drill, from_s: float | None, blocks: int) -> DrillRun:
    """Run a drill at full speed until some blocks without Eve were decided."""
    span_s = block_span_s(config)
    from_s, until_s = drill_times(config, from_s, None, blocks)
    wanted_s = until_s + BLOCKS_WITHOUT_EVE * span_s
    _say(f"{drill.name}: Eve from {from_s:.0f} s until {until_s:.0f} s")
    log = BlockLog(1)
    progress = [0.0, 0.0]

    def until(result: LinkResult, status: NodeStatus) -> bool:
        log.until(result, status)
        now_s, decided_s = trio.current_time(), status.block.decided_s
        reached_s = status.quantum.tag_time_s or 0.0
        if decided_s != progress[0] or reached_s < wanted_s:
            progress[:] = decided_s, now_s
        return decided_s >= wanted_s or now_s - progress[1] > STALLED_S

    schedule = drill_schedule(drill, config.link, from_s, until_s)
    run = DrillRun(drill=drill, from_s=from_s, until_s=until_s)
    try:
        outcome = _run(with_schedule(config, *schedule), None, until)
    except* RunDisturbed as disturbed:
        drilled = msgspec.structs.replace(run, broken=str(first_of(disturbed)))
    else:
        found = blocks_of_drill(outcome.blocks, first_lock_s(outcome.events), from_s, until_s)
        drilled = msgspec.structs.replace(run, blocks=found)
    return drilled


def _time_lock(config: LoopbackConfig) -> LockTimes:
    """Time the lock from a cold start and after an outage.

    Raises:
        RunDisturbed: Bob did not lock again.
    """
    dark = ScheduledChange(at_s=DARK_S, source_on=False)
    light = ScheduledChange(at_s=LIGHT_S, source_on=True)
    looks: list[LockLook] = []

    def until(_result: LinkResult, status: NodeStatus) -> bool:
        quantum = status.quantum
        looks.append(LockLook(locked=quantum.locked, cut_s=quantum.cut_s))
        return (quantum.tag_time_s or 0.0) >= END_S

    _say("lock")
    outcome = _run(with_schedule(config, dark, light), LOCK_SPEED, until)
    try:
        return lock_times(outcome.events, looks, LIGHT_S - DARK_S, LOCK_RESOLUTION_S)
    except ValueError as error:
        raise RunDisturbed(str(error)) from None


def _run(config: LoopbackConfig, speed: float | None, until: Until) -> LinkOutcome:
    """Run the link in a temporary folder; after a failure, print the last lines of the daemons."""
    heard: deque[str] = deque(maxlen=LINES_OF_FAILURE)
    with tempfile.TemporaryDirectory(prefix="qnode-") as directory:
        try:
            return trio.run(
                run_link,
                config,
                Path(directory),
                Staging(speed),
                until,
                lambda role, line: heard.append(f"{role:5} | {line}"),
            )
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt) is None:
                _say("\n".join(heard))
            raise


def _clocks(config: LoopbackConfig, *, offset_ppm: float, walk: float, drift_ns: float) -> LoopbackConfig:
    simulation = msgspec.structs.replace(
        config.simulation,
        clock_offset_ppm=offset_ppm,
        clock_walk_per_root_s=walk,
        fibre_delay_drift_ns_per_hour=drift_ns,
        schedule=(),
    )
    return msgspec.structs.replace(config, simulation=simulation)


def _command(name: str, path: Path, blocks: int) -> str:
    """Return the command that makes a page, without the paths of one machine."""
    return f"qnode report {name} --config {_shown(path)} --blocks {blocks}"


def _shown(path: Path) -> str:
    """Return ``path`` for a page: without the folders of one machine."""
    return path.name if path.is_absolute() else str(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
