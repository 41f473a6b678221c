"""The tutorial for estimators: its code, added to a copy of qnode, is an estimator that passes its tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from documented import TOP, commands, fences

PAGE = TOP / "docs" / "estimator-tutorial.md"
BLOCK = re.compile(
    r"(?:^\*\*`(?P<name>[\w./-]+)`\*\*\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


def shown() -> list[tuple[str, str, str]]:
    """Return each block for a file: its name, language and text; one without a name is of the file before."""
    blocks, name = [], ""
    for found in BLOCK.finditer(PAGE.read_text()):
        name = found["name"] or name
        if found["language"] != "sh":
            blocks.append((name, found["language"], found["text"]))
    return blocks


def add(top: Path, name: str, language: str, text: str) -> None:
    """Write a file of the tutorial, or apply the change that it shows; each changed place is there once."""
    path = top / name
    if language != "diff":
        assert not path.exists(), name
        path.write_text(text)
        return
    lines = text.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
    after = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
    assert path.read_text().count(before) == 1, f"{name} has changed: the tutorial shows\n{before}"
    path.write_text(path.read_text().replace(before, after))


def test_the_code_of_the_tutorial_is_an_estimator_that_passes(tmp_path: Path) -> None:
    shutil.copytree(TOP / "qnode", tmp_path / "qnode", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    for block in shown():
        add(tmp_path, *block)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(TOP / "drivers")])}
    pages = [one for one in commands(PAGE.read_text()) if one.whole]
    assert len(pages) == 3
    calls = [
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        *(["-m", "qnode", *command.words[1:]] for command in pages),
    ]
    for call in calls:
        done = subprocess.run(
            [sys.executable, *call],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{call}\n{done.stdout}{done.stderr}"


def test_every_block_of_the_tutorial_is_of_a_file_or_a_command() -> None:
    assert len(shown()) == len([one for one in fences(PAGE.read_text()) if one.language != "sh"])
    assert all(name for name, _, _ in shown())
