"""The legal moves of blocks, chunks, assignments and hand-overs, on two real stores."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from keys_support import (
    LAYOUT,
    Site,
    add_block,
    assigned,
    chunks_of,
    make_block,
    memory_folder,
    pairs,
    preshared,
    sqlite_of,
)

from qnode.errors import FieldError, KeyNotFound, NotEnoughKeys, NotNamed, StoreError
from qnode.keys import MOST_SKIPPED, Assignment, BlockState, KeyLayout, KeyRange, SqliteKeyStore, key_id

pytestmark = pytest.mark.usefixtures("each_store")

Pair = tuple[SqliteKeyStore, SqliteKeyStore]


@pytest.fixture
def stores() -> Iterator[Pair]:
    with (
        memory_folder() as folder,
        Site(folder / "a", "alice").open() as alice,
        Site(folder / "b", "bob").open() as bob,
    ):
        yield alice, bob


@pytest.fixture
def filled(stores: Pair) -> Pair:
    """Two blocks of 20 chunks, available at both sites; 10 of each are Alice's to assign."""
    for block_id in (1, 2):
        add_block(make_block(block_id, 20), *stores)
    return stores


def test_master_and_slave_get_the_same_keys_under_the_same_ids_from_the_block(filled: Pair) -> None:
    alice, bob = filled
    keys = alice.deliver_to_master(assigned(alice, bob, 3))
    assert pairs(bob.deliver_to_slave("s", "m", [key.key_id for key in keys])) == pairs(keys)
    block = make_block(1, 20)
    start = LAYOUT.overhead_bytes
    assert [key.key for key in keys] == [block.key[start + 32 * i : start + 32 * i + 32] for i in range(3)]
    assert [key.key_id for key in keys] == [key_id(block.key[:32], i) for i in range(3)]
    assert keys[0].record == block.record


def test_whole_blocks_of_two_stores_can_be_compared_and_used_ones_cannot(filled: Pair) -> None:
    alice, bob = filled
    assert alice.fingerprint(1) == bob.fingerprint(1) != alice.fingerprint(2)
    alice.deliver_to_master(assigned(alice, bob, 1))
    for block_id in (1, 99):
        with pytest.raises(StoreError, match="not whole here"):
            alice.fingerprint(block_id)


def test_key_ids_are_uuids_of_version_8_and_the_rfc_variant() -> None:
    made = key_id(b"s" * 32, 7)
    assert made.version == 8
    assert made.variant == "specified in RFC 4122"


def test_each_site_assigns_only_chunks_of_its_direction(filled: Pair) -> None:
    alice, bob = filled
    a = alice.assign("m", ["s"], 20, 256, 0.0)
    b = bob.assign("m", ["s"], 20, 256, 0.0)
    assert not chunks_of(a) & chunks_of(b)
    assert {position for _, position in chunks_of(a)} == set(range(10))
    assert {position for _, position in chunks_of(b)} == set(range(10, 20))


def test_direction_share_decides_how_many_chunks_are_alices(stores: Pair) -> None:
    add_block(make_block(1, 20, layout=KeyLayout(pads_per_direction=0, direction_share_alice=0.2)), *stores)
    assert [store.stored_key_count() for store in stores] == [4, 16]


def test_too_many_keys_asked_takes_nothing(filled: Pair) -> None:
    alice, _ = filled
    before = alice.counts()
    with pytest.raises(NotEnoughKeys) as refusal:
        alice.assign("m", ["s"], 21, 256, 0.0)
    assert (refusal.value.asked, refusal.value.available) == (21, 20)
    assert alice.counts() == before


