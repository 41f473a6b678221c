"""Requests, stock, hand-overs and expiry under cuts and a store that hangs: both sites agree again after."""

import random
import time
from uuid import UUID

import pytest
import trio
from keys_support import add_block, make_block, preshared
from link_room import Two
from test_node_rebalance import (
    Node,
    resumed_nodes,
    stores,  # noqa: F401 - a fixture
)

from qnode.errors import KeyNotFound, LinkDown, NotEnoughKeys, NotOpen, ShareUsedUp
from qnode.keys import SqliteKeyStore
from qnode.node.supply import async_store as storage_room
from qnode.node.supply import key_supply as supply_room
from qnode.node.supply import rebalance as rebalance_room
from qnode.node.supply import stock as stock_room
from qnode.node.supply.stock import SaePair

PAIRS = [SaePair(f"m{i}", f"s{i}") for i in range(4)]
N_SESSIONS = 8


def owners(store: SqliteKeyStore) -> dict[tuple[int, int], str]:
    """Return whose each free chunk is, by block and position."""
    with store._database.look() as tx:
        rows = tx.connection.execute("SELECT block_id, first, count, owner FROM free_range").fetchall()
    return {(block_id, first + i): owner for block_id, first, count, owner in rows for i in range(count)}


@pytest.mark.parametrize("trouble", ["cuts", "expiry", "hangs"])
async def test_after_cuts_while_stock_moves_every_free_chunk_has_the_same_owner_at_both_sites(
    stores: Two,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    for room, name, value in (
        (rebalance_room, "PERIOD_S", 0.003),
        (stock_room, "PERIOD_S", 0.002),
        (stock_room, "DEMAND_S", 0.02),
        (stock_room, "SHARE", 0.6),
        (stock_room, "LOOK_AGAIN_S", 0.001),
        (storage_room, "STALL_S", 0.002),
        (supply_room, "ACKNOWLEDGE_S", 0.01),
        (supply_room, "MOST_ACKNOWLEDGE_S", 0.01),
    ):
        monkeypatch.setattr(room, name, value)
    rng = random.Random(trouble)
    got: dict[UUID, bytes] = {}

    async def ask(master: Node, slave: Node, pair: SaePair) -> None:
        while True:
            number, size_bits = rng.randint(1, 5), rng.choice([256, 256, 256, 512])
            try:
                with trio.move_on_after(rng.choice([0.004, 1.0, 1.0, 1.0])):
                    keys = await master.supply.allocate(pair.master, (pair.slave,), number, size_bits)
                    for key in keys:
                        assert key.key_id not in got
                        got[key.key_id] = key.key
                    key_ids = tuple(key.key_id for key in keys)
                    fetched = await slave.supply.fetch(pair.slave, pair.master, key_ids)
                    assert [key.key for key in fetched] == [key.key for key in keys]
            except (NotEnoughKeys, LinkDown, ShareUsedUp, NotOpen):
                await trio.sleep(0.001)
            except KeyNotFound:
                assert trouble == "expiry"

    async def expire(node: Node) -> None:
        while True:
            await trio.sleep(rng.uniform(0.001, 0.05))
            await node.storage.expire(0.05)

    async def hang(node: Node, outlasting: trio.Nursery) -> None:
        def hold(for_s: float) -> None:
            with node.store._database._turn():
                time.sleep(for_s)

        while True:
            await trio.sleep(rng.uniform(0.01, 0.1))
            outlasting.start_soon(trio.to_thread.run_sync, hold, rng.uniform(0.002, 0.03))
            for _ in range(10):
                await trio.sleep(0.002)
                node.storage.let_go()

    for store in (stores.alice, stores.bob):
        store.load_preshared(preshared(64))
    with trio.fail_after(100):
        async with trio.open_nursery() as outlasting:
            for block_id in range(1, N_SESSIONS + 1):
                add_block(make_block(block_id, 100), stores.alice, stores.bob)
                with trio.move_on_after(rng.uniform(0.02, 0.3)):
                    async with resumed_nodes(stores) as (nodes, nursery):
                        for here, there in ((nodes.alice, nodes.bob), (nodes.bob, nodes.alice)):
                            for pair in PAIRS:
                                nursery.start_soon(ask, here, there, pair)
                            nursery.start_soon(here.supply.keep_stock, lambda: PAIRS, lambda: 8)
                            if trouble == "expiry":
                                nursery.start_soon(expire, here)
                            if trouble == "hangs":
                                nursery.start_soon(hang, here, outlasting)
                        await trio.sleep_forever()
        monkeypatch.setattr(rebalance_room, "LEAST_CHUNKS", 100_000)  # settle what is open, begin nothing
        for _ in range(20):
            async with resumed_nodes(stores):
                for store in (stores.alice, stores.bob):
                    while store.pending_handover() is not None:  # noqa: ASYNC110 - a store tells nobody
                        await trio.sleep(0.001)
            if trouble != "hangs" or owners(stores.alice) == owners(stores.bob):
                break  # else a call has ended since that nobody waited for any more
            await trio.sleep(0.1)
    assert owners(stores.alice) == owners(stores.bob)
    for store in (stores.alice, stores.bob):
        counts = store.counts()
        assert counts.here + counts.delivered + counts.void + counts.expired == 100 * N_SESSIONS
        assert trouble != "cuts" or counts.void == 0
