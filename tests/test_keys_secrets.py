"""No key bytes in the clear: not in any file of the store, not in a repr, not in an exception."""

import traceback
from pathlib import Path

import pytest
from keys_support import LAYOUT, STORE_KEYS, Site, add_block, appearances, assigned, make_block, preshared

from qnode.errors import FieldError, KeyNotFound, StoreError, StoreUnusable
from qnode.keys import SqliteKeyStore, key_id
from qnode.keys._vault import Kind, _Span


def secrets_of(block_id: int, n_chunks: int) -> list[bytes]:
    key = make_block(block_id, n_chunks).key
    chunks = [key[LAYOUT.overhead_bytes + 32 * i :][:32] for i in range(n_chunks)]
    pads = [key[32 + 16 * i :][:16] for i in range(2 * LAYOUT.pads_per_direction)]
    return [key[:32], *pads, *chunks]


def test_no_secret_stands_in_any_file_at_any_time(tmp_path: Path) -> None:
    a, b = Site(tmp_path / "a", "alice"), Site(tmp_path / "b", "bob")
    psk = preshared(6)
    looked_for = [*secrets_of(1, 12), *secrets_of(2, 12), psk[:32], psk[32:48], *STORE_KEYS.values()]
    looked_for += [psk[64 + 16 * i :][:16] for i in range(6)]

    def check() -> None:
        for secret in looked_for:
            assert appearances(tmp_path, secret) == []
            assert appearances(tmp_path, secret[:16]) == []

    with a.open() as alice, b.open() as bob:
        for store in (alice, bob):
            store.load_preshared(psk)
        add_block(make_block(1, 12), alice, bob)
        alice.record_block_opened(2, 0.0)
        alice.prepare(make_block(2, 12))
        check()
        keys = alice.deliver_to_master(assigned(alice, bob, 3))
        bob.deliver_to_slave("s", "m", [key.key_id for key in keys])
        bob.confirm_receive_pad(alice.reserve_send_pad().pad_id)
        check()
        alice.void_block(2, "cut")
        bob.expire(0.0, 60.0)
        check()
    check()


def test_even_the_sealed_form_of_what_was_delivered_is_gone_after_the_next_expiry(tmp_path: Path) -> None:
    a, b = Site(tmp_path / "a", "alice"), Site(tmp_path / "b", "bob")

    def sealed(store: SqliteKeyStore) -> list[bytes]:
        with store._database.look() as tx:
            return [
                row[0] for row in tx.connection.execute("SELECT sealed FROM sealed_unit WHERE kind = 'chunk'")
            ]

    with a.open() as alice, b.open() as bob:
        add_block(make_block(1, 300), alice, bob)
        before = sealed(alice)
        assert all(appearances(a.folder, unit[:64]) for unit in before)
        keys = alice.deliver_to_master(assigned(alice, bob, 130))  # all of a unit and two keys of the next
        alice.expire(0.0, 60.0)
        untouched = [unit in sealed(alice) for unit in before]
        assert untouched == [False, False, True]
        for position in (40, 800, 1600):  # anywhere in a unit, for its end may stand on another page
            found = [bool(appearances(a.folder, unit[position : position + 32])) for unit in before]
            assert found == untouched
        assert len(keys) == 130


def test_a_delivered_key_is_gone_from_inside_its_sealed_unit(tmp_path: Path) -> None:
    a, b = Site(tmp_path / "a", "alice"), Site(tmp_path / "b", "bob")
    with a.open() as alice, b.open() as bob:
        add_block(make_block(1, 12), alice, bob)
        keys = alice.deliver_to_master(assigned(alice, bob, 3))
        bob.deliver_to_slave("s", "m", [key.key_id for key in keys])
        for store in (alice, bob):
            with store._database.look() as tx:
                unit = tx.vault._open(Kind.CHUNK, 1, _Span(0, 0, 0))
            stands = [secret in unit.slots for secret in secrets_of(1, 12)[-12:]]
            assert stands == [False] * 3 + [True] * 9


def test_a_used_pad_is_gone_from_inside_its_sealed_unit(tmp_path: Path) -> None:
    a, b = Site(tmp_path / "a", "alice"), Site(tmp_path / "b", "bob")
    with a.open() as alice, b.open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(16))
        pads = [alice.reserve_send_pad() for _ in range(2)]
        bob.confirm_receive_pad(pads[1].pad_id)
        for store, kind in ((alice, Kind.PAD_SEND), (bob, Kind.PAD_RECEIVE)):
            with store._database.look() as tx:
                unit = tx.vault._open(kind, 0, _Span(0, 0, 0))
            assert [pad.pad in unit.slots for pad in pads] == [False, False]
            assert preshared(16)[64 + 32 : 64 + 128] in unit.slots


