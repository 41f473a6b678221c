"""Crashes, restored databases, damage: what was delivered never comes back, nothing starts empty over it."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from keys_support import LAYOUT, STORE_KEYS, Site, add_block, assigned, make_block, pairs, preshared

from qnode.errors import FieldError, KeyNotFound, LinkDown, PoolExhausted, StoreError, StoreUnusable
from qnode.keys import (
    Assignment,
    BlockState,
    Handover,
    KeyRange,
    PadId,
    Positions,
    SqliteKeyStore,
    StoreCondition,
    key_id,
    open_store,
)
from qnode.keys._anchor import Anchor
from qnode.keys._preshared import preshared_fingerprint
from qnode.keys._restore import MOST_TAGS_UNDER_WAY

pytestmark = pytest.mark.usefixtures("each_store")

SERVING = StoreCondition.SERVING
WAITING = StoreCondition.NEEDS_PEER_CONFIRMATION
HALTED = StoreCondition.NEEDS_RESTORE
N_PADS = 200


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Site, Site]:
    """Two closed stores with a pre-shared key of 2 x 100 pads and one block of 20 chunks available."""
    both = Site(tmp_path / "a", "alice"), Site(tmp_path / "b", "bob")
    with both[0].open() as alice, both[1].open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(N_PADS))
        add_block(make_block(1, 20), alice, bob)
    return both


def meet(a: SqliteKeyStore, b: SqliteKeyStore) -> tuple[bool, bool]:
    """Let both stores hear what the other one says in its hello; tell which of them were voided."""
    stores = {"a": a, "b": b}
    said = {
        name: (one.positions().generation, one.standing(), one.view_of_peer()) for name, one in stores.items()
    }
    voided = {}
    for name, other in (("a", "b"), ("b", "a")):
        generation, standing, view = said[other]
        stores[name].note_peer(generation, standing)
        voided[name] = stores[name].confirm_generation(view, standing)
    return voided["a"], voided["b"]


def test_everything_survives_closing_and_opening(sites: tuple[Site, Site]) -> None:
    a, b = sites
    with a.open() as alice, b.open() as bob:
        open_one = alice.assign("m", ["s"], 2, 256, 0.0)
        done = assigned(alice, bob, 2)
        before = alice.counts(), alice.positions(), alice.pads_left()
    with a.open(create=False) as alice, b.open(create=False) as bob:
        assert alice.condition().state == SERVING
        assert (alice.counts(), alice.positions(), alice.pads_left()) == before
        assert alice.unacknowledged_assignments() == [open_one]
        keys = alice.deliver_to_master(done)
        assert pairs(bob.deliver_to_slave("s", "m", [key.key_id for key in keys])) == pairs(keys)


def consume_as_master(store: SqliteKeyStore) -> object:
    return store.deliver_to_master(1)


def consume_pad(store: SqliteKeyStore) -> object:
    return store.reserve_send_pad()


def consume_as_slave(store: SqliteKeyStore) -> object:
    return store.deliver_to_slave("t", "n", [key_id(make_block(1, 20).key[:32], 10)])


def accept(store: SqliteKeyStore, *, stock: bool) -> object:
    assignment = Assignment(
        assignment_id=2,
        owner="bob",
        master_sae="n",
        slave_saes=("t",),
        size_bits=256,
        ranges=(KeyRange(1, 15, 1),),
        stock=stock,
    )
    return store.accept_assignment(assignment, 0.0)


def accept_request(store: SqliteKeyStore) -> object:
    return accept(store, stock=False)


def accept_stock(store: SqliteKeyStore) -> object:
    return accept(store, stock=True)


@pytest.mark.parametrize(
    "consume",
    [
        accept_request,
        accept_stock,
        consume_as_master,
        consume_pad,
        lambda store: store.confirm_receive_pad(PadId(0, 0)),
        lambda store: store.record_block_opened(2, 0.0),
        lambda store: store.give_away(1),
        lambda store: store.expire(100.0, 60.0),
        lambda store: store.take_from_stock("m", "s", 1),
        lambda store: store.take_over(Handover(handover_id=1, giver="bob", ranges=(KeyRange(1, 19, 1),))),
        consume_as_slave,
    ],
)
def test_a_backup_from_just_before_anything_consumed_is_found_out(
    sites: tuple[Site, Site], tmp_path: Path, consume: Callable[[SqliteKeyStore], object]
) -> None:
    a, b = sites
    with a.open() as alice, b.open() as bob:
        assert assigned(alice, bob, 2) == 1
        stock = alice.assign("m", ["s"], 1, 256, 0.0, stock=True)
        bob.accept_assignment(stock, 0.0)
        alice.acknowledge(stock.assignment_id)
        alice.accept_assignment(bob.assign("n", ["t"], 1, 256, 0.0), 0.0)
        backup = a.copy_to(tmp_path / "backup")
        consume(alice)
    a.restore_database_from(backup)
    with a.open() as alice:
        assert alice.condition().state == WAITING
        assert "older" in alice.condition().reason
        counts = alice.counts()
        assert (counts.available_own, counts.available_peer, counts.assigned) == (0, 0, 0)
        assert (counts.void, counts.delivered) == (20, 0)
        assert alice.block_state(1) == BlockState.VOID


def test_a_restored_store_serves_nothing_until_the_peer_has_confirmed(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    backup = a.copy_to(tmp_path / "backup")
    with a.open() as alice, b.open() as bob:
        for _ in range(3):
            bob.confirm_receive_pad(alice.reserve_send_pad().pad_id)
        bob.note_peer(alice.positions().generation)
    a.restore_database_from(backup)
    a.open().close()  # the state is durable
    with a.open() as alice, b.open() as bob:
        for refused in (
            lambda: alice.assign("m", ["s"], 1, 256, 0.0),
            lambda: alice.record_block_opened(9, 0.0),
            lambda: alice.take_from_stock("m", "s", 1),
            alice.reserve_send_pad,
        ):
            with pytest.raises(LinkDown, match="waits for the peer"):
                refused()
        assert bob.confirm_generation(alice.view_of_peer())  # a later era: Bob's chunks are void too
        assert not alice.confirm_generation(bob.view_of_peer())
        alice.keep_pad_segments(bob.pad_segments())
        assert (alice.condition().state, bob.counts().void) == (SERVING, 20)
        assert alice.reserve_send_pad().pad_id == PadId(0, 3)
        add_block(make_block(2, 4), alice, bob)
        keys = alice.deliver_to_master(assigned(alice, bob, 2))
        assert pairs(bob.deliver_to_slave("s", "m", [key.key_id for key in keys])) == pairs(keys)
    with a.open() as alice:
        assert alice.condition().state == SERVING


def test_numbers_and_the_sum_of_epsilons_go_on_behind_the_anchors_after_a_restore(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    backup = a.copy_to(tmp_path / "backup")
    with a.open() as alice, b.open() as bob:
        add_block(make_block(7, 4), alice, bob)
        alice.deliver_to_master(assigned(alice, bob, 1))
        epsilon = alice.positions().epsilon
    assert epsilon > 1.9e-9
    a.restore_database_from(backup)
    with a.open() as alice:
        assert alice.last_block_id == 7
        assert alice.positions().epsilon == epsilon
        assert alice.positions().last_assignment_id == 1


def test_a_virtual_machine_set_back_with_its_anchor_is_found_out_by_the_peer(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    snapshot = a.copy_to(tmp_path / "snapshot")
    with a.open() as alice, b.open() as bob:
        used = [alice.reserve_send_pad().pad_id for _ in range(2)]
        bob.confirm_receive_pad(used[-1])
        bob.note_peer(alice.positions().generation)
        bob.note_peer(0)
    with snapshot.open() as alice, b.open() as bob:
        assert alice.condition().state == SERVING  # nothing on this machine can tell
        assert alice.confirm_generation(bob.view_of_peer())
        assert alice.counts().void == 20
        assert alice.reserve_send_pad().pad_id == PadId(0, 2 + MOST_TAGS_UNDER_WAY)
        assert alice.positions().generation > bob.view_of_peer().generation


def test_without_its_anchor_a_store_waits_and_then_goes_on(sites: tuple[Site, Site]) -> None:
    a, b = sites
    with a.open() as alice, b.open() as bob:
        bob.note_peer(alice.positions().generation)
    a.anchor.write_bytes(b"scribble" * 100)
    for _ in range(2):
        with a.open() as alice:
            assert alice.condition().state == WAITING
            assert "anchor" in alice.condition().reason
            with pytest.raises(LinkDown):
                alice.assign("m", ["s"], 1, 256, 0.0)
        a.anchor.unlink(missing_ok=True)
    with a.open() as alice, b.open() as bob:
        assert meet(alice, bob) == (False, False)
        assert alice.counts().available_own == 10
        alice.reserve_send_pad()
    with a.open() as alice:
        assert alice.condition().state == SERVING


def test_without_its_anchor_an_older_store_is_found_out_by_the_peer(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    backup = a.copy_to(tmp_path / "backup", anchor=False)
    with a.open() as alice, b.open() as bob:
        alice.deliver_to_master(assigned(alice, bob, 1))
        bob.note_peer(alice.positions().generation)
    with backup.open() as alice, b.open() as bob:
        assert alice.condition().state == WAITING
        assert meet(alice, bob) == (True, False)
        assert alice.counts().void == 20
        assert meet(alice, bob) == (False, True)


def without_anchors(*sites: Site) -> None:
    for site in sites:
        site.anchor.unlink()


def test_two_stores_without_their_anchors_do_not_confirm_each_other(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    with a.open() as alice, b.open() as bob:
        meet(alice, bob)
        assert assigned(alice, bob, 2) == 1
        backups = [site.copy_to(tmp_path / f"backup-{site.role}", anchor=False) for site in sites]
        keys = alice.deliver_to_master(1)
        bob.deliver_to_slave("s", "m", [key.key_id for key in keys])
        bob.confirm_receive_pad(alice.reserve_send_pad().pad_id)
    for site, backup in zip(sites, backups, strict=True):
        site.restore_database_from(backup)
    without_anchors(a, b)
    with a.open() as alice, b.open() as bob:
        assert meet(alice, bob) == (True, True)
        for store in (alice, bob):
            assert store.condition().state == HALTED
            assert "qnodectl restore" in store.condition().reason
            assert store.counts().void == 20
            assert store.pads_left().send == store.pads_left().receive == 0
            with pytest.raises(LinkDown, match="qnodectl restore"):
                store.take_from_stock("m", "s", 1)
        assert meet(alice, bob) == (False, False)  # and nothing but a new key ends it
    with a.open() as alice, b.open() as bob:
        for store in (alice, bob):
            assert store.condition().state == HALTED
            with pytest.raises(StoreError, match="make a new one"):
                store.load_preshared(preshared(N_PADS), replace=True)
            assert store.condition().state == HALTED
            store.load_preshared(preshared(N_PADS + 2), replace=True)
            assert store.condition().state == SERVING
        assert meet(alice, bob) == (False, False)
        add_block(make_block(2, 4), alice, bob)
        keys = alice.deliver_to_master(assigned(alice, bob, 2))
        assert pairs(bob.deliver_to_slave("s", "m", [key.key_id for key in keys])) == pairs(keys)


def test_a_store_that_is_older_than_its_anchor_vouches_for_no_other(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    with a.open() as alice, b.open() as bob:
        meet(alice, bob)
        backups = [site.copy_to(tmp_path / f"backup-{site.role}") for site in sites]
        alice.deliver_to_master(assigned(alice, bob, 2))
        bob.record_block_opened(2, 0.0)
    for site, backup in zip(sites, backups, strict=True):
        site.restore_database_from(backup)
    without_anchors(a)
    with a.open() as alice, b.open() as bob:
        assert bob.condition().state == WAITING
        meet(alice, bob)
        assert alice.condition().state == HALTED


def test_two_stores_older_than_their_anchors_go_on_by_themselves(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    backups = [site.copy_to(tmp_path / f"backup-{site.role}") for site in sites]
    with a.open() as alice, b.open() as bob:
        alice.deliver_to_master(assigned(alice, bob, 2))
        bob.confirm_receive_pad(alice.reserve_send_pad().pad_id)
    for site, backup in zip(sites, backups, strict=True):
        site.restore_database_from(backup)
    with a.open() as alice, b.open() as bob:
        meet(alice, bob)
        for store in (alice, bob):
            assert (store.condition().state, store.counts().void) == (SERVING, 20)
        assert alice.reserve_send_pad().pad_id == PadId(0, 1)


def test_a_store_without_its_anchor_is_not_confirmed_by_a_peer_that_does_not_remember_it(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    with a.open() as alice, b.open() as bob:
        meet(alice, bob)
    without_anchors(a)
    new = Site(tmp_path / "new", "bob")
    with a.open() as alice, new.open() as bob:
        bob.load_preshared(preshared(N_PADS))
        meet(alice, bob)
        assert alice.condition().state == HALTED


def test_a_store_without_its_anchor_waits_for_a_peer_that_can_say_how_he_stands(
    sites: tuple[Site, Site],
) -> None:
    a, b = sites
    without_anchors(a)
    with a.open() as alice, b.open() as bob:
        assert not alice.confirm_generation(bob.view_of_peer())  # of protocol 1
        assert alice.condition().state == WAITING
        assert alice.counts().available_own == 10


def test_a_store_without_its_anchor_gives_up_what_its_peer_cannot_have_seen_used(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    with a.open() as alice, b.open() as bob:
        meet(alice, bob)
        for owner, peer in ((alice, bob), (bob, alice)):
            stock = owner.assign("m", ["s"], 3, 256, 0.0, stock=True)
            peer.accept_assignment(stock, 0.0)
            owner.acknowledge(stock.assignment_id)
        backup = a.copy_to(tmp_path / "backup", anchor=False)
        alice.take_from_stock("m", "s", 1)  # with the link down: nobody else can know
        used = alice.reserve_send_pad()  # of a tag that does not arrive
    a.restore_database_from(backup)
    without_anchors(a)
    with a.open() as alice, b.open() as bob:
        assert meet(alice, bob) == (False, False)
        assert (alice.counts().assigned, alice.counts().void) == (0, 6)
        assert alice.stock_count("m", "s") == 0
        assert alice.reserve_send_pad().pad_id > used.pad_id
        assert alice.counts().available_own == bob.counts().available_peer == 7


@pytest.mark.parametrize("restored", [0, 1])
def test_what_a_store_without_its_anchor_gives_up_is_neither_free_nor_in_stock_at_its_peer(
    sites: tuple[Site, Site], tmp_path: Path, restored: int
) -> None:
    with sites[0].open() as alice, sites[1].open() as bob:
        meet(alice, bob)
        for _ in range(2):
            stock = alice.assign("m", ["s"], 3, 256, 0.0, stock=True)
            bob.accept_assignment(stock, 0.0)
            alice.acknowledge(stock.assignment_id)
        backup = sites[restored].copy_to(tmp_path / "backup", anchor=False)
        bob.release_accepted(alice.begin_release(1))
        alice.finish_release(1)
    sites[restored].restore_database_from(backup)
    without_anchors(sites[restored])
    with sites[0].open() as alice, sites[1].open() as bob:
        assert meet(alice, bob) == (False, False)
        store, peer = (alice, bob) if restored == 0 else (bob, alice)
        for loss in store.open_losses():
            peer.accept_loss(loss)
        assert alice.stock_count("m", "s") == 0
        here, there = alice.counts(), bob.counts()
        assert (here.available_own, here.assigned) == (there.available_peer, there.assigned) == (4, 0)
        assert not store.new_losses()  # nothing is damaged


@pytest.mark.sqlite
def test_a_preshared_key_is_not_loaded_again_when_database_and_anchor_are_gone(
    sites: tuple[Site, Site],
) -> None:
    for site in sites:
        shutil.rmtree(site.path.parent)
        site.anchor.unlink()
        with site.open() as store:
            with pytest.raises(StoreError, match="make a new one for both sites"):
                store.load_preshared(preshared(N_PADS))
            longer = preshared(N_PADS) + bytes(64)  # begins with the same pads
            with pytest.raises(StoreError, match="make a new one for both sites"):
                store.load_preshared(longer)
            store.load_preshared(preshared(N_PADS + 2))


def test_a_site_made_anew_with_the_preshared_key_of_before_hears_from_the_peer_what_was_used(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    with a.open() as alice, b.open() as bob:
        meet(alice, bob)
        used = [alice.reserve_send_pad().pad_id for _ in range(3)]
        bob.confirm_receive_pad(used[0])
    new = Site(tmp_path / "new", "alice")  # all is gone, the register too
    with new.open() as alice, b.open() as bob:
        alice.load_preshared(preshared(N_PADS))
        assert meet(alice, bob) == (True, False)
        assert meet(alice, bob) == (False, True)
        assert alice.reserve_send_pad().pad_id > used[-1]


def test_two_machines_set_back_whole_are_found_out_by_their_witnesses(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    witnesses = tmp_path / "elsewhere-a", tmp_path / "elsewhere-b"
    with sites[0].open(witness=witnesses[0]) as alice, sites[1].open(witness=witnesses[1]) as bob:
        meet(alice, bob)
        assert assigned(alice, bob, 2) == 1
        for store in (alice, bob):
            store.tell_witness()
        snapshots = [site.copy_to(tmp_path / f"snapshot-{site.role}") for site in sites]
        keys = alice.deliver_to_master(1)
        bob.deliver_to_slave("s", "m", [key.key_id for key in keys])
        for store in (alice, bob):
            store.tell_witness()
    with snapshots[0].open() as alice, snapshots[1].open() as bob:
        assert (alice.condition().state, bob.condition().state) == (SERVING, SERVING)  # without a witness
    with (
        snapshots[0].open(witness=witnesses[0]) as alice,
        snapshots[1].open(witness=witnesses[1]) as bob,
    ):
        for store in (alice, bob):
            assert store.condition().state == WAITING
            assert "witness" in store.condition().reason
            assert store.counts().void == 20
        meet(alice, bob)
        for store in (alice, bob):
            assert store.condition().state == HALTED
            store.load_preshared(preshared(N_PADS + 2), replace=True)
            store.tell_witness()
            assert store.condition().state == SERVING


def test_a_machine_set_back_while_its_store_is_open_is_found_out_by_its_witness(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    witness = tmp_path / "elsewhere"
    with a.open(witness=witness) as alice, b.open() as bob:
        meet(alice, bob)
        snapshot = a.copy_to(tmp_path / "snapshot")
        alice.reserve_send_pad()
        with snapshot.open(witness=witness) as resumed:
            resumed.tell_witness()
            alice.tell_witness()
            with pytest.raises(StoreUnusable, match="set back"):
                resumed.tell_witness()
    with snapshot.open(witness=witness) as resumed, b.open() as bob:
        assert resumed.condition().state == WAITING
        meet(resumed, bob)
        assert resumed.condition().state == SERVING
        assert resumed.reserve_send_pad().pad_id == PadId(0, 1 + MOST_TAGS_UNDER_WAY)


def test_a_load_that_was_cut_short_is_made_up_for(tmp_path: Path) -> None:
    site = Site(tmp_path, "alice")
    with site.open() as alice:
        alice._register.begin(preshared_fingerprint(preshared(N_PADS)[:64]))
    with site.open() as alice:  # cut before the commit: nothing of the key was used
        alice.load_preshared(preshared(N_PADS))
    register = site.anchor.with_name("anchor.preshared")
    assert b"true" in register.read_bytes()
    register.write_bytes(register.read_bytes().replace(b"true", b"false"))
    site.open().close()  # cut after it: made up for
    assert b"true" in register.read_bytes()


@pytest.mark.parametrize(
    "use",
    [
        lambda alice, bob: bob.confirm_receive_pad(alice.reserve_send_pad().pad_id),
        lambda alice, bob: bob.accept_assignment(alice.assign("m", ["s"], 1, 256, 0.0), 0.0),
        lambda alice, bob: bob.take_over(alice.give_away(1)),
    ],
)
def test_a_store_set_back_within_one_session_is_found_out_by_what_the_peer_has_seen(
    sites: tuple[Site, Site], tmp_path: Path, use: Callable[[SqliteKeyStore, SqliteKeyStore], object]
) -> None:
    a, b = sites
    snapshot = a.copy_to(tmp_path / "snapshot")
    with a.open() as alice, b.open() as bob:
        bob.note_peer(alice.positions().generation)  # the hello; nothing after it tells a generation
        use(alice, bob)
    with snapshot.open() as alice, b.open() as bob:
        assert alice.confirm_generation(bob.view_of_peer())
        assert alice.counts().void == 20


def test_a_site_set_back_does_not_send_with_pads_of_which_the_peer_has_heard_in_a_hello(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    snapshot = a.copy_to(tmp_path / "snapshot")
    with a.open() as alice, b.open() as bob:
        # None of these reaches the peer.
        used = {alice.reserve_send_pad().pad_id for _ in range(MOST_TAGS_UNDER_WAY + 6)}
        bob.note_peer(alice.positions().generation, alice.standing())
    with snapshot.open() as alice, b.open() as bob:
        assert meet(alice, bob)[0]
        while alice.pads_left().send:
            assert alice.reserve_send_pad().pad_id not in used


def test_a_later_copy_from_before_a_site_was_set_back_does_not_pass_for_its_present_store(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    snapshot = a.copy_to(tmp_path / "snapshot")
    with a.open() as alice, b.open() as bob:
        bob.confirm_receive_pad(alice.reserve_send_pad().pad_id)
        for _ in range(50):  # of which the peer hears nothing
            alice.reserve_send_pad()
        later = a.copy_to(tmp_path / "later")
    with snapshot.open() as alice, b.open() as bob:
        assert meet(alice, bob)[0]
        assert alice.condition().state == SERVING
    snapshot.restore_database_from(later)
    with snapshot.open() as alice:
        assert alice.condition().state == WAITING
        assert "before this site was restored" in alice.condition().reason
        assert alice.counts().available_own == 0


def test_a_backup_from_before_a_new_preshared_key_gives_no_pads(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, _ = sites
    backup = a.copy_to(tmp_path / "backup")
    with a.open() as alice:
        alice.load_preshared(preshared(20), replace=True)
    a.restore_database_from(backup)
    with a.open() as alice:
        assert alice.pads_left().send == alice.pads_left().receive == 0
        alice.confirm_generation(alice.positions())
        with pytest.raises(PoolExhausted):
            alice.reserve_send_pad()


def test_of_a_new_preshared_key_no_pad_counts_as_used_for_those_of_the_key_before(
    sites: tuple[Site, Site],
) -> None:
    with sites[0].open() as alice, sites[1].open() as bob:
        for number in range(N_PADS // 2 + 1):
            sender, receiver = (alice, bob) if number % 2 else (bob, alice)
            receiver.confirm_receive_pad(sender.reserve_send_pad().pad_id)
        add_block(make_block(2, 20), alice, bob)
        meet(alice, bob)  # each hears how far the other has come
        meet(alice, bob)
        for store in (alice, bob):
            store.load_preshared(preshared(N_PADS + 2), replace=True)
        add_block(make_block(3, 20), alice, bob)
        before = alice.pads_left()
        assert meet(alice, bob) == (False, False)
        assert alice.pads_left() == bob.pads_left() == before
        assert alice.stored_key_count() > 0


def test_a_crash_between_commit_and_anchor_loses_the_keys_but_never_repeats_them(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    with a.open() as alice, b.open() as bob:
        assignment_id = assigned(alice, bob, 2)
        before = a.copy_to(tmp_path / "before")
        alice.deliver_to_master(assignment_id)
        crashed = a.copy_to(tmp_path / "crashed")
    shutil.copy(before.anchor, crashed.anchor)  # the anchor did not get there
    with crashed.open() as alice:
        assert alice.condition().state == SERVING
        assert alice.counts().delivered == 2
        with pytest.raises(StoreError):
            alice.deliver_to_master(assignment_id)
    crashed.restore_database_from(before)  # the anchor has caught up by now
    with crashed.open() as alice:
        assert alice.condition().state == WAITING


def test_a_torn_write_of_the_anchor_tells_of_the_step_before(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, _ = sites
    with a.open() as alice:
        alice.reserve_send_pad()
        before = a.anchor.read_bytes()
        alice.reserve_send_pad()
        after = a.anchor.read_bytes()
        changed = [i for i in range(len(after)) if after[i] != before[i]]
        middle = (changed[0] + changed[-1]) // 2
        crashed = a.copy_to(tmp_path / "crashed")
    crashed.anchor.write_bytes(after[:middle] + before[middle:])
    with crashed.open() as alice:
        assert alice.condition().state == SERVING
        assert alice.reserve_send_pad().pad_id == PadId(0, 2)


def step(generation: int) -> Positions:
    return Positions(generation=generation)


def test_a_torn_write_of_any_step_of_the_anchor_leaves_the_one_before(tmp_path: Path) -> None:
    path, key, store_id = tmp_path / "anchor", bytes(32), b"store"
    anchor = Anchor.create(path, key, store_id, step(0), b"")
    for generation in range(1, 6):
        before = path.read_bytes()
        anchor.advance(step(generation), b"")
        after = path.read_bytes()
        torn = [x if x == y else 0 for x, y in zip(after, before, strict=True)]
        (tmp_path / "torn").write_bytes(bytes(torn))
        left = Anchor.open(tmp_path / "torn", key, store_id)
        assert left is not None
        assert left.positions == step(generation - 1)
        left.close()
    anchor.close()


def test_an_anchor_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    path, key, store_id = tmp_path / "anchor", bytes(32), b"store"
    anchor = Anchor.create(path, key, store_id, step(3), b"")
    anchor.close()
    content = path.read_bytes()
    changed = content.replace(b'"generation":3', b'"generation":2')
    assert changed != content
    path.write_bytes(changed)
    assert Anchor.open(path, key, store_id) is None
    path.write_bytes(content)
    assert Anchor.open(path, bytes(31) + b"k", store_id) is None


@pytest.mark.sqlite
def test_a_commit_and_its_step_of_the_anchor_are_flushed_before_a_key_is_handed_out(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = sites
    flushed: list[int] = []
    flush = os.fdatasync

    def note(descriptor: int) -> None:
        flushed.append(descriptor)
        flush(descriptor)

    with a.open() as alice, b.open() as bob:
        assert assigned(alice, bob, 2) == 1
        (synchronous,) = alice._database._tx.connection.execute("PRAGMA synchronous").fetchone()
        assert synchronous == 2  # FULL: SQLite flushes its log with each commit
        monkeypatch.setattr(os, "fdatasync", note)
        alice.deliver_to_master(1)
        assert alice._database.anchor is not None
        assert flushed == [alice._database.anchor._descriptor]


def test_results_are_withheld_and_the_store_stops_when_the_anchor_cannot_be_written(
    sites: tuple[Site, Site],
) -> None:
    a, _ = sites
    with a.open() as alice:
        anchor = alice._database.anchor
        assert anchor is not None
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, anchor._descriptor)
        os.close(full)
        with pytest.raises(StoreUnusable, match="anchor could not be written"):
            alice.reserve_send_pad()
        with pytest.raises(StoreUnusable):
            alice.counts()
    with a.open() as alice:
        assert alice.reserve_send_pad().pad_id == PadId(0, 1)


@pytest.mark.sqlite
def test_a_full_disk_changes_nothing_and_passes(sites: tuple[Site, Site]) -> None:
    a, _ = sites
    with a.open() as alice:
        alice.record_block_opened(2, 0.0)
        before = alice.counts()
        with alice._database.look() as tx:
            (pages,) = tx.one("PRAGMA page_count")
            tx.connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="disk is full"):
            alice.prepare(make_block(2, 3000))
        assert (alice.counts(), alice.block_state(2)) == (before, BlockState.UNKNOWN)
        with alice._database.look() as tx:
            tx.connection.execute("PRAGMA max_page_count = 1000000")
        alice.prepare(make_block(2, 3000))
        assert alice.counts().prepared == 3000


@pytest.mark.sqlite
def test_a_fresh_store_whose_creation_was_cut_short_opens(tmp_path: Path) -> None:
    site = Site(tmp_path, "alice")
    site.open().close()
    site.anchor.unlink()
    site.path.with_name("keys.db.new").write_bytes(b"half a store")
    with site.open() as store:
        assert store.condition().state == SERVING
    assert site.anchor.exists()


@pytest.mark.sqlite
def test_a_store_that_is_gone_is_not_replaced_by_an_empty_one(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    a.path.unlink()
    with pytest.raises(StoreUnusable, match="database is gone"):
        a.open()
    b.anchor.unlink()
    b.path.rename(b.path.with_name("keys.db-wal"))
    with pytest.raises(StoreUnusable, match="its log"):
        b.open()
    with pytest.raises(StoreUnusable, match="no key store"):
        Site(tmp_path / "nowhere", "bob").open(create=False)


def scribble_in_the_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:-4096] = b"\x55" * (len(data) - 8192)
    path.write_bytes(data)


def a_newer_schema(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 3")
    connection.close()


def another_database(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other (x)")
    connection.close()


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b"not a database at all" * 500), "damaged"),
        (lambda path: path.write_bytes(b""), "not a qnode key store"),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "damaged"),
        (scribble_in_the_middle, "damaged"),
        (a_newer_schema, "schema 3"),
        (another_database, "not a qnode key store"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused_and_left_alone(
    sites: tuple[Site, Site], spoil: Callable[[Path], None], words: str
) -> None:
    a, _ = sites
    spoil(a.path)
    before = a.path.read_bytes()
    with pytest.raises(StoreUnusable, match=words) as refusal:
        a.open()
    assert str(a.path) in str(refusal.value)
    assert a.path.read_bytes() == before


def test_wrong_key_wrong_owner_and_wrong_places_are_refused(sites: tuple[Site, Site], tmp_path: Path) -> None:
    a, b = sites
    with pytest.raises(StoreUnusable, match="store key"):
        a.open(store_key=b"x" * 32)
    with pytest.raises(FieldError):
        a.open(store_key=b"short")
    a.role = "bob"
    with pytest.raises(StoreUnusable, match="role of this store is 'alice'"):
        a.open(store_key=STORE_KEYS["alice"])
    with pytest.raises(StoreUnusable, match="must lie outside"):
        open_store(
            b.path, role="bob", store_key=b"k" * 32, anchor=b.path.parent / "x", kme_id="b", peer_kme_id="a"
        )


def test_the_anchor_of_another_store_is_refused(sites: tuple[Site, Site], tmp_path: Path) -> None:
    a, _ = sites
    other = Site(tmp_path / "other", "alice")
    other.open().close()
    a.anchor.unlink()
    other.anchor.rename(a.anchor)
    with pytest.raises(StoreUnusable, match="belongs to another store"):
        a.open()


@pytest.mark.sqlite
def test_a_store_that_is_a_folder_is_refused_in_one_line(sites: tuple[Site, Site]) -> None:
    a, _ = sites
    a.path.unlink()
    a.path.mkdir()
    with pytest.raises(StoreUnusable, match="cannot write the store or its folder") as refusal:
        a.open()
    assert str(a.path) in str(refusal.value)


@pytest.mark.sqlite
def test_an_opening_that_fails_at_once_leaves_no_connection_behind(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(sqlite3.Connection):
        def execute(self, *_args: Any) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("disk I/O error")

        def close(self) -> None:
            closed.append(self)
            super().close()

    closed: list[sqlite3.Connection] = []
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Refusing))
    with pytest.raises(StoreUnusable, match="disk I/O error"):
        sites[0].open()
    assert len(closed) == 1


def test_a_second_process_is_refused(sites: tuple[Site, Site]) -> None:
    a, _ = sites
    with a.open(), pytest.raises(StoreUnusable, match="another process"):
        a.open()


@pytest.mark.sqlite
def test_files_are_for_their_owner_alone(sites: tuple[Site, Site]) -> None:
    a, _ = sites
    a.path.chmod(0o644)
    a.path.parent.chmod(0o755)
    with a.open() as alice:
        alice.reserve_send_pad()
        modes = {file.name: file.stat().st_mode & 0o777 for file in (*a.path.parent.iterdir(), a.anchor)}
    assert modes == {"keys.db": 0o600, "keys.db-wal": 0o600, "anchor": 0o600}
    assert a.path.parent.stat().st_mode & 0o777 == 0o700


_DELIVERER = """
import sys
from pathlib import Path
from keys_support import Site
store = Site(Path(sys.argv[1]), "alice").open(create=False)
print("ready", flush=True)
for assignment_id in range(1, 100):
    keys = store.deliver_to_master(assignment_id)
    print(keys[0].key_id, store.reserve_send_pad().pad_id.index, flush=True)
