"""The unit file as systemd itself judges it, where systemd is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parent.parent / "systemd" / "qnode@.service"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")


def _installed(folder: Path) -> Path:
    """Return the unit as an instance whose program exists."""
    unit = folder / "qnode@alice.service"
    unit.write_text(UNIT.read_text().replace("/opt/qnode/bin/qnode", "/bin/true"))
    return unit


def _analyze(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    run = _analyze("verify", _installed(tmp_path))
    assert (run.returncode, run.stderr) == (0, "")


def test_the_sandbox_leaves_little_exposed(tmp_path: Path) -> None:
    run = _analyze("security", "--offline=yes", "--threshold=15", _installed(tmp_path))
    assert run.returncode == 0, run.stdout.splitlines()[-1:]
