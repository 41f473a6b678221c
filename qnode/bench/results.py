"""The results of `qnode bench`: one figure a line, with its spread and the machine's limit."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msgspec import Struct

Unit = Literal[
    "Mtag/s", "Mbit/s", "simulated s / s", "Gclmul/s", "Gbit/s", "GB/s", "secret Mbit/s", "MiB", "s"
]


class BenchResult(Struct, frozen=True, kw_only=True):
    """One figure: ``median`` of ``runs`` runs in ``unit``, between its tenth and ninetieth percentile.

    ``n_bits`` is the size of the block and ``qber`` its error rate (a fraction), if they matter. ``f``: the
    disclosed parities over the Shannon limit. ``limit``: the greatest value that this machine could reach, in
    ``unit``, if it is known.
    """

    name: str
    n_bits: int | None
    qber: float | None
    unit: Unit
    median: float
    p10: float
    p90: float
    runs: int
    f: float | None = None
    limit: float | None = None


class PairResult(BenchResult, frozen=True, kw_only=True):
    """A figure of the pair; ``round_trip_s``: the round trip added to the classical channel."""

    round_trip_s: float


class Machine(Struct, frozen=True, kw_only=True):
    """The machine of the measurement, and its limits on one core."""

    processor: str
    cores: int
    python: str
    clmul_per_s: float | None
    popcount_bits_per_s: float
    copy_bytes_per_s: float
    multiplier_words: int


class BenchReport(Struct, frozen=True):
    """The JSON object of `qnode bench --json`."""

    machine: Machine
    results: list[BenchResult]


@dataclass(frozen=True)
class Effort:
    """The time for each figure, the least number of runs, and the time for whole links."""

    seconds: float
    fewest: int
    link_s: float
    pair_s: float


QUICK = Effort(seconds=0.3, fewest=3, link_s=6.0, pair_s=10.0)
THOROUGH = Effort(seconds=3.0, fewest=7, link_s=30.0, pair_s=60.0)


def rates(work: Callable[[], float], effort: Effort) -> list[float]:
    """Return the rate of each of several runs of ``work``, which returns its amount of work.

    A run is measured in processor time of the calling thread, so other work on the machine disturbs it
    little. A first run compiles kernels and fills caches; it is not counted.
    """
    work()
    found: list[float] = []
    ends = time.thread_time() + effort.seconds
    while len(found) < effort.fewest or time.thread_time() < ends:
        began = time.thread_time()
        done = work()
        found.append(done / (time.thread_time() - began))
    return found


def summary(
    name: str,
    found: Sequence[float],
    unit: Unit,
    *,
    n_bits: int | None = None,
    qber: float | None = None,
    f: float | None = None,
    limit: float | None = None,
) -> BenchResult:
    """Return the figure that summarises several runs."""
    ordered = sorted(found)
    return BenchResult(
        name=name,
        n_bits=n_bits,
        qber=qber,
        unit=unit,
        median=statistics.median(ordered),
        p10=ordered[round(0.1 * (len(ordered) - 1))],
        p90=ordered[round(0.9 * (len(ordered) - 1))],
        runs=len(ordered),
        f=f,
        limit=limit,
    )


def processor_name() -> str:
    """Return the processor's name from the kernel."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
