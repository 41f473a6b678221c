"""Figures over time: rings that outlive restarts, torn records and wrong clocks."""

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operate_support import well_status
from structlog.testing import capture_logs

from qnode.operate.trend.figures import FIGURES, figures_of
from qnode.operate.trend.file import TrendFile
from qnode.operate.trend.ring import RECORD_BYTES, RESOLUTIONS, SIZE_BYTES, WINDOWS, Trend

START_S = 1_800_000_000.0
WIDTH = len(FIGURES)


def flat(value: float) -> tuple[float, ...]:
    return (value,) * WIDTH


def firsts(trend: Trend, window: str, at_s: float) -> list[float | None]:
    return [None if values is None else values[0] for values in trend.series(window, at_s)]


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=60))
def test_every_complete_step_is_the_mean_of_its_samples_and_survives_a_restart(
    steps: list[tuple[int, float]],
) -> None:
    trend, file, at_s = Trend(), bytearray(SIZE_BYTES), START_S
    samples: dict[int, list[float]] = {}
    for pause_s, value in steps:
        for offset, record in trend.add(at_s, flat(value)):
            file[offset : offset + len(record)] = record
        samples.setdefault(int(at_s // 10), []).append(value)
        at_s += pause_s
    last = max(samples)
    samples.pop(last)  # not complete yet
    for one in (trend, Trend(bytes(file)), Trend(trend.content())):
        end = int(at_s // 10)
        seen = dict(zip(range(end - 359, end + 1), firsts(one, "hour", at_s), strict=True))
        for step in seen:
            want = samples.get(step)
            if want is None:
                assert seen[step] is None
            else:
                assert seen[step] == pytest.approx(math.fsum(want) / len(want), rel=1e-5, abs=1e-3)
        assert len(one.series("week", at_s)) == 1008


@given(st.data())
def test_a_torn_or_flipped_record_is_a_gap_and_harms_no_other(data: st.DataObject) -> None:
    trend = Trend()
    for step in range(100):
        trend.add(START_S + 10 * step, flat(float(step)))
    whole = bytearray(trend.content())
    at_s = START_S + 990
    before = firsts(trend, "hour", at_s)
    places = [index for index in range(0, 360 * RECORD_BYTES, RECORD_BYTES) if any(whole[index : index + 8])]
    place = data.draw(st.sampled_from(places))
    bit = data.draw(st.integers(0, 8 * RECORD_BYTES - 1))
    whole[place + bit // 8] ^= 1 << bit % 8
    after = firsts(Trend(bytes(whole)), "hour", at_s)
    differs = [(b, a) for b, a in zip(before, after, strict=True) if b != a]
    assert len(differs) == 1
    assert differs[0][1] is None


def test_a_day_and_a_week_are_the_means_of_their_steps_and_older_ones_are_forgotten() -> None:
    trend = Trend()
    for step in range(0, 8 * 86_400, 60):
        trend.add(START_S + step, flat(float(step)))
    end_s = START_S + 8 * 86_400 - 60
    week = [value for value in firsts(trend, "week", end_s) if value is not None]
    assert len(week) >= 1007
    assert all(later - earlier == pytest.approx(600.0) for earlier, later in itertools.pairwise(week[:-1]))
    assert sum(value is not None for value in firsts(trend, "day", end_s)) >= 1439
    assert len(trend.content()) == SIZE_BYTES


def test_a_clock_that_is_set_back_hides_the_future_and_goes_on() -> None:
    trend = Trend()
    for step in range(20):
        trend.add(START_S + 10 * step, flat(1.0))
    for step in range(5):
        trend.add(START_S - 7200 + 10 * step, flat(2.0))
    seen = [value for value in firsts(trend, "hour", START_S - 7150) if value is not None]
    assert seen == [2.0] * 4


def test_unknown_figures_are_gaps_and_do_not_spoil_a_mean() -> None:
    trend = Trend()
    trend.add(START_S, (math.nan, *flat(1.0)[1:]))
    trend.add(START_S + 1, (4.0, *flat(3.0)[1:]))
    trend.add(START_S + 10, flat(math.nan))
    trend.add(START_S + 20, flat(math.nan))
    first, second = (values for values in trend.series("hour", START_S + 20) if values is not None)
    assert first[0] == 4.0
    assert first[1] == 2.0
    assert all(math.isnan(value) for value in second)


def test_every_longer_step_holds_whole_short_ones_within_the_reach_of_the_first_ring() -> None:
    first = RESOLUTIONS[0]
    for resolution in RESOLUTIONS:
        assert resolution.step_s % first.step_s == 0
        assert resolution.step_s <= first.step_s * first.steps
    assert WINDOWS == ("hour", "day", "week")
    with pytest.raises(KeyError):
        Trend().series("year", START_S)


def test_a_file_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "link.trend"
    file = TrendFile(path)
    file.open()
    for step in range(3):
        file.write(file.trend.add(START_S + 10 * step, flat(float(step))))
    size = path.stat().st_size
    again = TrendFile(path)
    again.open()
    assert firsts(again.trend, "hour", START_S + 10)[-2:] == [0.0, 1.0]
    assert path.stat().st_size == size
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"", b"a letter", b"\0" * 200_000])
def test_a_foreign_or_damaged_file_is_set_aside_with_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "link.trend"
    path.write_bytes(content)
    with capture_logs() as logs:
        file = TrendFile(path)
        file.open()
    assert [event["event"] for event in logs] == ["trend.set_aside"]
    assert (tmp_path / "link.trend.set-aside").read_bytes() == content
    file.write(file.trend.add(START_S, flat(1.0)))


def test_a_disk_that_fails_is_told_once_and_the_trend_goes_on_in_memory(tmp_path: Path) -> None:
    with capture_logs() as logs:
        file = TrendFile(tmp_path / "missing" / "link.trend")
        file.open()
        for step in range(3):
            file.write(file.trend.add(START_S + 10 * step, flat(1.0)))
    assert [event["event"] for event in logs] == ["trend.failed"]
    assert firsts(file.trend, "hour", START_S + 10)[-2:] == [1.0, 1.0]


def test_the_figures_of_a_status_are_those_that_are_known() -> None:
    figures = dict(zip(FIGURES, figures_of(well_status()), strict=True))
    assert figures["qber_z"] == 0.0162
    assert figures["visibility"] == pytest.approx(1 - 2 * 0.0204)
    assert figures["clicks_x_hz"] == 61_000.0
    assert math.isnan(figures["loss_db"])
