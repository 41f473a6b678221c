"""The table of standards names files, headings and tests that are there."""

import re
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
PAGE = TOP / "docs" / "traceability.md"
ANSWERS = {"met", "in part", "not", "hardware", "organisation"}
COLUMNS = ["answer", "where", "shown by", "what is missing, or who must meet it"]
TEST = re.compile(r"`(tests/\w+\.py)::(\w+)`")
PATH = re.compile(
    r"`((?:qnode|tests|docs|config|systemd|drivers)/[^`:]*|[\w.-]+\.lock|LICENSE|\.importlinter)`"
)
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]*))?\)")


def rows() -> list[list[str]]:
    """Return the cells of each row of the tables of requirements."""
    found, inside = list[list[str]](), False
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells[1:] == COLUMNS:
            inside = True
        elif not cells:
            inside = False
        elif inside and not re.fullmatch(r"[|-]+", line):
            found.append(cells)
    return found


@cache
def headings(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as a forge makes them."""
    found = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in found}


@cache
def names_of_tests(path: Path) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[0][:40])
def test_each_row_has_an_answer_and_each_met_row_a_test(cells: list[str]) -> None:
    subject, answer, where, shown, missing = cells
    assert subject
    assert answer in ANSWERS
    named = TEST.findall(shown)
    for path, name in named:
        assert name in names_of_tests(TOP / path), (path, name)
    assert len(named) == shown.count("`") / 2, f"not a test: {shown}"
    if answer == "met":
        assert where, "what is met has its place"
        assert named, "what is met has its test"
    if answer == "in part":
        assert missing, "what is met in part says what is missing"


def test_every_file_and_heading_of_the_table_is_there() -> None:
    text = PAGE.read_text()
    assert len(rows()) > 60
    for name in PATH.findall(text):
        assert (TOP / name).exists(), name
    for name, anchor in LINK.findall(text):
        page = (PAGE.parent / name).resolve() if name else PAGE
        assert page.exists(), name
        assert not anchor or anchor in headings(page), (name, anchor)
