"""The page of a testbed, made from a recorded outcome."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs
from testbed_support import keys, outcome, sensors, tunnel

from qnode.testbed.figures import DARK, LIGHT, write_png
from qnode.testbed.outcome import Outage, Outcome, hourly, key_hours
from qnode.testbed.page import page_of, summary, title_of


@pytest.fixture(scope="module")
def page() -> str:
    pytest.importorskip("matplotlib")
    return page_of(outcome())


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    without_names = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    assert re.findall(r"https?:|//[a-z]|@import|<script|<link|src=|@font-face", without_names) == []
    assert all(place.startswith("#") for place in re.findall(r'href="([^"]*)"', page))


def test_the_page_has_every_figure_of_the_outcome(page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page)
    for figure in (
        "36,004",
        "118",
        "0.31",
        "630",
        "66.0 simulated hours",
        "1.30 kbit/s",
        "1,200 blocks accepted",
    ):
        assert figure in text, figure
    for place in (
        "12.0",
        "33.0",
        "45.0",
        "610",
        "InfluxDB",
        "1.6.7 &lt;debian&gt;",
        "--minutes 60 --outages",
    ):
        assert place in text, place
    assert "All that was asked for was reached." in text


def test_each_drawing_is_there_for_wide_and_narrow_and_refers_to_itself_only(page: str) -> None:
    drawings = re.findall(r'<div class="(wide|narrow)">(<svg.*?</svg>)</div>', page, re.DOTALL)
    assert [kind for kind, _ in drawings] == ["wide", "narrow"] * 2
    everywhere: list[str] = []
    for _, drawing in drawings:
        own = re.findall(r'\bid="([^"]+)"', drawing)
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', drawing)
        assert used
        assert set(used) <= set(own)
        everywhere += own
    assert len(everywhere) == len(set(everywhere))


def test_colours_of_drawings_are_those_of_the_page_in_light_and_dark(page: str) -> None:
    used = set(re.findall(r"var\(--(\w+)\)", page))
    for name in ("ink", "faint", "grid", "first", "second", "outage"):
        assert page.count(f"--{name}: {getattr(LIGHT, name)};") == 1
        assert page.count(f"--{name}: {getattr(DARK, name)};") == 1
    assert used <= {"ink", "faint", "grid", "first", "second", "outage", "font", "paper", "card"}
    assert "#0102" not in page


def test_an_outcome_on_disk_gives_the_same_page(page: str) -> None:
    again = msgspec.json.decode(msgspec.json.encode(outcome()), type=Outcome)
    assert page_of(again) == page


def test_the_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_png(tmp_path / "testbed.png", outcome(), title_of(outcome()))
    assert (tmp_path / "testbed.png").read_bytes().startswith(b"\x89PNG")


def test_a_testbed_without_key_side_and_outages_has_a_page() -> None:
    pytest.importorskip("matplotlib")
    page = page_of(outcome(keys=None, outages=[], sensors=sensors(currents=[])))
    assert "QBER" not in page
    assert "Outages" not in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sensors": sensors(lost=3, stored=36_001)}, "3 of 36004 samples are not in the database."),
        ({"sensors": sensors(read=35_990, stored=35_990)}, "10 of 36000 polls gave no sample."),
        ({"sensors": sensors(missed={"timeout": 3, "not_polled": 1})}, "4 of 36000 polls gave no sample."),
        ({"sensors": sensors(read=0, stored=0)}, "No sample was read."),
        ({"tunnel": tunnel(changes=90)}, "The key was changed 90 times, expected at least 116."),
        ({"tunnel": tunnel(pings_lost=2)}, "2 of 36000 pings through the tunnel were lost."),
        (
            {"tunnel": tunnel(through=structs.replace(tunnel().through, throughput_bits_per_s=None))},
            "iperf3 gave no throughput through the tunnel.",
        ),
        ({"keys": keys(hours=50.0)}, "The key side reached 50.0 of 66 hours."),
        ({"keys": keys(different=1)}, "1 of 1200000 keys were different at the two ends."),
        (
            {"outages": [Outage(what="database", minute=3.0, lasted_s=9.0, recovered_s=None, waiting=9)]},
            "After the outage of the database not all came back.",
        ),
    ],
)
def test_what_was_not_reached_is_said(changes: dict[str, Any], said: str) -> None:
    failed = outcome(**changes)
    assert said in failed.faults
    assert said in summary(failed)


def test_nothing_is_said_when_all_was_reached() -> None:
    assert outcome().faults == []
    short = outcome(minutes=0.5, outages=[], tunnel=tunnel(changes=0), sensors=sensors(due=300))
    assert short.faults == []  # no change was due
    assert outcome(minutes=1.0, outages=[], tunnel=tunnel(changes=0)).faults != []


def test_blocks_lie_at_their_simulated_time() -> None:
    points = key_hours([(3600.0, 3600, 0.01), (None, 0, None), (1800.0, 0, None)], 2 * 3600.0)
    assert [(point.hour, point.secret_bits_per_s, point.qber_z) for point in points] == [
        (1.0, 1.0, 0.01),
        (1.75, 0.0, None),
    ]


def test_an_hour_is_the_mean_over_the_time_of_its_blocks() -> None:
    points = key_hours([(900.0, 4500, 0.05), (2700.0, 2700, 0.01), (3600.0, 0, None)], 7200.0)
    assert [(one.hour, one.secret_bits_per_s, one.qber_z) for one in hourly(points)] == [
        (0.5, 2.0, pytest.approx(0.02)),
        (1.5, 0.0, None),
    ]
