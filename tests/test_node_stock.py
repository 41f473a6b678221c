"""Keys set aside for a cut: for pairs that ask, within a share of the store, and not lost to the others."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from keys_support import add_block, make_block, preshared
from link_room import Two
from test_node_rebalance import (
    Node,
    Peer,
    mirrored,
    resumed_nodes,
    stores,  # noqa: F401 - a fixture
    two_nodes,
)

from qnode.errors import LinkDown, LinkError, NotEnoughKeys, NotOpen, ShareUsedUp
from qnode.keys import AgeMark, Assignment, KeyLayout, KeyRange, Release, StockItem
from qnode.link.codec import encode
from qnode.link.messages import ReleaseAssignments
from qnode.node.dialogue.commit import check_room
from qnode.node.session.assignments import ASSIGNMENTS_AT_ONCE, batches
from qnode.node.supply import key_supply as supply_room
from qnode.node.supply import stock as room
from qnode.node.supply.async_store import AsyncStore
from qnode.node.supply.key_clock import KeyClock
from qnode.node.supply.key_supply import LinkKeySupply
from qnode.node.supply.stock import SHARE, SaePair, StockPlan, pair_of, plan_stock

ME = SaePair("m", "s")
THOUSAND = [SaePair(f"m{i}", f"s{i}") for i in range(1000)]


# What the stock should be


def asking(pairs: list[SaePair]) -> dict[SaePair, int]:
    """Return pairs that asked, but not lately."""
    return dict.fromkeys(pairs, 0)


def after(plan: StockPlan, items: list[StockItem], n_free: int, now: float) -> tuple[list[StockItem], int]:
    """Do what a plan says."""
    gone = set(plan.take_back)
    n_free += sum(item.n_keys for item in items if item.assignment_id in gone)
    items = [item for item in items if item.assignment_id not in gone]
    for pair, number in plan.set_aside.items():
        assert 0 < number <= n_free
        n_free -= number
        number_of_it = max((item.assignment_id for item in items), default=0) + 1
        items.append(
            StockItem(
                assignment_id=number_of_it,
                master_sae=pair.master,
                slave_sae=pair.slave,
                n_keys=number,
                assigned_at=now,
            )
        )
    return items, n_free


@given(
    held=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 300), st.floats(0.0, 2e5)), max_size=12),
    who_asks=st.sets(st.integers(0, 12)),
    n_free=st.integers(0, 20_000),
    stock_per_pair=st.sampled_from([0, 1, 16, 256]),
)
def test_a_stock_is_for_those_who_ask_within_its_share_and_then_it_is_settled(
    held: list[tuple[int, int, float]], who_asks: set[int], n_free: int, stock_per_pair: int
) -> None:
    now = 2e5
    items = [
        StockItem(assignment_id=i, master_sae=f"m{of}", slave_sae=f"s{of}", n_keys=n_keys, assigned_at=at)
        for i, (of, n_keys, at) in enumerate(held)
    ]
    pairs = [THOUSAND[i] for i in sorted(who_asks)]
    free_before, total = n_free, n_free + sum(item.n_keys for item in items)
    of_before = sum(item.n_keys for item in items if pair_of(item) in pairs)
    for _ in range(5):
        plan = plan_stock(items, asking(pairs), n_free, stock_per_pair, now)
        items, n_free = after(plan, items, n_free, now)
        assert n_free + sum(item.n_keys for item in items) == total
    assert plan.changes_nothing
    of_pairs = Counter[SaePair]()
    for item in items:
        of_pairs[pair_of(item)] += item.n_keys
        assert now - item.assigned_at <= room.DEMAND_S
    assert sum(of_pairs[pair] for pair in pairs) <= max(of_before, int(SHARE * total))
    if not stock_per_pair:
        assert not items
    elif pairs and min(SHARE * total, free_before) >= len(pairs) and not of_before:
        assert all(of_pairs[pair] for pair in pairs)  # none goes away empty


def test_of_many_pairs_those_that_came_first_make_room_for_the_others() -> None:
    items, n_free = after(plan_stock([], asking(THOUSAND[:90]), 200_000, 256, 0.0), [], 200_000, 0.0)
    for _ in range(3):
        plan = plan_stock(items, asking(THOUSAND), n_free, 256, 0.0)
        items, n_free = after(plan, items, n_free, 0.0)
    of_pairs = Counter(pair_of(item) for item in items for _ in range(item.n_keys))
    assert min(of_pairs[pair] for pair in THOUSAND) >= 12


def test_as_the_store_runs_dry_the_reserve_of_who_asked_stays() -> None:
    both = asking([ME, THOUSAND[0]])
    items, _ = after(plan_stock([], both, 875, 256, 0.0), [], 875, 0.0)
    assert sum(item.n_keys for item in items) > 100
    assert plan_stock(items, both, 0, 256, 0.0).changes_nothing


# Two sites


class CutPeer(Peer):
    """The other site, which the test may put out of reach, or slow down."""

    def __init__(self, conversation: Any) -> None:
        super().__init__(conversation)
        self.reachable = True
        self.slowness_s: float | None = None

    @property
    def connected(self) -> bool:
        return self.reachable and super().connected

    @property
    def round_trip_s(self) -> float:
        return super().round_trip_s if self.slowness_s is None else self.slowness_s


class GatedStorage(AsyncStore):
    """A site that answers an assignment only once its gate is open."""

    gate = trio.Event()

    async def accept_assignment(self, assignment: Assignment, *, by_shares: bool) -> None:
        await self.gate.wait()
        await super().accept_assignment(assignment, by_shares=by_shares)


def put_behind_gate(node: Node, most_chunks: int = 1 << 20) -> GatedStorage:
    storage = GatedStorage(node.store, most_chunks)
    storage.gate = trio.Event()
    context = replace(node.conversation.context, store=storage)
    node.conversation.context = node.conversation.keys._context = context
    return storage


@asynccontextmanager
async def supplied(nodes: Two, pairs: list[SaePair]) -> AsyncIterator[tuple[LinkKeySupply, CutPeer]]:
    """Run Alice's supply, including the stock."""
    peer = CutPeer(nodes.alice.conversation)
    supply = LinkKeySupply(nodes.alice.storage, peer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supply.keep_stock, lambda: pairs, lambda: 256)
        yield supply, peer
        nursery.cancel_scope.cancel()


