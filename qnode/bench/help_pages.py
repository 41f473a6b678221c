"""The cost of `qnode --help` and `qnodectl --help`: processor time and memory of a process."""

import subprocess
import sys
from collections.abc import Iterator

from qnode.bench.results import BenchResult, Effort, Machine, summary

_PROGRAMS = {"qnode": "qnode.cli.main", "qnodectl": "qnode.cli.control"}
# The process reports its own memory: its parent would see at least the parent's own memory.
_SCRIPT = """
import sys, time
from {module} import main
try:
    main()
finally:
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    sys.stderr.write(f"{{time.process_time()}} {{peak}}")
"""


def help_pages(_machine: Machine, effort: Effort) -> Iterator[BenchResult]:
    """Measure both in turn; one run of each beforehand writes Python's bytecode and is not counted."""
    found: dict[str, list[tuple[float, float]]] = {program: [] for program in _PROGRAMS}
    for program in _PROGRAMS:
        cost_of_help(program)
    for _ in range(2 * effort.fewest):
        for program, costs in found.items():
            costs.append(cost_of_help(program))
    for program, costs in found.items():
        yield summary(f"{program} --help", [seconds for seconds, _ in costs], "s")
        yield summary(f"{program} --help", [mib for _, mib in costs], "MiB")


def cost_of_help(program: str) -> tuple[float, float]:
    """Return the processor seconds and the peak resident MiB of one process that prints its help.

    Raises:
        subprocess.CalledProcessError: the process failed.
    """
    command = [sys.executable, "-c", _SCRIPT.format(module=_PROGRAMS[program]), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak_kib = done.stderr.split()
    return float(seconds), int(peak_kib) / 1024.0
