"""`qnode distill`: a recording becomes key in one process."""

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qnode.cli.distill import distill
from qnode.config import BlockParameters, EstimationParameters, LinkParameters
from qnode.simulate.parameters import DetectorParameters, SimulationParameters
from qnode.simulate.recorder import record

DETECTOR = DetectorParameters(efficiency=0.5, dead_time_s=1e-6, dark_rate_hz=500.0)
LINK = LinkParameters(
    name="bench",
    block=BlockParameters(sifted_bits=200_000),
    estimation=EstimationParameters(estimator="rusca2018", x_mode="visibility", eps_sec=1e-9),
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings") / "bright"
    simulation = SimulationParameters(attenuation_db=6.0, z_detector=DETECTOR, x_detector=DETECTOR)
    record(folder, simulation, LINK, 3.0)
    return folder


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(distill, [str(word) for word in words], standalone_mode=False)


def test_a_recording_becomes_key(recording: Path) -> None:
    done = run(recording, "--json")
    assert done.return_value == 0
    report = json.loads(done.stdout)
    assert report["simulated"] is True
    assert report["blocks_accepted"] == len(report["blocks"]) >= 2
    assert report["secret_bits"] == sum(block["secret_bits"] for block in report["blocks"]) > 10_000
    assert report["sifted_bits_per_s"] == pytest.approx(report["sifted_bits"] / report["seconds"])
    for block in report["blocks"]:
        assert 0.005 < block["qber_z"] < 0.03
        assert block["lambda_ec_bits"] + block["secret_bits"] < block["sifted_bits"]


def test_the_table_file_has_the_same_blocks(recording: Path, tmp_path: Path) -> None:
    table = tmp_path / "blocks.csv"
    report = json.loads(run(recording, "--json", "--csv", table).stdout)
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [int(row["sifted_bits"]) for row in rows] == [block["sifted_bits"] for block in report["blocks"]]
    on_stdout = list(csv.DictReader(io.StringIO(run(recording, "--csv", "-").stdout)))
    assert len(on_stdout) == len(rows)
    assert set(on_stdout[0]) == set(report["blocks"][0])


def test_people_get_a_table_that_says_that_these_are_no_keys(recording: Path) -> None:
    done = run(recording)
    assert "simulated, not keys" in done.stdout
    assert "sifted" in done.stdout


def test_another_way_to_distil_may_be_asked_for(recording: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict.toml"
    strict.write_text('[link]\nname = "strict"\n[link.block]\nsifted_bits = 200_000\nqber_z_limit = 0.001\n')
    done = run(recording, "--json", "--config", strict)
    report = json.loads(done.stdout)
    assert done.return_value == 1
    assert report["blocks_accepted"] == 0
    assert set(report["blocks_discarded"]) == {"qber_z"}
    assert all(block["secret_bits"] == 0 and "limit" in block["detail"] for block in report["blocks"])


def test_a_recording_shorter_than_a_block_says_so(recording: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.toml"
    long.write_text('[link]\nname = "long"\n[link.block]\nsifted_bits = 20_000_000\n')
    done = run(recording, "--config", long)
    assert (done.return_value, done.stdout) == (1, "")
    assert "3 s of tags do not hold a block of 20,000,000 sifted bits" in done.stderr
    brief = tmp_path / "brief"
    record(
        brief, SimulationParameters(attenuation_db=6.0, z_detector=DETECTOR, x_detector=DETECTOR), LINK, 0.1
    )
    done = run(brief)
    assert (done.return_value, done.stdout) == (1, "")
    assert "0.1 s of tags were not enough to lock to Alice's slots" in done.stderr


def test_the_table_fits_80_columns(recording: Path) -> None:
    lines = run(recording).stdout.splitlines()
    assert max(map(len, lines)) <= 80


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.return_value == 64
    assert str(tmp_path) in done.stderr


def test_a_recording_of_an_impossible_link_is_refused(recording: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(recording, tmp_path / "impossible")
    manifest = folder / "recording.toml"
    text = manifest.read_text()
    manifest.write_text(re.sub(r"minimum_secret_bits = \d+", "minimum_secret_bits = 1", text))
    done = run(folder)
    assert done.return_value == 64
    (line,) = done.stderr.splitlines()
    assert f"{manifest}: link.block.minimum_secret_bits: expected 2048" in line


def test_two_outputs_do_not_share_stdout(recording: Path) -> None:
    done = run(recording, "--json", "--csv", "-")
    assert done.return_value == 64
    assert "stdout" in done.stderr
