"""The change of a key by two agents: both ends use the same key, or say that they do not."""

import pytest
import structlog.testing
import trio
import trio.testing
from agent_world import SITES, Encryptor, Fault, MemoryTunnel, Site, World, run_world, terms_of
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.agent.holding import Holding
from qnode.agent.messages import Activate, Held, Load, Message, Offer
from qnode.agent.state import AgentState
from qnode.agent.tunnel import TunnelKey
from qnode.errors import TunnelError
from qnode.world.determinism import now_s

STEPS = (
    "prepare",
    "load",
    "activate",
    "activated",
    "in_use",
    "retire",
    "unload",
    "enc_keys",
    "dec_keys",
    "status",
)
FAULTED_S, HEALED_S = 40.0, 45.0


class Watcher:
    """Looks at both ends every 0.1 s."""

    def __init__(self) -> None:
        self.differs_s = 0.0
        self.states: dict[Site, AgentState] = {}
        self.seen: dict[Site, list[tuple[AgentState, str]]] = {site: [] for site in SITES}

    def __call__(self, world: World) -> None:
        for site, agent in world.agents.items():
            condition = agent.judge()
            if not self.seen[site] or self.seen[site][-1][0] is not condition.state:
                self.seen[site].append((condition.state, condition.because))
        active = [world.encryptors[site].active for site in SITES]
        states = [agent.judge().state for agent in world.agents.values()]
        unsaid = active[0] != active[1] and states == [AgentState.READY] * 2
        self.differs_s = self.differs_s + 0.1 if unsaid else 0.0
        # A change of ten seconds' period is due, and said to be missing, within so long.
        assert self.differs_s < 20.0, "both agents say that all is well while their keys differ"


def check(world: World) -> None:
    """Check what holds after any faults that have healed."""
    active = [world.encryptors[site].active for site in SITES]
    assert active[0] is not None
    assert active[0] == active[1]
    assert [world.conditions[site].state for site in SITES] == [AgentState.READY] * 2
    for site in SITES:
        assert max(world.encryptors[site].loads.values()) == 1, "a key was used for two changes"
        assert world.encryptors[site].loaded == {active[0]}
    attempts = zip(world.taken_at, world.taken_at[1:], strict=False)
    for before, after in attempts:
        restarted = any(before <= start <= after for start in world.starts)
        assert after - before >= 0.9 or restarted, "keys are taken in a tight loop"


def test_the_key_changes_every_period_and_both_ends_confirm_it() -> None:
    watch = Watcher()
    world = run_world(101.0, watch=watch)
    check(world)
    agents = [world.agents[site] for site in SITES]
    assert [agent.figures.changes for agent in agents] == [10, 10]
    assert [agent.figures.changes_failed for agent in agents] == [0, 0]
    assert len(world.taken_at) == 10
    assert agents[0].figures.longest_differed_s < 0.1
    assert watch.seen["initiator"][0][0] is AgentState.STARVED
    assert len(watch.seen["initiator"]) == 2


def test_the_tunnel_is_held_down_until_the_first_key() -> None:
    with structlog.testing.capture_logs() as events:
        world = run_world(30.0, change=lambda world: setattr(world, "stored", 0))
    assert "key.differs" not in {event["event"] for event in events}  # neither has one
    assert [world.encryptors[site].taken_down for site in SITES] == [1, 1]
    for site in SITES:
        condition = world.conditions[site]
        assert condition.state is AgentState.STARVED
        assert "no key is in use, the tunnel is down until a key comes" in condition.because
        assert "no key stored" in condition.because


def test_a_tunnel_that_no_earlier_run_remembers_is_held_down_until_the_first_key() -> None:
    def change(world: World) -> None:
        world.stored = 0
        for site in SITES:
            world.encryptors[site].active = b"of somebody else"
        world.handshake()

    world = run_world(30.0, change=change)
    assert [world.encryptors[site].taken_down for site in SITES] == [1, 1]
    assert [world.encryptors[site].active for site in SITES] == [None, None]


def test_a_tunnel_that_may_run_before_the_first_key_is_left_alone() -> None:
    loose = {site: terms_of(site, first_key_required=False) for site in SITES}
    world = run_world(30.0, terms=loose, change=lambda world: setattr(world, "stored", 0))
    assert [world.encryptors[site].taken_down for site in SITES] == [0, 0]


