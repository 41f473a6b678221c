"""Backups: what is in them, what is refused, and that nothing comes back that was delivered or used."""

import errno
import hmac
import io
import json
import os
import sqlite3
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from archives import unpack
from click.testing import CliRunner, Result
from keys_support import (
    STORE_KEYS,
    Site,
    add_block,
    assigned,
    make_block,
    memory_folder,
    pairs,
    preshared,
)
from operate_support import well_status
from test_keys_restore import meet
from test_keys_upgrade import site_of

import qnode
from qnode.audit.entries import KeyDelivered, decode
from qnode.audit.file import FileSource
from qnode.audit.verify import verify
from qnode.choices import Role
from qnode.cli.control import qnodectl
from qnode.errors import LinkDown, QnodeError, StoreError
from qnode.keys import (
    BackupUnusable,
    KeyStore,
    SqliteKeyStore,
    StoreCondition,
    read_backup,
    restore_backup,
)
from qnode.keys import _backup as backup_module
from qnode.keys._preshared import loaded_in
from qnode.keys._store import register_beside
from qnode.node.backup import Backups
from qnode.node.supply.async_store import AsyncStore
from qnode.operate.control.answers import Answers, LinkAnswers
from qnode.operate.control.client import NoAnswer
from qnode.operate.control.server import serve_control


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Site, Site]:
    found = Site(tmp_path / "alice", "alice"), Site(tmp_path / "bob", "bob")
    with found[0].open() as alice, found[1].open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(400))
        add_block(make_block(1, 60), alice, bob)
        meet(alice, bob)
    return found


def saved(store: KeyStore, path: Path, **files: bytes) -> Path:
    with store.save_backup(files, "qnode of a test") as content:
        path.write_bytes(content.read())
    return path


def put_back(site: Site, backup: Path, **changed: Any) -> None:
    peer: Role = "bob" if site.role == "alice" else "alice"
    site.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = {
        "role": site.role,
        "store_key": STORE_KEYS[site.role],
        "anchor": site.anchor,
        "kme_id": f"kme-{site.role}",
        "peer_kme_id": f"kme-{peer}",
    }
    with backup.open("rb") as file:
        restore_backup(file, site.path, **(options | changed))


def lose(site: Site, *, anchor: bool) -> None:
    """Lose the disk of the store, and that of the anchor."""
    for file in site.path.parent.iterdir():
        file.unlink()
    if anchor:
        for file in site.folder.glob("anchor*"):
            file.unlink()


