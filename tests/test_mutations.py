"""The list of planted faults stays true while code moves; the command that plants them says what it saw."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mutants import MODULES, SAME
from mutate import TOP, Fault, main, read_faults

FAULTS = read_faults()


def problems(fault: Fault) -> Iterator[str]:
    """Yield why a fault could not be planted, or its tests not be run."""
    try:
        planted = fault.planted_in(TOP)
        if fault.file.endswith(".py"):
            ast.parse(planted)
    except (OSError, ValueError, SyntaxError) as error:
        yield f"{fault.name}: {error}"
    if fault.old == fault.new or not fault.tests:
        yield f"{fault.name}: changes nothing, or has no tests"
    for test in fault.tests:
        path, _, name = test.partition("::")
        if not (TOP / path).is_file() or not re.search(rf"def {name or 'test_'}", (TOP / path).read_text()):
            yield f"{fault.name}: {test} is not there"


def test_every_fault_can_be_planted_and_its_tests_are_there() -> None:
    assert [problem for fault in FAULTS for problem in problems(fault)] == []


def test_modules_of_which_every_change_is_made_are_there() -> None:
    assert SAME.keys() <= MODULES.keys()
    for module, tests in MODULES.items():
        assert all((TOP / path).is_file() for path in (module, *tests))


def test_a_fault_says_in_one_sentence_what_it_breaks() -> None:
    for fault in FAULTS:
        assert re.fullmatch(r"[A-Z][^\n]*\.", fault.breaks), fault.name
        assert re.fullmatch(r"[a-z0-9-]+", fault.name)


ENTRY = """
[{name}]
breaks = "One and one are no longer two."
file = "package/sums.py"
old = "{old}"
new = "{new}"
tests = ["tests/test_sums.py"]
"""


def small_checkout(top: Path, *, sound: str = "a + b") -> Path:
    """Make a checkout of a package of one line whose tests see `add`, and not `unseen`."""
    for folder in ("package", "tests/mutations"):
        (top / folder).mkdir(parents=True)
    (top / "package" / "sums.py").write_text(
        f"def add(a, b):\n    return {sound}\n\n\ndef unseen(a, b):\n    return a * b\n"
    )
    (top / "tests" / "test_sums.py").write_text(
        "from package.sums import add\n\n\ndef test_one_and_one_are_two():\n    assert add(1, 1) == 2\n"
    )
    entries = [("seen", sound, "a - b"), ("unseen", "a * b", "a / b"), ("moved", "no such text", "")]
    text = "".join(ENTRY.format(name=name, old=old, new=new) for name, old, new in entries)
    (top / "tests" / "mutations" / "sums.toml").write_text(text)
    return top


@pytest.fixture(autouse=True)
def few_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # the small checkout needs none


def test_the_command_names_the_test_that_caught_a_fault_and_what_was_not_caught(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    top = small_checkout(tmp_path / "checkout")
    before = (top / "package" / "sums.py").read_text()
    assert main(["--json", "--processes", "2"], top) == 1
    shown = json.loads(capsys.readouterr().out)
    results = {one["name"]: one for one in shown["results"]}
    assert shown["caught"] == 1
    assert results["seen"]["outcome"] == "caught"
    assert results["seen"]["test"] == "tests/test_sums.py::test_one_and_one_are_two"
    assert results["unseen"]["outcome"] == "survived"
    assert "occurs 0 times in package/sums.py" in results["moved"]["outcome"]
    assert (top / "package" / "sums.py").read_text() == before
    assert main(["no-such-fault"], top) == 64


def test_a_test_that_fails_without_the_fault_catches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    top = small_checkout(tmp_path / "checkout", sound="a + b + 1")
    assert main(["seen"], top) == 1
    assert "fails without the fault as well" in capsys.readouterr().out
