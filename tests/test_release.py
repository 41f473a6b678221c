"""The version of package, changelog and citation is one; a tag is for a tree that is ready."""

import re
import subprocess
from pathlib import Path

import pytest
from release import TOP, faults_of

PACKAGE = '__version__ = "1.2.0"\n'
CHANGELOG = "# Changelog\n\n## 1.2.0 (2027-01-31)\n### Upgrade\nNothing.\n\n## 1.1.0 (2026-12-31)\n"
CITATION = "cff-version: 1.2.0\nversion: 1.2.0\ndate-released: 2027-01-31\n"


def tree(top: Path, *, package: str = PACKAGE, changelog: str = CHANGELOG, citation: str = CITATION) -> Path:
    """Write a tree with these texts, all committed."""
    (top / "qnode").mkdir()
    (top / "qnode/__init__.py").write_text(package)
    (top / "CHANGELOG.md").write_text(changelog)
    (top / "CITATION.cff").write_text(citation)
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "--quiet", "--message=all"],
    ):
        subprocess.run(["git", "-C", str(top), *command], check=True)
    return top


def test_all_places_state_the_same_version() -> None:
    assert faults_of(TOP) == []


def test_a_tree_that_is_ready_may_be_tagged(tmp_path: Path) -> None:
    assert faults_of(tree(tmp_path), "v1.2.0") == []


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"package": '__version__ = "1.3.0"\n'}, "CHANGELOG.md: the first section is of 1.2.0"),
        (
            {"citation": CITATION.replace("\nversion: 1.2.0", "\nversion: 1.1.0")},
            "CITATION.cff: version 1.1.0",
        ),
        ({"citation": CITATION.replace("01-31", "01-30")}, "CITATION.cff: date-released 2027-01-30"),
        ({"changelog": CHANGELOG.replace("1.2.0 (2027-01-31)", "Coming soon")}, "the first section must be"),
        ({"changelog": CHANGELOG.replace("1.2.0 (2027-01-31)", "Unreleased (1.2.0)")}, "not released yet"),
        ({"changelog": CHANGELOG.replace("### Upgrade\nNothing.\n", "### Added\n")}, "### Upgrade"),
    ],
)
def test_what_is_missing_for_a_tag_is_named(tmp_path: Path, changed: dict[str, str], fault: str) -> None:
    assert any(fault in one for one in faults_of(tree(tmp_path, **changed), "v1.2.0"))


def test_a_tag_is_for_what_is_committed_and_for_its_own_version(tmp_path: Path) -> None:
    top = tree(tmp_path)
    (top / "forgotten.py").touch()
    assert faults_of(top, "v1.2.1") == [
        "tag v1.2.1: qnode/__init__.py has 1.2.0, so the tag is v1.2.0",
        "not committed: forgotten.py",
    ]


def test_the_citation_is_a_citation_file_of_version_1_2() -> None:
    text = (TOP / "CITATION.cff").read_text()
    entries = dict(re.findall(r"^([a-z-]+):[ ]?(.*(?:\n[ ].*)*)$", text, re.MULTILINE))
    # The names that the schema of version 1.2.0 knows at the top and that this file may need.
    known = {"abstract", "authors", "cff-version", "date-released", "doi", "keywords", "license", "message"}
    known |= {"repository-code", "title", "type", "url", "version"}
    assert set(entries) <= known
    assert set(entries) >= {"authors", "cff-version", "message", "title"}
    assert entries["cff-version"] == "1.2.0"
    assert entries["type"] == "software"
    assert re.fullmatch(r"(\n  - name: .+)+", entries["authors"])
    licence = re.search(r'^license = "(.*)"$', (TOP / "pyproject.toml").read_text(), re.MULTILINE)
    assert licence is not None
    assert entries["license"] == licence[1]
    left = re.sub(r"^[a-z-]+:[ ]?.*(?:\n[ ].*)*$", "", text, flags=re.MULTILINE)
    assert not left.strip(), "a line that belongs to no entry"
