"""Show which share of each room the tests run: ``python tests/covered.py [TEST ...]``.

Runs the tests, or those that are named, and counts the statements that ran, also in processes that a test
starts (daemons, agents). Kernels that numba compiles are not seen to run: their statements count as not run.
The exit code is that of the tests. TEST: files or options of pytest.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

TOP = Path(__file__).parent.parent


class Covered(NamedTuple):
    """How many statements there are, and how many of them ran."""

    statements: int
    ran: int

    def __str__(self) -> str:
        share = f"{self.ran / self.statements:.1%}" if self.statements else "-"
        return f"{self.ran:>7,} of {self.statements:>7,}  {share:>6}"


def by_room(files: Mapping[str, Mapping[str, Any]]) -> dict[str, Covered]:
    """Sum the files of a report of coverage by room: the folder below the package, or the package itself."""
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, file in files.items():
        parts = Path(name).parts
        start = next(at for at, part in enumerate(parts) if part in ("qnode", "qnode_drivers"))
        inside = parts[start : start + 2] if len(parts) > start + 2 else parts[start : start + 1]
        sums = rooms["/".join(inside)]
        sums[0] += file["summary"]["num_statements"]
        sums[1] += file["summary"]["covered_lines"]
    return {room: Covered(*sums) for room, sums in sorted(rooms.items())}


def measure(tests: list[str], folder: Path, top: Path = TOP) -> tuple[int, dict[str, Covered]]:
    """Run the tests; returns pytest's exit code and what ran by room. ``folder`` holds the data."""
    environment = {
        **os.environ,
        "COVERAGE_FILE": str(folder / "data"),
        "COVERAGE_RCFILE": str(TOP / "pyproject.toml"),
    }
    coverage = [sys.executable, "-m", "coverage"]
    code = subprocess.run(
        [*coverage, "run", "-m", "pytest", *tests], cwd=top, env=environment, check=False
    ).returncode
    report = folder / "report.json"
    for step in (["combine", "--quiet"], ["json", "--quiet", "-o", str(report)]):
        subprocess.run([*coverage, *step], cwd=top, env=environment, check=True)
    return code, by_room(json.loads(report.read_text())["files"])


def main() -> int:
    """Print a line for each room, and the sum."""
    with tempfile.TemporaryDirectory() as folder:
        code, rooms = measure(sys.argv[1:], Path(folder))
    width = max(map(len, rooms), default=0)
    for room, covered in rooms.items():
        print(f"{room:<{width}}  {covered}")
    print(f"{'all':<{width}}  {Covered(*map(sum, zip(*rooms.values(), strict=True)))}")
    return code


if __name__ == "__main__":
    sys.exit(main())