def test_long_keys_join_neighbouring_chunks_and_short_ones_drop_the_rest(filled: Pair) -> None:
    alice, bob = filled
    assert alice.stored_key_count(1024) == 4
    long, *_ = alice.deliver_to_master(assigned(alice, bob, 1, 600))
    short, *_ = alice.deliver_to_master(assigned(alice, bob, 1, 64))
    block, start = make_block(1, 20), LAYOUT.overhead_bytes
    assert long.key == block.key[start : start + 75]
    assert (short.key, short.key_id) == (block.key[start + 96 : start + 104], key_id(block.key[:32], 3))
    assert pairs(bob.deliver_to_slave("s", "m", [short.key_id, long.key_id])) == pairs([short, long])
    assert alice.counts().delivered == bob.counts().delivered == 4


def test_keys_of_several_blocks_fit_in_one_assignment(filled: Pair) -> None:
    alice, bob = filled
    keys = alice.deliver_to_master(assigned(alice, bob, 15))
    ids = [key.key_id for key in reversed(keys)]
    assert pairs(bob.deliver_to_slave("s", "m", ids)) == pairs(list(reversed(keys)))


def test_master_is_served_once(filled: Pair) -> None:
    alice, bob = filled
    assignment = alice.assign("m", ["s"], 2, 256, 0.0)
    bob.accept_assignment(assignment, 0.0)
    assert len(alice.deliver_to_master(assignment.assignment_id)) == 2
    with pytest.raises(StoreError, match="not open"):
        alice.deliver_to_master(assignment.assignment_id)


def test_each_named_slave_is_served_once_and_nobody_else(filled: Pair) -> None:
    alice, bob = filled
    assignment = alice.assign("m", ["s1", "s2"], 2, 256, 0.0)
    bob.accept_assignment(assignment, 0.0)
    alice.acknowledge(assignment.assignment_id)
    keys = alice.deliver_to_master(assignment.assignment_id)
    ids = [key.key_id for key in keys]
    with pytest.raises(NotNamed):
        bob.deliver_to_slave("stranger", "m", ids)
    with pytest.raises(KeyNotFound):
        bob.deliver_to_slave("s1", "other master", ids)
    assert pairs(bob.deliver_to_slave("s1", "m", ids)) == pairs(keys)
    with pytest.raises(KeyNotFound):
        bob.deliver_to_slave("s1", "m", ids[:1])
    assert bob.counts().assigned == 2
    assert pairs(bob.deliver_to_slave("s2", "m", ids)) == pairs(keys)
    assert bob.counts().assigned == 0
    with pytest.raises(KeyNotFound):
        bob.deliver_to_slave("s2", "m", ids)


def test_one_unknown_or_repeated_key_id_withholds_all(filled: Pair) -> None:
    alice, bob = filled
    keys = alice.deliver_to_master(assigned(alice, bob, 2))
    ids = [key.key_id for key in keys]
    for asked in ([*ids, uuid4()], [ids[0], ids[0]]):
        with pytest.raises(KeyNotFound):
            bob.deliver_to_slave("s", "m", asked)
    with pytest.raises(NotNamed):
        bob.deliver_to_slave("stranger", "m", [uuid4(), ids[0]])
    assert pairs(bob.deliver_to_slave("s", "m", ids)) == pairs(keys)


def test_accepting_twice_is_fine_but_not_with_other_contents(filled: Pair) -> None:
    alice, bob = filled
    assignment = alice.assign("m", ["s"], 2, 256, 0.0)
    bob.accept_assignment(assignment, 0.0)
    bob.accept_assignment(assignment, 9.0)
    assert bob.counts().assigned == 2
    with pytest.raises(StoreError, match="other contents"):
        bob.accept_assignment(msgspec.structs.replace(assignment, slave_saes=("eve",)), 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"owner": "bob"},
        {"ranges": (KeyRange(1, 10, 1),)},  # Bob's own
        {"ranges": (KeyRange(1, 0, 1),)},  # assigned already
        {"ranges": (KeyRange(1, 5, 1), KeyRange(1, 5, 1))},
        {"ranges": (KeyRange(1, 5, 0),)},
        {"ranges": (KeyRange(1, 5, 1),), "size_bits": 257 * 8},
        {"ranges": (KeyRange(1, 8, 3),), "size_bits": 512},
        {"ranges": (KeyRange(9, 5, 1),)},
        {"ranges": (KeyRange(1, 2**48, 1),)},
        {"ranges": ()},
        {"slave_saes": ()},
        {"slave_saes": ("m",)},
        {"size_bits": 7},
    ],
)
def test_an_assignment_of_wrong_chunks_is_refused_whole(filled: Pair, change: dict[str, object]) -> None:
    alice, bob = filled
    assigned(alice, bob, 1)
    before = bob.counts()
    good = alice.assign("m", ["s"], 1, 256, 0.0)
    with pytest.raises(StoreError):
        bob.accept_assignment(msgspec.structs.replace(good, **change), 0.0)
    assert bob.counts() == before