async def until(look: Callable[[], bool]) -> None:
    while not look():  # noqa: ASYNC110 - a store tells nobody
        await trio.sleep(0.002)


async def take_all(supply: LinkKeySupply, pair: SaePair, at_once: int = 64) -> int:
    n_got = 0
    while at_once:
        try:
            n_got += len(await supply.allocate(pair.master, (pair.slave,), at_once, 256))
        except NotEnoughKeys:
            at_once //= 2
    return n_got


async def test_with_a_thousand_pairs_the_one_that_asks_can_take_all_keys(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "PERIOD_S", 0.02)
    add_block(make_block(1, 4000), stores.alice, stores.bob)
    async with two_nodes(stores) as nodes, supplied(nodes, THOUSAND) as (supply, _):
        assert await take_all(supply, THOUSAND[7]) >= 0.99 * 2000
    assert stores.alice.counts().void == stores.bob.counts().void == 0


async def test_stock_of_pairs_that_do_not_ask_serves_who_asks_and_no_key_is_lost_or_given_twice(
    stores: Two,  # noqa: F811
) -> None:
    add_block(make_block(1, 400), stores.alice, stores.bob)
    for i in range(4):  # as an earlier version hoarded them; of one a part was taken
        hoard = stores.alice.assign(f"m{i}", [f"s{i}"], 50, 256, 0.0, stock=True)
        stores.bob.accept_assignment(hoard, 0.0)
        stores.alice.acknowledge(hoard.assignment_id)
    taken = stores.alice.take_from_stock("m1", "s1", 20)
    async with two_nodes(stores) as nodes:
        keys = []
        for _ in range(18):
            keys += await nodes.alice.supply.allocate("m", ("s",), 10, 256)
        with pytest.raises(NotEnoughKeys):
            await nodes.alice.supply.allocate("m", ("s",), 1, 256)
        fetched = await nodes.bob.supply.fetch("s", "m", tuple(key.key_id for key in keys))
        assert [key.key for key in fetched] == [key.key for key in keys]
        of_m1 = await nodes.bob.supply.fetch("s1", "m1", tuple(key.key_id for key in taken))
        assert [key.key for key in of_m1] == [key.key for key in taken]
    assert not {key.key_id for key in keys} & {key.key_id for key in taken}
    for store in (stores.alice, stores.bob):
        assert (store.counts().assigned, store.counts().void) == (0, 0)
        assert store.counts().delivered == 200


