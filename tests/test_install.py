"""An install: checks of the machine before it, the commit in the wheel, the version that is shown."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hatchling.builders.wheel import WheelBuilder

from qnode import __version__
from qnode.cli.control import qnodectl
from qnode.cli.main import qnode
from qnode.cli.warm import warm
from qnode.commit import commit

TOP = Path(__file__).parent.parent
CHECK = TOP / "install" / "check_machine.py"


def check(folder: Path, *, script: Path = CHECK, before: str = "") -> tuple[int, list[str]]:
    """Return exit status and lines of check_machine.py after the statements ``before``."""
    code = f"import runpy, sys; sys.argv = ['check_machine.py', {str(folder)!r}]; {before}\n"
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_this_machine_lacks_nothing(tmp_path: Path) -> None:
    assert check(tmp_path / "opt" / "qnode") == (0, [])


def test_an_older_python_can_read_the_check_and_is_told_which_one_is_needed(tmp_path: Path) -> None:
    ast.parse(CHECK.read_text(), feature_version=(3, 6))
    code, lines = check(tmp_path, before="sys.version_info = (3, 9, 2, 'final', 0)")
    assert (code, len(lines)) == (1, 1)
    assert "is Python 3.9; qnode needs 3.11 or newer" in lines[0]


def test_a_python_without_the_module_for_environments_is_told_the_package(tmp_path: Path) -> None:
    code, lines = check(tmp_path, before="sys.modules['ensurepip'] = None")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].endswith("apt-get install python3-venv")


@pytest.mark.parametrize(
    ("wheel", "told"),
    [
        ("numpy-2.4.6-cp39-cp39-manylinux_2_17_x86_64.whl", "these wheels are for 3.9"),
        ("numpy-2.4.6-cp{python}-cp{python}-manylinux_2_17_s390x.whl", ""),
        ("numpy-2.4.6-cp{python}-cp{python}-manylinux_2_17_{other}.whl", "these wheels are for {other}"),
        ("msgspec-1-cp311-abi3-manylinux_2_99_x86_64.whl", "which need 2.99"),
        ("msgspec-1-cp311-abi3-manylinux_2_99_x86_64.manylinux_2_17_x86_64.whl", ""),
    ],
)
def test_wheels_for_another_machine_are_refused(tmp_path: Path, wheel: str, told: str) -> None:
    import platform

    words = {
        "python": "{}{}".format(*sys.version_info[:2]),
        "other": "aarch64" if platform.machine() == "x86_64" else "x86_64",
    }
    script = tmp_path / CHECK.name
    script.write_text(CHECK.read_text())
    (tmp_path / wheel.format(**words)).touch()
    code, lines = check(tmp_path / "opt", script=script)
    assert len(lines) == code == bool(told)
    assert told.format(**words) in "".join(lines)


def test_a_place_that_cannot_take_an_install_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, lines = check(tmp_path / "file" / "qnode")
    assert (code, len(lines)) == (1, 1)
    assert f"{tmp_path}/file: is no folder" in lines[0]
    code, lines = check(Path("/proc/qnode"))
    assert (code, len(lines)) == (1, 1)
    assert "/proc: this user cannot write there" in lines[0] or "/proc: less than" in lines[0]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    full = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(2**31, 2**31, 0)"
    code, lines = check(tmp_path, before=full)
    assert (code, len(lines)) == (1, 1)
    assert f"{tmp_path}: less than 1073 MB are free" in lines[0]


def test_both_programs_show_version_and_commit() -> None:
    known = commit()
    for program in (qnode, qnodectl):
        shown = CliRunner().invoke(program, ["--version"], prog_name="program").stdout
        expected = f"program, version {__version__}" + ("" if known is None else f", commit {known}")
        assert shown == f"{expected}\n"
    assert known is None or re.fullmatch(r"[0-9a-f]{12,40}(-dirty)?", known)


def test_a_wheel_holds_the_commit_it_was_built_from(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(TOP)).build(directory=str(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert ("qnode/commit" in names) == (commit() is not None)
        if commit() is not None:
            assert archive.read("qnode/commit").decode().strip() == commit()
    shared = f"qnode-{__version__}.data/data/share/qnode"
    for name in (
        "qnode_drivers/simulated.py",
        f"{shared}/systemd/qnode@.service",
        f"{shared}/config/bob.toml",
    ):
        assert name in names


def test_code_outside_a_checkout_that_was_not_built_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / "qnode").mkdir()
    copy = tmp_path / "qnode" / "commit.py"
    copy.write_text((TOP / "qnode" / "commit.py").read_text())
    ask = "import runpy, sys; print(runpy.run_path(sys.argv[1])['commit']())"
    done = subprocess.run(
        [sys.executable, "-I", "-c", ask, str(copy)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "None\n"


SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))"  # as a full disk


def told(code: str, *arguments: str) -> str:
    """Return the error that ``code`` prints when files cannot grow beyond 8 KiB."""
    script = f"import sys\nfrom pathlib import Path\n{SMALL_FILES}\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_first_start_on_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    code = """
from qnode.errors import StoreUnusable
from qnode.keys import open_store
try:
    open_store(Path(sys.argv[1]), role="alice", store_key=bytes(32), anchor=Path(sys.argv[2]), kme_id="a",
        peer_kme_id="b", create=True)
except StoreUnusable as error:
    print(error, file=sys.stderr)
"""
    path = tmp_path / "store" / "keys.sqlite"
    line = told(code, str(path), str(tmp_path / "anchor"))
    assert line.startswith(f"{path}: the new store cannot be written")
    assert line.endswith("make room on its disk, or mend it, and start again\n")
    assert not path.exists()


def test_a_file_of_a_new_site_that_does_not_fit_on_the_disk_is_named(tmp_path: Path) -> None:
    code = """
from qnode.errors import ConfigError
from qnode.secret_files import NewFile, write_files
try:
    write_files([NewFile(Path(sys.argv[1]), bytes(10)), NewFile(Path(sys.argv[2]), bytes(20_000))])
except ConfigError as error:
    print(error, file=sys.stderr)
"""
    first, second = tmp_path / "store.key", tmp_path / "preshared.key"
    assert told(code, str(first), str(second)) == f"{second}: File too large\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_keep_compiled_code_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QNODE_CACHE_DIR", "/proc/qnode")
    done = CliRunner().invoke(warm, standalone_mode=False)
    assert (done.return_value, done.stderr.count("\n")) == (1, 1)
    assert "/proc/qnode" in done.stderr
    assert done.stderr.endswith("name a folder of this user in QNODE_CACHE_DIR\n")
