"""What two sites settle when they meet, and what becomes of keys that one of them alone knows of."""

import dataclasses
from contextlib import AsyncExitStack

import msgspec
import pytest
import structlog
import trio
from keys_support import add_block, make_block, preshared
from link_room import Two, greet_both
from test_node_rebalance import end_of, mirrored, resumed_nodes, stores, two_nodes  # noqa: F401
from test_node_stock import ME, CutPeer, put_behind_gate, supplied, until

from qnode.config import LinkParameters
from qnode.errors import LinkDown, LinkError, NotEnoughKeys, ShareUsedUp, StoreError
from qnode.keys import Release, SqliteKeyStore, _restore
from qnode.link.session import open_session
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.tag_order import TagOrder
from qnode.node.session.assignments import Assignments
from qnode.node.session.resume import _meet
from qnode.node.supply import stock as stock_room
from qnode.node.supply.async_store import AsyncStore
from qnode.node.supply.key_supply import LinkKeySupply

ROLES = ("alice", "bob")
PATIENCE_S = 30.0


@pytest.fixture
def filled(stores: Two) -> Two:  # noqa: F811
    """Two stores with a pre-shared key and a block of 100 chunks."""
    for store in (stores.alice, stores.bob):
        store.load_preshared(preshared(64))
    add_block(make_block(1, 100), stores.alice, stores.bob)
    return stores


def refuse_changes(store: SqliteKeyStore, *, on: bool) -> None:
    """Let a store refuse every change, as with a full disk."""
    store._database._tx.connection.execute(f"PRAGMA query_only = {'ON' if on else 'OFF'}")


async def meet(stores: Two) -> dict[str, str]:  # noqa: F811
    """Let both sites compare their stores after a hello; return why the session ends at each, if it does."""
    ends = Two(end_of("alice", stores.alice), end_of("bob", stores.bob))
    greeted = await greet_both(ends.alice, ends.bob)
    outcome = dict.fromkeys(ROLES, "")
    async with AsyncExitStack() as stack:
        for role in ROLES:
            session = await stack.enter_async_context(
                open_session(getattr(greeted.frames, role), getattr(ends, role), getattr(greeted, role))
            )
            store = AsyncStore(getattr(stores, role), most_chunks=1 << 20)
            context = BlockContext(role, LinkParameters(), session, store, TagOrder(), simulated=True)  # type: ignore[arg-type]
            try:
                await _meet(context)
            except LinkError as error:
                outcome[role] = str(error)
    return outcome


async def test_a_store_that_was_set_back_is_void_at_both_sites_before_another_key_is_made(
    filled: Two,
) -> None:
    assert await meet(filled) == {"alice": "", "bob": ""}
    filled.bob.note_peer(filled.alice.positions().generation + 5)  # of which Alice remembers nothing
    first = await meet(filled)
    assert "was voided" in first["alice"]
    assert first["bob"] == ""
    assert "was voided" in (await meet(filled))["bob"]
    assert await meet(filled) == {"alice": "", "bob": ""}
    assert filled.alice.counts().void == filled.bob.counts().void == 100


async def test_with_a_store_that_waits_for_a_restore_no_session_goes_on(filled: Two) -> None:
    with filled.alice._database.change(anchored=True, while_waiting=True) as tx:
        _restore.give_up(tx, "nobody knows what was used")
    assert "was voided" in (await meet(filled))["bob"]  # because Alice has voided all
    outcome = await meet(filled)
    assert "this store serves nothing: nobody knows" in outcome["alice"]
    assert "the peer's store serves nothing" in outcome["bob"]


async def test_pads_that_one_site_alone_holds_are_wiped_at_the_meeting(filled: Two) -> None:
    assert filled.bob.pad_segments() == [0, 1]
    filled.alice.keep_pad_segments([0])
    await meet(filled)
    assert filled.alice.pad_segments() == filled.bob.pad_segments() == [0]


