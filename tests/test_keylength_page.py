"""The page of key lengths in docs/ is what its command writes today."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from qnode.cli.keylength_page import EXAMPLE
from qnode.cli.report import report
from qnode.distill.keylength import estimate

ROOT = Path(__file__).parent.parent


def test_the_page_in_docs_is_what_the_command_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = tmp_path / "keylength.md"
    result = CliRunner().invoke(report, ["keylength", "--output", str(page)], standalone_mode=False)
    assert result.return_value == 0, result.output
    assert page.read_text() == (ROOT / "docs" / "keylength.md").read_text()


def test_the_pages_example_is_the_published_one() -> None:
    assert estimate(EXAMPLE, "rusca2018").length == 1464719