def test_a_backup_has_no_key_of_an_encryptor_and_leaves_nothing_beside_the_store(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    site = sites[0]
    with site.open() as store:
        before = sorted(site.path.parent.iterdir())
        path = saved(store, tmp_path / "b.tar", **{"site.toml": b"[node]\n"})
        assert sorted(site.path.parent.iterdir()) == before
        assert store.counts().void == 0
        with store._database.look() as tx:
            rows = tx.connection.execute(
                "SELECT sealed FROM sealed_unit WHERE kind IN ('chunk', 'block_secret')"
            ).fetchall()
    assert rows
    assert not any(sealed in path.read_bytes() for (sealed,) in rows)  # not in a freed page either
    with path.open("rb") as file:
        head = read_backup(file, STORE_KEYS["alice"])
    assert (head.kme_id, head.peer_kme_id, head.software) == ("kme-alice", "kme-bob", "qnode of a test")
    with tarfile.open(path) as archive:
        assert archive.getnames() == [
            *("backup.json", "backup.mac", "store.sqlite", "preshared.json"),
            "site.toml",
        ]
        assert all(entry.mode == 0o600 for entry in archive)
        unpack(archive, tmp_path)
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as copy:
        kinds = {row[0] for row in copy.execute("SELECT kind FROM sealed_unit")}
        assert kinds == {"canary", "session_root", "hash_key", "pad_send", "pad_receive"}
        assert copy.execute("SELECT count(*) FROM free_range").fetchone() == (0,)
    result = verify(FileSource(tmp_path / "store.sqlite", None))
    assert (result.findings, result.chains) == ([], 2)


def test_a_backup_that_is_made_while_keys_are_delivered_is_one_state_of_the_store(
    sites: tuple[Site, Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_module, "_AUDIT_ENTRIES_AT_ONCE", 5)
    a, b = sites
    with a.open() as alice, b.open() as bob:
        numbers = [assigned(alice, bob, 1) for _ in range(24)]
        for number in numbers[:12]:
            alice.deliver_to_master(number)
        copying = threading.Event()
        next_entries = backup_module._next_entries

        def copied(*args: Any) -> Any:
            copying.set()
            return next_entries(*args)

        monkeypatch.setattr(backup_module, "_next_entries", copied)
        rest: list[str] = []

        def deliver() -> None:
            copying.wait()
            for number in numbers[12:]:
                rest.extend(name for name, _ in pairs(alice.deliver_to_master(number)))

        worker = threading.Thread(target=deliver)
        worker.start()
        path = saved(alice, tmp_path / "b.tar")
        worker.join()
        assert len(rest) == 12
        assert alice.counts().delivered == 24
    with tarfile.open(path) as archive:
        unpack(archive, tmp_path)
    result = verify(FileSource(tmp_path / "store.sqlite", None))
    assert result.findings == []
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as copy:
        (delivered,) = copy.execute("SELECT delivered FROM site").fetchone()
        entries = [decode(row[0]) for row in copy.execute("SELECT content FROM audit_entry")]
    assert sum(isinstance(entry, KeyDelivered) for entry in entries) == delivered
    assert 12 <= delivered <= 24


@pytest.mark.parametrize("anchor", [True, False], ids=["anchor lost", "anchor kept"])
def test_a_store_that_is_put_back_gives_no_earlier_key_and_no_used_pad_and_goes_on_with_its_peer(
    sites: tuple[Site, Site], tmp_path: Path, anchor: bool
) -> None:
    a, b = sites
    with a.open() as alice, b.open() as bob:
        early = assigned(alice, bob, 2)
        path = saved(alice, tmp_path / "b.tar")
        late = assigned(alice, bob, 2)
        delivered = [alice.deliver_to_master(number) for number in (early, late)]
        bob.deliver_to_slave("s", "m", [delivered[0][0].key_id])
        used = [alice.reserve_send_pad().pad_id for _ in range(5)]
        bob.confirm_receive_pad(used[2])  # the last two were under way
        add_block(make_block(2, 30), alice, bob)
        audited = alice.audit_standing().head
    lose(a, anchor=anchor)
    put_back(a, path)
    with a.open(create=False) as alice, b.open() as bob:
        assert alice.condition().state == StoreCondition.NEEDS_PEER_CONFIRMATION
        with pytest.raises(LinkDown):
            alice.deliver_to_master(early)
        meet(alice, bob)
        assert alice.condition().state == bob.condition().state == StoreCondition.SERVING
        for number in (early, late):
            with pytest.raises(StoreError, match="not open"):
                alice.deliver_to_master(number)
        with pytest.raises(QnodeError):
            bob.deliver_to_slave("s", "m", [delivered[1][0].key_id])
        assert alice.counts().here == bob.counts().here == 0
        pad = alice.reserve_send_pad()
        assert pad.pad_id > used[-1]
        assert bob.receive_pad(pad.pad_id) == pad.pad
        bob.confirm_receive_pad(pad.pad_id)
        add_block(make_block(3, 20), alice, bob)
        keys = alice.deliver_to_master(assigned(alice, bob, 3))
        assert pairs(bob.deliver_to_slave("s", "m", [key.key_id for key in keys])) == pairs(keys)
        chains = {str(one.chain_id) for one in _chains(alice)}
        assert str(audited.chain_id) in chains
    findings = [str(one) for one in verify(FileSource(a.path, a.anchor)).findings]
    assert len(findings) == (0 if anchor else 1)  # the anchor knows which entries were lost
    assert all("are missing" in one for one in findings)


def _chains(store: SqliteKeyStore) -> list[Any]:
    return store.audit_page(0, 0, 1).chains


def test_a_store_that_is_put_back_beside_an_old_copy_of_its_anchor_waits_for_its_peer_too(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    with a.open() as alice, b.open() as bob:
        path = saved(alice, tmp_path / "b.tar")
        old_anchor = a.anchor.read_bytes()
        used = [alice.reserve_send_pad().pad_id for _ in range(3)]
    lose(a, anchor=True)
    a.anchor.write_bytes(old_anchor)
    put_back(a, path)
    with a.open() as alice, b.open() as bob:
        assert alice.condition().state == StoreCondition.NEEDS_PEER_CONFIRMATION
        meet(alice, bob)
        assert alice.reserve_send_pad().pad_id > used[-1]


def test_a_backup_that_is_put_back_into_an_unchanged_site_voids_its_keys_at_both_sites(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    with a.open() as alice:
        path = saved(alice, tmp_path / "b.tar")
    lose(a, anchor=False)
    put_back(a, path)
    with a.open() as alice, b.open() as bob:
        meet(alice, bob)
        assert alice.counts().here == bob.counts().here == 0
        assert alice.condition().state == bob.condition().state == StoreCondition.SERVING


def test_the_register_of_pre_shared_keys_comes_back_with_the_store(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, _ = sites
    with a.open() as alice:
        alice.load_preshared(preshared(90), replace=True)
        path = saved(alice, tmp_path / "b.tar")
    lose(a, anchor=True)
    put_back(a, path)
    with a.open() as alice, pytest.raises(StoreError, match="was loaded at this site before"):
        alice.load_preshared(preshared(400), replace=True)


def test_every_pre_shared_key_of_a_backup_is_in_the_register_again(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, _ = sites
    register = register_beside(a.anchor)
    before = register.read_bytes()
    with a.open() as alice:
        alice.load_preshared(preshared(90), replace=True)
        alice.load_preshared(preshared(91), replace=True)
        path = saved(alice, tmp_path / "b.tar")
    lose(a, anchor=True)
    register.write_bytes(before)  # an older copy of the folder
    put_back(a, path)
    with a.open() as alice, pytest.raises(StoreError, match="was loaded at this site before"):
        alice.load_preshared(preshared(90), replace=True)


def test_a_store_is_in_its_place_only_when_its_register_and_anchor_are(
    sites: tuple[Site, Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = sites
    with a.open() as alice:
        path = saved(alice, tmp_path / "b.tar")
    lose(a, anchor=True)

    def fails(opened: Path, **named: Any) -> None:
        assert not a.path.exists()
        assert loaded_in(register_beside(a.anchor).read_bytes())
        raise StoreError(f"{opened}: another process has this store open; stop it first")

    with monkeypatch.context() as patch:
        patch.setattr("qnode.keys._putting_back.open_store", fails)
        with pytest.raises(StoreError, match="another process"):
            put_back(a, path)
    assert list(a.path.parent.iterdir()) == []
    put_back(a, path)
    assert [one.name for one in a.path.parent.iterdir()] == [a.path.name]


# Refusals: one line, and nothing has changed


@pytest.fixture
def backup_of_alice(sites: tuple[Site, Site], tmp_path: Path) -> Iterator[tuple[Site, Path]]:
    with sites[0].open() as alice:
        path = saved(alice, tmp_path / "b.tar", **{"site.toml": b"[node]\n"})
    lose(sites[0], anchor=True)
    yield sites[0], path
    assert list(sites[0].path.parent.iterdir()) == []


def assert_refused(site: Site, path: Path, words: str, **changed: Any) -> None:
    with pytest.raises(StoreError, match=words) as refusal:
        put_back(site, path, **changed)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_backup_with_one_changed_byte_anywhere_is_refused(backup_of_alice: tuple[Site, Path]) -> None:
    site, path = backup_of_alice
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        places = {entry.name: entry.offset_data + entry.size // 2 for entry in archive}
    for name, place in places.items():
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert_refused(site, path, f"{name} is damaged|store key, or was changed")
    for length in (0, 300, len(whole) // 2):
        path.write_bytes(whole[:length])
        assert_refused(site, path, "damaged")
    path.write_bytes(b"not a backup at all" * 1000)
    assert_refused(site, path, "is no backup, or is damaged")


def test_a_backup_of_another_site_or_under_another_key_is_refused(backup_of_alice: tuple[Site, Path]) -> None:
    site, path = backup_of_alice
    assert_refused(site, path, "of another site: its role is 'alice', here it is 'bob'", role="bob")
    assert_refused(site, path, "of another site: its kme_id is 'kme-alice', here it is 'x'", kme_id="x")
    assert_refused(site, path, "its peer is 'kme-bob', here it is 'y'", peer_kme_id="y")
    assert_refused(site, path, "not made under this store key", store_key=b"x" * 32)


def test_a_forged_backup_is_refused(backup_of_alice: tuple[Site, Path]) -> None:
    site, path = backup_of_alice
    with tarfile.open(path) as archive:
        entries = [(entry, archive.extractfile(entry).read()) for entry in archive]  # type: ignore[union-attr]
    told = json.loads(entries[0][1])
    told["generation"] = 0
    with tarfile.open(path, "w") as archive:
        for entry, content in [(entries[0][0], json.dumps(told).encode()), *entries[1:]]:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    assert_refused(site, path, "not made under this store key, or was changed")


def made_by_hand(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def link_to(name: str, target: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry, b""


def test_a_backup_whose_entries_are_links_or_holes_is_refused(
    backup_of_alice: tuple[Site, Path], tmp_path: Path
) -> None:
    site, _ = backup_of_alice
    hole = tarfile.TarInfo("backup.json")
    hole.type = tarfile.GNUTYPE_SPARSE
    for entry in (
        link_to("backup.json", "backup.json", tarfile.LNKTYPE),
        link_to("backup.json", "backup.json", tarfile.SYMTYPE),
        link_to("backup.json", "/etc/passwd", tarfile.SYMTYPE),
        link_to("backup.json", "", tarfile.CHRTYPE),
        (hole, b""),
    ):
        path = made_by_hand(tmp_path / "hand.tar", entry)
        assert_refused(site, path, "is no backup")
    path = tmp_path / "deep.tar"
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 512
    path.write_bytes((name.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 3000)
    assert_refused(site, path, "is no backup, or is damaged")


def test_a_backup_whose_head_lists_other_files_than_it_has_is_refused(
    backup_of_alice: tuple[Site, Path], tmp_path: Path
) -> None:
    site, whole = backup_of_alice
    with tarfile.open(whole) as archive:
        entries = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    told = json.loads(entries["backup.json"])

    def with_files(files: dict[str, Any], **further: bytes) -> Path:
        head = json.dumps(told | {"files": files}).encode()
        mac_key = hmac.digest(STORE_KEYS["alice"], b"qnode backup", "sha256")
        mac = hmac.digest(mac_key, head, "sha256").hex().encode()
        contents = entries | {"backup.json": head, "backup.mac": mac} | further
        named = [(tarfile.TarInfo(name), content) for name, content in contents.items()]
        return made_by_hand(tmp_path / "hand.tar", *named)

    assert_refused(site, with_files({}), r"is no backup: its backup.json lists no preshared.json")
    path = with_files(told["files"], **{"saes.toml": b"[[etsi014.sae]]"})
    assert_refused(site, path, r"its backup.json does not list 'saes.toml'")
    twice = [(tarfile.TarInfo(name), content) for name, content in entries.items()]
    path = made_by_hand(tmp_path / "hand.tar", *twice, (tarfile.TarInfo("site.toml"), b"[other]"))
    assert_refused(site, path, "its entry 'site.toml' is not one of a backup")
    with pytest.raises(click.UsageError, match=r"lists no preshared\.json"):
        call("backup", "inspect", str(with_files({})))


def test_what_a_killed_node_left_of_a_backup_is_removed_at_the_next_start(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = sites
    with a.open() as alice:
        before = sorted(a.path.parent.iterdir())
        with monkeypatch.context() as patch:
            patch.setattr(backup_module, "remove_backup_drafts", lambda _path: None)  # killed before
            alice.save_backup({}, "").close()
        assert len(sorted(a.path.parent.iterdir())) == len(before) + 2
        with pytest.raises(StoreError, match="another process"):
            a.open()
        assert len(sorted(a.path.parent.iterdir())) == len(before) + 2  # of a store in use
    a.open().close()
    assert [one.name for one in a.path.parent.iterdir()] == [a.path.name]


def test_a_backup_of_a_newer_version_is_refused(
    backup_of_alice: tuple[Site, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, path = backup_of_alice
    monkeypatch.setattr(backup_module, "FORMAT", 0)
    assert_refused(site, path, "made by a newer version, qnode of a test; use that one")


def test_a_backup_from_before_the_present_pre_shared_key_is_too_old(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, _ = sites
    with a.open() as alice:
        path = saved(alice, tmp_path / "b.tar")
        alice.load_preshared(preshared(90), replace=True)
    lose(a, anchor=False)
    with pytest.raises(BackupUnusable, match="too old: another pre-shared key was loaded since"):
        put_back(a, path)
    a.anchor.unlink()  # the register alone tells it too
    with pytest.raises(BackupUnusable, match="too old"):
        put_back(a, path)
    assert not a.path.exists()


def test_a_store_that_is_there_is_never_overwritten(sites: tuple[Site, Site], tmp_path: Path) -> None:
    a, _ = sites
    with a.open() as alice:
        path = saved(alice, tmp_path / "b.tar")
    before = a.path.read_bytes()
    with pytest.raises(StoreError, match="there is a store already, and nothing was changed"):
        put_back(a, path)
    assert a.path.read_bytes() == before


def test_a_backup_onto_a_full_disk_fails_in_one_line_and_leaves_nothing(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = sites

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with a.open() as alice:
        before = sorted(a.path.parent.iterdir())
        with monkeypatch.context() as patch:
            patch.setattr(backup_module, "_write_archive", full)
            with pytest.raises(StoreError, match=r"made \(No space left on device\); check space"):
                alice.save_backup({}, "")
        with monkeypatch.context() as patch:
            patch.setattr(backup_module, "_void", lambda *_: full_database())
            with pytest.raises(StoreError, match=r"made \(database or disk is full\)"):
                alice.save_backup({}, "")
        assert sorted(a.path.parent.iterdir()) == before
        assert alice.condition().serves


class BrokenCopy(sqlite3.Connection):
    """The disk of a copy that fails."""

    def executemany(self, *_args: Any) -> sqlite3.Cursor:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error


def test_a_disk_error_of_the_copy_does_not_stop_the_store(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    with sites[0].open() as alice:
        with monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", partial(connect, factory=BrokenCopy))
            with pytest.raises(StoreError, match=r"made \(disk I/O error\); check space and disk"):
                alice.save_backup({}, "")
        assert alice.counts().available_own == 30


def full_database() -> None:
    with closing(sqlite3.connect(":memory:")) as small:
        small.execute("PRAGMA max_page_count = 1")
        small.execute("CREATE TABLE one (x)")


# The command


def call(*words: str) -> Result:
    result = CliRunner().invoke(qnodectl, [*words], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


async def test_the_command_saves_inspects_and_restores_a_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, file = site_of(tmp_path)
    key = str(tmp_path / "alice" / "store.key")
    socket, path = tmp_path / "control", tmp_path / "b.tar"
    with site.open() as store:
        link = LinkAnswers(
            lambda count, after: [], backup=Backups(store, AsyncStore(store, 1000), "one", file).save
        )
        async with trio.open_nursery() as nursery:
            answers = Answers(well_status, lambda count: [], {"one": link})
            await nursery.start(serve_control, socket, answers)

            synced: list[Path] = []
            monkeypatch.setattr("qnode.secret_files.sync_folder", synced.append)

            async def ask(*words: str) -> Result:
                return await trio.to_thread.run_sync(lambda: call("--socket", str(socket), *words))

            done = await ask("backup", "save", str(path))
            assert "verified: alice kme-alice (peer kme-bob), saved " in done.output
            assert path.stat().st_mode & 0o777 == 0o600
            assert synced == [tmp_path]
            with pytest.raises(Exception, match=r"b.tar is there already; name a new file"):
                await ask("backup", "save", str(path))
            with pytest.raises(NoAnswer, match=r"no backup was written: No such file or directory"):
                await ask("backup", "save", str(tmp_path / "nowhere" / "b.tar"))
            nursery.cancel_scope.cancel()
        page = store.audit_page(1, 0, 1 << 20)
        assert any(b"backup.saved" in row.content for row in page.rows)
    assert "site.toml" in call("backup", "inspect", str(path), "--store-key", key).output
    with pytest.raises(Exception, match="there is a store already"):
        call("backup", "restore", str(path), "--config", str(file))
    lose(site, anchor=False)
    told = call("backup", "restore", str(path), "--config", str(file)).output
    assert f"{site.path}: put back from the backup of alice kme-alice" in told
    with site.open(create=False) as store:
        assert store.condition().state == StoreCondition.NEEDS_PEER_CONFIRMATION
    left = await trio.Path(tmp_path).iterdir()
    assert not [path for path in left if path.name.endswith("partial")]


def others_can_read_the_package() -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in Path(qnode.__file__).parents)


@pytest.mark.skipif(
    os.geteuid() != 0 or not others_can_read_the_package(),
    reason="only root can give files to another user, who must be able to read the package",
)
def test_root_puts_a_backup_that_only_root_can_read_back_for_the_user_of_the_daemon() -> None:
    daemon = 65534
    with memory_folder() as folder:  # whose parents another user can pass
        site, file = site_of(folder)
        path = folder / "b.tar"
        with site.open() as store:
            saved(store, path)
        path.chmod(0o600)
        lose(site, anchor=False)
        folder.chmod(0o755)
        (folder / "state").chmod(0o755)
        for owned in (site.path.parent, site.anchor.parent, *site.anchor.parent.iterdir()):
            os.chown(owned, daemon, daemon)
        call("backup", "restore", str(path), "--config", str(file))
        for owned in (site.path, site.anchor):
            assert (owned.stat().st_uid, owned.stat().st_mode & 0o777) == (daemon, 0o600)
        assert (os.geteuid(), os.getegid()) == (0, 0)


def test_a_node_says_why_it_makes_no_backup(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="nobody answers here"):
        call("--socket", str(tmp_path / "none"), "backup", "save", str(tmp_path / "b.tar"))
    assert list(tmp_path.iterdir()) == []
