"""The disk of the simulated world keeps what was flushed; the store survives all else."""

import random
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qnode.errors import StoreUnusable
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
