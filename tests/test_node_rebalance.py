"""Ownership of keys moves to the site that is asked more, whole, whatever is cut in between."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import UUID

import msgspec
import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st
from keys_support import Site as StoreSite
from keys_support import add_block, make_block, memory_folder, preshared
from link_room import Two, greet_both, local_end, memory_sessions
from trio.testing import MockClock

from qnode.config import LinkParameters
from qnode.errors import LinkDown, LinkError, NotEnoughKeys, StoreAway, StoreError
from qnode.keys import Handover, SqliteKeyStore
from qnode.link import messages as m
from qnode.link.hello import LocalEnd, Standing
from qnode.link.session import open_session
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.tag_order import TagOrder
from qnode.node.session.router import SessionRouter
from qnode.node.supply import rebalance as room
from qnode.node.supply.async_store import AsyncStore, PeerMemory, runs_of
from qnode.node.supply.key_supply import LinkKeySupply
from qnode.node.supply.rebalance import Demand, rebalance

COUNT = st.integers(0, 100_000)


@given(asked=st.lists(st.tuples(COUNT, COUNT), max_size=20), free_own=COUNT, free_peer=COUNT)
def test_only_one_of_two_sites_ever_gives_and_then_it_is_settled(
    asked: list[tuple[int, int]], free_own: int, free_peer: int
) -> None:
    here, there = Demand(), Demand()
    for own, peer in asked:
        here.add(own, peer)
        there.add(peer, own)
    given_here = here.surplus(free_own, free_peer)
    given_there = there.surplus(free_peer, free_own)
    assert 0 <= given_here <= free_own
    assert not (given_here and given_there)
    free_own, free_peer = free_own - given_here, free_peer + given_here
    if given_here < room.MOST_CHUNKS:
        assert here.surplus(free_own, free_peer) == 0
    assert there.surplus(free_peer, free_own) == 0 or given_there


def test_demand_that_has_ended_is_forgotten_in_favour_of_the_other_site() -> None:
    demand = Demand()
    demand.add(100_000, 0)
    assert demand.surplus(500, 500) == 0
    for _ in range(10):
        demand.add(0, 1000)
    assert demand.surplus(500, 500) > 440


def test_a_few_keys_do_not_move() -> None:
    demand = Demand()
    demand.add(0, 1000)
    assert demand.surplus(room.LEAST_CHUNKS - 1, 0) == 0
    assert demand.surplus(100_000, 5_000_000) == 0


class NoBook:
    """Nobody writes blocks down here."""

    def settled(self) -> None:
        pass


class NoPart:
    """Hears nothing: there are no blocks."""

    async def start(self) -> None:
        pass

    async def handle(self, message: m.NodeMessage) -> None:
        raise AssertionError(f"unexpected: {message}")


@dataclass
class Node:
    """One site's store, supply and conversation."""

    store: SqliteKeyStore
    storage: AsyncStore
    conversation: SessionRouter
    supply: LinkKeySupply
    demand: Demand


class Peer:
    """The other site as a supply sees it."""

    def __init__(self, conversation: SessionRouter) -> None:
        self._conversation = conversation

    async def announce(self, assignment: Any, taken_chunks: int = 0) -> None:
        await self._conversation.keys.assignments.announce(assignment, taken_chunks)

    @property
    def connected(self) -> bool:
        return not self._conversation.keys.assignments.stalled

    @property
    def can_release(self) -> bool:
        return self._conversation.keys.assignments.can_release

    @property
    def round_trip_s(self) -> float:
        return self._conversation.context.session.round_trip_s

    def take_back(self, assignment_ids: Sequence[int], *, late: bool = False) -> trio.Event:
        return self._conversation.keys.assignments.take_back(assignment_ids, late=late)


class SlowPeer(Peer):
    """The other site, whose word that it holds an assignment is slow in coming."""

    def __init__(self, conversation: SessionRouter) -> None:
        super().__init__(conversation)
        self.announced, self.go_on = trio.Event(), trio.Event()

    async def announce(self, assignment: Any, taken_chunks: int = 0) -> None:
        await super().announce(assignment, taken_chunks)
        self.announced.set()
        await self.go_on.wait()


@asynccontextmanager
async def two_nodes(stores: Two) -> AsyncIterator[Two]:
    """Let two sites converse for a while; the session is cut at the end."""
    nodes, over = Two(), False
    with trio.fail_after(60), ExitStack() as stack:
        async with memory_sessions() as sessions, trio.open_nursery() as nursery:
            stack.push(lambda kind, *_: over and kind is LinkError)  # the cut may leave half a message
            for role in ("alice", "bob"):
                store = getattr(stores, role)
                storage = AsyncStore(store, most_chunks=1 << 20)
                session = getattr(sessions, role)
                site = BlockContext(
                    role=role,
                    link=LinkParameters(),
                    session=session,
                    store=storage,
                    tag_order=TagOrder(),
                    simulated=True,
                )
                conversation = SessionRouter(site, NoBook(), nursery)  # type: ignore[arg-type]
                nursery.start_soon(conversation._route, NoPart())
                supply = LinkKeySupply(storage, Peer(conversation))
                setattr(nodes, role, Node(store, storage, conversation, supply, Demand()))
            yield nodes
            over = True
            nursery.cancel_scope.cancel()


