"""The simulated world: runs are their seeds, the checker finds planted bugs, the node keeps its promises.

More seeds: `qnode world --seeds 2000`.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
import trio
from click.testing import CliRunner

from qnode.audit.entries import KeyDelivered
from qnode.choices import Role
from qnode.cli.main import qnode
from qnode.keys import Answer, BlockState, KeyStore, StoredKey
from qnode.world.campaign import SeedResult, Settings, read_journal, run_many, run_one
from qnode.world.checker import StoreContents, _audited, check
from qnode.world.determinism import VirtualClock, determined
from qnode.world.disk import PowerCut
from qnode.world.history import Delivered, History, ObservedStore
from qnode.world.planted import BUGS
from qnode.world.run import run_seed
from qnode.world.schedule import FAULTS, LIVENESS_FROM_S, drawn_schedule

SHORT_S = 60.0
SHORT = Settings(duration_s=SHORT_S)


@pytest.mark.parametrize("first", range(0, 24, 12))
def test_short_runs_keep_every_invariant(first: int) -> None:
    failed = [result for seed in range(first, first + 12) if (result := run_one(seed, SHORT)).violations]
    assert [(SHORT.replay_command(one.seed), one.violations) for one in failed] == []


@pytest.mark.parametrize("seed", range(4))
def test_runs_of_ten_minutes_keep_every_invariant_and_recover(seed: int) -> None:
    result = run_one(1000 + seed, Settings())
    assert result.violations == ()
    assert result.blocks > 3
    assert result.keys > 10


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_can_be_forced_and_keeps_every_invariant(fault: str) -> None:
    result = run_one(7, Settings(duration_s=SHORT_S, most_faults=0, forced=(fault, fault)))
    assert result.violations == ()


def test_a_run_is_its_seed_in_any_process() -> None:
    program = f"from qnode.world.run import run_seed; print(run_seed(3, {SHORT_S}).digest)"
    digests = {run_seed(3, SHORT_S).digest}
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        digests.add(
            subprocess.run(
                [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
            ).stdout.strip()
        )
    assert len(digests) == 1
    assert run_seed(4, SHORT_S).digest not in digests


QUICKLY_FOUND = (
    "prepared-too-late",
    "available-at-once",
    "wipes-nothing",
    "pad-used-again",
    "announced-later",
    "sample-for-nothing",
    "quarter-of-the-parities",
    "fetched-twice",
    "key-in-the-log",
)


@pytest.mark.parametrize("bug", QUICKLY_FOUND)
def test_a_planted_bug_is_found_within_a_few_seeds(bug: str) -> None:
    for seed in range(12):
        violations = run_one(seed, Settings(duration_s=SHORT_S, bug=bug)).violations
        if violations:
            assert violations[0].partition(":")[0] in (*BUGS[bug].shows_as, "crash")
            return
    pytest.fail("not found in 12 seeds")


def test_a_planted_bug_is_gone_after_its_run() -> None:
    assert run_one(0, Settings(duration_s=SHORT_S, bug="wipes-nothing")).violations
    assert run_one(0, SHORT).violations == ()


def test_an_error_that_correction_leaves_is_caught_by_verification_alone() -> None:
    forced = ("a correction that errs",) * 4
    seeds = range(6)
    honest = [run_one(seed, Settings(SHORT_S, 0, forced)) for seed in seeds]
    fooled = [run_one(seed, Settings(SHORT_S, 0, forced, "always-equal")) for seed in seeds]
    assert all(result.violations == () for result in honest)
    assert any(result.violations and result.violations[0].startswith("I1") for result in fooled)


def test_a_schedule_is_drawn_from_its_seed_and_has_what_is_forced() -> None:
    assert drawn_schedule(5, 600.0) == drawn_schedule(5, 600.0) != drawn_schedule(6, 600.0)
    forced = drawn_schedule(5, 600.0, forced=["noise"], most_faults=0)
    assert [fault.name for fault in forced.faults] == ["noise"]
    assert all(fault.at_s <= forced.heals_at_s < LIVENESS_FROM_S for fault in forced.faults)


def test_an_interrupted_campaign_goes_on_where_it_was(tmp_path: Path) -> None:
    journal = tmp_path / "world.jsonl"
    first = list(run_many(range(2), SHORT, 1, journal))
    with journal.open("ab") as file:
        file.write(b'{"seed": 2, "viol')  # cut short
    again = list(run_many(range(2), SHORT, 1, journal))
    assert again == first == read_journal(journal)


def test_the_command_shows_one_seed_and_refuses_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = CliRunner().invoke
    shown = run(qnode, ["world", "--seed", "1", "--minutes", "1"], standalone_mode=False)
    assert shown.return_value == 0
    assert "digest" in shown.output
    found = run(qnode, ["world", "--seeds", "1", "--minutes", "1", "--processes", "1"], standalone_mode=False)
    assert found.return_value == 0
    assert "1 seeds of 1 simulated minutes: 0 failed" in found.output
    plant = ["world", "--plant", "key-in-the-log", "--seeds", "3", "--minutes", "1", "--processes", "1"]
    planted = run(qnode, plant, standalone_mode=False)
    assert planted.return_value == 0
    assert "found after" in planted.output
    for wrong in (["--force", "nothing"], ["--plant", "nothing"]):
        assert run(qnode, ["world", *wrong], standalone_mode=False).return_value == 64


def test_the_replay_command_says_all_that_differs() -> None:
    settings = Settings(120.0, 3, ("no lock",), "always-equal")
    assert settings.replay_command(9) == (
        'qnode world --seed 9 --minutes 2 --most-faults 3 --force "no lock" --plant always-equal'
    )
    assert Settings().replay_command(9) == "qnode world --seed 9"


def test_the_checker_says_when_both_sites_may_assign_a_chunk() -> None:
    stores: dict[Role, StoreContents] = {
        "alice": StoreContents({1: BlockState.AVAILABLE}, {(1, 0): "alice"}, set(), set(), [], [], 1, []),
        "bob": StoreContents({1: BlockState.AVAILABLE}, {(1, 0): "bob"}, set(), set(), [], [], 1, []),
    }
    assert [violation.invariant for violation in check(History(lambda: 0.0), stores, met=False)] == ["I2"]


def test_the_checker_says_when_a_delivered_key_has_no_entry_or_two() -> None:
    key = StoredKey(UUID(int=7), bytes(32), None)  # type: ignore[arg-type]
    history = History(lambda: 0.0)
    history.events.append(Delivered(0.0, "alice", key=key, slave=None))
    entry = KeyDelivered(2, 0, "skip", "master", "a", ("b",), 256, key.key_id.bytes)
    for audited, told in (([entry], []), ([], ["without an entry"]), ([entry, entry], ["two entries"])):
        contents = StoreContents({}, {}, set(), set(), audited, [], 1, [])
        nothing = StoreContents({}, {}, set(), set(), [], [], 1, [])
        found = [one.what for one in _audited(history, {"alice": contents, "bob": nothing})]
        assert len(found) == len(told)
        assert all(word in what for word, what in zip(told, found, strict=True))


def test_a_delivery_whose_commit_power_cut_short_is_none() -> None:
    history = History(lambda: 0.0)
    disk: Any = SimpleNamespace(failed=False)

    class Store:
        power_fails = False

        def deliver_to_slave(self, *_: object) -> list[StoredKey]:
            return [StoredKey(UUID(int=7), bytes(32), None)]  # type: ignore[arg-type]

        def together(self, calls: Iterable[Callable[[], object]]) -> list[Answer]:
            answers = [Answer.of(call) for call in calls]
            disk.failed = self.power_fails
            return answers

    store = Store()
    observed = ObservedStore(cast(KeyStore, store), "alice", disk, history)

    def fetch() -> object:
        return observed.deliver_to_slave("sae-alice-1", "sae-bob-1", ())

    assert observed.together([fetch])[0].error is None
    assert len(history.of(Delivered)) == 1
    store.power_fails = True
    with pytest.raises(PowerCut):
        observed.together([fetch])
    assert len(history.of(Delivered)) == 1


def test_all_is_as_before_after_a_run_and_two_at_once_are_refused() -> None:
    before = (os.urandom, trio.to_thread.run_sync)
    with determined(1):
        assert os.urandom(4) != before[0](4)
        with pytest.raises(RuntimeError, match="one run"), determined(2):
            pass
    assert (os.urandom, trio.to_thread.run_sync) == before


def test_a_result_that_crashed_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnode.world.campaign.run_seed", lambda *_args, **_options: 1 / 0)
    result = run_one(1, SHORT)
    assert isinstance(result, SeedResult)
    assert result.violations == ("crash: ZeroDivisionError: division by zero",)


def test_threads_are_work_in_the_loop_itself() -> None:
    async def main() -> bool:
        return await trio.to_thread.run_sync(lambda: trio.lowlevel.current_task() is not None)

    with determined(1):
        assert trio.run(main, clock=VirtualClock())
