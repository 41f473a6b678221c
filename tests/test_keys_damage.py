"""Flipped bits in what is sealed: what does not open is given up at both sites, and the store goes on."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from keys_support import Site, add_block, assigned, make_block, pairs, preshared
from test_keys_states import flip_a_bit

from qnode.errors import KeyNotFound, NotEnoughKeys, PoolExhausted, StoreError, StoreUnusable
from qnode.keys import KeyRange, Loss, PadId, SqliteKeyStore, StoreCondition

pytestmark = pytest.mark.usefixtures("each_store")

N_CHUNKS = 600
Pair = tuple[SqliteKeyStore, SqliteKeyStore]


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Pair]:
    """Two stores with a block of 600 chunks each half, and 2 x 200 pads."""
    with Site(tmp_path / "a", "alice").open() as alice, Site(tmp_path / "b", "bob").open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(400))
        add_block(make_block(1, N_CHUNKS), alice, bob)
        yield alice, bob


def settle(*pair: SqliteKeyStore) -> None:
    """Let the sites tell each other what they lost."""
    for store, other in (pair, pair[::-1], pair, pair[::-1]):
        for loss in store.open_losses():
            other.accept_loss(loss)
            other.accept_loss(loss)  # a repetition changes nothing
            store.finish_loss(loss.loss_id)
    assert not any(store.open_losses() for store in pair)


def spoil(store: SqliteKeyStore, kind: str, segment: int, unit: int) -> None:
    with store._database.change(anchored=False) as tx:
        where = "kind = ? AND segment = ? AND unit = ?"
        (sealed,) = tx.connection.execute(
            f"SELECT sealed FROM sealed_unit WHERE {where}", (kind, segment, unit)
        ).fetchone()
        spoilt = sealed[:40] + bytes([sealed[40] ^ 1]) + sealed[41:]
        tx.connection.execute(
            f"UPDATE sealed_unit SET sealed = ? WHERE {where}", (spoilt, kind, segment, unit)
        )


def test_a_unit_of_which_only_bytes_are_left_counts_as_one_that_does_not_open(stores: Pair) -> None:
    alice, bob = stores
    with alice._database.change(anchored=False) as tx:
        where = "kind = 'chunk' AND segment = ? AND unit = ?"
        tx.connection.execute(f"UPDATE sealed_unit SET sealed = ? WHERE {where}", (b"x", 1, 0))
    with pytest.raises(StoreError):
        alice.deliver_to_master(assigned(alice, bob, 4))
    (loss,) = alice.new_losses()
    assert loss.n_chunks == 128
    settle(alice, bob)
    same_at_both(alice, bob)


def same_at_both(alice: SqliteKeyStore, bob: SqliteKeyStore) -> None:
    a, b = alice.counts(), bob.counts()
    assert (a.available_own, a.available_peer, a.assigned) == (b.available_peer, b.available_own, b.assigned)


def test_free_chunks_that_do_not_open_are_given_up_at_both_sites_and_others_are_delivered(
    stores: Pair,
) -> None:
    alice, bob = stores
    spoil(alice, "chunk", 1, 0)
    assignment_id = assigned(alice, bob, 10)
    with pytest.raises(StoreError, match="not open here"):
        alice.deliver_to_master(assignment_id)
    (loss,) = alice.new_losses()
    assert (loss.n_chunks, loss.pads) == (128, 0)
    assert alice.new_losses() == []
    settle(alice, bob)
    same_at_both(alice, bob)
    assert alice.counts().void == bob.counts().void == 128
    keys = alice.deliver_to_master(assigned(alice, bob, 10))
    assert pairs(bob.deliver_to_slave("s", "m", [key.key_id for key in keys])) == pairs(keys)


def test_a_loss_that_is_finished_twice_finishes_no_other(stores: Pair) -> None:
    alice, bob = stores
    told = []
    for unit in (0, 1):
        spoil(alice, "chunk", 1, unit)
        assignment = alice.assign("m", ["s"], 150, 256, 0.0)
        bob.accept_assignment(assignment, 0.0)
        with pytest.raises(StoreError):
            alice.deliver_to_master(assignment.assignment_id)
        (loss,) = alice.open_losses()
        told.append(loss)
        alice.finish_loss(told[0].loss_id)
    assert alice.open_losses() == [told[1]]


def test_of_keys_that_wait_for_their_slave_only_those_are_given_up_that_do_not_open(stores: Pair) -> None:
    alice, bob = stores
    keys = alice.deliver_to_master(assigned(alice, bob, 200))  # of units 0 and 1
    spoil(bob, "chunk", 1, 1)
    for lost in (keys[128], keys[199]):
        with pytest.raises(KeyNotFound):
            bob.deliver_to_slave("s", "m", [lost.key_id])
    assert [loss.n_chunks for loss in bob.new_losses()] == [128]
    ids = [key.key_id for key in keys[:128]]
    assert pairs(bob.deliver_to_slave("s", "m", ids)) == pairs(keys[:128])
    settle(alice, bob)
    same_at_both(alice, bob)


def test_stock_that_does_not_open_is_given_up_and_what_was_taken_of_it_can_still_be_fetched(
    stores: Pair,
) -> None:
    alice, bob = stores
    stock = alice.assign("m", ["s"], 200, 256, 0.0, stock=True)
    bob.accept_assignment(stock, 0.0)
    alice.acknowledge(stock.assignment_id)
    taken = alice.take_from_stock("m", "s", 3)
    spoil(alice, "chunk", 1, 1)
    taken += alice.take_from_stock("m", "s", 2)
    with pytest.raises(NotEnoughKeys):
        alice.take_from_stock("m", "s", 150)
    settle(alice, bob)
    assert alice.stock_count("m", "s") == 0
    assert pairs(bob.deliver_to_slave("s", "m", [key.key_id for key in taken])) == pairs(taken)
    assert bob.counts().assigned == alice.counts().assigned == 0


def test_a_loss_beyond_what_is_here_costs_nothing(stores: Pair) -> None:
    alice, _ = stores
    ranges = (KeyRange(1, 590, 2**48), KeyRange(1, 2**47, 2**47), KeyRange(99, 0, 2**48))
    alice.accept_loss(Loss(loss_id=1, ranges=ranges, send_after=PadId(-1, -1)))
    assert alice.counts().void == 10


def test_a_block_whose_secret_does_not_open_is_given_up(stores: Pair) -> None:
    alice, bob = stores
    add_block(make_block(2, 20), alice, bob)
    spoil(bob, "block_secret", 1, 0)
    assignment = alice.assign("m", ["s"], 4, 256, 0.0)
    with pytest.raises(StoreError, match="not all free"):
        bob.accept_assignment(assignment, 0.0)
    assert [loss.n_chunks for loss in bob.new_losses()] == [N_CHUNKS]
    bob.void_accepted(assignment)
    alice.void_assignment(assignment.assignment_id)
    settle(alice, bob)
    same_at_both(alice, bob)
    keys = alice.deliver_to_master(assigned(alice, bob, 4))
    assert pairs(bob.deliver_to_slave("s", "m", [key.key_id for key in keys])) == pairs(keys)


def test_pads_for_sending_that_do_not_open_are_passed_over(stores: Pair) -> None:
    alice, bob = stores
    spoil(alice, "pad_send", 0, 0)
    pad = alice.reserve_send_pad()
    assert pad.pad_id == PadId(0, 128)
    assert [loss.pads for loss in alice.new_losses()] == [128]
    assert bob.receive_pad(pad.pad_id) == pad.pad
    assert alice.open_losses() == []  # nobody else needs to know


def test_pads_for_receiving_that_do_not_open_are_not_sent_with_once_the_peer_knows(stores: Pair) -> None:
    alice, bob = stores
    pad = alice.reserve_send_pad()
    spoil(bob, "pad_receive", 0, 0)
    with pytest.raises(StoreError, match="used, skipped or unknown"):
        bob.receive_pad(pad.pad_id)
    assert not alice.confirm_generation(bob.view_of_peer(), bob.standing())  # no sign of a set-back
    settle(bob, alice)
    pad = alice.reserve_send_pad()
    assert pad.pad_id == PadId(0, 128)
    assert bob.receive_pad(pad.pad_id) == pad.pad


@pytest.mark.parametrize("kind", ["session_root", "hash_key"])
def test_without_the_secrets_of_the_session_keys_are_still_delivered(tmp_path: Path, kind: str) -> None:
    site = Site(tmp_path / "a", "alice")
    with site.open() as alice, Site(tmp_path / "b", "bob").open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(400))
        add_block(make_block(1, 20), alice, bob)
        assignment_id = assigned(alice, bob, 4)
        spoil(alice, kind, 0, 0)
    with site.open(create=False) as alice:
        with pytest.raises(PoolExhausted, match="qnodectl restore"):
            alice.session_root() if kind == "session_root" else alice.hash_keys()
        assert len(alice.deliver_to_master(assignment_id)) == 4
        alice.load_preshared(preshared(402), replace=True)
        assert alice.hash_keys().send == preshared(402)[32:48]


def test_a_damaged_canary_is_told_from_a_wrong_store_key(tmp_path: Path) -> None:
    site = Site(tmp_path / "a", "alice")
    with site.open() as alice:
        alice.load_preshared(preshared(400))
        spoil(alice, "canary", 0, 0)
    with pytest.raises(StoreUnusable, match="store key"):
        site.open(store_key=b"x" * 32)
    for _ in range(2):
        with site.open(create=False) as alice:
            assert alice.condition().state == StoreCondition.SERVING


@pytest.mark.parametrize("seed", range(8))
def test_whatever_bits_flip_both_sites_hold_the_same_again_and_go_on(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    sites = Site(tmp_path / "a", "alice"), Site(tmp_path / "b", "bob")
    with sites[0].open() as alice, sites[1].open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(400))
        for block_id in (1, 2):
            add_block(make_block(block_id, N_CHUNKS), alice, bob)
        for owner, peer in ((alice, bob), (bob, alice)):
            for number in (30, 50, 20):
                assigned(owner, peer, number, rng.choice([256, 600]))
        for _ in range(4):
            flip_a_bit(rng.choice((alice, bob)), rng)
    with sites[0].open(create=False) as alice, sites[1].open(create=False) as bob:
        for owner in (alice, bob):
            while owner.expire(1e6, 10.0):
                pass
        settle(alice, bob)
        for owner in (alice, bob):
            while owner.expire(1e6, 10.0):
                pass
        settle(alice, bob)
        same_at_both(alice, bob)
        add_block(make_block(3, 20), alice, bob)
        for owner, peer in ((alice, bob), (bob, alice)):
            for _ in range(40):
                try:
                    keys = owner.deliver_to_master(assigned(owner, peer, 5))
                except StoreError:
                    settle(alice, bob)
                    for one in (alice, bob):
                        for assignment in one.unacknowledged_assignments():
                            (bob if one is alice else alice).void_accepted(assignment)
                            one.void_assignment(assignment.assignment_id)
                    continue
                try:
                    fetched = peer.deliver_to_slave("s", "m", [key.key_id for key in keys])
                except KeyNotFound:
                    settle(alice, bob)
                    continue
                assert pairs(fetched) == pairs(keys)
        settle(alice, bob)