async def test_what_was_taken_meanwhile_does_not_keep_the_rest_from_becoming_free(
    stores: Two,  # noqa: F811
) -> None:
    add_block(make_block(1, 100), stores.alice, stores.bob)
    ids = []
    for i in range(3):
        stock = stores.alice.assign("m", ["s"], 5, 256, 0.0, stock=True)
        stores.bob.accept_assignment(stock, 0.0)
        stores.alice.acknowledge(stock.assignment_id)
        ids.append(stock.assignment_id)
        if i == 0:
            stores.alice.take_from_stock("m", "s", 5)
    async with two_nodes(stores) as nodes:
        await nodes.alice.conversation.keys.assignments.take_back(ids).wait()
    assert stores.alice.open_releases() == []
    assert stores.alice.stored_key_count() == 45
    assert mirrored(stores)


async def test_with_few_keys_a_pair_that_asks_has_a_reserve_when_the_link_is_cut(
    stores: Two,  # noqa: F811
) -> None:
    add_block(make_block(1, 875), stores.alice, stores.bob)
    async with two_nodes(stores) as nodes, supplied(nodes, [ME, *THOUSAND]) as (supply, peer):
        await supply.allocate("m", ("s",), 1, 256)
        await until(lambda: stores.alice.stock_count("m", "s") > 0)
        peer.reachable = False
        assert await supply.stored_key_count("m", "s", 256) > 50
        for _ in range(50):
            (key,) = await supply.allocate("m", ("s",), 1, 256)
            (same,) = await nodes.bob.supply.fetch("s", "m", (key.key_id,))
            assert same.key == key.key
        with pytest.raises(LinkDown):
            await supply.allocate("m0", ("s0",), 1, 256)


async def test_of_a_pair_whose_slave_never_fetches_the_others_are_not_starved(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supply_room, "HOLD_OFF_S", 0.0)
    most_chunks, n_hoarded = 600, 0
    layout = KeyLayout(direction_share_alice=1.0)
    async with two_nodes(stores) as nodes:
        put_behind_gate(nodes.bob, most_chunks).gate.set()
        for block_id in range(1, 21):
            await check_room(nodes.bob.conversation.context)
            add_block(make_block(block_id, 100, layout=layout), stores.alice, stores.bob)
            with suppress(ShareUsedUp, NotEnoughKeys):
                while True:  # its slave never fetches one
                    n_hoarded += len(await nodes.alice.supply.allocate("m", ("s",), 10, 256))
            await until(lambda: not stores.alice.open_releases())
            while block_id > 5 and stores.alice.stored_key_count() >= 10:
                keys = await nodes.alice.supply.allocate("n", ("t",), 10, 256)
                await nodes.bob.supply.fetch("t", "n", tuple(key.key_id for key in keys))
    assert n_hoarded == 0.8 * most_chunks
    assert stores.bob.counts().delivered >= 1400
    assert stores.alice.counts().void == stores.bob.counts().void == 0


