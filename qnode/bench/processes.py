"""What a running process has used, as the kernel counts it."""

import time
from pathlib import Path
from typing import Final

_CPUCLOCK_SCHED: Final = 2  # of Linux, include/linux/posix-timers.h: the clock of a process as scheduled


def processor_s(pid: int) -> float:
    """Return the processor time that all its threads have used, ended ones included.

    Raises:
        OSError: there is no such process.
    """
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


def resident_mib(pid: int) -> float:
    """Return its resident memory; 0 once it has ended. Raises OSError like `processor_s`."""
    return _of_status(pid, "VmRSS:")


def peak_mib(pid: int) -> float:
    """Return the most resident memory that it had; 0 once it has ended. Raises OSError like `processor_s`."""
    return _of_status(pid, "VmHWM:")


def _of_status(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0
