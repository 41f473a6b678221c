"""Ctrl-C: every command ends with 130, quietly, and leaves nothing half made."""

import importlib
import os
import pkgutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

import qnode
from qnode.tags.recording import open_recording

CONFIG = Path(__file__).parent.parent / "config"
PATIENCE_S = 120.0

# The first process on a machine compiles the kernels, which takes minutes on a slow one.
pytestmark = [pytest.mark.timeout(600)]

INTERRUPTED_OFTEN = """
import signal
from qnode.bench.soak import soak
blocks = soak("cascade", 50_000, 0.02, seed=1)
next(blocks)
signal.signal(signal.SIGALRM, signal.default_int_handler)
for turn in range(100):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.004 + 0.00008 * turn)
        for _ in blocks:
            pass
    except KeyboardInterrupt:
        blocks = soak("cascade", 50_000, 0.02, seed=1)
"""


def test_a_kernel_is_interrupted_without_a_crash() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_OFTEN], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_kernel_makes_a_named_tuple_within_numba() -> None:
    """numba calls Python to make one, and does not look whether that raised: see `qnode.kernels.kernel`."""
    kernels = 0
    for module in pkgutil.walk_packages(qnode.__path__, "qnode."):
        if module.name == "qnode.__main__":
            continue
        for name, found in vars(importlib.import_module(module.name)).items():
            if isinstance(found, Dispatcher):
                kernels += 1
                if found.targetoptions.get("inline") == "always":  # Python sees no result of it
                    continue
                made = typing.get_type_hints(found.py_func).get("return")
                assert not hasattr(made, "_fields"), f"{module.name}.{name}"
    assert kernels > 30


def has_children(pid: int) -> bool:
    # A child is on the list of the thread that started it.
    with suppress(FileNotFoundError, ProcessLookupError):
        return any(task.read_text() for task in Path("/proc").glob(f"{pid}/task/*/children"))
    return False


def living_in(group: int) -> list[str]:
    """Return the processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _parent, its_group = text.rpartition(")")[2].split()[:3]
        if int(its_group) == group and state != "Z":
            found.append(text)
    return found


def has_worked(pid: int) -> bool:
    """Tell whether a process has computed for longer than it takes to start."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") > 1.5


@contextmanager
def busy(*words: str, at_work: Callable[[int], bool] = has_worked) -> Iterator["subprocess.Popen[str]"]:
    """Start `qnode` in a process group of its own, and hand it out when it is at work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qnode", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        ends = time.monotonic() + PATIENCE_S
        while not at_work(process.pid) and time.monotonic() < ends:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def press_ctrl_c(process: "subprocess.Popen[str]") -> str:
    """Signal the whole group, as a terminal does, and return what was written to stderr."""
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    return stderr


@pytest.mark.parametrize(
    "words",
    [
        ("soak", "--bits", "1000000000000"),
        ("soak", "--keylength", "5000000", "--processes", "2"),
        ("bench", "--only", "cascade"),
        (
            "plan",
            "--config",
            str(CONFIG / "turin.toml"),
            "--optimise",
            "--against",
            "loss",
            "--points",
            "500",
        ),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_command_that_computes_ends_with_130_and_no_traceback(words: tuple[str, ...]) -> None:
    with busy(*words, at_work=has_children if "--processes" in words else has_worked) as process:
        stderr = press_ctrl_c(process)
    assert process.returncode == 130, stderr[-2000:]
    assert "Traceback" not in stderr
    assert "Exception" not in stderr


@pytest.mark.link
def test_a_report_that_runs_daemons_ends_with_130_and_takes_them_along(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    words = ("--config", str(CONFIG / "turin.toml"), "--output", str(page), "--db", "10.8")
    with busy("report", "attenuation", *words, at_work=has_children) as process:
        stderr = press_ctrl_c(process)
        # Whoever it started was waited for; a moment is left for the system to take them off its list.
        ends = time.monotonic() + PATIENCE_S
        while left := living_in(process.pid):
            assert time.monotonic() < ends, left
            time.sleep(0.02)
    assert process.returncode == 130, stderr[-2000:]
    assert "Traceback" not in stderr
    assert not page.exists()


def test_a_recording_that_is_interrupted_is_one_of_what_there_was(tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    tags = folder / "times_ps.npy"

    def has_tags(_pid: int) -> bool:
        return tags.exists() and tags.stat().st_size > 100_000

    with busy("record", "--out", str(folder), "--duration", "100000", at_work=has_tags) as process:
        stderr = press_ctrl_c(process)
    assert process.returncode == 130, stderr[-2000:]
    assert "Traceback" not in stderr
    recording = open_recording(folder)
    assert recording.manifest.z_tags > 0
    assert recording.manifest.slots % (recording.manifest.link.source.qubit_rate_hz // 100) == 0
    assert recording.times_ps[-1] < recording.manifest.span_ps < 100_000e12
