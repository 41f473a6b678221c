"""Eve's drills: their schedules, what the node made of them by its table of blocks, and their page."""

import tomllib
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from qnode.cli.loopback import drilled, load_loopback, loopback
from qnode.cli.report import report
from qnode.distill.check_table import Finding
from qnode.errors import ConfigError
from qnode.loopback.drill_page import (
    DrillRun,
    blocks_of_drill,
    drill_page,
    first_lock_s,
    verdict,
)
from qnode.loopback.drills import (
    Drill,
    as_toml,
    block_span_s,
    drill_named,
    drill_schedule,
    drill_times,
    drills,
    with_schedule,
)
from qnode.loopback.prepare import parse_loopback_config
from qnode.operate.blocks.row import DecidedBlock
from qnode.simulate.model import expected_rates
from qnode.simulate.parameters import ScheduledChange, Settings

TURIN = load_loopback(Path(__file__).parent.parent / "config" / "turin.toml")
DRILLS = drills(TURIN.link)
SPAN_S = 100.0
BLINDING = drill_named("blinding", TURIN.link)


def settings_during(drill: Drill) -> list[Settings]:
    """The settings before, during and after a drill."""
    config = with_schedule(TURIN, *drill_schedule(drill, TURIN.link, 10.0, 20.0))
    return [config.simulation.settings_at(at_s) for at_s in (9.0, 11.0, 21.0)]


@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.name)
def test_a_drill_begins_and_leaves_the_link_as_it_was(drill: Drill) -> None:
    rates = [expected_rates(TURIN.simulation, TURIN.link, settings) for settings in settings_during(drill)]
    assert rates[1] != rates[0]
    assert rates[2] == rates[0]


@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.name)
def test_the_lines_of_a_drill_do_in_a_file_what_the_command_does(drill: Drill) -> None:
    schedule = drill_schedule(drill, TURIN.link, 270.0, 651.0)
    lines = as_toml(schedule)
    assert lines.startswith("[[simulation.schedule]]\nat_s = 270.0\n")
    assert lines.count("[[simulation.schedule]]") == 2
    text = (Path(__file__).parent.parent / "config" / "turin.toml").read_text() + "\n" + lines
    config = parse_loopback_config(tomllib.loads(text), "test")
    assert config.simulation.schedule == schedule
    assert drilled(TURIN, drill.name, 270.0, 651.0) == config


def test_drills_have_names_of_their_own_and_a_wrong_one_lists_them() -> None:
    assert len({drill.name for drill in DRILLS}) == len(DRILLS)
    with pytest.raises(ConfigError, match=r"no 'blnding'; there are intercept-resend, .*careful-blinding"):
        drill_named("blnding", TURIN.link)
    result = CliRunner().invoke(loopback, ["--drill", "blnding"], standalone_mode=False)
    assert result.return_value == 64
    result = CliRunner().invoke(loopback, ["--drill-from", "10"], standalone_mode=False)
    assert result.return_value == 64
    assert "of which --drill" in result.stderr
    result = CliRunner().invoke(report, ["eve", "--drill", "blnding"], standalone_mode=False)
    assert result.return_value == 64


def test_intensities_of_a_drill_follow_the_links() -> None:
    link = msgspec.structs.replace(
        TURIN.link, source=msgspec.structs.replace(TURIN.link.source, mu=(0.2, 0.05))
    )
    assert drill_named("swapped-intensities", link).change.mu_sent == (0.05, 0.2)
    _, end = drill_schedule(drill_named("bright-source", link), link, 1.0, 2.0)
    assert end.mu_sent == (0.2, 0.05)


def test_a_drill_is_in_block_3_and_the_blocks_after_it_by_default() -> None:
    span_s = block_span_s(TURIN)
    from_s, until_s = drill_times(TURIN)
    assert 2.0 < from_s / span_s < 2.1
    assert 4.9 < until_s / span_s < 5.0
    assert drill_times(TURIN, 0.0) == (0.0, round(2.9 * span_s))
    assert drill_times(TURIN, 5.0, 6.0) == (5.0, 6.0)
    with pytest.raises(ConfigError, match="after 7 s, got 6 s"):
        drill_times(TURIN, 7.0, 6.0)
    scheduled = with_schedule(TURIN, ScheduledChange(at_s=1.0, attenuation_db=12.0))
    assert len(drilled(scheduled, "blinding").simulation.schedule) == 3


def row(number: int, outcome: str = "accepted", span_s: float | None = SPAN_S) -> DecidedBlock:
    """A block of Turin, with key unless it was discarded."""
    return DecidedBlock(
        block_id=number, decided_at_s=0.0, outcome=outcome,
        detail="" if outcome == "accepted" else "1, limit 2", span_s=span_s,
        n_z_signal=850_000, n_z_decoy=150_000, m_z_signal=12_000, m_z_decoy=3_000,
        c_plus_signal=33_000, c_plus_decoy=6_000, c_z_signal=545_000, c_z_decoy=95_000,
        e_same_signal=134_000, e_same_decoy=26_000, e_plus_signal=137_000, e_plus_decoy=25_500,
        e_dark_signal=2_000, e_dark_decoy=500, estimator="eur", x_mode="visibility", eps_sec=1e-10,
        eps_cor=1e-15, secret_bits=180_000 if outcome == "accepted" else 0,
        checks=(
            Finding("boundary_error", 0.0156, 0.0006, 0.115), Finding("rho", 0.492, 0.447, 0.554),
            Finding("t2", 0.5, 0.446, 0.554),
        ),
    )  # fmt: skip


