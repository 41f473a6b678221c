"""`qnode plan`: what it prints, draws and refuses."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qnode.cli.plan import plan

TURIN = str(Path(__file__).parent.parent / "config" / "turin.toml")


def run(*options: str) -> Result:
    return CliRunner().invoke(plan, ["--config", TURIN, *options], standalone_mode=False)


def answered(*options: str) -> dict[str, Any]:
    result = run(*options, "--json")
    assert result.return_value == 0, result.stderr
    answer = json.loads(result.stdout)
    assert isinstance(answer, dict)
    return answer


def test_turin_gives_its_published_keys_and_says_on_what_they_stand() -> None:
    answer = answered("--f-ec", "1.16")
    (point,) = answer["losses"]
    assert point["loss_db"] == 10.8
    assert point["now"]["keys_per_s"] == pytest.approx(5.1, abs=0.05)
    assert point["best"] is None
    assert (answer["estimator"], answer["x_mode"]) == ("rusca2018", "visibility")
    assert answer["reach_db"] == pytest.approx(24.85, abs=0.1)
    assert answer["curve"] is None
    assert any("one X detector" in sentence for sentence in answer["assumptions"])


def test_lengths_become_losses_and_come_back_as_lengths() -> None:
    options = ("--fibre-km", "25", "--fibre-km", "50", "--db-per-km", "0.22", "--excess-db", "8")
    answer = answered(*options)
    assert [point["loss_db"] for point in answer["losses"]] == pytest.approx([13.5, 19.0])
    assert [point["fibre_km"] for point in answer["losses"]] == pytest.approx([25.0, 50.0])
    text = run(*options).stdout
    assert "25.0 km" in text
    assert "19.00 dB" in text


def test_the_optimum_stands_beside_what_is_configured() -> None:
    answer = answered("--optimise")
    (point,) = answer["losses"]
    assert answer["chosen"] == ["mu1", "mu2", "p_1", "p_z"]
    assert point["best"]["secret_bits_per_s"] > 3 * point["now"]["secret_bits_per_s"]
    assert point["best"]["splitter"] == point["now"]["splitter"]
    text = run("--optimise", "--choose", "splitter").stdout
    assert "best  0.500  0.200  0.700  0.500" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_link_without_key_says_why() -> None:
    answer = answered("--loss-db", "30", "--optimise")
    (point,) = answer["losses"]
    assert point["now"]["secret_bits"] == 0
    assert point["now"]["no_key_because"].startswith("key_length: 0 secret bits")
    assert point["best"] is None
    text = run("--loss-db", "30", "--optimise").stdout
    assert "no key: key_length" in text
    assert "no choice of the parameters gives key" in text


def test_any_key_of_the_file_can_be_set() -> None:
    plain = answered()["losses"][0]["now"]
    longer = answered("--set", "link.block.sifted_bits=10000000")["losses"][0]["now"]
    assert longer["sifted_bits"] == 10_000_000
    assert longer["secret_bits_per_s"] > plain["secret_bits_per_s"]
    faster = answered("--set", "simulation.z_detector.dead_time_s=1e-6")["losses"][0]["now"]
    assert faster["sifted_bits_per_s"] > 10 * plain["sifted_bits_per_s"]
    automatic = answered("--set", "link.block.sifted_bits=auto")["losses"][0]["now"]
    assert automatic["block_s"] == 3600.0
    assert answered("--set", "link.estimation.estimator=eur")["estimator"] == "eur"


def test_a_curve_is_printed_and_told() -> None:
    answer = answered("--against", "block", "--points", "4")
    curve = answer["curve"]
    assert (curve["against"], len(curve["x"])) == ("block", 4)
    assert curve["now_secret_bits_per_s"] == sorted(curve["now_secret_bits_per_s"])
    assert curve["best_secret_bits_per_s"] == [None] * 4
    assert "sifted bits" in run("--against", "block", "--points", "4").stdout


@pytest.mark.parametrize(("name", "first"), [("plan.png", b"\x89PNG"), ("plan.svg", b"<?xml")])
def test_figures_are_drawn_and_come_out_the_same_again(tmp_path: Path, name: str, first: bytes) -> None:
    pytest.importorskip("matplotlib")
    drawn = []
    for _ in range(2):
        options = ("--plot", str(tmp_path / name), "--against", "distance", "--points", "4")
        assert run("--fibre-km", "20", "--optimise", "--choose", "p_z", *options).return_value == 0
        drawn.append((tmp_path / name).read_bytes())
    assert drawn[0].startswith(first)
    assert len(drawn[0]) > 5000
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--loss-db", "5", "--fibre-km", "5"), "give one of them"),
        (("--choose", "p_z"), "only with --optimise"),
        (("--plot", "figure.pdf"), ".png or .svg"),
        (("--plot", "/nowhere/figure.png"), "no such folder"),
        (("--set", "link.block.sifted_bits"), "expected KEY=VALUE"),
        (("--set", "link.block.sifted_bit=1000"), "did you mean sifted_bits"),
        (("--set", "link.name.more=1"), "name is no table"),
        (("--set", "link.source.p_z=1.5"), "link.source.p_z"),
        (("--set", "simulation.visibility=2"), "visibility"),
        (("--config", "absent.toml"), "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_with_64_and_a_reason(options: tuple[str, ...], said: str) -> None:
    result = run(*options)
    assert result.return_value == 64
    assert said in result.stderr
    assert result.stdout == ""


def test_a_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    result = run("--plot", str(tmp_path / "a.png"))
    assert result.return_value == 64
    assert "qnode[plots]" in result.stderr