"""


@pytest.mark.sqlite
@pytest.mark.parametrize("n_lines", [1, 7, 20])
def test_a_killed_process_has_delivered_nothing_that_comes_back(tmp_path: Path, n_lines: int) -> None:
    a, b = Site(tmp_path / "a", "alice"), Site(tmp_path / "b", "bob")
    with a.open() as alice, b.open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(400))
        add_block(make_block(1, 200), alice, bob)
        for _ in range(99):
            assigned(alice, bob, 1)
    with subprocess.Popen(
        [sys.executable, "-c", _DELIVERER, str(a.folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline().split() for _ in range(1 + n_lines)][1:]
        child.send_signal(signal.SIGKILL)
        lines += [line.split() for line in child.stdout.readlines() if line.endswith("\n")]
    seen = {UUID(line[0]) for line in lines}
    with a.open() as alice, b.open() as bob:
        assert alice.condition().state == SERVING
        assert alice.counts().delivered >= len(seen)
        assert alice.reserve_send_pad().pad_id.index > max(int(line[1]) for line in lines)
        again = []
        for assignment_id in range(1, 100):
            try:
                again += alice.deliver_to_master(assignment_id)
            except StoreError:
                continue
        assert not seen & {key.key_id for key in again}
        assert len(bob.deliver_to_slave("s", "m", list(seen))) == len(seen)
        with pytest.raises(KeyNotFound):
            bob.deliver_to_slave("s", "m", list(seen))


def test_the_layout_of_the_tests_leaves_room_for_chunks() -> None:
    assert LAYOUT.n_chunks(len(make_block(1, 20).key)) == 20
