"""What `qnode report` writes: rows measured from statuses, the model's row beside them, and the pages."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from qnode.block.outcome import Reason
from qnode.cli.loopback import load_loopback
from qnode.cli.report import report
from qnode.loopback.compare import (
    BlockLog,
    Measured,
    RunDisturbed,
    deviation,
    measured,
    predicted,
)
from qnode.loopback.encryptors import Comparison
from qnode.loopback.markdown import (
    SECRET,
    SIFTED,
    Case,
    beside_the_model,
    comparison,
    made_by,
    table,
    where_key_ends,
    why_no_keys,
)
from qnode.loopback.pages import LockLook, attenuation_page, clock_page, lock_times
from qnode.loopback.result import Ledger
from qnode.loopback.run import LinkOutcome
from qnode.operate.status.model import (
    BlockStatus,
    BlockSummary,
    Discard,
    NodeStatus,
    PeerStatus,
    QuantumStatus,
    SiteStatus,
    State,
    Totals,
)
from qnode.simulate.parameters import Settings

TURIN = load_loopback(Path(__file__).parent.parent / "config" / "turin.toml")
SECONDS = 130.0  # a block
RESULT = Ledger(0.5).result("turin", Comparison(delivered=700, compared=700), 10.0)

LOCK = {"event": "quantum.lock", "state": "locked", "tag_time_s": 2.0, "at": 1000.0}


def done(number: int, secret: int = 180_000) -> dict[str, Any]:
    return {
        "event": "block.done",
        "block": number,
        "qber_z": 0.015,
        "e_vis": 0.03,
        "secret": secret,
        "span_s": SECONDS,
    }


def lost(number: int) -> dict[str, Any]:
    return {
        "event": "block.discarded",
        "block": number,
        "reason": "key_length",
        "detail": "0 secret bits",
        "span_s": SECONDS,
    }


def after(events: list[dict[str, Any]], **block: Any) -> NodeStatus:
    """Bob's status when ``events`` have happened; every block is alike."""
    accepted = [event for event in events if event["event"] == "block.done"]
    discarded = [event for event in events if event["event"] == "block.discarded"]
    count, good = len(events), len(accepted)
    summary = discard = None
    if accepted:
        summary = BlockSummary(
            block_id=accepted[-1]["block"], finished_at=float(count), n_z=1_000_000, qber_z=0.015, e_vis=0.03,
            asymmetry=0.001, phi_z_upper=0.08, secret_bits=accepted[-1]["secret"], lambda_ec_bits=117_000,
            f_ec=1.04, reconciliation="cascade", estimator="rusca2018", assumptions=[], span_s=SECONDS,
            took_s=1.0,
        )  # fmt: skip
    if discarded:
        last = discarded[-1]
        discard = Discard(
            block_id=last["block"], at=float(count), reason=last["reason"], detail=last["detail"]
        )
    status = BlockStatus(
        accepted=good,
        discarded={"key_length": len(discarded)} if discarded else {},
        decided_s=SECONDS * len(events),
        last=summary,
        last_discard=discard,
    )
    running = State("running", 0.0)
    return NodeStatus(
        at=1000.0 + 2.0 * count,
        version="0",
        site=SiteStatus(role="bob", kme_id="kme-bob", link="turin"),
        simulated=True,
        state=running,
        peer=PeerStatus(kme_id="kme-alice", connection=State("connected", 0.0)),
        quantum=QuantumStatus(lock=State("locked", 0.0), asymmetry=0.001, cut_s=0.5),
        block=msgspec.structs.replace(status, **block),
        totals=Totals(
            sifted_bits=1_000_000 * count,
            secret_bits=sum(event["secret"] for event in accepted),
            error_bits=15_000 * count,
            measured_bits=1_000_000 * count,
            c_plus_clicks=38_000 * count,
            c_z_clicks=630_000 * count,
            ec_parities=116_480 * good,
            shannon_bits=112_000.0 * good,
        ),
    )


def run_of(*events: dict[str, Any]) -> tuple[list[NodeStatus], LinkOutcome]:
    """A run in which somebody looked after every block."""
    statuses = [after(list(events[:count])) for count in range(1, len(events) + 1)]
    return statuses, LinkOutcome(RESULT, statuses[-1], [LOCK, *events])


