"""The page on where a change goes: each wrong import is refused by the contract that it names."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parent.parent
ROW = re.compile(r"^\| .* \| `([\w.]+)` imports `([\w.]+)` \| ([^|]+) \|$", re.MULTILINE)


def refused() -> list[tuple[str, str, str]]:
    """Return what the page says of each change: the module, what it must not import, and the contract."""
    return ROW.findall((TOP / "docs" / "changes.md").read_text())


def sections(report: str) -> dict[str, str]:
    """Return what the report says of each broken contract."""
    heads = list(re.finditer(r"^(.+)\n-{3,}\n", report.partition("Broken contracts\n")[2], re.MULTILINE))
    text = report.partition("Broken contracts\n")[2]
    ends = [*(head.start() for head in heads[1:]), len(text)]
    return {head[1]: text[head.end() : end] for head, end in zip(heads, ends, strict=True)}


def test_every_import_in_a_wrong_place_is_refused_by_the_contract_that_the_page_names(tmp_path: Path) -> None:
    rows = refused()
    assert len(rows) >= 10
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(TOP / "qnode", tmp_path / "qnode", ignore=without)
    shutil.copytree(TOP / "drivers" / "qnode_drivers", tmp_path / "qnode_drivers", ignore=without)
    shutil.copy(TOP / ".importlinter", tmp_path)
    for module, target, _ in rows:
        source = tmp_path / (module.replace(".", "/") + ".py")
        assert (TOP / (target.replace(".", "/") + ".py")).exists() or (
            TOP / target.replace(".", "/")
        ).is_dir()
        with source.open("a") as file:
            file.write(f"\nimport {target}\n")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    found = sections(done.stdout)
    for module, target, contract in rows:
        assert f"{module} -> {target} (" in found[contract], f"{module} may import {target}"