async def test_a_stall_costs_no_key_and_after_the_first_who_waited_the_others_are_told_at_once(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supply_room, "ACKNOWLEDGE_S", 0.05)
    monkeypatch.setattr(supply_room, "MOST_ACKNOWLEDGE_S", 0.05)
    add_block(make_block(1, 400), stores.alice, stores.bob)
    async with two_nodes(stores) as nodes:
        stalled = put_behind_gate(nodes.bob)
        supply = nodes.alice.supply
        for _ in range(12):
            with pytest.raises(LinkDown):
                await supply.allocate("m", ("s",), 8, 256)
        assert stores.alice.counts().assigned == 8
        stalled.gate.set()
        await until(
            lambda: not nodes.alice.conversation.keys.assignments.stalled and not stores.alice.open_releases()
        )
        monkeypatch.setattr(supply_room, "MOST_ACKNOWLEDGE_S", 20.0)
        monkeypatch.setattr(supply_room, "ACKNOWLEDGE_S", 20.0)
        assert len(await supply.allocate("m", ("s",), 8, 256)) == 8
    assert mirrored(stores)
    assert stores.alice.counts().void == stores.bob.counts().void == 0
    assert stores.bob.counts().assigned == 8


async def test_an_encryptor_is_answered_over_a_round_trip_of_three_seconds(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supply_room, "ACKNOWLEDGE_S", 0.01)
    add_block(make_block(1, 400), stores.alice, stores.bob)
    async with two_nodes(stores) as nodes, trio.open_nursery() as nursery:
        far = put_behind_gate(nodes.bob)
        peer = CutPeer(nodes.alice.conversation)
        peer.slowness_s = 3.0

        async def let_through() -> None:
            await trio.sleep(0.2)
            far.gate.set()

        nursery.start_soon(let_through)
        assert len(await LinkKeySupply(nodes.alice.storage, peer).allocate("m", ("s",), 8, 256)) == 8


@pytest.mark.parametrize("accepted", [True, False])
async def test_what_a_cut_left_unacknowledged_is_free_again_in_the_next_session(
    stores: Two,  # noqa: F811
    accepted: bool,
) -> None:
    add_block(make_block(1, 400), stores.alice, stores.bob)
    for store in (stores.alice, stores.bob):
        store.load_preshared(preshared(64))
    for i in range(3):
        assignment = stores.alice.assign("m", ["s"], 5, 256, 0.0, stock=i == 1)
        if accepted:
            stores.bob.accept_assignment(assignment, 0.0)
    with trio.fail_after(30):
        async with resumed_nodes(stores) as (nodes, _):
            # Whoever was about to announce it, when the session before ended, comes too late.
            with pytest.raises(LinkError, match="taken back"):
                await nodes.alice.conversation.keys.assignments.announce(assignment)
    assert stores.alice.open_releases() == []
    assert stores.alice.stored_key_count() == 200
    assert mirrored(stores)
    assert stores.bob.counts().assigned == stores.bob.counts().void == 0


async def test_a_site_that_was_off_for_long_gives_no_stock_that_its_peer_may_have_expired(
    stores: Two,  # noqa: F811
) -> None:
    day_s = 86_400.0
    add_block(make_block(1, 100), stores.alice, stores.bob)
    stock = stores.alice.assign("m", ["s"], 5, 256, 1e9, stock=True)
    stores.bob.accept_assignment(stock, 1e9)
    stores.alice.acknowledge(stock.assignment_id)
    mark = AgeMark(age_s=1e9, boot_id="before", since_boot_s=500.0, time_of_day_s=1e9)
    storage = AsyncStore(stores.alice, 1 << 20)
    storage.key_lifetime_s = 7 * day_s

    def restarted(off_s: float) -> KeyClock:
        return KeyClock(mark, boot="after", time_of_day=lambda: 1e9 + off_s, since_boot=lambda: 60.0)

    storage.clock = restarted(6 * day_s)
    assert await storage.stock_count("m", "s") == 5
    assert len(await storage.take_from_stock("m", "s", 2, 256)) == 2
    storage.clock = restarted(12 * day_s)
    assert await storage.stock_count("m", "s") == 0
    with pytest.raises(NotEnoughKeys):
        await storage.take_from_stock("m", "s", 2, 256)
    storage.clock.hear_peer(1e9 + day_s)  # it was the own clock that is wrong
    assert len(await storage.take_from_stock("m", "s", 2, 256)) == 2