def test_numbers_beyond_the_stores_range_do_not_decode() -> None:
    wild = {
        "assignment_id": 2**63,
        "owner": "alice",
        "master_sae": "m",
        "slave_saes": ["s"],
        "size_bits": 256,
    }
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(wild | {"ranges": [[1, 0, 1]]}), type=Assignment)


def test_an_assignment_travels_as_msgpack(filled: Pair) -> None:
    assignment = filled[0].assign("m", ["s", "t"], 2, 512, 0.0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(assignment), type=Assignment) == assignment


def test_what_was_unacknowledged_is_voided_on_both_sides(filled: Pair) -> None:
    alice, bob = filled
    seen, lost = (alice.assign("m", ["s"], 2, 256, 0.0) for _ in range(2))
    bob.accept_assignment(seen, 0.0)
    assert alice.unacknowledged_assignments() == [seen, lost]
    for assignment in (seen, lost):
        bob.void_accepted(alice.void_assignment(assignment.assignment_id))
        bob.void_accepted(assignment)
    assert alice.unacknowledged_assignments() == []
    for store in filled:
        assert (store.counts().void, store.counts().assigned) == (4, 0)
    with pytest.raises(StoreError):
        bob.accept_assignment(lost, 0.0)


def test_an_acknowledged_assignment_is_never_undone(filled: Pair) -> None:
    alice, bob = filled
    with pytest.raises(StoreError, match="delivered, released or expires"):
        alice.void_assignment(assigned(alice, bob, 1))


def test_stock_is_delivered_from_the_front_across_assignments(filled: Pair) -> None:
    alice, bob = filled
    for _ in range(2):
        stock = alice.assign("m", ["s"], 3, 256, 0.0, stock=True)
        bob.accept_assignment(stock, 0.0)
        assert alice.stock_count("m", "s") == 3 * (stock.assignment_id - 1)
        alice.acknowledge(stock.assignment_id)
    with pytest.raises(StoreError, match="stock"):
        alice.deliver_to_master(stock.assignment_id)
    with pytest.raises(NotEnoughKeys):
        alice.take_from_stock("m", "s", 7)
    with pytest.raises(NotEnoughKeys):
        alice.take_from_stock("m", "other", 1)
    keys = [*alice.take_from_stock("m", "s", 2), *alice.take_from_stock("m", "s", 3)]
    assert alice.stock_count("m", "s") == 1
    assert pairs(bob.deliver_to_slave("s", "m", [key.key_id for key in keys])) == pairs(keys)
    assert len({key.key for key in keys}) == 5


def test_expiry_destroys_what_nobody_fetched(filled: Pair) -> None:
    alice, bob = filled
    fetched = alice.deliver_to_master(assigned(alice, bob, 2))
    assigned(alice, bob, 3)
    open_one = alice.assign("m", ["s"], 1, 256, 0.0)
    assert [store.expire(now=59.0, ttl_s=60.0) for store in filled] == [0, 0]
    assert alice.expire(now=61.0, ttl_s=60.0) == 3
    assert bob.expire(now=61.0, ttl_s=60.0) == 5
    with pytest.raises(KeyNotFound):
        bob.deliver_to_slave("s", "m", [fetched[0].key_id])
    assert alice.unacknowledged_assignments() == [open_one]
    assert (alice.counts().expired, bob.counts().expired) == (3, 5)


