"""Cost over the amount of work: block length, concurrent blocks, concurrent links; in one figure."""

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from qnode.bench.amplification import amplification_of, verification_of
from qnode.bench.correction import USUAL_QBER, Pair, corrected
from qnode.bench.in_flight import seconds_for
from qnode.bench.limits import measure_machine
from qnode.bench.results import QUICK, Effort, Machine, rates, summary
from qnode.config import LinkParameters
from qnode.distill.amplification.amplify import amplify, seed_length_bytes
from qnode.offline.workers import worker_processes
from qnode.plan.figure import SAME_BYTES, check_figure

BLOCK_LENGTHS: Final = (10**4, 10**5, 10**6, 10**7, 10**8)
LONGEST_CORRECTED: Final = 10**7  # a hundred million bits take minutes and add no information
IN_FLIGHT: Final = (1, 2, 4, 8, 16, 32)
ROUND_TRIPS_S: Final = (0.0001, 0.001, 0.01)  # a room, 100 km, 1000 km of fibre
FLIGHT_BITS: Final = 1 << 20
LINKS: Final = (1, 2, 3, 4)
LINK_BITS: Final = 1 << 22
_SHORTER: Final = 10  # quick: block lengths up to a tenth, concurrent blocks up to a quarter


@dataclass(frozen=True)
class Curve:
    """Throughput (Mbit/s) over the amount of work."""

    label: str
    amounts: Sequence[int]
    mbit_per_s: Sequence[float]


def draw_scaling(path: Path, *, quick: bool) -> None:
    """Measure and draw.

    Raises:
        ConfigError: the figure cannot be written there, or matplotlib is not installed.
    """
    check_figure(path)
    machine = measure_machine(QUICK)
    panels = {
        "bits of a block": over_block_length(
            machine, longest=BLOCK_LENGTHS[-1] // (_SHORTER if quick else 1)
        ),
        f"blocks of {FLIGHT_BITS:,} bits in flight": over_blocks_in_flight(
            most=IN_FLIGHT[2 if quick else -1]
        ),
        "links side by side": over_links(seconds=1.0 if quick else 5.0),
    }
    _write(path, machine, panels)


def over_block_length(machine: Machine, longest: int) -> list[Curve]:
    """Return each stage's throughput on one core over the length of a block."""
    lengths = [n_bits for n_bits in BLOCK_LENGTHS if n_bits <= longest]
    effort = Effort(seconds=0.5, fewest=3, link_s=0.0, pair_s=0.0)
    correctable = [n_bits for n_bits in lengths if n_bits <= LONGEST_CORRECTED]
    return [
        Curve(
            "cascade, both sides", correctable, [_correction_rate(n_bits, effort) for n_bits in correctable]
        ),
        Curve("verify", lengths, [verification_of(n_bits, machine, effort).median for n_bits in lengths]),
        Curve("amplify", lengths, [amplification_of(n_bits, effort).median for n_bits in lengths]),
    ]


def over_blocks_in_flight(most: int) -> list[Curve]:
    """Return the throughput of correction, one core per site, over the number of concurrent blocks."""
    numbers = [number for number in IN_FLIGHT if number <= most]
    pairs = [Pair.drawn(FLIGHT_BITS, USUAL_QBER, seed) for seed in range(most)]
    return [
        Curve(
            f"round trip {1e3 * round_trip_s:g} ms",
            numbers,
            [n * FLIGHT_BITS / 1e6 / seconds_for(pairs[:n], USUAL_QBER, round_trip_s) for n in numbers],
        )
        for round_trip_s in ROUND_TRIPS_S
    ]


def over_links(seconds: float) -> list[Curve]:
    """Return the combined rate of correction and amplification of links in separate processes."""
    together = []
    for links in LINKS:
        with worker_processes(links, multiprocessing.get_context("spawn")) as workers:
            list(workers.map(_link_work, [0.0] * links))  # kernels are loaded before time counts
            began_s = time.monotonic()
            done = sum(workers.map(_link_work, [seconds] * links))
            together.append(done / (time.monotonic() - began_s))
    alone = together[0]
    return [
        Curve("correct both sides, amplify", LINKS, together),
        Curve("as many times the first", LINKS, [alone * links for links in LINKS]),
    ]


def _correction_rate(n_bits: int, effort: Effort) -> float:
    pair = Pair.drawn(n_bits, USUAL_QBER, seed=1)
    work = partial(corrected, pair, LinkParameters(), USUAL_QBER, [])
    return summary("cascade", rates(work, effort), "Mbit/s").median


def _link_work(seconds: float) -> float:
    """Distil blocks for this time, at least one; return their Mbit."""
    pair, length = Pair.drawn(LINK_BITS, USUAL_QBER, seed=1), LINK_BITS // 4
    seed = bytes(seed_length_bytes(LINK_BITS))
    done, ends_s = 0.0, time.monotonic() + seconds
    while not done or time.monotonic() < ends_s:
        done += corrected(pair, LinkParameters(), USUAL_QBER, [])
        amplify(pair.alice, seed, length)
    return done


def _write(path: Path, machine: Machine, panels: dict[str, list[Curve]]) -> None:
    matplotlib: Any = import_module("matplotlib")
    with matplotlib.rc_context(SAME_BYTES):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12.0, 4.2), layout="constrained")
        for axes, (title, curves) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            _draw(axes, title, curves)
        figure.suptitle(f"Distillation, QBER {USUAL_QBER:.1%}: {machine.processor}, {machine.cores} cores")
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _draw(axes: Any, title: str, curves: list[Curve]) -> None:
    for curve in curves:
        axes.plot(curve.amounts, curve.mbit_per_s, marker=".", label=curve.label)
    amounts = curves[0].amounts
    if amounts[-1] >= _SHORTER * amounts[0]:
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0.0)
        axes.set_xticks(amounts)
    axes.set_xlabel(title)
    axes.set_ylabel("Mbit/s")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