def test_a_restarted_agent_leaves_its_tunnel_and_agrees_on_a_new_key_at_once() -> None:
    seen: list[bytes | None] = []

    def watch(world: World) -> None:
        seen.append(world.encryptors["responder"].active)

    world = run_world(40.0, faults=[Fault("responder.in_use", 8, "kill")], watch=watch)
    check(world)
    assert len(world.starts) == 3
    assert world.encryptors["responder"].taken_down == 1  # before the first key
    assert None not in seen[10:]
    after = [at for at in world.taken_at if at > world.starts[-1]]
    assert after[0] - world.starts[-1] < 1.0


MESSAGES = ("Hello", "Prepare", "Offer", "Held", "Load", "Activate", "Confirm", "Retire", "Done", "Cancel")


@pytest.mark.parametrize("do", ["cut", "cut_after"])
@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("for_s", [0.0, 5.0])
def test_a_line_cut_at_any_message_leaves_one_key_at_both_ends(name: str, do: str, for_s: float) -> None:
    faults = [Fault(f"message.{name}", nth, do, for_s) for nth in (2, 3)]
    check(
        run_world(
            FAULTED_S + HEALED_S, faults=faults, watch=Watcher(), heal_after_s=FAULTED_S, check_at_rest=True
        )
    )


@pytest.mark.parametrize("name", ["Alive", "Held", "Activate", "Done"])
def test_a_silent_agent_is_noticed_within_10_s(name: str) -> None:
    noticed: list[float] = []

    def watch(world: World) -> None:
        if any("silent for 8 s" in failure for failure in world.failures["responder"]):
            noticed.append(now_s())
        if any("silent for 8 s" in failure for failure in world.failures["initiator"]):
            noticed.append(now_s())

    world = run_world(66.0, faults=[Fault(f"message.{name}", 3, "mute")], watch=watch)
    check(world)
    assert noticed[0] - world.muted_at < 10.0


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("do", ["fail", "hang", "kill", "replace"])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_hangs_or_dies_leaves_one_key_at_both_ends(site: Site, step: str, do: str) -> None:
    faults = [Fault(f"{site}.{step}", nth, do) for nth in (1, 3)]
    check(
        run_world(
            FAULTED_S + HEALED_S, faults=faults, watch=Watcher(), heal_after_s=FAULTED_S, check_at_rest=True
        )
    )


def test_a_key_that_a_lost_line_left_half_activated_is_put_back_when_the_line_is_back() -> None:
    differed: list[float] = []

    def watch(world: World) -> None:
        if world.encryptors["initiator"].active != world.encryptors["responder"].active:
            differed.append(now_s())

    world = run_world(25.0, faults=[Fault("responder.activated", 2, "replace")], watch=watch)
    check(world)
    of_the_fault = [at for at in differed if 10.0 < at < 11.2]  # the next change begins a second later
    assert of_the_fault
    assert max(of_the_fault) - min(of_the_fault) < 0.65


@pytest.mark.parametrize(("call", "do"), [("initiator.enc_keys", "lose"), ("responder.dec_keys", "lose")])
def test_a_key_whose_answer_was_lost_is_not_asked_for_again(call: str, do: str) -> None:
    world = run_world(25.0, faults=[Fault(call, 2, do)])
    check(world)
    assert world.counts[call] == len(world.taken_at) == len(world.keys)


def test_a_key_manager_that_learns_of_a_key_a_little_later_is_asked_again() -> None:
    faults = [Fault("responder.dec_keys", nth, "fail") for nth in (2, 3)]
    world = run_world(15.0, faults=faults)
    check(world)
    assert world.agents["initiator"].figures.changes_failed == 0
    assert len(world.taken_at) == 2


def test_different_keys_from_the_two_key_managers_are_never_loaded() -> None:
    watch = Watcher()
    world = run_world(15.0, faults=[Fault("responder.dec_keys", 2, "wrong")], watch=watch)
    check(world)
    assert [world.encryptors[site].loads.total() for site in SITES] == [2, 2]
    (reason,) = [because for state, because in watch.seen["responder"] if state is AgentState.HOLDING]
    assert "the two key managers gave different keys" in reason


def test_a_loaded_key_is_unloaded_after_two_seconds_of_silence() -> None:
    held: list[float] = []

    def watch(world: World) -> None:
        if len(world.encryptors["responder"].loaded) == 2 and world.muted_at:
            held.append(now_s() - world.muted_at)

    world = run_world(26.0, faults=[Fault("message.Activate", 2, "mute")], watch=watch)
    check(world)
    assert 1.8 < max(after for after in held if after < 8.0) < 2.6


def test_a_key_that_no_encryptor_confirms_is_given_up() -> None:
    # Between two attempts: they take 10 s each, with pauses of 1 s and 2 s.
    world = run_world(22.5, change=lambda world: setattr(world, "blocked", True))
    for site in SITES:
        assert world.encryptors[site].active is None
        assert world.conditions[site].state is AgentState.STARVED
        assert "does not use the new key after 10 s; there is no tunnel" in world.conditions[site].because
    assert len(world.taken_at) <= 3