def test_stock_taken_late_is_still_there_for_its_slave(filled: Pair) -> None:
    alice, bob = filled
    stock = alice.assign("m", ["s"], 2, 256, 0.0, stock=True)
    bob.accept_assignment(stock, 0.0)
    alice.acknowledge(stock.assignment_id)
    keys = alice.take_from_stock("m", "s", 1)
    assert alice.expire(now=61.0, ttl_s=60.0) == 1
    assert bob.expire(now=61.0, ttl_s=60.0) == 0
    assert pairs(bob.deliver_to_slave("s", "m", [keys[0].key_id])) == pairs(keys)
    assert bob.expire(now=121.0, ttl_s=60.0) == 1


def test_chunks_given_away_are_assigned_by_the_other_site_only(filled: Pair) -> None:
    alice, bob = filled
    handover = alice.give_away(12)
    assert (alice.stored_key_count(), bob.stored_key_count()) == (8, 20)
    assert alice.pending_handover() == handover
    with pytest.raises(StoreError, match="not finished"):
        alice.give_away(1)
    bob.take_over(handover)
    alice.finish_handover(handover.handover_id)
    assert alice.pending_handover() is None
    assert bob.stored_key_count() == 32
    alice.accept_assignment(bob.assign("m", ["s"], 32, 256, 0.0), 0.0)
    bob.take_over(handover)
    assert bob.stored_key_count() == 0


def test_a_repeated_handover_does_not_bring_back_what_was_given_back(filled: Pair) -> None:
    alice, bob = filled
    first = alice.give_away(10)
    bob.take_over(first)
    alice.finish_handover(first.handover_id)
    back = bob.give_away(20)
    alice.take_over(back)
    bob.finish_handover(back.handover_id)
    bob.take_over(first)
    a = alice.assign("m", ["s"], alice.stored_key_count(), 256, 0.0)
    b = bob.assign("m", ["s"], bob.stored_key_count(), 256, 0.0)
    assert not chunks_of(a) & chunks_of(b)
    assert a.n_keys + b.n_keys == len(chunks_of(a) | chunks_of(b)) == 40


def test_ranges_that_come_back_join_their_neighbours(filled: Pair) -> None:
    alice, bob = filled
    handover = alice.give_away(3)
    bob.take_over(handover)
    assert bob.stored_key_count(256 * 13) == 1


def test_a_refused_handover_is_void_at_both_sites(filled: Pair) -> None:
    alice, bob = filled
    bob.accept_assignment(alice.assign("m", ["s"], 20, 256, 0.0), 0.0)
    add_block(make_block(3, 10), alice, bob)
    handover = alice.give_away(5)
    wrong = msgspec.structs.replace(handover, ranges=(*handover.ranges, KeyRange(1, 0, 1)))
    with pytest.raises(StoreError):
        bob.take_over(wrong)
    bob.void_handover(handover)
    assert alice.pending_handover() == handover  # Alice has no answer, and repeats the hand-over
    with pytest.raises(StoreError, match="was voided here"):
        bob.take_over(handover)
    for store in (bob, alice, alice, bob):
        store.void_handover(handover)
    assert [store.counts().void for store in filled] == [5, 5]
    assert alice.pending_handover() is None
    add_block(make_block(4, 10), alice, bob)
    later = alice.give_away(2)
    bob.take_over(later)
    bob.take_over(later)
    bob.take_over(handover)  # an old one does nothing
    with pytest.raises(StoreError, match="was taken here"):  # or the giver would destroy what is bob's
        bob.void_handover(later)