def test_no_pad_of_a_segment_that_the_peer_has_passed_is_kept(tmp_path: Path) -> None:
    a, b = Site(tmp_path / "a", "alice"), Site(tmp_path / "b", "bob")
    with a.open() as alice, b.open() as bob:
        for block_id in (1, 2):
            add_block(make_block(block_id, 4), alice, bob)
        for _ in range(LAYOUT.pads_per_direction):
            alice.reserve_send_pad()
        bob.confirm_receive_pad(alice.reserve_send_pad().pad_id)  # the first of block 2
        with bob._database.look() as tx:
            kept = tx.connection.execute("SELECT segment FROM sealed_unit WHERE kind = 'pad_receive'")
            assert kept.fetchall() == [(2,)]


def test_of_what_was_voided_no_sealed_key_is_kept(tmp_path: Path) -> None:
    def sealed_keys(store: SqliteKeyStore) -> set[tuple[str, int]]:
        with store._database.look() as tx:
            return set(tx.connection.execute("SELECT kind, segment FROM sealed_unit WHERE segment > 0"))

    with Site(tmp_path / "a", "alice").open() as alice:
        add_block(make_block(1, 12), alice)
        of_block_1 = sealed_keys(alice)
        alice.record_block_opened(2, 0.0)
        alice.prepare(make_block(2, 12))
        alice.void_block(2, "cut")
        assert sealed_keys(alice) == of_block_1
        alice.void_all("set back")
        assert {kind for kind, _ in sealed_keys(alice)} == {"pad_send", "pad_receive"}


def test_a_slot_that_was_wiped_is_never_read_as_a_key_of_zeros(tmp_path: Path) -> None:
    with Site(tmp_path / "a", "alice").open() as alice:
        add_block(make_block(1, 300), alice)
        with alice._database.change(anchored=False) as tx:
            tx.vault.wipe(Kind.CHUNK, 1, 120, 20)
            for first, count in ((120, 1), (139, 1), (100, 150), (130, 3)):
                for move in (tx.vault.read, tx.vault.wipe):
                    with pytest.raises(StoreUnusable, match="wiped slots"):
                        move(Kind.CHUNK, 1, first, count)
            key = make_block(1, 300).key[LAYOUT.overhead_bytes :]
            assert tx.vault.read(Kind.CHUNK, 1, 100, 20) == key[3200:3840]
            assert tx.vault.read(Kind.CHUNK, 1, 140, 160) == key[4480:9600]


def test_a_unit_copied_to_another_place_does_not_open(tmp_path: Path) -> None:
    with Site(tmp_path / "a", "alice").open() as alice:
        for block_id in (1, 2):
            add_block(make_block(block_id, 300), alice)
        for kind, segment, unit in (("chunk", 1, 1), ("chunk", 2, 0)):
            with alice._database.change(anchored=False) as tx:
                tx.connection.execute(
                    "UPDATE sealed_unit SET sealed = (SELECT sealed FROM sealed_unit WHERE kind = 'chunk' "
                    "AND segment = 1 AND unit = 0) WHERE kind = ? AND segment = ? AND unit = ?",
                    (kind, segment, unit),
                )
                with pytest.raises(StoreUnusable, match="does not open"):
                    tx.vault.read(Kind(kind), segment, 128 * unit, 1)


def test_a_used_up_block_leaves_no_secret_behind(tmp_path: Path) -> None:
    a, b = Site(tmp_path / "a", "alice"), Site(tmp_path / "b", "bob")
    with a.open() as alice, b.open() as bob:
        add_block(make_block(1, 4), alice, bob)
        bob.take_over(alice.give_away(2))
        assignment = bob.assign("m", ["s"], 4, 256, 0.0)
        alice.accept_assignment(assignment, 0.0)
        bob.acknowledge(1)
        ids = [key.key_id for key in bob.deliver_to_master(1)]
        alice.deliver_to_slave("s", "m", ids)
        for store in (alice, bob):
            with store._database.look() as tx:
                kinds = {row[0] for row in tx.connection.execute("SELECT kind FROM sealed_unit")}
            assert kinds == {"canary", "pad_send", "pad_receive"}


def test_reprs_and_exceptions_do_not_tell(tmp_path: Path) -> None:
    a, b = Site(tmp_path / "a", "alice"), Site(tmp_path / "b", "bob")
    block = make_block(1, 4)
    with a.open() as alice, b.open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(4))
        add_block(block, alice, bob)
        keys = alice.deliver_to_master(assigned(alice, bob, 1))
        pad = alice.reserve_send_pad()
        told = [repr(x) for x in (block, keys, pad, alice, alice.hash_keys(), alice._database._tx)]
        for move in (
            lambda: alice.prepare(block),
            lambda: alice.load_preshared(preshared(4)),
            lambda: alice.load_preshared(b"\x07" * 50),
            lambda: bob.deliver_to_slave("s", "m", [key_id(b"x" * 32, 0)]),
        ):
            with pytest.raises((StoreError, FieldError, KeyNotFound)) as refusal:
                move()
            told.append("".join(traceback.format_exception(refusal.value)))
    text = "\n".join(told)
    for secret in (*secrets_of(1, 4), pad.pad, preshared(4)[32:48], STORE_KEYS["alice"]):
        assert repr(secret)[2:-1] not in text
        assert secret.hex() not in text
