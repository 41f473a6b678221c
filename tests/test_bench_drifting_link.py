"""A link over hours of drift: its controllers keep it up, without them it gives almost no key."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from qnode.bench.drifting_link import course
from qnode.cli.loopback import load_loopback
from qnode.cli.report import report

TURIN = load_loopback(Path(__file__).parent.parent / "config" / "turin.toml")
HOURS = 3.0


def test_with_its_controllers_a_drifting_link_is_nearly_as_good_as_one_that_does_not_drift() -> None:
    still, held = (
        course(TURIN.link, TURIN.simulation, hours=HOURS, drifts=drifts, controlled=drifts)
        for drifts in (False, True)
    )
    assert held.qber_z == pytest.approx(still.qber_z, abs=0.002)
    assert held.e_vis < still.e_vis + 0.004
    assert held.accepted == 1.0
    assert held.secret_bits_per_s > 0.85 * still.secret_bits_per_s


def test_without_its_controllers_it_gives_almost_no_key() -> None:
    loose = course(TURIN.link, TURIN.simulation, hours=HOURS, drifts=True, controlled=False)
    assert loose.e_vis > 0.3
    assert loose.accepted < 0.3


def test_the_report_is_a_page_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, figure = tmp_path / "drift.md", tmp_path / "drift.svg"
    config = str(Path(__file__).parent.parent / "config" / "turin.toml")
    wanted = ["calibration", "--config", config, "--hours", "2", "--output", page, "--figure", figure]
    result = CliRunner().invoke(report, [str(word) for word in wanted], standalone_mode=False)
    assert result.return_value == 0, result.output
    assert "| drifts, controllers on | 1." in page.read_text()
    assert figure.read_text().startswith("<?xml")
    wrong = CliRunner().invoke(report, ["calibration", "--figure", "drift.gif"], standalone_mode=False)
    assert wrong.return_value == 64
