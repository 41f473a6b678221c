"""The one-time authentication pool: no pad twice, whatever is lost, crashes or is restored."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from keys_support import LAYOUT, Site, add_block, make_block, preshared

from qnode.errors import FieldError, PoolExhausted, StoreError
from qnode.keys import KeyLayout, PadId, PadsLeft, SqliteKeyStore

pytestmark = pytest.mark.usefixtures("each_store")

Pair = tuple[SqliteKeyStore, SqliteKeyStore]


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Pair]:
    with Site(tmp_path / "a", "alice").open() as alice, Site(tmp_path / "b", "bob").open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(8))
        yield alice, bob


def test_the_preshared_key_is_cut_alike_and_mirrored(stores: Pair) -> None:
    alice, bob = stores
    data = preshared(8)
    assert alice.session_root() == bob.session_root() == data[:32]
    assert alice.hash_keys().send == bob.hash_keys().receive == data[32:48]
    assert alice.hash_keys().receive == bob.hash_keys().send == data[48:64]
    assert alice.reserve_send_pad().pad == bob.receive_pad(PadId(0, 0)) == data[64:80]
    assert bob.reserve_send_pad().pad == alice.receive_pad(PadId(0, 0)) == data[128:144]


def test_without_a_preshared_key_there_is_nothing_to_authenticate_with(tmp_path: Path) -> None:
    with Site(tmp_path, "alice").open() as store:
        for ask in (store.session_root, store.hash_keys, store.reserve_send_pad):
            with pytest.raises(PoolExhausted):
                ask()
        with pytest.raises(FieldError):
            store.load_preshared(bytes(95))


def test_pads_go_out_once_in_order_until_none_is_left(stores: Pair) -> None:
    alice, _ = stores
    assert [alice.reserve_send_pad().pad_id for _ in range(4)] == [PadId(0, i) for i in range(4)]
    with pytest.raises(PoolExhausted):
        alice.reserve_send_pad()


def test_looking_at_a_received_pad_does_not_use_it_and_confirming_uses_the_earlier_ones_too(
    stores: Pair,
) -> None:
    _, bob = stores
    pad = bob.receive_pad(PadId(0, 2))
    assert bob.receive_pad(PadId(0, 2)) == pad
    bob.confirm_receive_pad(PadId(0, 2))
    for index in (0, 1, 2, 4, -1):
        with pytest.raises(StoreError):
            bob.receive_pad(PadId(0, index))
        with pytest.raises(StoreError):
            bob.confirm_receive_pad(PadId(0, index))
    assert bob.pads_left().receive == 1
    with pytest.raises(StoreError):
        bob.receive_pad(PadId(77, 0))


def test_refill_of_a_prepared_block_is_for_receiving_only_until_confirmed(stores: Pair) -> None:
    alice, bob = stores
    block = make_block(1, 2)
    for store in stores:
        store.record_block_opened(1, 0.0)
        store.prepare(block)
    assert alice.pads_left() == PadsLeft(send=4, receive=7)
    alice.confirm(1)
    assert alice.pads_left() == PadsLeft(send=7, receive=7)
    sent = [alice.reserve_send_pad() for _ in range(5)][-1]
    assert sent.pad_id == PadId(1, 0)
    assert sent.pad == block.key[32:48] == bob.receive_pad(sent.pad_id)
    bob.confirm_receive_pad(sent.pad_id)
    with pytest.raises(StoreError, match="available at the peer"):
        bob.void_block(1, "cut")


def test_pads_chunks_and_secret_of_a_block_do_not_overlap(stores: Pair) -> None:
    alice, bob = stores
    block = make_block(1, 4)
    add_block(block, alice, bob)
    pads = [store.reserve_send_pad().pad for store in (alice, bob) for _ in range(7)]
    chunks = b"".join(
        block.key[LAYOUT.overhead_bytes + 32 * i : LAYOUT.overhead_bytes + 32 * i + 32] for i in range(4)
    )
    refill = b"".join([*pads[4:7], *pads[11:14]])
    assert block.key[:32] + refill + chunks == block.key[:-5]


def test_a_block_confirmed_after_a_later_ones_pads_are_in_use_gives_none_for_sending(stores: Pair) -> None:
    alice, _ = stores
    for block_id in (1, 2):
        alice.record_block_opened(block_id, 0.0)
        alice.prepare(make_block(block_id, 2))
    alice.confirm(2)
    assert [alice.reserve_send_pad().pad_id for _ in range(5)][-1] == PadId(2, 0)
    alice.confirm(1)
    assert alice.pads_left().send == 2
    assert alice.reserve_send_pad().pad_id == PadId(2, 1)


@pytest.mark.sqlite
def test_reserved_pads_do_not_come_back_after_a_crash(stores: Pair, tmp_path: Path) -> None:
    alice, _ = stores
    used = [alice.reserve_send_pad() for _ in range(2)]
    crashed = Site(tmp_path / "a", "alice").copy_to(tmp_path / "crashed")
    with crashed.open() as again:
        assert again.reserve_send_pad().pad_id == PadId(0, 2)
        assert used[-1].pad_id == PadId(0, 1)


def test_the_later_of_both_pad_positions_wins_in_the_hello(stores: Pair) -> None:
    alice, bob = stores
    alice.reserve_send_pad()
    lost = alice.reserve_send_pad()
    bob.confirm_receive_pad(PadId(0, 0))
    assert not bob.confirm_generation(alice.view_of_peer())
    with pytest.raises(StoreError):
        bob.receive_pad(lost.pad_id)
    assert not alice.confirm_generation(bob.view_of_peer())
    assert alice.reserve_send_pad().pad_id == PadId(0, 2)


def test_both_sites_keep_only_segments_that_both_hold(stores: Pair) -> None:
    alice, bob = stores
    add_block(make_block(1, 2), alice, bob)
    add_block(make_block(2, 2), alice)
    assert alice.pad_segments() == [0, 1, 2]
    alice.keep_pad_segments(bob.pad_segments())
    assert alice.pad_segments() == [0, 1]
    assert alice.pads_left() == bob.pads_left()


def test_a_new_preshared_key_replaces_everything_and_only_on_request(stores: Pair) -> None:
    alice, bob = stores
    add_block(make_block(1, 4), alice, bob)
    alice.reserve_send_pad()
    with pytest.raises(StoreError, match="loaded already"):
        alice.load_preshared(preshared(10))
    for store in stores:
        store.load_preshared(preshared(10), replace=True)
        assert store.counts().void == 4
        assert (store.pads_left().send, store.pads_left().receive) == (5, 5)
    assert alice.reserve_send_pad().pad == preshared(10)[64:80]
    assert not alice.confirm_generation(bob.view_of_peer())


def test_a_pool_that_is_hardly_used_stops_growing_at_both_sites(
    stores: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = stores
    monkeypatch.setattr("qnode.keys._pool._MOST_PADS", 64)
    layout = KeyLayout(pads_per_direction=8)

    def refill(first: int, last: int) -> None:
        for block_id in range(first, last + 1):
            add_block(make_block(block_id, 1, layout=layout), alice, bob)

    refill(1, 15)
    assert 64 <= alice.pads_left().send < 64 + 8
    seen: list[bytes] = []
    for block_id in range(16, 32):
        while alice.pads_left().send > 56:
            pad = alice.reserve_send_pad()
            if len(seen) % 5 == 0:  # Bob hears of some only
                assert bob.receive_pad(pad.pad_id) == pad.pad
                bob.confirm_receive_pad(pad.pad_id)
            seen.append(pad.pad)
        refill(block_id, block_id)
    assert len(set(seen)) == len(seen) > 100
    # What Alice wiped of the first blocks, Bob has wiped as well by now.
    assert bob.pads_left().receive < 64 + 16
    with pytest.raises(StoreError):
        bob.receive_pad(PadId(10, 0))


def test_a_verified_tag_leaves_no_pad_of_an_earlier_segment(stores: Pair) -> None:
    alice, bob = stores
    add_block(make_block(1, 2), alice, bob)
    for _ in range(4):
        alice.reserve_send_pad()
    pad = alice.reserve_send_pad()
    assert pad.pad_id.segment == 1
    bob.confirm_receive_pad(pad.pad_id)
    assert bob.pads_left().receive == 2
    with pytest.raises(StoreError, match="used, skipped or unknown"):
        bob.receive_pad(PadId(0, 3))