def measured_of(*events: dict[str, Any]) -> Measured:
    statuses, outcome = run_of(*events)
    return measured(statuses, TURIN.link, outcome)


def test_a_measured_row_counts_the_blocks_after_the_first() -> None:
    found = measured_of(done(1, 100_000), done(2, 180_000), done(3, 182_000))
    assert found.simulated_s == pytest.approx(2 * SECONDS)
    assert found.times_real_time == pytest.approx(SECONDS / 2.0)
    assert (found.accepted, found.discarded) == (2, {})
    assert found.row.secret_bits_per_s == pytest.approx(362_000 / (2 * SECONDS))
    assert found.row.sifted_bits_per_s == pytest.approx(1e6 / SECONDS)
    assert found.row.c_z_per_s == pytest.approx(630_000 / SECONDS)
    assert found.row.c_plus_per_s == pytest.approx(38_000 / SECONDS)
    assert found.row.qber_z == pytest.approx(0.015)
    assert found.row.e_vis == pytest.approx(38 / 630 / 2)
    assert found.row.phi_z_upper == pytest.approx(0.08)
    assert found.row.f_ec == pytest.approx(1.04)
    assert found.scatter.sifted_bits_per_s == pytest.approx(2e6**-0.5)
    assert found.scatter.secret_bits_per_s == pytest.approx(1414.2 / 181_000 / 2**0.5, rel=1e-3)
    assert found.keys_compared == 700


def test_a_later_block_that_is_decided_first_does_not_change_the_rates() -> None:
    statuses, outcome = run_of(done(2), done(1), done(4), done(3))
    found = measured(statuses, TURIN.link, outcome)
    assert found.row.sifted_bits_per_s == pytest.approx(1e6 / SECONDS)
    early = measured(statuses[:3], TURIN.link, outcome)  # block 3 is missing at the end
    assert early.row.sifted_bits_per_s == pytest.approx(1e6 / SECONDS)


def test_nothing_is_measured_of_one_block() -> None:
    statuses, outcome = run_of(done(1))
    with pytest.raises(ValueError, match="two blocks"):
        measured(statuses, TURIN.link, outcome)


def test_a_run_ends_when_enough_blocks_were_decided() -> None:
    statuses, _ = run_of(done(1), lost(2), done(3))
    told: list[NodeStatus] = []
    log = BlockLog(3, told.append)
    assert [log.until(RESULT, status) for status in (statuses[0], statuses[0], *statuses[1:])] == [
        False,
        False,
        False,
        True,
    ]
    assert log.statuses == told == statuses


def test_a_run_with_a_restart_or_a_broken_session_is_not_compared() -> None:
    log = BlockLog(9)
    log.until(RESULT, after([done(1), done(2)]))
    with pytest.raises(RunDisturbed):
        log.until(RESULT, after([done(3)]))
    with pytest.raises(RunDisturbed):
        BlockLog(9).until(RESULT, after([done(1)], discarded={"link": 1}))


@pytest.mark.parametrize(
    ("attenuation_db", "secret", "qber_z", "vis", "phi", "sifted"),
    [
        (5.5, 1380, 0.0146, 0.029, 0.080, 7656),
        (10.8, 1315, 0.0150, 0.030, 0.081, 7594),
        (16.3, 1132, 0.0164, 0.034, 0.086, 7382),
        (21.8, 596, 0.0214, 0.045, 0.102, 6723),
    ],
)
def test_the_models_row_is_that_of_the_reference(
    attenuation_db: float, secret: float, qber_z: float, vis: float, phi: float, sifted: float
) -> None:
    model = predicted(TURIN, Settings(attenuation_db=attenuation_db), 1.16)
    assert model.discarded is None
    assert model.row.secret_bits_per_s == pytest.approx(secret, rel=0.02)
    assert model.row.qber_z == pytest.approx(qber_z, abs=1e-4)
    assert model.row.e_vis == pytest.approx(vis, abs=0.0011)
    assert model.row.phi_z_upper == pytest.approx(phi, rel=0.02)
    assert model.row.sifted_bits_per_s == pytest.approx(sifted, rel=0.002)


