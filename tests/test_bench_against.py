"""`qnode bench --against DIR`: runs in turn, ratios with their spread, and clear words about a folder."""

import io
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec.structs
import pytest
from click.testing import CliRunner
from operate_support import well_status
from rich.console import Console

from qnode.bench.against import compare as module
from qnode.bench.against.case import Figures, Measure
from qnode.bench.against.checkout import CaseFailed, Checkout
from qnode.bench.against.compare import CASES, Compared, compare
from qnode.bench.against.daemons import (
    Daemon,
    Staged,
    blocks_of,
    secret_bits,
    sifted_bits,
    staged,
    tag_time_s,
)
from qnode.bench.against.delivery import Encryptors, handshake_s
from qnode.bench.against.ratio import in_turn, ratio_of, student_quantile
from qnode.bench.against.stages import BULK, MESSAGE, REPLY, both_ends, channel_figures
from qnode.cli.bench import bench
from qnode.cli.bench_against import table_of

TOP = Path(__file__).parent.parent


def run(*words: str) -> Any:
    return CliRunner().invoke(bench, words, standalone_mode=False)


def test_each_of_both_is_first_in_every_other_pair() -> None:
    order = []

    def one(name: str) -> str:
        order.append(name)
        return name

    pairs = list(in_turn(lambda: one("ours"), lambda: one("theirs"), 4))
    assert pairs == [("ours", "theirs")] * 4
    assert order == ["theirs", "ours", "ours", "theirs"] * 2


def test_what_changes_from_pair_to_pair_cancels() -> None:
    found = ratio_of([1.0, 2.0, 6.0, 3.0], [2.0, 4.0, 12.0, 6.0])
    assert found == pytest.approx((0.5, 0.5, 0.5))


def test_the_interval_is_students() -> None:
    # Tables: 3.182, 2.571 and 2.045 for 3, 5 and 29 degrees of freedom.
    for degrees, quantile in ((3, 3.1824), (5, 2.5706), (29, 2.0452)):
        assert student_quantile(degrees) == pytest.approx(quantile, rel=2e-3)
    with pytest.raises(ValueError, match="expected 4"):
        ratio_of([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])


def test_the_interval_holds_the_true_ratio_19_times_of_20() -> None:
    rng = random.Random(1)
    held = 0
    for _ in range(2000):
        drift = [rng.uniform(0.5, 2.0) for _ in range(6)]
        ours = [0.9 * value * rng.lognormvariate(0.0, 0.03) for value in drift]
        theirs = [value * rng.lognormvariate(0.0, 0.03) for value in drift]
        found = ratio_of(ours, theirs)
        held += found.low <= 0.9 <= found.high
    assert held / 2000 == pytest.approx(0.95, abs=0.02)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    done = run("--against", str(tmp_path))
    assert done.return_value == 64
    assert f"{tmp_path}: no checkout of qnode, qnode/__init__.py is not there" in done.stderr


def test_code_that_does_not_run_here_is_told_with_its_reason(tmp_path: Path) -> None:
    for package in ("qnode", "drivers/qnode_drivers"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("import of_another_time\n")
    with pytest.raises(CaseFailed, match="No module named 'of_another_time'"):
        Checkout.other(tmp_path).prepare()


def test_wrong_options_are_refused_before_anything_runs() -> None:
    unknown = run("--against", str(TOP), "--only", "sifting")
    assert unknown.return_value == 64
    assert all(name in unknown.stderr for name in ("sifting", *CASES))
    assert run("--against", str(TOP), "--scaling", "x.svg").return_value == 64
    assert "3 is not in the range" in str(run("--against", str(TOP), "--pairs", "3").exception)


def test_each_checkout_has_its_own_code_and_its_own_machine_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QNODE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "qnode").mkdir()
    (tmp_path / "drivers/qnode_drivers").mkdir(parents=True)
    for package in ("qnode", "drivers/qnode_drivers"):
        (tmp_path / package / "__init__.py").write_text("")
    this, other = Checkout.this(), Checkout.other(tmp_path)
    assert this.top == TOP
    assert this.environment["QNODE_CACHE_DIR"] == str(tmp_path / "cache")
    assert Path(other.environment["QNODE_CACHE_DIR"]).parent == tmp_path / "cache/against"
    code = other.run("-c", "import qnode, qnode_drivers; print(qnode.__file__, qnode_drivers.__file__)")
    assert all(Path(path).is_relative_to(tmp_path) for path in code.split())


