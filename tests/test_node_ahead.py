"""Keys agreed ahead: who asks is answered without a round trip, and not at the cost of others."""

from collections import Counter
from contextlib import suppress

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st
from keys_support import add_block, make_block
from link_room import Two
from test_node_rebalance import (
    mirrored,
    stores,  # noqa: F401 - a fixture
    two_nodes,
)
from test_node_stock import ME, THOUSAND, after, put_behind_gate, supplied, until

from qnode.errors import NotEnoughKeys, ShareUsedUp
from qnode.keys import FrontEnds, StockItem
from qnode.node.supply import key_supply as supply_room
from qnode.node.supply import stock as room
from qnode.node.supply.key_supply import LinkKeySupply
from qnode.node.supply.stock import SHARE, SaePair, StockPlan, level, pair_of, plan_stock

PATIENCE_S = 30.0


# How much is agreed ahead


@given(st.lists(st.integers(0, 1000), max_size=12), st.integers(0, 3000))
def test_what_is_limited_to_the_level_fits_and_a_higher_one_does_not(wishes: list[int], budget: int) -> None:
    highest = level(wishes, budget)
    assert sum(min(wish, highest) for wish in wishes) <= budget
    if highest < budget:
        assert sum(min(wish, highest + 1) for wish in wishes) > budget


def of_pairs(items: list[StockItem]) -> Counter[SaePair]:
    held = Counter[SaePair]()
    for item in items:
        held[pair_of(item)] += item.n_keys
    return held


@given(
    recent=st.lists(st.integers(0, 2000), min_size=1, max_size=8),
    n_free=st.integers(0, 20_000),
    stock_per_pair=st.sampled_from([1, 16, 256]),
)
def test_pairs_have_ahead_what_they_ask_for_within_a_share_and_no_more_than_others_that_ask_as_much(
    recent: list[int], n_free: int, stock_per_pair: int
) -> None:
    asking = dict(zip(THOUSAND, recent, strict=False))
    items: list[StockItem] = []
    left = n_free
    for _ in range(3):
        plan = plan_stock(items, asking, left, stock_per_pair, 0.0)
        items, left = after(plan, items, left, 0.0)
    assert plan.changes_nothing
    held = of_pairs(items)
    assert held.total() <= max(2 * SHARE * n_free, len(recent))
    if SHARE * n_free >= len(recent):
        for pair, keys in asking.items():
            assert held[pair] == plan.reserve + min(keys, plan.most_ahead)
        most = max(held.values())
        assert all(held[pair] == most or keys <= plan.most_ahead for pair, keys in asking.items())


def test_a_pair_that_asks_no_more_keeps_its_reserve_alone() -> None:
    items, left = after(plan_stock([], {ME: 900, THOUSAND[0]: 0}, 20_000, 256, 0.0), [], 20_000, 0.0)
    assert of_pairs(items) == {ME: 256 + 900, THOUSAND[0]: 256}
    for _ in range(2):
        items, left = after(plan_stock(items, {ME: 0, THOUSAND[0]: 0}, left, 256, 0.0), items, left, 0.0)
    assert of_pairs(items) == {ME: 256, THOUSAND[0]: 256}


def test_what_is_on_its_way_into_the_stock_is_not_set_aside_again() -> None:
    assert plan_stock([], {ME: 100}, 20_000, 256, 0.0).set_aside == {ME: 356}
    assert plan_stock([], {ME: 100}, 19_644, 256, 0.0, {ME: 356}).changes_nothing
    assert plan_stock([], {ME: 100}, 20_000, 0, 0.0) == StockPlan()  # switched off


def test_an_even_excess_becomes_free_again_but_not_the_reserve_that_pairs_have_as_free_keys_run_out() -> None:
    pairs = dict.fromkeys(THOUSAND[:20], 0)
    items = [
        StockItem(
            assignment_id=i,
            master_sae=pair.master,
            slave_sae=pair.slave,
            n_keys=n_keys,
            assigned_at=0.0,
        )
        for i, (pair, n_keys) in enumerate([*((pair, 25) for pair in pairs), *((pair, 48) for pair in pairs)])
    ]
    plan = plan_stock(items, pairs, 0, 256, 0.0, kept_before=25)
    assert sorted(plan.take_back) == list(range(20, 40))
    assert plan_stock(items[:20], pairs, 0, 256, 0.0, kept_before=25).changes_nothing