def test_the_models_key_is_gone_at_28_db_and_it_says_why() -> None:
    model = predicted(TURIN, Settings(attenuation_db=28.0), 1.045)
    assert model.row.secret_bits_per_s == 0.0
    assert model.discarded == Reason.KEY_LENGTH
    assert model.told is not None
    assert "0 secret bits" in model.told
    assert model.row.phi_z_upper == pytest.approx(0.18, abs=0.01)


def test_better_correction_means_more_key_in_the_models_row() -> None:
    rows = [predicted(TURIN, Settings(), f_ec).row for f_ec in (1.16, 1.04)]
    assert rows[0].secret_bits_per_s < rows[1].secret_bits_per_s
    assert rows[0].sifted_bits_per_s == rows[1].sifted_bits_per_s


def test_the_model_loses_the_key_to_eve_between_5_and_10_percent() -> None:
    for share, key in ((0.0, True), (0.02, True), (0.05, True), (0.10, False), (0.20, False)):
        model = predicted(TURIN, Settings(eve_intercept=share), 1.045)
        assert (model.discarded is None) is key
    all_of_them = predicted(TURIN, Settings(eve_intercept=1.0), 1.045)
    assert all_of_them.discarded == Reason.QBER_Z
    assert all_of_them.row.qber_z == pytest.approx(0.25, abs=0.01)
    assert all_of_them.row.e_vis == pytest.approx(0.25, abs=0.02)


def test_the_model_shows_damping_in_the_asymmetry_and_discards_for_it_where_that_counts() -> None:
    damping = Settings(eve_damping=0.10)
    model, clean = predicted(TURIN, damping, 1.045).row, predicted(TURIN, Settings(), 1.045).row
    assert model.asymmetry == pytest.approx(0.05, abs=0.005)
    assert model.e_vis == pytest.approx(clean.e_vis, abs=0.004)
    estimation = msgspec.structs.replace(TURIN.link.estimation, x_mode="visibility + asymmetry")
    link = msgspec.structs.replace(TURIN.link, estimation=estimation)
    strict = predicted(msgspec.structs.replace(TURIN, link=link), damping, 1.045)
    assert strict.discarded == Reason.ASYMMETRY


def test_the_shipped_fast_link_makes_megabits_of_key_in_the_model() -> None:
    fast = load_loopback(Path(__file__).parent.parent / "config" / "fast.toml")
    model = predicted(fast, fast.simulation.settings_at(0.0), 1.045)
    assert model.discarded is None
    # What the first lines of the file say.
    assert model.row.sifted_bits_per_s == pytest.approx(24.2e6, rel=0.01)
    assert model.row.secret_bits_per_s == pytest.approx(9.6e6, rel=0.01)
    assert model.row.qber_z == pytest.approx(0.0092, abs=1e-4)
    assert model.row.e_vis == pytest.approx(0.0160, abs=3e-4)  # 0.01 of it by (1 - V)/2
    jitter = fast.simulation.jitter
    deviation_ps = (jitter.sigma_ps**2 + jitter.tail_fraction * 2.0 * jitter.tail_ps**2) ** 0.5
    assert deviation_ps == pytest.approx(fast.link.receiver.jitter_ps, rel=0.1)


def test_a_deviation_needs_two_figures() -> None:
    assert deviation(1.1, 1.0) == pytest.approx(0.1)
    assert deviation(None, 1.0) is deviation(1.0, None) is deviation(1.0, 0.0) is None


def test_a_table_is_markdown_with_figures_to_the_right() -> None:
    text = table(["case", "", "rate"], [["a|b", "measured", "1"]])
    assert text == "| case |  | rate |\n| --- | --- | ---: |\n| a\\|b | measured | 1 |"
    with pytest.raises(ValueError, match="2 cells"):
        table(["a", "b", "c"], [["1", "2"]])


def cases() -> list[Case]:
    good = measured_of(done(1), done(2), done(3, 182_000))
    bad = measured_of(lost(1), lost(2), lost(3))
    return [
        Case("10.8 dB", good, predicted(TURIN, Settings(attenuation_db=10.8), 1.04)),
        Case("28 dB", bad, predicted(TURIN, Settings(attenuation_db=28.0), 1.04)),
    ]