def lose_a_unit(store: SqliteKeyStore) -> None:
    """Flip a bit of the sealed keys of block 1 and let the store find it."""
    with store._database.change(anchored=False) as tx:
        tx.connection.execute("UPDATE sealed_unit SET sealed = zeroblob(length(sealed)) WHERE kind = 'chunk'")
    with pytest.raises(StoreError, match="not whole here"):
        store.fingerprint(1)
    assert len(store.open_losses()) == 1


async def test_what_cannot_be_opened_is_told_at_the_next_meeting_until_the_peer_has_given_it_up(
    filled: Two,
) -> None:
    lose_a_unit(filled.alice)
    refuse_changes(filled.bob, on=True)
    async with two_nodes(filled) as nodes:
        with pytest.raises(LinkError, match="could not give up"):
            await nodes.alice.conversation.keys.tell_losses()
    assert len(filled.alice.open_losses()) == 1
    refuse_changes(filled.bob, on=False)
    with trio.fail_after(PATIENCE_S):
        async with resumed_nodes(filled):
            pass
    assert filled.alice.open_losses() == []
    assert filled.alice.counts().void == filled.bob.counts().void == 100


async def test_a_key_that_the_peer_refuses_to_hold_is_not_delivered(filled: Two) -> None:
    async with two_nodes(filled) as nodes:
        refuse_changes(filled.bob, on=True)
        with pytest.raises(LinkDown):
            await nodes.alice.supply.allocate("m", ("s",), 8, 256)
        assert filled.alice.counts().delivered == 0
        refuse_changes(filled.bob, on=False)
        assert len(await nodes.alice.supply.allocate("m", ("s",), 8, 256)) == 8


async def test_a_key_of_which_the_peer_was_not_heard_is_not_delivered_and_becomes_free(filled: Two) -> None:
    with trio.fail_after(PATIENCE_S):
        async with two_nodes(filled) as nodes, trio.open_nursery() as nursery:
            gate = put_behind_gate(nodes.bob).gate

            async def ask() -> None:
                with pytest.raises(LinkDown):
                    await nodes.alice.supply.allocate("m", ("s",), 8, 256)

            nursery.start_soon(ask)
            await until(lambda: filled.alice.counts().assigned == 8)
            await trio.sleep(0.05)
            nodes.alice.conversation._requests.close()  # as at the end of a session
            await until(lambda: bool(filled.alice.open_releases()))
            assert filled.alice.counts().delivered == 0
            gate.set()
            await until(lambda: not filled.alice.open_releases())
    assert mirrored(filled)
    assert filled.alice.counts().void == 0


async def test_what_the_peer_could_not_void_stays_open_and_the_front_of_a_stock_waits_for_its_slave(
    filled: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Assignments, "can_release", False)  # as of protocol 1
    whole = filled.alice.assign("m", ["s"], 5, 256, 0.0)
    stock = filled.alice.assign("m", ["s"], 5, 256, 0.0, stock=True)
    for assignment in (whole, stock):
        filled.bob.accept_assignment(assignment, 0.0)
    filled.alice.acknowledge(stock.assignment_id)
    taken = filled.alice.take_from_stock("m", "s", 2)
    releases = [Release(assignment=whole), filled.alice.begin_release(stock.assignment_id)]
    async with two_nodes(filled) as nodes:
        assignments = nodes.alice.conversation.keys.assignments
        refuse_changes(filled.bob, on=True)
        with pytest.raises(LinkError, match="could not void"):
            await assignments.release(releases)
        assert filled.alice.counts().void == 0
        refuse_changes(filled.bob, on=False)
        await assignments.release(releases)
    assert filled.alice.counts().void == filled.bob.counts().void == 5
    fetched = filled.bob.deliver_to_slave("s", "m", [key.key_id for key in taken])
    assert [key.key for key in fetched] == [key.key for key in taken]


