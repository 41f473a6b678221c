"""When a key is changed: the period, few stored keys, volume, age; on a virtual clock."""

import math
from pathlib import Path

import pytest
import trio
from agent_world import SITES, Encryptor, Fault, MemoryTunnel, Site, World, run_world, terms_of
from hypothesis import given
from hypothesis import strategies as st

from qnode.agent.core import Terms
from qnode.agent.holding import Holding
from qnode.agent.key_age import KeyAge
from qnode.agent.schedule import Schedule
from qnode.agent.state import AgentState
from qnode.agent.tunnel import TunnelKey
from qnode.world.determinism import now_s


def both(**changes: object) -> dict[Site, Terms]:
    return {site: terms_of(site, **changes) for site in SITES}


class Refill:
    """A link that makes a key every so many seconds, and what the two agents say meanwhile."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._made = 0
        self.states: set[AgentState] = set()
        self.reasons: set[str] = set()

    def __call__(self, world: World) -> None:
        due = math.floor(now_s() / self._every_s)
        world.stored += due - self._made
        self._made = due
        if now_s() > 120.0:
            for agent in world.agents.values():
                condition = agent.judge()
                self.states.add(condition.state)
                self.reasons.add(condition.because)


def test_a_slow_link_stretches_the_period_to_the_rate_of_its_keys_and_nobody_holds_or_starves() -> None:
    refill = Refill(every_s=15.0)
    world = run_world(
        900.0,
        terms=both(period_s=5.0, longest_s=300.0),
        watch=refill,
        change=lambda world: setattr(world, "stored", 3),
    )
    assert refill.states == {AgentState.READY}
    assert 900 / 15 - 5 <= len(world.taken_at) <= 900 / 15 + 4
    assert any("keys are stored, so that there is a change every" in reason for reason in refill.reasons)
    assert world.stored >= 1  # some stay for a change that is asked for


def test_a_rich_link_keeps_the_agreed_period() -> None:
    world = run_world(101.0, terms=both(period_s=10.0))
    gaps = [after - before for before, after in zip(world.taken_at, world.taken_at[1:], strict=False)]
    assert all(9.9 < gap < 10.5 for gap in gaps)


def test_a_key_manager_that_counts_in_its_own_way_is_asked_all_the_same() -> None:
    world = run_world(65.0, change=lambda world: setattr(world, "says_stored", 0))
    assert [world.conditions[site].state for site in SITES] == [AgentState.READY] * 2
    assert len(world.taken_at) >= 2


@given(stored=st.integers(0, 20), period_s=st.floats(1.0, 100.0), longest_s=st.floats(200.0, 1000.0))
def test_the_stretched_period_is_never_shorter_and_at_most_half_the_greatest_age(
    stored: int, period_s: float, longest_s: float
) -> None:
    schedule = Schedule(period_s, longest_s, 0.0)
    schedule.changed(0.0)
    schedule.looked(0.0, stored)
    assert period_s <= schedule.stretched_period_s <= max(period_s, longest_s / 2)
    assert (schedule.stretched_period_s == period_s) or stored < 8


@given(st.lists(st.sampled_from([None, 0.5, 5.0, 1e9]), min_size=1, max_size=40))
def test_pauses_after_failures_double_from_one_second_to_a_period(wishes: list[float | None]) -> None:
    schedule, now = Schedule(30.0, 600.0, 0.0), 0.0
    for number, wish_s in enumerate(wishes):
        schedule.failed(now, wish_s)
        pause_s = schedule.begin_at() - now
        assert min(2.0**number, 30.0) <= pause_s <= 30.0
        now = schedule.begin_at()


def test_the_key_changes_after_a_volume() -> None:
    def fast(world: World) -> None:
        world.encryptors["initiator"].bytes_per_s = 1e6

    world = run_world(61.0, terms=both(period_s=30.0, volume_bytes=10_000_000), change=fast)
    assert 5 <= len(world.taken_at) <= 7


def test_a_volume_takes_no_keys_faster_than_the_stretched_period_while_few_are_stored() -> None:
    def fast_with_few_keys(world: World) -> None:
        world.encryptors["initiator"].bytes_per_s = 1e6
        world.stored = 3

    refill = Refill(every_s=15.0)
    terms = both(period_s=5.0, longest_s=300.0, volume_bytes=1)
    world = run_world(900.0, terms=terms, watch=refill, change=fast_with_few_keys)
    assert refill.states == {AgentState.READY}
    assert len(world.taken_at) <= 900 / 15 + 4
    assert world.stored >= 1


def test_a_key_manager_that_is_away_for_ten_minutes_holds_then_starves_and_is_back_within_a_period() -> None:
    seen: dict[Site, list[tuple[float, AgentState]]] = {site: [] for site in SITES}
    away = range(3, 10_000)

    def watch(world: World) -> None:
        if now_s() > 630.0:
            world.faults = []
        for site, agent in world.agents.items():
            state = agent.judge().state
            if not seen[site] or seen[site][-1][1] is not state:
                seen[site].append((now_s(), state))

    faults = [Fault(f"initiator.{call}", nth, "fail") for nth in away for call in ("enc_keys", "status")]
    world = run_world(660.0, faults=faults[:2000], watch=watch)
    for site in SITES:
        states = [state for _, state in seen[site]]
        assert states == [
            AgentState.STARVED,
            AgentState.READY,
            AgentState.HOLDING,
            AgentState.STARVED,
            AgentState.READY,
        ]
        assert world.encryptors[site].taken_down == 2  # before the first key, and at its greatest age
        assert seen[site][-1][0] < 630.0 + 12.0
    assert len(world.taken_at) < 2 + 660 / 10 + 6  # at most a try a period


def test_an_initiator_that_never_goes_on_keeps_no_old_key_at_the_responder() -> None:
    def watch(world: World) -> None:
        world.agents["responder"].changing = True  # as after a Prepare that nothing follows

    faults = [Fault("initiator.enc_keys", nth, "fail") for nth in range(2, 1000)]
    world = run_world(200.0, faults=faults, watch=watch)
    assert world.encryptors["responder"].active is None
    assert world.encryptors["responder"].taken_down == 2


def test_a_tunnel_that_was_away_for_longer_does_not_come_back_with_its_old_key() -> None:
    def watch(world: World) -> None:
        if 12.0 < now_s() < 95.0:  # no packet passes between the encryptors, nor between agents and managers
            world.session, world.blocked = None, True
        else:
            world.blocked = False

    faults = [Fault("initiator.enc_keys", nth, "fail") for nth in range(3, 1000)]
    world = run_world(100.0, faults=faults, watch=watch)
    for site in SITES:
        assert world.encryptors[site].active is None
        assert world.encryptors[site].taken_down == 2


def test_a_first_key_that_a_lost_line_left_unconfirmed_gets_no_older_than_the_greatest_age() -> None:
    used_at: list[float] = []

    def watch(world: World) -> None:
        if any(world.encryptors[site].active is not None for site in SITES):
            used_at.append(now_s())

    world = run_world(150.0, faults=[Fault("message.Confirm", 1, "cut", 500.0)], watch=watch)
    assert max(used_at) - min(used_at) < 60.0 + 3.0
    assert [world.encryptors[site].taken_down for site in SITES] == [2, 2]


def test_a_key_ages_from_its_activation_however_late_it_is_confirmed() -> None:
    used_at: dict[bytes, list[float]] = {}

    def watch(world: World) -> None:
        for key in {world.encryptors[site].active for site in SITES}:
            if key is not None:
                used_at.setdefault(key, []).append(now_s())

    # The second key is in use at both ends when the line breaks; later there is no other one.
    faults = [Fault("message.Confirm", 2, "cut", 48.0)]
    faults += [Fault("initiator.enc_keys", nth, "fail") for nth in range(3, 500)]
    run_world(150.0, faults=faults, watch=watch)
    second = list(used_at.values())[1]
    assert 55.0 < max(second) - min(second) < 60.0 + 3.0


async def test_an_unconfirmed_key_that_the_next_change_replaces_ages_from_its_activation(
    autojump_clock: object,
) -> None:
    world = World()
    encryptor = world.encryptors["responder"] = world.encryptors["initiator"] = Encryptor(world)
    holding = Holding(MemoryTunnel(encryptor, "responder"), trio.current_time)
    holding.hold(TunnelKey("key-1", bytes(32)))
    await holding.load()
    await holding.activate()
    await trio.sleep(100.0)
    holding.hold(TunnelKey("key-2", bytes(range(32))))
    assert holding.current is not None
    assert holding.current.key_id == "key-1"
    assert (holding.age_s() or 0.0) >= 100.0


def test_a_key_that_is_due_when_the_line_is_back_changes_at_once() -> None:
    world = run_world(80.0, faults=[Fault("message.Confirm", 2, "cut", 40.0)])
    back_at = world.line_back_at
    assert next(at for at in world.taken_at if at > back_at) - back_at < 2.0


@pytest.mark.parametrize("site", SITES)
def test_an_encryptor_that_cannot_be_asked_is_told_all_the_time(site: Site) -> None:
    seen: set[tuple[AgentState, str]] = set()

    def watch(world: World) -> None:
        if 61.0 < now_s() < 90.0:
            condition = world.agents[site].judge()
            seen.add((condition.state, condition.because))

    def gone(world: World) -> None:
        world.gone_at[site] = 50.0

    run_world(90.0, terms=both(period_s=1000.0, longest_s=5000.0), watch=watch, change=gone)
    assert seen == {(AgentState.HOLDING, "the encryptor is gone")}


def test_an_old_key_is_kept_where_the_file_says_so() -> None:
    faults = [Fault("initiator.enc_keys", nth, "fail") for nth in range(2, 100)]
    world = run_world(100.0, faults=faults, terms=both(take_down_when_too_old=False))
    for site in SITES:
        condition = world.conditions[site]
        assert condition.state is AgentState.STARVED
        assert "longest_s is 60: " in condition.because
        assert "503 as planned" in condition.because
        assert world.encryptors[site].active is not None


def test_a_line_cut_for_two_minutes_is_told_at_both_sites_and_mended_by_itself() -> None:
    told: dict[Site, str] = {}

    def watch(world: World) -> None:
        if 100.0 < now_s() < 100.2:
            told.update({site: agent.judge().because for site, agent in world.agents.items()})

    world = run_world(
        150.0,
        faults=[Fault("message.Prepare", 3, "cut", 120.0)],
        terms=both(longest_s=600.0),
        watch=watch,
    )
    assert told["initiator"].startswith("no line to responder: the line broke")
    assert told["responder"].startswith("no line to initiator: the line broke")
    assert [world.conditions[site].state for site in SITES] == [AgentState.READY] * 2
    assert next(at for at in world.taken_at if at > 140.0) < 141.0


def test_a_restart_does_not_make_a_key_younger(tmp_path: Path) -> None:
    age = KeyAge(tmp_path / "key-in-use.json")
    assert age.since() is None
    age.remember("key-1", 123.5)
    assert age.since() == 123.5
    (tmp_path / "key-in-use.json").write_text("{")
    assert age.since() is None
    age.remember("key-2", 5.0)
    age.forget()
    assert age.since() is None
    assert list(tmp_path.iterdir()) == []