async def test_stock_that_a_peer_of_protocol_1_cannot_free_is_not_promised_beside_free_keys(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_block(make_block(1, 100), stores.alice, stores.bob)
    async with two_nodes(stores) as nodes, supplied(nodes, [ME]) as (supply, peer):
        await supply.allocate("m", ("s",), 1, 256)
        await until(lambda: stores.alice.stock_count("m", "s") > 0)
        assert await supply.stored_key_count("m", "s", 256) == 49
        monkeypatch.setattr(CutPeer, "can_release", False)
        promised = await supply.stored_key_count("m", "s", 256)
        assert promised < 49
        assert len(await supply.allocate("m", ("s",), promised, 256)) == promised
        peer.reachable = False
        assert await supply.stored_key_count("m", "s", 256) == 49 - promised


def test_releases_of_scattered_keys_are_told_in_parts_that_fit_into_a_message() -> None:
    far = 2**48
    scattered = tuple(KeyRange(far, far - 2 * i, 1) for i in range(4096))
    releases = [
        Release(
            assignment=Assignment(
                assignment_id=far,
                owner="alice",
                master_sae=250 * "m",
                slave_saes=(250 * "s",),
                size_bits=256,
                ranges=scattered if number % 2 else scattered[:1],
                stock=True,
            )
        )
        for number in range(300)
    ]
    told = list(batches(releases))
    assert [release for some in told for release in some] == releases
    assert max(len(some) for some in told) <= ASSIGNMENTS_AT_ONCE
    for some in told:
        content = msgspec.msgpack.encode(some)
        assert encode(ReleaseAssignments(request_id=1, releases=content))


async def test_a_delivery_that_a_cut_has_delayed_is_not_freed_at_the_peer(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_block(make_block(1, 100), stores.alice, stores.bob)
    for store in (stores.alice, stores.bob):
        store.load_preshared(preshared(64))
    assignment = stores.alice.assign("m", ["s"], 5, 256, 0.0)
    stores.bob.accept_assignment(assignment, 0.0)
    release_accepted = stores.bob.release_accepted
    delivered: list[Any] = []

    def deliver_just_before(release: Release) -> None:
        with suppress(NotOpen):
            delivered.extend(stores.alice.deliver_to_master(assignment.assignment_id))
        release_accepted(release)

    monkeypatch.setattr(stores.bob, "release_accepted", deliver_just_before)
    with trio.fail_after(30):
        async with resumed_nodes(stores):
            pass
    assert not delivered
    assert stores.alice.stored_key_count() == 50
    assert mirrored(stores)


async def test_of_releases_the_rest_is_finished_where_one_was_given_up_meanwhile(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_block(make_block(1, 100), stores.alice, stores.bob)
    for store in (stores.alice, stores.bob):
        store.load_preshared(preshared(64))
    ids = [stores.alice.assign("m", ["s"], 5, 256, 0.0).assignment_id for _ in range(3)]
    release_accepted = stores.bob.release_accepted

    def void_one_meanwhile(release: Release) -> None:
        if release.assignment.assignment_id == ids[0]:
            stores.alice.void_assignment(ids[0])
        release_accepted(release)

    monkeypatch.setattr(stores.bob, "release_accepted", void_one_meanwhile)
    with trio.fail_after(30):
        async with resumed_nodes(stores):
            pass
    assert stores.alice.open_releases() == []
    assert stores.alice.stored_key_count() == 45
