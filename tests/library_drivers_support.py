"""Drivers of makers' libraries: their processes find the stand-ins of tests/stand_ins."""

import os
from pathlib import Path

import pytest

STAND_INS = Path(__file__).parent / "stand_ins"


def use_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes that are started from now on find the stand-ins first."""
    monkeypatch.setenv("PYTHONPATH", f"{STAND_INS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
