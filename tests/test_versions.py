"""Other versions of Python for the tests: those that the package names, each found by what it says."""

import re
import sys
from pathlib import Path

import pytest
import versions

THIS = f"{sys.version_info.major}.{sys.version_info.minor}"


def program(folder: Path, name: str, says: str) -> Path:
    """Write a program that prints a line."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave no interpreter on this machine; returns the folder of pyenv."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return tmp_path / "pyenv"


def test_a_shim_without_its_version_is_passed_over_for_the_real_interpreter(
    tmp_path: Path, nothing_here: Path
) -> None:
    program(tmp_path / "bin", "python3.13", "echo 'pyenv: command not found' >&2; exit 127")
    assert versions.interpreter("3.13") is None
    program(nothing_here / "versions/3.13.0/bin", "python3.13", "echo cpython 3.12")
    assert versions.interpreter("3.13") is None
    real = program(nothing_here / "versions/3.13.5/bin", "python3.13", "echo cpython 3.13")
    assert versions.interpreter("3.13") == real


def test_the_version_that_runs_these_tests_is_found() -> None:
    assert versions.interpreter(THIS) is not None or not list(versions.candidates(THIS))


def test_a_missing_version_is_named_and_told_by_the_exit_code(
    nothing_here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["versions.py"])
    assert versions.main() == versions.EXIT_MISSING
    said = capsys.readouterr().out
    assert all(f"CPython {version}: skipped" in said for version in versions.VERSIONS)


def test_the_package_admits_and_names_every_version_that_is_tested() -> None:
    project = (versions.TOP / "pyproject.toml").read_text()
    named = re.findall(r'"Programming Language :: Python :: (\d\.\d+)"', project)
    assert named == ["3.11", *versions.VERSIONS]
    assert 'requires-python = ">=3.11"' in project