def both(monkeypatch: pytest.MonkeyPatch, ours: Measure, theirs: Measure) -> list[Compared]:
    """Return the comparison of two functions instead of checkouts."""
    this, other = Checkout(Path("this")), Checkout(Path("other"))

    def case(checkout: Checkout, _folder: Path, *, quick: bool) -> Measure:
        return ours if checkout is this else theirs

    monkeypatch.setattr(module, "CASES", {"case": case})
    return list(compare(["case"], this, other, pairs=4, quick=True, tell=lambda _: None))


def test_a_figure_is_the_median_of_each_and_the_ratio_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = both(monkeypatch, lambda: {"cost": 3.0}, lambda: {"cost": 4.0})
    assert (one.this, one.other, one.runs, one.note) == (3.0, 4.0, 4, "")
    assert one.ratio == pytest.approx(0.75)


def test_what_is_not_to_be_had_of_a_checkout_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Figures:
        raise CaseFailed("no such module")

    (one,) = both(monkeypatch, lambda: {"cost": 3.0}, failing)
    assert (one.ratio, one.note) == (None, "not to be had of the other checkout: no such module")
    cost, size = both(monkeypatch, lambda: {"cost": 3.0, "size": 1.0}, lambda: {"cost": 4.0})
    assert (cost.note, size.note) == ("", "not to be had of the other checkout")


def test_the_table_fits_80_columns_and_has_no_row_without_figures() -> None:
    results = [
        Compared(
            case="delivery", name="ETSI pair, new each, ms a site", this=12.345, other=1234.5,
            ratio=0.401, low=0.395, high=0.4071, runs=6,
        ),
        Compared(case="turin", name="turin", note="not to be had"),
    ]  # fmt: skip
    text = io.StringIO()
    Console(width=80, file=text).print(table_of(results))
    lines = text.getvalue().strip().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert lines[-1].split("|")[2:-1] == [" 1,234 ", " 12.3 ", " 0.401 ", " 0.395 .. 0.407 "]


def test_the_figures_of_a_status_have_their_names() -> None:
    status = msgspec.to_builtins(well_status())
    assert blocks_of(status) == well_status().block.accepted
    assert sifted_bits(status) == well_status().totals.sifted_bits
    assert secret_bits(status) == well_status().totals.secret_bits
    assert tag_time_s(status) == well_status().quantum.tag_time_s


def test_the_processor_time_of_a_daemon_counts_its_ended_threads(tmp_path: Path) -> None:
    work = "x = threading.Thread(target=sum, args=(range(10**6),)); x.start(); x.join()"
    script = f"import sys, threading; {work}; print('ready', flush=True); input(); sys.exit('cannot go on')"
    log = tmp_path / "log"
    with (
        log.open("wb") as told,
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told
        ) as process,
    ):
        daemon = Daemon("alice", process, tmp_path / "socket", log)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        first_s, second_s = daemon.processor_s(), daemon.processor_s()
        assert 0.005 < first_s <= second_s < first_s + 0.005
        assert daemon.peak_mib() > 1.0
        assert daemon.status() is None
        process.communicate(b"\n")
        for ask in (daemon.processor_s, daemon.status):
            with pytest.raises(CaseFailed, match="alice's daemon ended: cannot go on"):
                ask()


def test_a_checkout_says_what_an_announced_click_costs() -> None:
    found = Checkout.this().run_inside("announcement.py", "20000")
    assert set(found) == {"fast", "Turin"}
    for one in found.values():
        assert 1.0 < one["over_entropy"] < 1.1
        assert one["encoding_ns"] > 0.0
        assert one["decoding_ns"] > 0.0


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staged]:
    with staged(Checkout.this(), tmp_path_factory.mktemp("sites"), "turin") as prepared:
        yield prepared


def test_an_end_of_the_channel_that_fails_ends_the_other(sites: Staged) -> None:
    broken = msgspec.structs.replace(sites, site_files={**sites.site_files, "bob": "nowhere.toml"})
    with pytest.raises(CaseFailed, match="ConfigError"):
        both_ends(Checkout.this(), broken, 1)


def test_messages_of_both_ends_and_a_handshake_are_measured(sites: Staged) -> None:
    ends = both_ends(Checkout.this(), sites, 1)
    assert handshake_s(sites, Encryptors.of(sites).contexts["alice"]) > 0.0
    figures = channel_figures(*ends)
    assert (
        json.dumps(sorted(ends[0])) == '["bare_ns", "bare_us", "byte_ns", "code_ns", "reply_us", "round_us"]'
    )
    assert min(statistics.fmean(end.values()) for end in ends) > 0.0
    assert figures[MESSAGE] > 1.0
    assert figures[REPLY] > 1.0
    assert figures[BULK] > 0.0