def test_a_key_that_comes_twice_is_refused() -> None:
    world = run_world(30.0, change=lambda world: setattr(world, "same_key", True))
    for site in SITES:
        assert world.encryptors[site].loads.total() == 1
        assert world.conditions[site].state is AgentState.HOLDING
        assert "twice; look at the key manager" in world.conditions[site].because


@pytest.mark.parametrize("kind", [Held, Load])
def test_a_forged_proof_loads_nothing(kind: type[Held | Load]) -> None:
    def forge(site: Site, message: Message) -> Message:
        if not isinstance(message, kind):
            return message
        values = {name: getattr(message, name) for name in message.__struct_fields__}
        return kind(**{**values, "proof": bytes(32)})

    world = run_world(20.0, change=lambda world: setattr(world, "tampers", forge))
    assert [world.encryptors[site].loads.total() for site in SITES] == [0, 0]
    for site in SITES:
        assert "gave different keys" in world.conditions[site].because


@pytest.mark.parametrize(
    ("terms", "told", "told_there"),
    [
        ({"period_s": 11.0}, "rotation.period_s 11.0, but initiator expects 10.0", "expects 11.0"),
        ({"kind": "other"}, "tunnel.kind 'other', but initiator expects 'memory'", "expects 'other'"),
        ({"role": "initiator"}, "both have agent.role initiator", "both have agent.role initiator"),
        ({"sae_id": "sae-x"}, "kme.sae_id 'sae-x'", "expects 'sae-x'"),
        ({"name": "somebody"}, "agent.name 'somebody', but initiator expects 'responder'", "somebody"),
    ],
)
def test_two_agents_that_do_not_fit_say_the_difference_at_both_sites(
    terms: dict[str, object], told: str, told_there: str
) -> None:
    world = run_world(
        5.0, terms={"initiator": terms_of("initiator"), "responder": terms_of("responder", **terms)}
    )
    assert told in world.conditions["initiator"].because
    assert not world.taken_at
    assert told_there in world.conditions["responder"].because


def test_a_key_is_not_fetched_in_the_middle_of_another_change() -> None:
    def second_offer(site: Site, message: Message) -> Message:
        return Offer(number=message.number, key_id="extra") if isinstance(message, Activate) else message

    def change(world: World) -> None:
        world.tampers = second_offer
        world.keys["extra"] = bytes(32)

    world = run_world(20.0, change=change)
    assert "extra" not in world.fetched
    assert world.encryptors["responder"].loaded == set()
    assert "the change to the key" in world.conditions["responder"].because


@pytest.mark.parametrize("step", ["load", "activate"])
async def test_a_tunnel_that_is_taken_down_meanwhile_gets_no_key_of_the_change(step: str) -> None:
    go = trio.Event()

    class Slow(MemoryTunnel):
        async def take_down(self) -> None:
            await go.wait()
            await super().take_down()

    async def take_step() -> None:
        with pytest.raises(TunnelError, match="the tunnel was taken down meanwhile"):
            await getattr(holding, step)()

    encryptor = Encryptor(World(), loaded={bytes(32)})
    holding = Holding(Slow(encryptor, "initiator"))
    holding.hold(TunnelKey("key-1", bytes(32)))
    async with trio.open_nursery() as nursery:
        for call in (holding.take_down, take_step):
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert encryptor.active is None
    assert not encryptor.loads


@given(st.data())
@settings(max_examples=30)
def test_after_any_faults_both_ends_use_one_key_or_say_that_they_do_not(data: st.DataObject) -> None:
    at_messages = st.builds(
        Fault,
        st.just("message"),
        st.integers(1, 300),
        st.sampled_from(["cut", "cut_after"]),
        st.sampled_from([0.0, 0.5, 3.0, 25.0]),
    )
    at_steps = st.builds(
        Fault,
        st.sampled_from([f"{site}{step}" for site in SITES for step in ("", *(f".{one}" for one in STEPS))]),
        st.integers(1, 30),
        st.sampled_from(["fail", "hang", "kill", "replace", "lose", "wrong"]),
    )
    faults = data.draw(st.lists(at_messages | at_steps, max_size=6))
    seed = data.draw(st.integers(0, 1000))
    world = run_world(
        FAULTED_S + HEALED_S,
        faults=faults,
        seed=seed,
        watch=Watcher(),
        heal_after_s=FAULTED_S,
        check_at_rest=True,
    )
    check(world)