# Two sites


async def test_stocks_that_are_filled_up_between_two_looks_stay_within_both_shares(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "PERIOD_S", 1e6)
    monkeypatch.setattr(room, "AHEAD_S", 1e-9)  # nobody has asked lately
    add_block(make_block(1, 8000), stores.alice, stores.bob)
    pairs = THOUSAND[:20]
    with trio.fail_after(PATIENCE_S):
        async with two_nodes(stores) as nodes, supplied(nodes, pairs) as (supply, _):
            stock = supply._stock
            for pair in pairs:
                await supply.allocate(pair.master, (pair.slave,), 1, 256)
            await until(lambda: not stock._look_now and not stock._coming and stock._plan.reserve < 26)
            monkeypatch.setattr(room, "AHEAD_S", 1e6)
            for pair in pairs:
                for _ in range(4):
                    await supply.allocate(pair.master, (pair.slave,), 16, 256)
                await until(lambda: not stock._low and not stock._look_now and not stock._coming)
            assert 250 < stores.alice.counts().stock <= 2 * SHARE * 4000


async def test_a_stock_that_the_peer_refused_is_not_announced_again_at_once(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supply_room, "HOLD_OFF_S", 1e6)
    monkeypatch.setattr(room, "HOLD_OFF_S", 1e6)
    add_block(make_block(1, 4000), stores.alice, stores.bob)
    with trio.fail_after(PATIENCE_S), structlog.testing.capture_logs() as logs:
        async with two_nodes(stores) as nodes, supplied(nodes, [ME]) as (supply, _):
            put_behind_gate(nodes.bob, 1000).gate.set()
            n_refused = 0
            while n_refused < 10:
                try:
                    await supply.allocate("m", ("s",), 8, 256)
                except ShareUsedUp:
                    n_refused += 1
                await until(lambda: not supply._stock._low and not supply._stock._coming)
    assert sum(line["event"] == "stock.refused" for line in logs) == 1


