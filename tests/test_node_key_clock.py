"""The clock by which keys age: nobody's wrong time of day destroys keys that wait."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from keys_support import Site, add_block, make_block

from qnode.keys import AgeMark
from qnode.node.supply.async_store import AsyncStore
from qnode.node.supply.key_clock import KeyClock, boot_id

DAY_S = 86400.0


class Machine:
    """A machine's clocks, to be set and restarted."""

    def __init__(self) -> None:
        self.time_of_day_s, self.since_boot_s, self.boot = 1.8e9, 1000.0, "one"

    def passes(self, seconds: float) -> None:
        self.time_of_day_s += seconds
        self.since_boot_s += seconds

    def is_off_for(self, seconds: float) -> None:
        self.time_of_day_s += seconds
        self.since_boot_s, self.boot = 5.0, self.boot + "more"

    def clock(self, mark: AgeMark | None) -> KeyClock:
        return KeyClock(
            mark,
            boot=self.boot,
            time_of_day=lambda: self.time_of_day_s,
            since_boot=lambda: self.since_boot_s,
        )


def test_age_goes_on_by_the_time_since_boot_whatever_the_time_of_day_says() -> None:
    machine = Machine()
    clock = machine.clock(None)
    assert clock.now() == machine.time_of_day_s
    began = clock.now()
    machine.time_of_day_s += 8 * DAY_S
    machine.passes(60.0)
    assert clock.now() - began == 60.0
    mark = clock.mark()
    machine.passes(30.0)
    again = machine.clock(mark)  # the daemon was restarted, the machine was not
    machine.time_of_day_s -= 8 * DAY_S
    machine.passes(1.0)
    assert again.now() - began == pytest.approx(91.0)


def test_the_time_a_machine_was_off_counts_once_the_peer_has_said_his() -> None:
    machine = Machine()
    clock = machine.clock(None)
    machine.passes(100.0)
    mark, left = clock.mark(), clock.now()
    machine.is_off_for(2 * DAY_S)
    clock = machine.clock(mark)
    machine.passes(50.0)
    assert clock.now() - left == 50.0
    assert clock.mark() is None  # the mark of before is the better one
    clock.hear_peer(machine.time_of_day_s + 0.3)
    assert clock.now() - left == pytest.approx(2 * DAY_S + 50.0)
    assert clock.mark() is not None
    clock.hear_peer(machine.time_of_day_s + 5 * DAY_S)
    assert clock.now() - left == pytest.approx(2 * DAY_S + 50.0)


def test_a_jump_over_a_restart_of_the_machine_that_the_peer_contradicts_is_refused() -> None:
    machine = Machine()
    clock = machine.clock(None)
    mark, left = clock.mark(), clock.now()
    machine.is_off_for(600.0)
    true_time = machine.time_of_day_s
    machine.time_of_day_s += 8 * DAY_S
    clock = machine.clock(mark)
    clock.hear_peer(true_time)
    assert clock.now() - left == pytest.approx(600.0)


def test_a_mark_that_was_left_by_a_clock_behind_does_not_make_keys_older() -> None:
    machine = Machine()
    clock = machine.clock(None)
    true_time = machine.time_of_day_s
    machine.time_of_day_s -= 8 * DAY_S
    clock.hear_peer(true_time)
    mark, left = clock.mark(), clock.now()
    machine.is_off_for(600.0)
    machine.time_of_day_s += 8 * DAY_S  # set right at the start
    clock = machine.clock(mark)
    clock.hear_peer(machine.time_of_day_s)
    assert clock.now() - left == pytest.approx(600.0)


def test_a_peer_that_does_not_say_his_time_leaves_the_own_one() -> None:
    machine = Machine()
    clock = machine.clock(None)
    mark, left = clock.mark(), clock.now()
    machine.is_off_for(DAY_S)
    clock = machine.clock(mark)
    clock.hear_peer(None)
    assert clock.now() - left == pytest.approx(DAY_S)


async def test_a_time_of_day_8_days_ahead_for_a_minute_destroys_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifetime_s, true_time = 7 * DAY_S, time.time
    sites = Site(tmp_path / "a", "alice"), Site(tmp_path / "b", "bob")
    with ExitStack() as stack:
        alice, bob = (stack.enter_context(site.open()) for site in sites)
        add_block(make_block(1, 40), alice, bob)
        storages = AsyncStore(alice, 1 << 20), AsyncStore(bob, 1 << 20)
        for storage, other in (storages, storages[::-1]):
            assignment = await storage.assign("m", ("s",), 5, 256, stock=True)
            await other.accept_assignment(assignment, by_shares=False)
            await storage.acknowledge(assignment.assignment_id)
        for storage in storages:
            assert await storage.expire(lifetime_s) == 0
    monkeypatch.setattr(time, "time", lambda: true_time() + 8 * DAY_S)
    with ExitStack() as stack:
        for store in [stack.enter_context(site.open()) for site in sites]:
            storage = AsyncStore(store, 1 << 20)
            assert await storage.expire(lifetime_s) == 0
            assert await storage.expire(-1.0) == 10  # they do age
            mark = store.age_mark()
            assert mark is not None
            assert mark.boot_id == boot_id()