async def test_keys_set_aside_for_one_slave_serve_no_request_for_several(filled: Two) -> None:
    async with two_nodes(filled) as nodes, supplied(nodes, [ME]) as (supply, peer):
        await supply.allocate("m", ("s",), 1, 256)
        await until(lambda: filled.alice.stock_count("m", "s") > 0)
        peer.reachable = False
        for slaves, size_bits in ((("s", "t"), 256), (("s",), 128)):
            with pytest.raises(LinkDown):
                await supply.allocate("m", slaves, 1, size_bits)
        assert len(await supply.allocate("m", ("s",), 1, 256)) == 1


async def test_what_the_peer_refuses_to_set_aside_is_no_stock(filled: Two) -> None:
    with structlog.testing.capture_logs() as logs:

        def refused() -> bool:
            return "stock.refused" in [line["event"] for line in logs]

        async with two_nodes(filled) as nodes, supplied(nodes, [ME]) as (supply, _):
            refuse_changes(filled.bob, on=True)
            with pytest.raises(LinkDown):
                await supply.allocate("m", ("s",), 1, 256)
            await until(refused)
            await trio.sleep(0.05)
            assert filled.alice.stock_count("m", "s") == 0
            refuse_changes(filled.bob, on=False)


async def test_a_request_that_cannot_be_met_leaves_every_stock_as_it_is(
    filled: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock_room, "LOOK_AGAIN_S", 0.0)
    for master in ("m", "n", "idle"):
        stock = filled.alice.assign(master, ["s"], 5, 256, 0.0, stock=True)
        filled.bob.accept_assignment(stock, 0.0)
        filled.alice.acknowledge(stock.assignment_id)
    async with two_nodes(filled) as nodes:
        supply = LinkKeySupply(nodes.alice.storage, CutPeer(nodes.alice.conversation))
        for master in ("m", "n"):  # both ask
            assert len(await supply.allocate(master, ("s",), 1, 256)) == 1
        free = filled.alice.stored_key_count()
        # All that is free, the own stock, and that of the pair that does not ask: one key too few.
        with pytest.raises(NotEnoughKeys):
            await supply.allocate("m", ("s",), free + 5 + 5 + 1, 256)
        assert [filled.alice.stock_count(master, "s") for master in ("m", "n", "idle")] == [5, 5, 5]
        assert len(await supply.allocate("n", ("s",), free + 5 + 5, 256)) == free + 10
        assert filled.alice.stock_count("m", "s") == 5


async def test_a_pair_whose_share_is_used_up_spends_no_assignment_on_its_next_requests(filled: Two) -> None:
    async with two_nodes(filled) as nodes:
        put_behind_gate(nodes.bob, 20).gate.set()
        supply = nodes.alice.supply
        for _ in range(2):
            await supply.allocate("m", ("s",), 8, 256)
        with pytest.raises(ShareUsedUp):
            await supply.allocate("m", ("s",), 8, 256)
        last_assignment_id = filled.alice.positions().last_assignment_id
        with pytest.raises(ShareUsedUp):
            await supply.allocate("m", ("s",), 8, 256)
        assert filled.alice.positions().last_assignment_id == last_assignment_id


async def test_both_sites_count_the_chunks_that_encryptors_ask_for(filled: Two) -> None:
    async with two_nodes(filled) as nodes:
        await nodes.alice.supply.allocate("m", ("s",), 3, 512)
        assert nodes.alice.supply.assigned_chunks == 6
        assert nodes.bob.conversation.keys.accepted_chunks == 6


async def test_an_encryptor_is_told_that_its_key_was_recorded(stores: Two) -> None:  # noqa: F811
    block = make_block(1, 20)
    recorded = msgspec.structs.replace(block.record, recorded=True)
    add_block(dataclasses.replace(block, record=recorded), stores.alice, stores.bob)
    async with two_nodes(stores) as nodes:
        (key,) = await nodes.alice.supply.allocate("m", ("s",), 1, 256)
        (same,) = await nodes.bob.supply.fetch("s", "m", (key.key_id,))
        assert key.extension["recorded"] is same.extension["recorded"] is True
