"""The disk of the simulated world keeps what was flushed; the store survives all else."""

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from keys_support import Site, add_block, assigned, make_block

from qnode.audit.entries import KeyDelivered, decode
from qnode.audit.file import FileSource
from qnode.audit.verify import verify
from qnode.errors import StoreError, StoreUnusable
from qnode.keys import SqliteKeyStore, StoreCondition, open_store
from qnode.world.disk import Disk, Moment, PowerCut, mounted

PRESHARED = random.Random(5).randbytes(64 + 32 * 200)


def opened(disk: Disk) -> SqliteKeyStore:
    return open_store(
        disk.database,
        role="alice",
        store_key=bytes(32),
        anchor=disk.anchor,
        kme_id="kme-alice",
        peer_kme_id="kme-bob",
        create=True,
    )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path, random.Random(1))
    with mounted(disk):
        with opened(disk) as store:
            store.load_preshared(PRESHARED)
        yield disk


@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("seed", range(6))
def test_a_pad_that_left_the_store_is_used_after_a_power_cut_at_any_moment_of_a_later_change(
    disk: Disk, moment: Moment, seed: int
) -> None:
    disk._rng = random.Random(seed)
    store = opened(disk)
    seen = [store.reserve_send_pad().pad_id for _ in range(3)]
    disk.fail_at(moment, commits=seed % 3)
    with suppress(PowerCut):
        while True:
            seen.append(store.reserve_send_pad().pad_id)
    assert disk.failed
    with pytest.raises((PowerCut, StoreUnusable)):
        store.reserve_send_pad()
    disk.start()
    with opened(disk) as store:
        assert store.condition().state == StoreCondition.SERVING
        assert store.reserve_send_pad().pad_id > max(seen)


@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("seed", range(4))
def test_a_key_and_its_entry_of_the_audit_leave_the_store_together_at_any_moment_of_a_power_cut(
    disk: Disk, tmp_path: Path, moment: Moment, seed: int
) -> None:
    disk._rng = random.Random(seed)
    delivered: set[bytes] = set()
    with Site(tmp_path / "bob", "bob").open() as bob:
        bob.load_preshared(PRESHARED)
        alice = opened(disk)
        add_block(make_block(1, 60), alice, bob)
        as_master = [assigned(alice, bob, 2) for _ in range(5)]
        as_slave = [bob.deliver_to_master(assigned(bob, alice, 2)) for _ in range(5)]
        calls = [partial(alice.deliver_to_master, one) for one in as_master]
        calls += [
            partial(alice.deliver_to_slave, "s", "m", [one.key_id for one in keys]) for keys in as_slave
        ]
        random.Random(seed).shuffle(calls)
        disk.fail_at(moment, commits=seed)
        with suppress(PowerCut):
            for call in calls:
                delivered |= {key.key_id.bytes for key in call()}
        assert disk.failed
        disk.start()
        with opened(disk) as alice:
            assert alice.condition().serves
            recorded = audited(disk)
            assert delivered <= set(recorded)
            assert len(recorded) - len(delivered) in (0, 2)  # no answer reached the caller of the last one
            for one in as_master:
                with suppress(StoreError):
                    delivered |= {key.key_id.bytes for key in alice.deliver_to_master(one)}
            for keys in as_slave:
                with suppress(StoreError):
                    delivered |= {
                        key.key_id.bytes
                        for key in alice.deliver_to_slave("s", "m", [one.key_id for one in keys])
                    }
    assert sorted(audited(disk)) == sorted(delivered | set(recorded))
    assert len(audited(disk)) == 20


def audited(disk: Disk) -> list[bytes]:
    """Return the key_IDs of all entries of the audit, which verifies."""
    database = (
        shutil.copytree(disk.folder, disk.folder.with_name(f"seen-{random.random()}")) / "db" / "keys.db"
    )
    with FileSource(database, disk.anchor) as source:
        assert verify(source).findings == []
        entries = [decode(row.content) for chain in source.chains() for row in source.rows(chain)]
    key_ids = b"".join(one.key_ids for one in entries if isinstance(one, KeyDelivered))
    return [key_ids[i : i + 16] for i in range(0, len(key_ids), 16)]


def test_a_power_cut_between_changes_loses_none(disk: Disk) -> None:
    store = opened(disk)
    store.record_block_opened(7, 1e-10)
    disk.fail_now()
    disk.start()
    with opened(disk) as store:
        assert store.last_block_id == 7


def test_a_late_thread_of_a_process_that_is_gone_does_nothing(disk: Disk) -> None:
    store = opened(disk)
    disk.fail_now()
    disk.start()
    with pytest.raises(PowerCut):
        store.reserve_send_pad()


def test_a_database_that_does_not_flush_its_log_loses_what_it_promised(disk: Disk) -> None:
    store = opened(disk)
    store._database._tx.connection.execute("PRAGMA synchronous = NORMAL")
    store.record_block_opened(7, 1e-10)
    store.record_block_opened(8, 1e-10)
    disk.fail_now()
    disk.start()
    with opened(disk) as store:  # the anchor was flushed, and shows it
        assert store.condition().state == StoreCondition.NEEDS_PEER_CONFIRMATION


def test_an_anchor_that_is_not_flushed_may_be_lost(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(disk)
    anchored = disk.anchor.read_bytes()
    monkeypatch.setattr("os.fdatasync", lambda descriptor: None)
    store.record_block_opened(7, 1e-10)
    disk._rng = random.Random(2)
    monkeypatch.setattr(disk, "_torn", lambda old, new: old)
    disk.fail_now()
    disk.start()
    assert disk.anchor.read_bytes() == anchored


def test_a_copy_of_the_database_put_back_is_found_out_and_one_of_the_whole_disk_is_not(disk: Disk) -> None:
    with opened(disk) as store:
        store.record_block_opened(7, 1e-10)
    database, whole = disk.back_up(whole=False), disk.back_up(whole=True)
    with opened(disk) as store:
        store.record_block_opened(8, 1e-10)
    disk.restore(database)
    with opened(disk) as store:
        assert store.condition().state == StoreCondition.NEEDS_PEER_CONFIRMATION
    disk.restore(whole)
    with opened(disk) as store:
        assert store.condition().state == StoreCondition.SERVING
        assert store.last_block_id == 7


def test_files_elsewhere_are_left_alone(disk: Disk, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE one (value INTEGER)")
    other.commit()
    other.close()