async def test_who_asks_is_answered_without_the_peer_while_agreed_keys_last(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_block(make_block(1, 2000), stores.alice, stores.bob)
    with trio.fail_after(PATIENCE_S):
        async with two_nodes(stores) as nodes, supplied(nodes, [ME, *THOUSAND]) as (supply, _):
            silent = put_behind_gate(nodes.bob)
            silent.gate.set()
            await supply.allocate("m", ("s",), 1, 256)
            await until(lambda: supply._stock._held[ME] > 100)
            silent.gate = trio.Event()  # from here on the peer says nothing about keys
            monkeypatch.setattr(supply_room, "ACKNOWLEDGE_S", 0.05)
            monkeypatch.setattr(supply_room, "MOST_ACKNOWLEDGE_S", 0.05)
            n_agreed = stores.alice.stock_count("m", "s")
            keys = []
            while not nodes.alice.conversation.keys.assignments.stalled:
                keys += await supply.allocate("m", ("s",), 1, 256)
            # Half the reserve waited for a cut. The last request asked the peer, which is late: as in a cut.
            assert n_agreed // 2 <= len(keys) <= n_agreed // 2 + 2
            fetched = await nodes.bob.supply.fetch("s", "m", tuple(key.key_id for key in keys))
            assert [key.key for key in fetched] == [key.key for key in keys]
            silent.gate.set()
            await until(lambda: not stores.alice.open_releases())
    assert stores.alice.counts().void == stores.bob.counts().void == 0


async def test_a_pair_that_asks_much_has_more_ahead_and_the_peer_hears_of_its_demand(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "PERIOD_S", 1e6)  # it is filled up as soon as it is low
    add_block(make_block(1, 20_000), stores.alice, stores.bob)
    n_got = 0
    with trio.fail_after(PATIENCE_S):
        async with two_nodes(stores) as nodes, supplied(nodes, [ME]) as (supply, _):
            while n_got < 1200:
                n_got += len(await supply.allocate("m", ("s",), 32, 256))
            await until(lambda: stores.alice.stock_count("m", "s") > 300)
            assert supply.assigned_chunks == n_got
            assert n_got - 1000 < nodes.bob.conversation.keys.accepted_chunks <= n_got
    assert stores.alice.counts().delivered == n_got


async def test_keys_are_agreed_ahead_for_what_front_ends_are_asked_and_the_peer_hears_of_that_demand(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "PERIOD_S", 1e6)
    add_block(make_block(1, 20_000), stores.alice, stores.bob)
    with trio.fail_after(PATIENCE_S):
        async with two_nodes(stores) as nodes, supplied(nodes, [ME]) as (supply, _):
            before = {("m", "s"): (1000, 900)}  # until this node began
            supply.note_front_ends(FrontEnds(names=("one",), totals=before))
            assert supply.assigned_chunks == 0
            supply.note_front_ends(FrontEnds(names=("one",), totals={("m", "s"): (1300, 900)}))
            stock = supply._stock
            await until(lambda: stock._held[ME] > 300 and not stock._coming)
            assert len(stores.alice.stock_items()) > 5  # so that several front ends can take at a time
            n_taken = len(stores.alice.take_from_stock("m", "s", 250))  # as a front end does
            supply.note_front_ends(FrontEnds())  # which left then
            supply.note_front_ends(FrontEnds(names=("one",), totals={("m", "s"): (1600, 900 + n_taken)}))
            assert supply.assigned_chunks == n_taken
            await until(lambda: nodes.bob.conversation.keys.accepted_chunks == n_taken)
            await until(lambda: stores.alice.stock_count("m", "s") > 300)


async def test_whoever_finds_no_free_key_gets_its_own_reserve(stores: Two) -> None:  # noqa: F811
    add_block(make_block(1, 400), stores.alice, stores.bob)
    with trio.fail_after(PATIENCE_S):
        async with two_nodes(stores) as nodes, supplied(nodes, [ME, THOUSAND[0]]) as (supply, _):
            await supply.allocate("m", ("s",), 1, 256)
            await until(lambda: stores.alice.stock_count("m", "s") > 0)
            greedy = THOUSAND[0]
            with suppress(NotEnoughKeys):
                while True:
                    await supply.allocate(greedy.master, (greedy.slave,), 1, 256)
            reserve = stores.alice.stock_count("m", "s")
            assert reserve > 5
            for _ in range(reserve):
                await supply.allocate("m", ("s",), 1, 256)
            with pytest.raises(NotEnoughKeys):
                await supply.allocate("m", ("s",), 1, 256)
    assert mirrored(stores)


async def test_keys_agreed_ahead_that_nobody_fetches_count_for_the_share_of_their_pair(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supply_room, "HOLD_OFF_S", 0.0)
    add_block(make_block(1, 4000), stores.alice, stores.bob)
    with trio.fail_after(PATIENCE_S):
        async with two_nodes(stores) as nodes, supplied(nodes, [ME]) as (supply, _):
            put_behind_gate(nodes.bob, 1000).gate.set()
            with suppress(ShareUsedUp):
                while True:  # its slave never fetches one
                    await supply.allocate("m", ("s",), 8, 256)
            assert stores.bob.counts().assigned <= 0.8 * 1000
            await nodes.alice.supply.allocate("n", ("t",), 8, 256)


async def test_when_keys_are_short_whoever_takes_all_new_ones_leaves_the_others_their_share(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "PERIOD_S", 1e6)

    async def take_all_of(supply: LinkKeySupply, pair: SaePair) -> None:
        with suppress(NotEnoughKeys):
            while True:
                await supply.allocate(pair.master, (pair.slave,), 1, 256)

    with trio.fail_after(PATIENCE_S):
        async with two_nodes(stores) as nodes, supplied(nodes, [ME, *THOUSAND[:2]]) as (supply, _):
            for block_id in (1, 2):
                for node in (nodes.bob, nodes.alice):
                    node.store.record_block_opened(block_id, 0.0)
                    node.store.prepare(make_block(block_id, 200))
                for node in (nodes.bob, nodes.alice):
                    await node.storage.confirm(block_id)
                if block_id == 1:
                    for _ in range(2):  # the second time also what was on its way into a stock
                        await until(lambda: not supply._stock._coming)
                        for pair in (*THOUSAND[:2], ME):
                            await take_all_of(supply, pair)
            await until(lambda: supply._stock._held[ME] > 0)
            for pair in THOUSAND[:2]:
                await take_all_of(supply, pair)
            await supply.allocate("m", ("s",), 1, 256)