def test_a_number_far_beyond_the_last_is_refused_or_none_would_be_left(filled: Pair) -> None:
    alice, bob = filled
    leap = MOST_SKIPPED + 1
    assignment = alice.assign("m", ["s"], 1, 256, 0.0)
    with pytest.raises(StoreError, match="the last one was"):
        bob.accept_assignment(msgspec.structs.replace(assignment, assignment_id=leap), 0.0)
    bob.accept_assignment(assignment, 0.0)
    handover = alice.give_away(1)
    with pytest.raises(StoreError, match="the last one was"):
        bob.take_over(msgspec.structs.replace(handover, handover_id=leap))
    bob.take_over(handover)
    with pytest.raises(StoreError, match="the last one was"):
        bob.record_block_opened(bob.last_block_id + leap, 0.0)
    bob.record_block_opened(bob.last_block_id + leap - 1, 0.0)


def test_the_sum_of_epsilons_counts_each_block_from_its_opening_and_outlives_the_process(
    tmp_path: Path,
) -> None:
    a = Site(tmp_path / "a", "alice")
    with a.open() as store:
        add_block(make_block(1, 4), store)
        store.confirm(1)
        store.record_block_opened(2, 1e-10)
        store.prepare(make_block(2, 4))
        store.void_block(2, "cut")
        store.record_block_opened(3, 1e-10)  # lost before it gave key: it might have been accepted
        with pytest.raises(StoreError):
            store.record_block_opened(3, 1e-10)
    with a.open(create=False) as store:
        assert store.positions().epsilon == pytest.approx(1e-9 + 1e-15 + 2e-10, rel=1e-12)


def test_tags_are_counted_as_their_pads_are_used_and_over_restarts(tmp_path: Path) -> None:
    a, b = Site(tmp_path / "a", "alice"), Site(tmp_path / "b", "bob")
    with a.open() as alice, b.open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(20))
        for _ in range(3):
            pad = alice.reserve_send_pad()
            bob.receive_pad(pad.pad_id)  # an attempt that does not verify uses no pad
            bob.confirm_receive_pad(pad.pad_id)
        alice.confirm_receive_pad(bob.reserve_send_pad().pad_id)
    for site, used in ((a, 4), (b, 4)):
        with site.open(create=False) as store:
            assert store.pads_left().used == used


def test_block_numbers_only_grow(stores: Pair) -> None:
    alice, _ = stores
    alice.record_block_opened(3, 0.0)
    for block_id in (3, 2, 0):
        with pytest.raises(StoreError, match="cannot be opened"):
            alice.record_block_opened(block_id, 0.0)
    assert alice.last_block_id == 3


def test_the_two_steps_of_the_commit_and_their_illegal_neighbours(stores: Pair) -> None:
    alice, _ = stores
    block = make_block(1, 4)
    for move in (
        partial(alice.prepare, block),
        partial(alice.confirm, 1),
        partial(alice.void_block, 1, "x"),
    ):
        with pytest.raises(StoreError):
            move()
    alice.record_block_opened(1, 0.0)
    alice.prepare(block)
    assert (alice.block_state(1), alice.unconfirmed_blocks()) == (BlockState.PREPARED, [1])
    assert (alice.counts().prepared, alice.counts().available_own) == (4, 0)
    with pytest.raises(NotEnoughKeys):
        alice.assign("m", ["s"], 1, 256, 0.0)
    with pytest.raises(StoreError):
        alice.prepare(block)
    alice.confirm(1)
    alice.confirm(1)
    with pytest.raises(StoreError):
        alice.void_block(1, "too late")
    assert (alice.block_state(1), alice.counts().available_own) == (BlockState.AVAILABLE, 2)


