"""`qnode testbed`: what it refuses before it starts anything, and a short one as a whole where it can run."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from qnode.cli.interrupted import ending_signals
from qnode.cli.testbed import run_folder
from qnode.cli.testbed import testbed as command
from qnode.errors import ConfigError
from qnode.testbed import needs
from qnode.testbed.needs import check_needs
from qnode.testbed.network import PLACES, Network
from qnode.testbed.outcome import Outcome
from qnode.testbed.timetable import planned_outages
from qnode.testbed.tunnels import KITS


def refused(tmp_path: Path, *arguments: str) -> str:
    result = CliRunner().invoke(
        command, ["--data-dir", str(tmp_path / "data"), *arguments], standalone_mode=False
    )
    assert result.exception is None, result.output
    assert result.return_value == 64
    return result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "Too/Long"], "--name: expected 1 to 8 of a-z and 0-9, got 'Too/Long'"),
        (["--speed", "fast"], "--speed: expected realtime, max or a positive number, got 'fast'"),
        (["--link-speed", "0"], "--link-speed: expected realtime, max or a positive number, got '0'"),
        (["--config", "missing.toml"], "missing.toml: cannot be read"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    assert said in refused(tmp_path, *arguments)
    assert not (tmp_path / "data").exists()


def test_without_root_the_command_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "network namespaces need root: run it with sudo" in refused(tmp_path)


def test_the_folder_of_a_run_is_private_and_the_folder_around_it_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = run_folder(tmp_path, "abc")
    assert (folder, folder.stat().st_mode & 0o777) == (tmp_path / "abc", 0o700)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    with pytest.raises(ConfigError, match="has an earlier run; give another --name"):
        run_folder(tmp_path, "abc")


def test_missing_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("influxd", "wg") else f"/bin/{name}")
    with pytest.raises(
        ConfigError, match=r"^programs are missing: apt-get install influxdb wireguard-tools$"
    ):
        check_needs("wireguard")


def test_missing_packages_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "asyncua" else name)
    with pytest.raises(ConfigError, match=r"asyncua: not installed; pip install 'qnode\[testbed\]'"):
        check_needs("wireguard")


def test_a_tunnel_that_needs_a_package_more_names_both_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "is_there", lambda _program: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"vici: not installed; pip install 'qnode\[strongswan,testbed\]'"):
        check_needs("strongswan")
    with pytest.raises(ConfigError, match=r"matplotlib: not installed; pip install 'qnode\[testbed\]'"):
        check_needs("wireguard")


def test_a_closed_terminal_ends_a_run_in_order_except_under_nohup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda _number: signal.SIG_DFL)
    assert signal.SIGHUP in ending_signals()
    monkeypatch.setattr(signal, "getsignal", lambda _number: signal.SIG_IGN)
    assert ending_signals() == (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("minutes", [0.5, 3.0, 60.0, 4000.0])
def test_outages_lie_in_the_run_and_do_not_touch(minutes: float) -> None:
    planned = planned_outages(minutes)
    assert [one.what for one in planned] == ["tunnel", "database", "collector"]
    ends = [one.begin_s + one.lasting_s for one in planned]
    begins = [*(one.begin_s for one in planned[1:]), 60.0 * minutes]
    assert all(end < begin for end, begin in zip(ends, begins, strict=True))
    assert all(0.0 < one.lasting_s <= 60.0 for one in planned)


def test_outages_of_an_hour_leave_the_burst_alone() -> None:
    for one in planned_outages(60.0):
        assert not 24.5 * 60.0 < one.begin_s + one.lasting_s < 28.0 * 60.0


MISSING = [
    what
    for what, missing in (
        ("QNODE_TUNNELS to be set (make tunnels)", "QNODE_TUNNELS" not in os.environ),
        ("root", os.geteuid() != 0),
        ("/dev/net/tun", not Path("/dev/net/tun").exists()),
        *(
            (program, shutil.which(program) is None)
            for program in (*needs.PROGRAMS, *KITS["wireguard"].programs)
        ),
        *((name, importlib.util.find_spec(name) is None) for name in needs.PACKAGES),
    )
    if missing
]


@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
@pytest.mark.timeout(900)
def test_a_minute_of_the_whole_testbed_stores_every_sample_through_every_outage() -> None:
    name = f"t{os.getpid() % 10_000_000}"
    folder = Path(tempfile.mkdtemp(prefix="qtb"))  # short: sockets lie below it
    options = ["--minutes", "1", "--outages", "--period", "5", "--link-speed", "20", "--hours", "0.2"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "qnode",
            "testbed",
            *options,
            "--data-dir",
            folder,
            "--name",
            name,
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = msgspec.json.decode(done.stdout, type=Outcome)
    assert outcome.sensors.stored == outcome.sensors.read >= 600
    assert [one.what for one in outcome.outages] == ["tunnel", "database", "collector"]
    assert outcome.tunnel.changes >= 5
    assert outcome.tunnel.pings_lost == 0
    assert outcome.keys is not None
    assert outcome.keys.different == 0
    page = (folder / name / "testbed.html").read_text()
    assert f"{outcome.sensors.stored:,}" in page
    assert (folder / name / "testbed.png").stat().st_size > 10_000
    assert not [place for place in PLACES if Path("/run/netns", Network(name).namespace(place)).exists()]
    shutil.rmtree(folder)
