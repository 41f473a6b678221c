"""Stores of earlier versions: opened or refused, never half converted; and back to the release before."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from archives import unpack
from conversation_room import FROZEN, copied, open_copy, other
from keys_support import STORE_KEYS, Site, add_block, assigned, make_block, preshared
from test_keys_damage import settle, spoil
from test_keys_restore import meet
from test_protocol_1 import extract_old_code

from qnode.choices import ROLES, Role
from qnode.cli.control import qnodectl
from qnode.cli.site_file import SiteAnswers, site_text
from qnode.errors import StoreError, StoreUnusable
from qnode.keys import KeyStore, RolledBack, StoreCondition, chunks_per_key, roll_back
from qnode.keys._waiting import Held
from qnode.keys._witness import Witness

FIXTURES = Path(__file__).parent / "fixtures"
SCHEMA_2 = FIXTURES / "schema_2"
BETWEEN_RELEASES = FIXTURES / "stores_between_releases" / "stores.tar.xz"
# Those of schema 1 before release 0.1.0, and those of schema 2 before release 0.2.0.
COMMITS_BETWEEN_RELEASES = (
    *("bc17c36", "c773362", "dfdbcab", "e13cc5b"),
    *("66ca063", "0999602", "0f4843c", "67a9d38", "687f2b8"),
)


def roll_back_copy(
    folder: Path, role: Role, witness: Path | None = None, *, void_open: bool = False
) -> RolledBack:
    return roll_back(
        folder / role / "db" / "keys.db",
        role=role,
        store_key=STORE_KEYS[role],
        anchor=folder / role / "anchor",
        kme_id=f"kme-{role}",
        peer_kme_id=f"kme-{other(role)}",
        witness=witness,
        void_open=void_open,
    )


def schema_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def run_old(folder: Path, code: Path, role: Role, script: str) -> Any:
    """Run ``script`` with a store of the frozen release 0.1.0 opened as ``store``; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", OPENED_BY_OLD + script, role, str(folder / role)],
        env=os.environ | {"PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


OPENED_BY_OLD = """
import json, sys
from pathlib import Path
import msgspec
from qnode.keys import open_store
role, folder = sys.argv[1], Path(sys.argv[2])
store = open_store(
    folder / "db" / "keys.db", role=role, store_key=(folder / "store_key").read_bytes(),
    anchor=folder / "anchor", kme_id=f"kme-{role}",
    peer_kme_id="kme-bob" if role == "alice" else "kme-alice", create=False,
)
"""


# Forward


def test_a_conversion_that_is_interrupted_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(tmp_path / "data")
    path = folder / "alice" / "db" / "keys.db"

    def fails(*_args: object) -> None:
        raise RuntimeError("power off")

    with monkeypatch.context() as patch:
        patch.setattr("qnode.keys._opening.ledger.begin", fails)
        with pytest.raises(RuntimeError):
            open_copy(folder, "alice")
    assert schema_of(path) == 1
    with open_copy(folder, "alice") as store:
        assert store.condition().serves
    assert schema_of(path) == 2


@pytest.mark.parametrize("role", ROLES)
def test_a_conversion_counts_the_keys_that_wait_for_the_shares_of_pairs(tmp_path: Path, role: Role) -> None:
    with open_copy(copied(tmp_path / "data"), role) as store, store._database.look() as tx:
        waiting = Counter[tuple[str, str]]()
        for row in tx.connection.execute("SELECT content, waiting FROM peer_assignment"):
            held = Held.decode(*row)
            for slave, of_slave in zip(held.assignment.slave_saes, held.waiting, strict=True):
                n_chunks = chunks_per_key(held.assignment.size_bits) * of_slave.bit_count()
                waiting[held.assignment.master_sae, slave] += n_chunks
        rows = tx.connection.execute("SELECT master_sae, slave_sae, chunks FROM waiting_pair").fetchall()
        assert waiting.total() > 0
        assert {(master, slave): chunks for master, slave, chunks in rows} == +waiting


def test_a_full_disk_refuses_a_conversion_and_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(tmp_path / "data")
    path = folder / "alice" / "db" / "keys.db"
    connect = sqlite3.connect

    def on_a_full_disk(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        if "keys.db" in str(args[0]):
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr("qnode.keys._opening.sqlite3.connect", on_a_full_disk)
        with pytest.raises(
            StoreError, match="the disk is full, nothing was changed; free some space"
        ) as full:
            open_copy(folder, "alice")
    assert not isinstance(full.value, StoreUnusable)  # it may pass: the daemon is started again
    assert schema_of(path) == 1
    with open_copy(folder, "alice") as store:
        assert store.condition().serves


@pytest.mark.parametrize("commit", COMMITS_BETWEEN_RELEASES)
def test_a_store_of_a_version_between_releases_is_refused_in_one_line_and_unchanged(
    tmp_path: Path, commit: str
) -> None:
    with tarfile.open(BETWEEN_RELEASES) as stores:
        unpack(stores, tmp_path)
    site = Site(tmp_path / commit, "alice")
    before = site.path.read_bytes()
    with pytest.raises(StoreUnusable, match=r"between releases .*; run the qnode that wrote it") as refusal:
        site.open()
    assert str(site.path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert site.path.read_bytes() == before


# The present schema, frozen


@pytest.mark.parametrize("role", ROLES)
def test_the_frozen_store_of_schema_2_is_opened_and_holds_what_it_held(tmp_path: Path, role: Role) -> None:
    held = json.loads((SCHEMA_2 / role / "holds.json").read_text())
    folder = copied(tmp_path / "data", SCHEMA_2)
    with open_copy(folder, role) as store:
        assert what_it_holds(store) == held


def what_it_holds(store: KeyStore) -> dict[str, Any]:
    shown = {
        "condition": store.condition(),
        "counts": store.counts(),
        "positions": store.positions(),
        "pads_left": store.pads_left(),
        "stock": store.stock_items(),
        "blocks": store.recent_blocks(10),
        "audit": store.audit_standing(),
    }
    return dict(json.loads(msgspec.json.encode(shown)))


# Back


@pytest.mark.parametrize("role", ROLES)
def test_a_store_that_went_to_this_version_and_back_is_what_it_was_to_release_0_1_0(
    tmp_path: Path, role: Role
) -> None:
    folder = copied(tmp_path / "data")
    extract_old_code(tmp_path / "code")
    held = json.loads((FROZEN / "data" / role / "holds.json").read_text())
    open_copy(folder, role).close()
    roll_back_copy(folder, role, void_open=True)
    frozen = (FROZEN / "schema.sql").read_text().splitlines()[0]
    assert f"-- user_version {schema_of(folder / role / 'db' / 'keys.db')}" == frozen
    seen = run_old(
        folder,
        tmp_path / "code",
        role,
        "shown = {'condition': store.condition().state, 'counts': store.counts(), "
        "'positions': store.positions(), 'pads_left': store.pads_left()}\n"
        "print(json.dumps(msgspec.to_builtins(shown)))",
    )
    assert seen["condition"] == held["condition"]
    assert seen["counts"] == held["counts"]
    assert seen["pads_left"] == held["pads_left"]
    after = {"generation": seen["positions"]["generation"], "epsilon": seen["positions"]["epsilon"]}
    assert seen["positions"] == held["positions"] | after
    assert after["generation"] > held["positions"]["generation"]
    assert after["epsilon"] >= held["positions"]["epsilon"]


def test_keys_delivered_since_the_upgrade_do_not_come_back_with_release_0_1_0(tmp_path: Path) -> None:
    folder = copied(tmp_path / "data")
    extract_old_code(tmp_path / "code")
    with open_copy(folder, "alice") as alice, open_copy(folder, "bob") as bob:
        delivered = alice.deliver_to_master(2)
        assert bob.deliver_to_slave("sae-b", "sae-a", [key.key_id for key in delivered])
        rest = alice.counts()
    roll_back_copy(folder, "alice", void_open=True)
    script = """
taken = store.take_from_stock("sae-a", "sae-b", store.stock_count("sae-a", "sae-b"))
try:
    again = len(store.deliver_to_master(2))
except Exception as error:
    again = str(error)
print(json.dumps([again, [str(key.key_id) for key in taken], msgspec.to_builtins(store.counts())]))
"""
    again, from_stock, counts = run_old(folder, tmp_path / "code", "alice", script)
    assert "not open here" in again
    assert not {str(key.key_id) for key in delivered} & set(from_stock)
    assert counts["delivered"] == rest.delivered + len(from_stock)
    assert counts["void"] == rest.void
    # And forward again: nothing comes back, and the audit of both times is there.
    with open_copy(folder, "alice") as alice:
        assert alice.counts().delivered == counts["delivered"]
        with pytest.raises(StoreError, match="not open"):
            alice.deliver_to_master(2)
        assert alice.audit_standing().chains == 2
        assert alice.audit_standing().damage == ""


def sites_cut_apart(folder: Path) -> tuple[Site, Site, int]:
    """Make two sites, cut apart while Alice released 3 keys and 3 of a stock of 4, and agreed on 5.

    Returns the number of the assignment of which nothing was delivered.
    """
    a, b = Site(folder / "alice", "alice"), Site(folder / "bob", "bob")
    with a.open() as alice, b.open() as bob:
        alice.load_preshared(preshared(20))
        bob.load_preshared(preshared(20))
        add_block(make_block(1, 40), alice, bob)
        untouched = assigned(alice, bob, 3)
        alice.begin_release(untouched)
        stock = alice.assign("m", ["s"], 4, 256, now=0.0, stock=True)
        bob.accept_assignment(stock, now=0.0)
        alice.acknowledge(stock.assignment_id)
        alice.take_from_stock("m", "s", 1)
        bob.release_accepted(alice.begin_release(stock.assignment_id))
        alice.assign("m", ["s"], 5, 256, now=0.0)
        meet(alice, bob)
    return a, b, untouched


def test_a_roll_back_is_refused_until_the_sites_have_settled_what_they_were_agreeing_on(
    tmp_path: Path,
) -> None:
    a, b, _ = sites_cut_apart(tmp_path)
    with pytest.raises(StoreError, match=r"11 chunks .* not settled; start the node until") as refusal:
        roll_back_copy(tmp_path, "alice")
    assert str(a.path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert schema_of(a.path) == 2
    with a.open() as alice, b.open() as bob:
        for release in alice.begin_open_releases():
            bob.release_accepted(release)
            alice.finish_release(release.assignment.assignment_id)
    assert roll_back_copy(tmp_path, "alice") == RolledBack(kept_chunks=39, void_chunks=0)
    with a.open() as alice, b.open() as bob:
        assert alice.counts().available_own == bob.counts().available_peer == 19


def test_a_roll_back_without_the_peer_gives_up_what_was_open_and_counts_it_as_void(tmp_path: Path) -> None:
    a, b, untouched = sites_cut_apart(tmp_path)
    done = roll_back_copy(tmp_path, "alice", void_open=True)
    assert done == RolledBack(kept_chunks=28, void_chunks=11)
    with a.open() as alice, b.open() as bob:
        assert alice.counts().void == 3  # of the stock, of which a key was delivered
        assert alice.counts().stock == 0
        left_open = alice.unacknowledged_assignments()
        assert [one.assignment_id for one in left_open] == [untouched, untouched + 2]
        for one in left_open:  # as release 0.1.0 does when the sites meet
            bob.void_accepted(one)
            alice.void_assignment(one.assignment_id)
        counts = alice.counts()
        assert counts.available_own + counts.available_peer == done.kept_chunks


def test_a_roll_back_that_meets_a_damaged_unit_names_the_remedy(tmp_path: Path) -> None:
    a, b, _ = sites_cut_apart(tmp_path)
    with a.open() as alice:
        spoil(alice, "chunk", 1, 0)
    with pytest.raises(StoreError, match=r"given up by the peer yet; start .*qnodectl restore") as refusal:
        roll_back_copy(tmp_path, "alice", void_open=True)
    assert str(a.path) in str(refusal.value)
    with a.open() as alice, b.open() as bob:
        settle(alice, bob)
        for release in alice.begin_open_releases():
            bob.release_accepted(release)
            alice.finish_release(release.assignment.assignment_id)
    assert roll_back_copy(tmp_path, "alice").void_chunks == 0


def test_a_roll_back_makes_the_checks_of_files_that_an_opening_makes(tmp_path: Path) -> None:
    site = Site(tmp_path / "alice", "alice")
    site.open().close()
    for place, mode in ((site.path.parent, 0o755), (site.path, 0o644)):
        place.chmod(mode)
    roll_back_copy(tmp_path, "alice")
    assert site.path.parent.stat().st_mode & 0o777 == 0o700
    assert site.path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(StoreUnusable, match="the anchor must lie outside"):
        roll_back(
            site.path,
            role="alice",
            store_key=STORE_KEYS["alice"],
            anchor=site.path.with_name("anchor"),
            kme_id="kme-alice",
            peer_kme_id="kme-bob",
        )


def test_a_store_that_waits_for_its_peer_is_not_rolled_back(tmp_path: Path) -> None:
    folder = copied(tmp_path / "data")
    open_copy(folder, "alice").close()
    (folder / "alice" / "anchor").unlink()
    with pytest.raises(StoreUnusable, match=r"anchor .* is missing.*start the node again until it serves"):
        roll_back_copy(folder, "alice")
    with open_copy(folder, "alice") as alice:
        assert alice.condition().state == StoreCondition.NEEDS_PEER_CONFIRMATION


@pytest.mark.parametrize("after", ["conversion", "settling"])
def test_a_roll_back_that_is_interrupted_is_finished_by_a_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    folder = tmp_path / "data"
    site = Site(folder / "alice", "alice")
    with site.open() as store:
        store.load_preshared(preshared(20))
        store.load_preshared(preshared(30), replace=True)  # begins a lineage
        before = store.positions()

    def fails(*_args: object) -> None:
        raise RuntimeError("power off")

    with monkeypatch.context() as patch:
        what = "Anchor.create" if after == "conversion" else "_convert"
        patch.setattr(f"qnode.keys._rollback.{what}", fails)
        with pytest.raises(RuntimeError):
            roll_back_copy(folder, "alice")
    assert schema_of(site.path) == (1 if after == "conversion" else 2)
    roll_back_copy(folder, "alice")
    assert schema_of(site.path) == 1
    assert b"lineage" not in site.anchor.read_bytes()
    with site.open() as store:
        assert store.condition().serves
        assert store.pads_left().send == 15
        assert store.positions().era == before.era


def test_a_roll_back_whose_witness_fails_twice_voids_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    site, there = Site(folder / "alice", "alice"), Site(folder / "bob", "bob")
    witness = tmp_path / "w" / "witness"
    witness.parent.mkdir()
    with site.open(witness=witness) as store, there.open() as peer:
        for seed in (20, 30):  # the second begins a lineage
            for one in (store, peer):
                one.load_preshared(preshared(seed), replace=seed == 30)
        add_block(make_block(1, 60), store, peer)
        meet(store, peer)
        store.tell_witness()
        before = store.counts()

    def fails(*_args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Witness, "follow", fails)
            with pytest.raises(OSError, match="Input/output"):
                roll_back_copy(folder, "alice", witness)
    with site.open(witness=witness) as store:
        assert store.counts() == before


# The command


def site_of(folder: Path) -> tuple[Site, Path]:
    """Make a stopped site with keys as `qnode setup --state` lays it out; return it with its file."""
    answers = SiteAnswers(
        role="alice",
        kme_id="kme-alice",
        peer_kme_id="kme-bob",
        link="link-1",
        address="127.0.0.1:7400",
        listen="127.0.0.1:8443",
        metrics="127.0.0.1:9400",
        sae_id="a",
        peer_sae_id="b",
        folder=folder,
        fibre="tcp://127.0.0.1:7401",
        state=folder / "state",
    )
    file = folder / "alice.toml"
    file.write_text(site_text(answers))
    answers.secret("store-key").parent.mkdir(mode=0o700)
    answers.secret("store-key").write_bytes(STORE_KEYS["alice"])
    answers.secret("store-key").chmod(0o600)
    site = Site(folder, "alice")
    site.path = folder / "state" / "alice" / "keys.sqlite"
    site.anchor = folder / "state" / "alice-anchor" / "anchor"
    with site.open() as store:
        store.load_preshared(preshared(20))
        add_block(make_block(1, 40), store)
    return site, file


def test_the_command_rolls_a_stopped_site_back_and_says_what_was_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, file = site_of(tmp_path)
    assert qnodectl.main(["rollback", str(file)], standalone_mode=False) == 0
    assert capsys.readouterr().out == f"{site.path}: ready for release 0.1.0 with 40 chunks\n"
    assert schema_of(site.path) == 1
    for path in (site.path, site.anchor):
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_command_refuses_a_running_site_in_one_line_and_changes_nothing(tmp_path: Path) -> None:
    site, file = site_of(tmp_path)
    with site.open() as store:
        with pytest.raises(click.UsageError, match="another process has this store open; stop it first"):
            qnodectl.main(["rollback", str(file)], standalone_mode=False)
        assert store.counts().available_own + store.counts().available_peer == 40
    short = tmp_path / "short"
    short.write_bytes(b"short")
    short.chmod(0o600)
    with pytest.raises(click.UsageError, match="expected 32 bytes, got 5"):
        qnodectl.main(["rollback", str(file), "--store-key", str(short)], standalone_mode=False)
    site.path.unlink()
    with pytest.raises(click.UsageError, match=r"keys.sqlite: No such file or directory"):
        qnodectl.main(["rollback", str(file)], standalone_mode=False)
