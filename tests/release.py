"""Compare the version in every place that states it: ``python tests/release.py [--tag vVERSION]``.

With ``--tag`` the tree must be ready for this tag: the changelog has the date of the release and says what to
do for an upgrade, `CITATION.cff` has the same date, and everything is committed. Each fault is one line; the
exit code is 0 or 1. docs/releases.md says how a release is made.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parent.parent
HEADING = re.compile(r"^## (?:Unreleased \(([\d.]+)\)|([\d.]+) \((\d{4}-\d{2}-\d{2})\))$", re.MULTILINE)


def first(pattern: str, text: str) -> str | None:
    """Return the first group of the first match."""
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else None


def faults_of(top: Path, tag: str | None = None) -> list[str]:
    """Return what is wrong with the versions of the tree at ``top``, or with it as the release ``tag``."""
    package = first(r'^__version__ = "(.*)"$', (top / "qnode/__init__.py").read_text())
    citation = (top / "CITATION.cff").read_text()
    changelog = (top / "CHANGELOG.md").read_text()
    cited, cited_date = first(r"^version: (\S+)$", citation), first(r"^date-released: (\S+)$", citation)
    heading = HEADING.search(changelog)
    if first(r"^(## .*)$", changelog) != (heading[0] if heading else None):
        heading = None
    faults = []
    if heading is None:
        faults.append('CHANGELOG.md: the first section must be "Unreleased (VERSION)" or "VERSION (DATE)"')
    elif (version := heading[1] or heading[2]) != package:
        faults.append(f"CHANGELOG.md: the first section is of {version}, qnode/__init__.py has {package}")
    if cited != package:
        faults.append(f"CITATION.cff: version {cited}, qnode/__init__.py has {package}")
    if heading is not None and cited_date != heading[3]:
        faults.append(f"CITATION.cff: date-released {cited_date}, CHANGELOG.md has {heading[3]}")
    if tag is not None:
        faults += _faults_of_release(top, tag, package, heading, changelog)
    return faults


def _faults_of_release(
    top: Path, tag: str, package: str | None, heading: re.Match[str] | None, changelog: str
) -> list[str]:
    faults = []
    if tag != f"v{package}":
        faults.append(f"tag {tag}: qnode/__init__.py has {package}, so the tag is v{package}")
    if heading is not None and heading[3] is None:
        faults.append("CHANGELOG.md: the first section is not released yet: give it a date")
    if heading is not None and not changelog[heading.end() :].lstrip().startswith("### Upgrade\n"):
        faults.append('CHANGELOG.md: the section must begin with "### Upgrade": what users have to do')
    if changed := _git(top, "status", "--porcelain"):
        faults.append(f"not committed: {', '.join(line[3:] for line in changed.splitlines())}")
    if _git(top, "tag", "--list", tag):
        faults.append(f"tag {tag} is there already")
    return faults


def _git(top: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(top), *arguments], capture_output=True, text=True, check=True
    ).stdout.rstrip("\n")


def main() -> int:
    """Print each fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tag", metavar="vVERSION", help="the tree is about to get this tag")
    faults = faults_of(TOP, parser.parse_args().tag)
    for fault in faults:
        print(fault)
    if not faults:
        print("all versions agree")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
