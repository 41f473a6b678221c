"""The unit file as systemd itself judges it, where systemd is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parent.parent / "systemd"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")


@pytest.fixture(params=["qnode", "qnode-agent", "qnode-serve"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _installed(folder: Path, name: str) -> Path:
    """Return the unit as an instance whose program exists."""
    unit = folder / f"{name}@alice.service"
    unit.write_text((UNITS / f"{name}@.service").read_text().replace("/opt/qnode/bin/qnode", "/bin/true"))
    return unit


def _analyze(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_systemd_understands_every_line_of_the_unit(tmp_path: Path, name: str) -> None:
    run = _analyze("verify", _installed(tmp_path, name))
    assert (run.returncode, run.stderr) == (0, "")


def test_compiling_before_the_start_ends_before_the_limit_that_would_fail_the_start() -> None:
    unit = (UNITS / "qnode@.service").read_text()
    (warm_min,) = re.findall(r"^ExecStartPre=-/usr/bin/timeout (\d+)m .*/qnode warm$", unit, re.MULTILINE)
    (start_min,) = re.findall(r"^TimeoutStartSec=(\d+)min$", unit, re.MULTILINE)
    assert int(warm_min) < int(start_min)


def test_the_sandbox_leaves_little_exposed(tmp_path: Path, name: str) -> None:
    run = _analyze("security", "--offline=yes", "--threshold=15", _installed(tmp_path, name))
    assert run.returncode == 0, run.stdout.splitlines()[-1:]
