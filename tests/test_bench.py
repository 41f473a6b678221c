"""`qnode bench`: what it prints is measured and has the promised form."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from click.testing import CliRunner
from rich.console import Console

from qnode.bench.correction import Pair
from qnode.bench.in_flight import seconds_for
from qnode.bench.links import FAST, TURIN
from qnode.bench.results import BenchReport, Effort, Machine, PairResult, rates, summary
from qnode.bench.stages import NAMES
from qnode.bench.whole_link import Meter
from qnode.cli.bench import bench, table_of
from qnode.cli.loopback import load_loopback

CONFIG = Path(__file__).parent.parent / "config"
FIELDS = {"name", "n_bits", "qber", "unit", "median", "p10", "p90", "runs", "f", "limit"}


def run(*words: str) -> Any:
    return CliRunner().invoke(bench, words, standalone_mode=False)


def test_the_measured_links_are_the_shipped_files() -> None:
    assert load_loopback(CONFIG / "turin.toml") == TURIN
    assert load_loopback(CONFIG / "fast.toml") == FAST


def test_json_has_the_promised_form() -> None:
    done = run("--json", "--quick", "--only", "verify", "--only", "amplify")
    report = json.loads(done.stdout)
    assert set(report) == {"machine", "results"}
    assert [one["name"] for one in report["results"]] == ["verify", "amplify", "amplify"]
    for one in report["results"]:
        assert set(one) == FIELDS
        assert 0 < one["p10"] <= one["median"] <= one["p90"]
        assert one["runs"] >= 3
        assert one["limit"] is None or one["median"] < one["limit"]
    assert report["machine"]["popcount_bits_per_s"] > 1e9


def test_the_table_names_every_figure() -> None:
    done = run("--quick", "--only", "verify")
    assert "verify" in done.stdout
    assert "Mbit/s" in done.stdout


def test_the_table_fits_80_columns_and_breaks_no_word_or_number() -> None:
    machine = Machine(
        processor="AMD EPYC 9B45 128-Core Processor", cores=128, python="3.11.7", clmul_per_s=7.4e9,
        popcount_bits_per_s=9.14e11, copy_bytes_per_s=2.9e10, multiplier_words=8,
    )  # fmt: skip
    results = [
        PairResult(
            name="pair", n_bits=139_844_623, qber=0.0094, unit="secret Mbit/s", median=1_234.0, p10=1_011.0,
            p90=1_456.0, runs=1_219, f=1.047, limit=152_254.0, round_trip_s=0.05,
        ),
        summary("cascade", [271.0, 289.0], "Mbit/s", n_bits=1_048_576, qber=0.015, f=1.045, limit=152_254.0),
        summary("turin", [211.0, 212.0], "simulated s / s", n_bits=1_000_000, qber=0.015, f=1.048),
        summary("qnodectl --help", [0.0568, 0.0643], "s"),
    ]  # fmt: skip
    text = io.StringIO()
    Console(width=80, file=text).print(table_of(BenchReport(machine, results)))
    assert max(map(len, text.getvalue().splitlines())) <= 80
    words = set(text.getvalue().split())
    assert {"pair", "cascade", "turin", "qnodectl", "--help", "simulated", "secret", "Mbit/s"} <= words
    assert {"1,234", "1,011", "1,456", "1219", "152,254", "1.047", "140", "1.05"} <= words


def test_an_unknown_stage_is_refused_by_name() -> None:
    done = run("--only", "sifting")
    assert done.return_value == 64
    assert "sifting" in done.stderr
    assert all(name in done.stderr for name in NAMES)


def test_a_figure_of_another_kind_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    done = run("--scaling", str(tmp_path / "scaling.gif"))
    assert done.return_value == 64
    assert ".png or .svg" in done.stderr


def test_percentiles_are_those_of_the_runs() -> None:
    one = summary("x", [float(value) for value in range(1, 12)], "Mbit/s")
    assert (one.p10, one.median, one.p90, one.runs) == (2.0, 6.0, 10.0, 11)


def test_a_rate_is_work_over_processor_time() -> None:
    def work() -> float:
        return float(sum(range(20_000)) > 0)

    found = rates(work, Effort(seconds=0.0, fewest=5, link_s=0.0, pair_s=0.0))
    assert len(found) == 5
    assert all(10 < rate < 1e6 for rate in found)


async def test_the_whole_link_is_measured_after_it_has_settled(autojump_clock: object) -> None:
    meter = Meter(lambda status: status.value, seconds=3.0, interval_s=1.0)  # type: ignore[attr-defined]

    def status(value: float) -> Any:
        return SimpleNamespace(value=value)

    nothing: Any = None
    enough = []
    for step in range(20):
        value = 0.0 if step < 4 else (1000.0 * step if step < 8 else 8000.0 + 5.0 * (step - 8))
        enough.append(meter.see(nothing, status(value)))
        await trio.sleep(0.5)
    assert meter.rates[:3] == pytest.approx([10.0] * 3)
    assert enough.index(True) == 14  # lock at step 4, two seconds to settle, three measured


def test_on_a_long_fibre_blocks_in_flight_share_the_round_trips() -> None:
    pairs = [Pair.drawn(20_000, 0.02, seed) for seed in range(4)]
    alone = seconds_for(pairs[:1], 0.02, round_trip_s=1.0)
    together = seconds_for(pairs, 0.02, round_trip_s=1.0)
    near = seconds_for(pairs[:1], 0.02, round_trip_s=0.0)
    assert alone > 10.0  # seconds, of which a second a round
    assert near < 1.0
    assert together < 2 * alone