def test_a_voided_block_stays_void(stores: Pair) -> None:
    alice, _ = stores
    for block_id in (1, 2):
        alice.record_block_opened(block_id, 0.0)
    alice.prepare(make_block(1, 4))
    for block_id in (1, 2, 1, 2):
        alice.void_block(block_id, "peer lost it")
    for block_id in (1, 2):
        with pytest.raises(StoreError):
            alice.prepare(make_block(block_id, 4))
        with pytest.raises(StoreError):
            alice.confirm(block_id)
    assert alice.counts().void == 4
    assert [block.void_reason for block in alice.recent_blocks(5)] == ["peer lost it"] * 2
    assert alice.pads_left().receive == 0


def test_a_block_that_the_peer_uses_cannot_be_voided(stores: Pair) -> None:
    alice, bob = stores
    for store in stores:
        store.record_block_opened(1, 0.0)
        store.prepare(make_block(1, 4))
    alice.confirm(1)
    bob.accept_assignment(alice.assign("m", ["s"], 1, 256, 0.0), 0.0)
    with pytest.raises(StoreError, match="available at the peer"):
        bob.void_block(1, "cut")
    bob.confirm(1)
    assert bob.counts().available_peer == 1


def test_a_key_that_does_not_fit_its_record_or_layout_is_refused(stores: Pair) -> None:
    alice, _ = stores
    alice.record_block_opened(1, 0.0)
    block = make_block(1, 4)
    with pytest.raises(StoreError, match="record says"):
        alice.prepare(replace(block, key=block.key[:-32]))
    with pytest.raises(FieldError):
        alice.prepare(replace(block, key=block.key[:40]))
    assert alice.block_state(1) == BlockState.UNKNOWN


def test_finished_blocks_are_forgotten_but_their_numbers_never_return(stores: Pair) -> None:
    alice, bob = stores
    add_block(make_block(1, 2), alice, bob)
    add_block(make_block(2, 2), alice, bob)
    alice.deliver_to_master(assigned(alice, bob, 1))
    bob_keys = bob.assign("m", ["s"], 1, 256, 0.0)
    alice.accept_assignment(bob_keys, 0.0)
    alice.void_accepted(bob_keys)
    alice.record_block_opened(5000, 0.0)
    alice.expire(0.0, 60.0)
    assert [block.block_id for block in alice.recent_blocks(9)] == [2]
    assert alice.block_state(1) == BlockState.VOID
    with pytest.raises(StoreError):
        alice.prepare(make_block(1, 2))


def test_impossible_requests_name_the_field(filled: Pair) -> None:
    alice, _ = filled
    for slaves, number, size in (([], 1, 256), (["s", "s"], 1, 256), (["m"], 1, 256), (["s"], 0, 256)):
        with pytest.raises(FieldError):
            alice.assign("m", slaves, number, size, 0.0)
    for size in (0, 12):
        with pytest.raises(FieldError):
            alice.assign("m", ["s"], 1, size, 0.0)
    with pytest.raises(FieldError):
        alice.assign("m", ["s", "t"], 1, 256, 0.0, stock=True)
    with pytest.raises(FieldError):
        alice.give_away(0)
    with pytest.raises(FieldError):
        alice.take_from_stock("m", "s", 0)
    for layout in ({"pads_per_direction": -1}, {"direction_share_alice": 1.5}):
        with pytest.raises(FieldError):
            KeyLayout(**layout)


@pytest.mark.sqlite
def test_a_log_that_somebody_reads_is_cleared_when_he_has_done_and_tries_in_vain_are_counted(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path, "alice")
    log = site.path.with_name("keys.db-wal")
    with site.open() as store:
        store.load_preshared(preshared(64))
        for block_id in (1, 2):
            add_block(make_block(block_id, 40), store)
        reader = sqlite_of(store).execute("SELECT * FROM sealed_unit")
        assert reader.fetchone() is not None
        for times in (1, 2):
            assert not store._database.tidy()
            assert store.uncleared == times
        assert log.stat().st_size > 0
        reader.close()
        store.expire(0.0, 1.0)
        assert store.uncleared == 0
        assert log.stat().st_size == 0