def run_of(*rows: DecidedBlock, from_s: float = 210.0, until_s: float = 405.0) -> DrillRun:
    blocks = blocks_of_drill(rows, 3.0, from_s, until_s)
    return DrillRun(drill=BLINDING, from_s=from_s, until_s=until_s, blocks=blocks)


def test_blocks_come_in_order_with_eves_share_of_each() -> None:
    run = run_of(row(1), row(3, "t2"), row(2), row(5, "link", None), row(4), row(6))
    assert [block.row.block_id for block in run.blocks] == [1, 2, 3, 4, 6]
    assert [block.until_s for block in run.blocks] == [103.0, 203.0, 303.0, 403.0, 503.0]
    assert [block.with_eve for block in run.blocks] == pytest.approx([0.0, 0.0, 0.93, 1.0, 0.02])
    assert [block.attacked for block in run.blocks] == [False, False, True, True, False]


def test_a_block_that_the_end_of_the_run_left_undecided_keeps_its_place() -> None:
    run = run_of(row(1), row(2), row(5, "t2"), row(4, "link", None), row(6), from_s=303.0, until_s=453.0)
    assert [block.row.block_id for block in run.blocks] == [1, 2, 5, 6]
    assert [block.until_s for block in run.blocks] == [103.0, 203.0, 403.0, 503.0]
    assert [block.with_eve for block in run.blocks] == pytest.approx([0.0, 0.0, 1.0, 0.5])
    assert verdict(run_of(row(1), row(2), row(4), from_s=103.0, until_s=203.0)).waited == 2


def test_the_first_lock_is_where_the_blocks_begin() -> None:
    searching = {"event": "quantum.lock", "state": "searching", "tag_time_s": 1.0}
    locked = [{"event": "quantum.lock", "state": "locked", "tag_time_s": at_s} for at_s in (2.5, 9.0)]
    assert first_lock_s([searching, *locked]) == 2.5
    assert first_lock_s([]) == 0.0


def test_the_verdict_tells_check_blocks_and_keys_of_the_time_with_eve() -> None:
    told = verdict(run_of(row(1), row(2), row(3), row(4, "cross_clicks"), row(5, "t2"), row(6)))
    assert (told.check, told.detail, told.after_blocks) == ("cross_clicks", "1, limit 2", 2)
    assert (told.attacked, told.accepted, told.secret_bits) == (2, 1, 180_000)
    assert (told.again, told.waited) == (6, 2)


def test_the_verdict_of_an_attack_that_nothing_notices_says_so() -> None:
    told = verdict(run_of(*(row(number) for number in range(1, 7))))
    assert (told.check, told.after_blocks) == (None, None)
    assert (told.attacked, told.accepted, told.secret_bits) == (2, 2, 360_000)
    assert (told.again, told.waited) == (5, 1)
    never = verdict(run_of(*(row(number, "t2") for number in range(1, 7))))
    assert (never.accepted, never.again, never.waited) == (0, None, None)


def test_the_page_has_every_drill_its_schedule_and_what_came_of_it() -> None:
    caught = run_of(row(1), row(2), row(3, "t2"), row(4, "t2"), row(5), row(6), row(7))
    first = run_of(row(1, "t2"), row(2), from_s=0.0, until_s=95.0)
    broken = DrillRun(drill=DRILLS[0], from_s=210.0, until_s=405.0, broken="a daemon ended")
    page = drill_page("Made by x.", "config/turin.toml", TURIN.link, [caught, first, broken], [])
    assert "| Blinding | 210 s | t2 | 1 | 0 of 2 | 0 | block 5, the first after the attack |" in page
    assert "| Blinding | the first slot | t2 | 1 | 0 of 1 | 0 | block 2, the first after the attack |" in page
    assert "| Intercept and resend | 210 s | the run broke | – | 0 of 0 | 0 | – |" in page
    assert as_toml(drill_schedule(BLINDING, TURIN.link, 210.0, 405.0)) in page
    assert "| 3 | 303 s | 93% | 1000000 | 15.0% | 1.50% | 3.05% | 0.500 | 0.492 | 0.016 | 0 | t2 |" in page
    assert "| 6 | 603 s |" in page
    assert "| 7 |" not in page
    assert "First discarded for t2: 1, limit 2." in page
    assert "The run broke: a daemon ended." in page
    assert page.count("Not visible in the tags: A more careful blinding") == 1
    assert "cross clicks |" not in page  # no row knows of them
    assert "Key over the intercepted fraction" not in page
