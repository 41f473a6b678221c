"""`qnode tags`: what is in a file of time tags, for people, as JSON and as a picture."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tag_file_exports import write_qutag

from qnode.cli.tags import tags, time_text
from qnode.units import PS_PER_S

LASER_PS = 12_495.602884
FIRST_PS = 72 * 3600 * PS_PER_S
# A folder with recorded tag files, for whoever has one (docs/tag-files.md).
RECORDED = os.environ.get("QNODE_RECORDED_TAGS", "")


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(tags, [str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like those of a laboratory: photons on input 1, the laser's sync, late by up to 85 ns, on 5."""
    rng = np.random.default_rng(6)
    pulses = np.cumsum(rng.geometric(2e-4, 30_000))
    sync = FIRST_PS + np.rint(pulses * LASER_PS + rng.normal(0, 6, pulses.size)).astype(np.int64)
    photons = sync - 76_000 + np.rint(rng.exponential(400, sync.size)).astype(np.int64)
    marks = FIRST_PS + np.arange(1, 5) * (PS_PER_S // 4)
    times = np.concatenate((photons, sync, marks))
    channels = np.concatenate((np.full(sync.size, 1), np.full(sync.size, 5), np.full(marks.size, 102)))
    order = np.argsort(times + np.where(rng.random(times.size) < 0.003, 85_000, 0), kind="stable")
    return write_qutag(tmp_path_factory.mktemp("tags") / "laser.qutag", times[order], channels[order])


def test_one_json_object_says_what_is_in_a_file(recording: Path) -> None:
    done = run(recording, "--json")
    assert done.return_value == 0
    found = json.loads(done.stdout)
    assert (found["format"], found["unit_ps"]) == ("qutag", 1.0)
    assert found["records"] == 60_004
    assert found["channels"] == {"1": 30_000, "5": 30_000}
    assert found["markers"] == {"102": 4}
    assert (found["wraps"], found["truncated"], found["truncated_reason"]) == (0, False, "")
    assert found["duration_s"] == pytest.approx(1.9, rel=0.1)
    assert 50 < found["out_of_order"] < 300
    assert 0 < found["largest_step_back_ps"] <= found["disorder_ps"] < 90_000
    assert sum(found["rates_hz"].values()) * found["duration_s"] == pytest.approx(60_000)
    assert [row["channel"] for row in found["periods"]] == [5, 1]
    for row in found["periods"]:
        assert row["period_ps"] == pytest.approx(LASER_PS, rel=1e-8)
        assert row["frequency_hz"] == pytest.approx(80_028_151.4, rel=1e-8)
    assert found["periods"][0]["width_ps"] == pytest.approx(6.0, rel=0.05)
    assert found["dead_times_ps"] == {
        "1": None,
        "5": None,
    }  # the laser's period explains the shortest intervals
    (note,) = found["warnings"]
    assert "begin at 72 h" in note


def test_people_get_lines_of_at_most_80_columns(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(recording).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in ("laser.qutag: qutag", "4 of number 102", "steps back", "80.02815", "Note: the times begin"):
        assert part in text


def test_a_file_that_ends_in_mid_record_is_read_up_to_there(recording: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.qutag"
    cut.write_bytes(recording.read_bytes()[: 40 + 10 * 1000 + 3])
    done = run(cut, "--json")
    assert done.return_value == 0
    found = json.loads(done.stdout)
    assert found["records"] == 1000
    assert found["truncated"] is True
    assert "3 of 10 bytes" in found["truncated_reason"]
    assert found["truncated_reason"] in found["warnings"][0]


def test_what_whoever_uses_a_file_should_know_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    times = np.sort(rng.integers(0, PS_PER_S, 20_000))
    times[10_000:] += 3 * PS_PER_S
    times[5_000] -= 97_000_000
    found = json.loads(run(write_qutag(tmp_path / "a.qutag", times, np.ones(times.size)), "--json").stdout)
    late, gap = found["warnings"]
    assert "late" in late
    assert "order_window_ps" in late
    assert "no tags for 3 s" in gap
    assert found["disorder_ps"] == pytest.approx(97_000_000, rel=0.2)
    assert found["gaps"][0]["seconds"] == pytest.approx(3.0, abs=0.01)
    assert found["periods"] == []
    assert "No channel has a period" in run(tmp_path / "a.qutag").stdout


def test_a_dead_time_beyond_the_period_of_the_light_is_told_and_so_are_glitches(tmp_path: Path) -> None:
    pulses = np.cumsum(np.random.default_rng(8).geometric(2e-3, 30_000) + 7)
    times = np.rint(pulses * LASER_PS).astype(np.int64)
    times = np.sort(np.append(times, times[100:300:50] + 40_000))
    path = write_qutag(tmp_path / "dead.qutag", times, np.ones(times.size))
    found = json.loads(run(path, "--json").stdout)
    assert found["dead_times_ps"]["1"] == pytest.approx(8 * LASER_PS, rel=0.07)
    assert found["shortest_intervals_ps"] == {"1": 40_000}
    (note,) = found["warnings"]
    assert "channel 1: some tags come 40000 ps after another" in note


def test_a_file_without_tags_is_described_too(tmp_path: Path) -> None:
    path = write_qutag(tmp_path / "marks.qutag", np.arange(3) * PS_PER_S, np.full(3, 100))
    found = json.loads(run(path, "--json").stdout)
    assert (found["records"], found["channels"], found["markers"]) == (3, {}, {"100": 3})
    assert any("no tags" in warning for warning in found["warnings"])
    assert run(path, "--picture", tmp_path / "marks.svg").return_value == 0


def test_the_picture_has_three_panels_and_is_the_same_each_time(recording: Path, tmp_path: Path) -> None:
    pictures = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for picture in pictures:
        assert run(recording, "--picture", picture).return_value == 0
    first, second = (picture.read_bytes() for picture in pictures)
    assert first == second
    assert first.count(b'<g id="axes_') == 3


def test_bad_input_gets_one_line_that_says_what_to_do(recording: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.dat"
    other.write_text("this is a text")
    for words, expected in (
        ((tmp_path / "none.qutag",), "none.qutag"),
        ((other,), "no tag file of a known format"),
        ((recording, "--format", "nonsense"), "nonsense"),
        ((recording, "--picture", tmp_path / "picture.pdf"), ".png or .svg"),
    ):
        done = run(*words)
        assert (done.return_value, done.stdout) == (64, "")
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1


def test_times_are_shown_in_the_unit_that_suits_them() -> None:
    shown = [time_text(ps) for ps in (0, 3.90625, 999.0, 24_941, 1.5e9, 2.5e12, 7.2e16)]
    assert shown == ["0 ps", "3.91 ps", "999 ps", "24.9 ns", "1.5 ms", "2.5 s", "72,000 s"]


@pytest.mark.skipif(not RECORDED, reason="QNODE_RECORDED_TAGS names no folder of recorded tag files")
def test_the_recorded_qutag_file_has_its_80_mhz_clock_in_every_channel() -> None:
    done = run(Path(RECORDED) / "19_qutag_80MHz_HBT_sync_filtered.qutag", "--json")
    found = json.loads(done.stdout)
    assert found["records"] == 267_801
    assert found["channels"] == {"1": 79_314, "2": 94_287, "5": 94_200}
    assert (found["out_of_order"], found["largest_step_back_ps"]) == (173, 85_918)
    laser = [row for row in found["periods"] if row["period_ps"] < 20_000]
    assert {row["channel"] for row in laser} == {1, 2, 5}
    for row in laser:
        assert row["frequency_hz"] == pytest.approx(80_028_151.4, abs=2.0)
