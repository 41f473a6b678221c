"""The tutorial for drivers: its command makes a package, its code passes its tests."""

import re
import shlex
from pathlib import Path

from test_cli_driver import pytest_of, run

PAGE = Path(__file__).parent.parent / "docs" / "driver-tutorial.md"
FILE = re.compile(r"^\*\*`([\w./-]+)`\*\*\n\n```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^qnode driver (new .*)$", re.MULTILINE)


def test_the_code_of_the_tutorial_is_a_driver_that_passes(tmp_path: Path) -> None:
    text = PAGE.read_text()
    (command,) = COMMAND.findall(text)
    folder = tmp_path / "bc-1"
    result = run(*shlex.split(command), "--output", str(folder))
    assert result.return_value == 0, result.output
    made = {path.relative_to(tmp_path) for path in folder.rglob("*") if path.is_file()}
    shown = {Path(name): code for name, code in FILE.findall(text)}
    assert set(shown) - made == {Path("bc-1/device.toml")}
    for name, code in shown.items():
        (tmp_path / name).write_text(code)
    pytest_of(folder)
