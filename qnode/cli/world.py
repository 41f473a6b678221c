"""`qnode world`: both nodes in a simulated world with thousands of fault schedules, each from one seed."""

import os
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from qnode.cli.exits import EXIT_USAGE

if TYPE_CHECKING:
    from qnode.world.campaign import SeedResult, Settings


@click.command("world")
@click.option(
    "--seeds", "n_seeds", type=click.IntRange(min=1), default=200, show_default=True, help="How many."
)
@click.option("--first", type=click.IntRange(min=0), default=0, show_default=True, help="The first seed.")
@click.option("--seed", type=click.IntRange(min=0), help="Run this one alone, and show what happened in it.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=1.0),
    default=10.0,
    show_default=True,
    help="Simulated, of each run.",
)
@click.option(
    "--most-faults",
    type=click.IntRange(min=0),
    default=12,
    show_default=True,
    help="Drawn for each run, at most.",
)
@click.option(
    "--force", "forced", multiple=True, help="A fault that happens in every run; may be given often."
)
@click.option(
    "--plant", metavar="BUG", help='Plant a bug in the node, or "all" one after the other, and find it.'
)
@click.option("--processes", type=click.IntRange(min=1), help="How many work; all processors if left out.")
@click.option("--fresh", is_flag=True, help="Forget what was done with this source before.")
def world_command(
    n_seeds: int,
    first: int,
    seed: int | None,
    minutes: float,
    most_faults: int,
    forced: tuple[str, ...],
    plant: str | None,
    processes: int | None,
    fresh: bool,
) -> int:
    """Run both nodes in a simulated world; a seed determines the faults.

    The net, disks, devices, clocks and encryptors fail. Each run of ten simulated minutes is checked against
    the invariants. A failed run prints the command that replays it. An interrupted command continues at the
    same place. Exit 1 if an invariant did not hold, or if a planted bug was not found.
    """
    # Imported here: numerical libraries load slowly, and usage errors should not wait for them.
    from qnode.world.campaign import Settings, journal_of, run_many
    from qnode.world.planted import BUGS
    from qnode.world.schedule import FAULTS

    if unknown := [name for name in forced if name not in FAULTS]:
        click.echo(f"qnode: --force: {unknown[0]!r} is none of: {', '.join(FAULTS)}", err=True)
        return EXIT_USAGE
    if plant is not None and plant not in (*BUGS, "all"):
        click.echo(f"qnode: --plant: {plant!r} is none of: all, {', '.join(BUGS)}", err=True)
        return EXIT_USAGE
    settings = Settings(duration_s=60.0 * minutes, most_faults=most_faults, forced=forced)
    if seed is not None:
        return _show_one(seed, _with_bug(settings, plant))
    workers = processes or os.cpu_count() or 1
    seeds = range(first, first + n_seeds)
    if plant is not None:
        names = list(BUGS) if plant == "all" else [plant]
        found = [_find(name, seeds, settings, workers) for name in names]
        return 0 if all(found) else 1
    journal = journal_of(settings)
    if fresh:
        journal.unlink(missing_ok=True)
    return _run_all(run_many(seeds, settings, workers, journal), len(seeds), settings)


def _with_bug(settings: "Settings", bug: str | None) -> "Settings":
    import msgspec

    return msgspec.structs.replace(settings, bug=bug)


def _show_one(seed: int, settings: "Settings") -> int:
    from qnode.world.campaign import run_one

    result = run_one(seed, settings, keep_log=click.echo)
    for violation in result.violations:
        click.echo(violation)
    click.echo(f"seed {seed}: {result.blocks} blocks, {result.keys} keys, digest {result.digest}")
    return 1 if result.violations else 0


def _run_all(results: "Iterable[SeedResult]", n_seeds: int, settings: "Settings") -> int:
    began_s, told_s = time.monotonic(), 0.0
    n_done = n_failed = n_keys = n_blocks = 0
    cpu_s = 0.0
    for result in results:
        n_done, n_keys, n_blocks = n_done + 1, n_keys + result.keys, n_blocks + result.blocks
        cpu_s += result.cpu_s
        if result.violations:
            n_failed += 1
            click.echo(f"seed {result.seed}: {result.violations[0]}")
            click.echo(f"  {settings.replay_command(result.seed)}")
        if (now_s := time.monotonic()) - told_s > 10.0:
            told_s = now_s
            click.echo(f"{n_done} of {n_seeds} seeds, {n_failed} failed", err=True)
    click.echo(
        f"{n_done} seeds of {settings.duration_s / 60:g} simulated minutes: {n_failed} failed; "
        f"{n_blocks} blocks, {n_keys} keys; {time.monotonic() - began_s:.0f} s, "
        f"{cpu_s / max(1, n_done):.2f} s of processor time a seed"
    )
    sys.stdout.flush()
    return 1 if n_failed else 0


def _find(bug: str, seeds: range, settings: "Settings", processes: int) -> bool:
    """Plant ``bug`` and print the number of seeds until it was found."""
    import tempfile
    from pathlib import Path

    from qnode.world.campaign import run_many
    from qnode.world.planted import BUGS

    planted = _with_bug(settings, bug)
    with tempfile.TemporaryDirectory() as folder:
        for first in range(seeds.start, seeds.stop, processes):
            some = range(first, min(first + processes, seeds.stop))
            journal = Path(folder) / f"{first}.jsonl"
            results = sorted(run_many(some, planted, processes, journal), key=lambda result: result.seed)
            for result in results:
                if result.violations:
                    n_runs = result.seed - seeds.start + 1
                    click.echo(
                        f"{bug} ({BUGS[bug].what}): found after {n_runs} seeds: {result.violations[0]}"
                    )
                    return True
    click.echo(f"{bug} ({BUGS[bug].what}): not found in {len(seeds)} seeds")
    return False