def test_a_comparison_has_three_lines_a_case() -> None:
    lines = comparison("attenuation", cases(), (SECRET, SIFTED)).splitlines()
    assert len(lines) == 2 + 2 * 3
    assert lines[2] == "| 10.8 dB | measured | 1392 | 7692 | 2 | 0 | 65 |"
    assert lines[3].startswith("|  | model | 14")
    assert lines[4].startswith("|  | deviation | -")
    assert "+1.18 ± 0.07 %" in lines[4]
    assert lines[5] == "| 28 dB | measured | 0 | 7692 | 0 | 2 key_length | 65 |"
    assert lines[6].endswith("| key_length |  |")


def test_a_short_comparison_has_the_model_in_brackets() -> None:
    lines = beside_the_model("attenuation", cases(), (SECRET, SIFTED)).splitlines()
    assert lines[0] == "| attenuation | secret bit/s | sifted bit/s (n_Z) | accepted | discarded |"
    assert lines[2].startswith("| 10.8 dB | 1392 (14")
    assert lines[2].endswith("| 2 | 0 (0) |")
    assert lines[3].startswith("| 28 dB | 0 (0) |")
    assert lines[3].endswith("| 0 | 2 key_length (key_length) |")
    assert where_key_ends(cases()) == "The key ends between 10.8 dB and 28 dB."
    assert where_key_ends(cases()[:1]) == ""


def test_a_case_without_key_is_explained_by_the_status_and_the_model() -> None:
    text = why_no_keys(cases())
    assert text.count("\n") == 0
    assert text.startswith("* 28 dB: no key. Status: block 3 was discarded (key_length): 0 secret")
    assert "Model: key_length: 0 secret bits, below the minimum" in text


def test_the_pages_hold_their_tables_and_say_what_made_them() -> None:
    made = made_by("qnode report attenuation --config config/turin.toml --blocks 2")
    page = attenuation_page(made, 2, cases())
    assert "Made by `qnode report attenuation --config config/turin.toml --blocks 2` on 20" in page
    assert "| 28 dB | measured | 0.00 | 0 |" in page
    assert "Encryptors fetched and compared 1400 keys from both ends over HTTPS; 0 differed." in page
    ideal, real = (measured_of(done(1), done(2), done(3, secret)) for secret in (182_000, 181_000))
    times = lock_times(LOCKS, LOOKS, 10.0, 0.4)
    page = clock_page(made, 2, ideal, real, (0.0, 0.25), times)
    assert "| cost |  | +0.00 ± 0.10 % | +0.28 ±" in page
    assert "| 0.250 s of 260 s |" in page
    assert "| 2.4 s | at most 5 s |" in page


LOCKS = [
    {"event": "quantum.lock", "state": "locked", "tag_time_s": 2.4},
    {"event": "quantum.lock", "state": "searching", "tag_time_s": 22.0},
    {"event": "quantum.lock", "state": "locked", "tag_time_s": 32.4},
]
LOOKS = [
    LockLook(locked=False, cut_s=0.0),
    LockLook(locked=True, cut_s=2.9),
    LockLook(locked=False, cut_s=3.0),
    LockLook(locked=True, cut_s=14.7),
]


def test_lock_times_come_from_events_and_from_what_was_cut_beyond_the_outage() -> None:
    times = lock_times(LOCKS, LOOKS, 10.0, 0.4)
    assert times.cold_s == pytest.approx(2.4)
    assert times.relock_s == pytest.approx(1.8)
    for events, looks in ((LOCKS[:1], LOOKS), (LOCKS, LOOKS[:3]), (LOCKS, [])):
        with pytest.raises(ValueError, match="lock again"):
            lock_times(events, looks, 10.0, 0.4)


def test_a_file_or_folder_that_cannot_be_used_is_refused_before_any_run(tmp_path: Path) -> None:
    runner = CliRunner()
    for name in ("attenuation", "eve", "clock"):
        unreadable = ["--config", str(tmp_path / "none.toml"), "--output", str(tmp_path / "page.md")]
        result = runner.invoke(report, [name, *unreadable], standalone_mode=False)
        assert result.return_value == 64
        assert "cannot be read" in result.stderr
        nowhere = ["--output", str(tmp_path / "missing" / "page.md")]
        result = runner.invoke(report, [name, *nowhere], standalone_mode=False)
        assert result.return_value == 64
        assert "no such folder" in result.stderr