@pytest.fixture
def stores() -> Any:
    with ExitStack() as stack:
        folder = stack.enter_context(memory_folder())
        yield Two(*(stack.enter_context(StoreSite(folder / role, role).open()) for role in ("alice", "bob")))


def mirrored(stores: Two) -> bool:
    """Tell whether both sites agree on whose the free chunks are."""
    here, there = stores.alice.counts(), stores.bob.counts()
    return (here.available_own, here.available_peer) == (there.available_peer, there.available_own)


async def test_the_site_that_alone_is_asked_gets_nearly_all_keys(
    stores: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PERIOD_S", 0.005)
    n_got = 0
    async with two_nodes(stores) as nodes, trio.open_nursery() as nursery:
        for node in (nodes.alice, nodes.bob):
            nursery.start_soon(rebalance, node.storage, node.conversation.keys, node.supply, node.demand)
        for block_id in range(1, 6):
            add_block(make_block(block_id, 120), stores.alice, stores.bob)
            refused = 0
            # In the end until nearly all have come, however slow the machine is.
            while refused < 10 or (block_id == 5 and n_got < 0.88 * 5 * 120):
                try:
                    keys = await nodes.alice.supply.allocate("m", ("s",), 8, 256)
                except NotEnoughKeys:
                    refused += 1
                    await trio.sleep(0.005)
                    continue
                n_got += len(keys)
                fetched = await nodes.bob.supply.fetch("s", "m", tuple(key.key_id for key in keys))
                assert [key.key for key in fetched] == [key.key for key in keys]
        nursery.cancel_scope.cancel()
    assert n_got >= 0.88 * 5 * 120
    assert mirrored(stores)
    assert stores.bob.counts().available_own + n_got + stores.alice.counts().available_own == 5 * 120


@pytest.mark.parametrize("taken", [False, True])
async def test_a_hand_over_that_a_cut_left_open_is_settled_in_the_next_session(
    stores: Two, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    monkeypatch.setattr(room, "PERIOD_S", 0.005)
    add_block(make_block(1, 120), stores.alice, stores.bob)
    handover = stores.alice.give_away(50)

    async with memory_sessions() as sessions:
        # The peer receives it, may act on it, and disconnects before its answer.
        content = msgspec.msgpack.encode(handover)
        await sessions.alice.send(m.GiveAway(request_id=1, handover=content))
        message = await sessions.bob.receive()
        if taken:
            stores.bob.take_over(msgspec.msgpack.decode(message.handover, type=Handover))
    assert stores.alice.pending_handover() == handover
    assert mirrored(stores) is taken

    async with two_nodes(stores) as nodes, trio.open_nursery() as nursery:
        node = nodes.alice
        nursery.start_soon(rebalance, node.storage, node.conversation.keys, node.supply, node.demand)
        while stores.alice.pending_handover() is not None:  # noqa: ASYNC110 - a store tells nobody
            await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    assert mirrored(stores)
    assert stores.bob.stored_key_count() == 60 + 50
    assert stores.alice.counts().void == 0


async def test_a_hand_over_that_the_peer_refuses_is_void_at_both_sites(stores: Two) -> None:
    add_block(make_block(1, 120), stores.alice, stores.bob)
    add_block(make_block(2, 120), stores.alice)  # of which Bob knows nothing
    stores.alice.give_away(70)  # all of block 2's, and some of block 1's
    async with two_nodes(stores) as nodes:
        assert await nodes.alice.conversation.keys.hand_over(stores.alice.pending_handover())
    assert stores.alice.pending_handover() is None
    assert (stores.alice.counts().void, stores.bob.counts().void) == (70, 10)
    assert stores.alice.stored_key_count() == 50
    assert stores.bob.stored_key_count() == 60


async def test_a_peer_that_can_neither_take_nor_void_leaves_the_hand_over_open(stores: Two) -> None:
    add_block(make_block(1, 120), stores.alice, stores.bob)
    handover = stores.alice.give_away(50)
    connection = stores.bob._database._tx.connection
    connection.execute("PRAGMA query_only = ON")  # as with a full disk: every change is refused
    async with two_nodes(stores) as nodes:
        assert not await nodes.alice.conversation.keys.hand_over(handover)
    connection.execute("PRAGMA query_only = OFF")
    assert stores.alice.pending_handover() == handover
    async with two_nodes(stores) as nodes:
        assert await nodes.alice.conversation.keys.hand_over(handover)
    assert mirrored(stores)
    assert stores.bob.stored_key_count() == 110


async def test_a_hand_over_that_was_taken_is_not_voided_by_a_giver_who_heard_otherwise(stores: Two) -> None:
    add_block(make_block(1, 120), stores.alice, stores.bob)
    handover = stores.alice.give_away(50)
    stores.bob.take_over(handover)
    with pytest.raises(StoreError, match="taken here"):
        stores.bob.void_handover(handover)
    async with two_nodes(stores) as nodes:
        assert await nodes.alice.conversation.keys.hand_over(handover)
    assert mirrored(stores)
    assert stores.bob.stored_key_count() == 110


async def test_keys_whose_caller_has_gone_are_given_up_at_both_sites_in_the_same_session(stores: Two) -> None:
    add_block(make_block(1, 120), stores.alice, stores.bob)
    async with two_nodes(stores) as nodes:
        peer = SlowPeer(nodes.alice.conversation)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(LinkKeySupply(nodes.alice.storage, peer).allocate, "m", ("s",), 8, 256)
            await peer.announced.wait()
            assert stores.alice.counts().assigned == stores.bob.counts().assigned == 8
            nursery.cancel_scope.cancel()
        while stores.alice.unacknowledged_assignments():  # noqa: ASYNC110 - a store tells nobody
            await trio.sleep(0.001)
    assert mirrored(stores)
    for store in (stores.alice, stores.bob):
        assert (store.counts().assigned, store.counts().void) == (0, 0)


async def test_keys_that_a_full_disk_keeps_from_their_master_end_neither_session_nor_store(
    stores: Two,
) -> None:
    add_block(make_block(1, 120), stores.alice, stores.bob)
    connection = stores.alice._database._tx.connection
    async with two_nodes(stores) as nodes:
        peer = SlowPeer(nodes.alice.conversation)
        with structlog.testing.capture_logs() as logs:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    with pytest.raises(StoreError, match="readonly"):
                        await LinkKeySupply(nodes.alice.storage, peer).allocate("m", ("s",), 8, 256)

                nursery.start_soon(ask)
                await peer.announced.wait()
                connection.execute("PRAGMA query_only = ON")  # as with a full disk: every change is refused
                peer.go_on.set()
            while "assignment.open" not in [line["event"] for line in logs]:  # noqa: ASYNC110
                await trio.sleep(0.001)
        connection.execute("PRAGMA query_only = OFF")
        assert len(await nodes.alice.supply.allocate("m", ("s",), 8, 256)) == 8
    assert len(stores.alice.unacknowledged_assignments()) == 1  # for the next session


async def test_a_request_whose_result_a_lost_server_hides_is_not_answered_and_ends_the_session(
    stores: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_block(make_block(1, 40), stores.alice, stores.bob)
    with pytest.RaisesGroup(LinkError, flatten_subgroups=True, allow_unwrapped=True):
        async with two_nodes(stores) as nodes:
            take = nodes.bob.storage.take_over

            async def in_doubt(handover: Any) -> None:
                await take(handover)
                raise StoreAway("the database is away")

            monkeypatch.setattr(nodes.bob.storage, "take_over", in_doubt)
            await nodes.alice.conversation.keys.hand_over(stores.alice.give_away(10))
    assert stores.alice.pending_handover() is not None  # the next session settles it


async def test_key_control_that_cannot_be_read_ends_the_session(stores: Two) -> None:
    with pytest.RaisesGroup(LinkError, flatten_subgroups=True, allow_unwrapped=True):
        async with two_nodes(stores) as nodes:
            await nodes.alice.conversation.context.session.send(m.GiveAway(request_id=1, handover=b"\xc1"))
            await trio.sleep_forever()


class Quiet(NoPart):
    """A part that begins nothing."""

    async def start(self) -> None:
        """Be ready."""


def end_of(role: str, store: SqliteKeyStore) -> LocalEnd:
    """Return a site's end of the link, its hello told by its store as the daemon does."""

    def standing() -> Standing:
        positions = store.positions()
        memory = PeerMemory(store.view_of_peer(), runs_of(store.pad_segments()))
        return Standing(
            last_block_id=positions.last_block_id,
            generation=positions.generation,
            pool_epoch=positions.pool_epoch,
            positions=msgspec.msgpack.encode(memory),
            store=msgspec.msgpack.encode(store.standing()),
        )

    return local_end(role, secrets=store, standing=standing)  # type: ignore[arg-type]


@asynccontextmanager
async def resumed_nodes(stores: Two) -> AsyncIterator[tuple[Two, trio.Nursery]]:
    """Let two sites meet: hello, resume, conversation and rebalancing, until the body ends in a cut.

    What runs in the nursery is cut with them, wherever it is.
    """
    ends = Two(end_of("alice", stores.alice), end_of("bob", stores.bob))
    greeted = await greet_both(ends.alice, ends.bob)
    with trio.CancelScope() as cut:
        async with AsyncExitStack() as stack:
            nodes = Two()
            nursery = await stack.enter_async_context(trio.open_nursery())
            for role in ("alice", "bob"):
                session = await stack.enter_async_context(
                    open_session(getattr(greeted.frames, role), getattr(ends, role), getattr(greeted, role))
                )
                store = getattr(stores, role)
                storage = AsyncStore(store, most_chunks=1 << 20)
                site = BlockContext(role, LinkParameters(), session, storage, TagOrder(), simulated=True)
                conversation = SessionRouter(site, NoBook(), nursery)  # type: ignore[arg-type]
                supply = LinkKeySupply(storage, Peer(conversation))
                setattr(nodes, role, Node(store, storage, conversation, supply, Demand()))
                nursery.start_soon(conversation.run, Quiet())
            for node in (nodes.alice, nodes.bob):
                await node.conversation.settled.wait()
                nursery.start_soon(rebalance, node.storage, node.conversation.keys, node.supply, node.demand)
            yield nodes, nursery
            cut.cancel()
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("seed", range(4))
async def test_keys_and_ownership_agree_again_after_cuts_at_any_moment(
    stores: Two, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(room, "PERIOD_S", 0.001)
    rng = random.Random(seed)
    got: dict[UUID, bytes] = {}
    n_fetched = 0

    async def ask(master: Node, slave: Node, most: int) -> None:
        nonlocal n_fetched
        while True:
            try:
                keys = await master.supply.allocate("m", ("s",), rng.randint(1, most), 256)
            except (NotEnoughKeys, LinkDown):
                await trio.sleep(0.001)
                continue
            for key in keys:
                assert key.key_id not in got
                got[key.key_id] = key.key
            fetched = await slave.supply.fetch("s", "m", tuple(key.key_id for key in keys))
            assert [key.key for key in fetched] == [key.key for key in keys]
            n_fetched += len(fetched)

    for store in (stores.alice, stores.bob):
        store.load_preshared(preshared(64))
    with trio.fail_after(60):
        for block_id in range(1, 9):
            add_block(make_block(block_id, 100), stores.alice, stores.bob)
            async with resumed_nodes(stores) as (nodes, nursery):
                at_alice, at_bob = rng.choice([(1, 9), (9, 1), (5, 5)])
                nursery.start_soon(ask, nodes.alice, nodes.bob, at_alice)
                nursery.start_soon(ask, nodes.bob, nodes.alice, at_bob)
                enough = len(got) + rng.randint(5, 30)
                while len(got) < enough:  # noqa: ASYNC110 - no matter when exactly
                    await trio.sleep(0.0005)
        monkeypatch.setattr(room, "LEAST_CHUNKS", 1000)  # settle what is open, begin nothing
        async with resumed_nodes(stores):
            for store in (stores.alice, stores.bob):
                while store.pending_handover() is not None:  # noqa: ASYNC110 - a store tells nobody
                    await trio.sleep(0.001)
    for store in (stores.alice, stores.bob):
        assert store.unacknowledged_assignments() == []
        counts = store.counts()
        assert counts.here + counts.delivered + counts.void == 800
    assert mirrored(stores)
    assert n_fetched > 20
    assert sum(store.positions().last_handover_id for store in (stores.alice, stores.bob)) > 0


async def test_an_idle_site_asks_its_store_only_now_and_then(autojump_clock: MockClock) -> None:
    class Idle:
        gains = 0
        asked_at_s: ClassVar[list[float]] = []

        async def pending_handover(self) -> None:
            return None

        async def counts(self) -> Any:
            self.asked_at_s.append(trio.current_time())
            return SimpleNamespace(available_own=0, available_peer=0)

    store: Any = Idle()
    quiet: Any = SimpleNamespace(assigned_chunks=0, accepted_chunks=0)
    with trio.move_on_after(35.5):
        await rebalance(store, quiet, quiet, Demand())
    idle = len(store.asked_at_s)
    assert 3 <= idle <= 4
    store.asked_at_s.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rebalance, store, quiet, quiet, Demand())
        await trio.sleep(3.5)
        for owner, name in ((store, "gains"), (quiet, "assigned_chunks"), (quiet, "accepted_chunks")):
            before = len(store.asked_at_s)
            setattr(owner, name, 1)
            await trio.sleep(1.0)
            assert len(store.asked_at_s) == before + 1
        nursery.cancel_scope.cancel()
