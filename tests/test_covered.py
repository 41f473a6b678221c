"""The coverage of the tests by room, with what ran in processes of their own."""

import os
import sys
from pathlib import Path

import pytest
from covered import Covered, by_room, measure


def test_files_are_summed_by_the_room_that_they_are_in() -> None:
    report = {
        name: {"summary": {"num_statements": statements, "covered_lines": ran}}
        for name, statements, ran in [
            ("qnode/units.py", 10, 9),
            ("qnode/keys/_pool.py", 20, 10),
            ("qnode/keys/deep/er.py", 5, 5),
            ("drivers/qnode_drivers/replay.py", 3, 0),
        ]
    }
    assert by_room(report) == {
        "qnode": Covered(10, 9),
        "qnode/keys": Covered(25, 15),
        "qnode_drivers": Covered(3, 0),
    }
    assert str(Covered(25, 15)) == "     15 of      25   60.0%"
    assert str(Covered(0, 0)).endswith("-")


def test_what_runs_in_a_process_of_its_own_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("coverage", reason="make installs coverage from requirements-dev.lock")
    room = tmp_path / "qnode" / "room"
    room.mkdir(parents=True)
    for folder in (room.parent, room):  # a package, or that of the tree would be found
        (folder / "__init__.py").touch()
    (room / "here.py").write_text("ran = 1\n")
    (room / "there.py").write_text("ran = 1\nif not ran:\n    never = 1\n")
    (tmp_path / "test_it.py").write_text(
        "import subprocess, sys\n\nimport qnode.room.here\n\n\n"
        "def test_it():\n    subprocess.run([sys.executable, '-c', 'import qnode.room.there'], check=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    data = tmp_path / "data"
    data.mkdir()
    code, rooms = measure(["-q", "-p", "no:cacheprovider", "test_it.py"], data, tmp_path)
    assert (code, rooms["qnode/room"]) == (0, Covered(4, 3))
