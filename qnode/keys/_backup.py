"""A backup of one site's store in one file, and the way back from it.

A backup has no key that an encryptor could get: a copy of a key would outlive its delivery. In it, all keys
are void already. It has what lets a site go on after the loss of its disk without a new pre-shared key (the
one-time pads and the numbers), what must not be lost with the disk (the audit), and the site's files. Secrets
in it are encrypted under the store key, which is not in it; nor are private keys of certificates.

The file is a tar archive. Its first entry, `backup.json`, has the length and the hash of every other one;
`backup.mac` authenticates it under the store key. It has no other entries.
"""

import hashlib
import hmac
import os
import sqlite3
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Annotated, BinaryIO, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from qnode.audit import ledger
from qnode.audit.entries import Head
from qnode.choices import Role
from qnode.errors import StoreError
from qnode.keys import _restore
from qnode.keys._anchor import fsync_folder
from qnode.keys._database import Database, read_positions
from qnode.keys._model import Waiting
from qnode.keys._opening import (
    APPLICATION_ID,
    BACKUP_DRAFTS,
    SCHEMA_VERSION,
    remove_backup_drafts,
    run_script,
)
from qnode.keys._tx import Tx
from qnode.keys._vault import Kind
from qnode.sql import Statements

HEAD_NAME, MAC_NAME, STORE_NAME, REGISTER_NAME = "backup.json", "backup.mac", "store.sqlite", "preshared.json"
FORMAT: Final = 1
_LONGEST_HEAD_BYTES = 1 << 16
_MOST_ENTRIES = 64
_PIECE_BYTES = 1 << 20
_AUDIT_ENTRIES_AT_ONCE = 512
_KEY_KINDS = (Kind.CHUNK, Kind.BLOCK_SECRET)
_WHOLE_TABLES = ("site", "block", "pad_segment", "audit_chain")
_LAST_ENTRY = "SELECT chain, number FROM audit_entry ORDER BY chain DESC, number DESC LIMIT 1"
_PRUNE = (
    "DELETE FROM audit_entry WHERE NOT EXISTS (SELECT 1 FROM audit_chain AS kept WHERE "
    "kept.chain = audit_entry.chain AND kept.pruned_number < audit_entry.number)"
)


class BackupEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a backup: its length and its SHA-256, in hexadecimal digits."""

    n_bytes: Annotated[int, Meta(ge=0)]
    sha256: str


class BackupHead(Struct, frozen=True, kw_only=True):
    """What a backup is of: a site and its store (generation, pads' epoch, audit), when, by which software."""

    format: int
    software: str
    saved_at_s: float
    role: Role
    kme_id: str
    peer_kme_id: str
    store_id: bytes
    schema: int
    generation: int
    pool_epoch: int
    audit: Head
    files: dict[str, BackupEntry]


class BackupUnusable(StoreError):
    """A backup cannot be used: it is damaged, or not of this site."""


def save_backup(
    database: Database, beside: Path, register: bytes, files: Mapping[str, bytes], software: str
) -> BinaryIO:
    """Make a backup of a store in use; return it as an open file without a name, at its start.

    ``beside``: the file in whose folder it is written. ``register``: the register of pre-shared keys.
    ``files``: further ones by name. Deliveries wait for milliseconds at a time. Raises StoreError if the disk
    is full, StoreUnusable like every method of a store.
    """
    path, copy = (beside.with_name(f"{beside.name}{ending}") for ending in BACKUP_DRAFTS)
    try:
        try:
            head, mac_key = _copy_without_keys(database, copy)
            with _new_file(path) as archive:
                _write_archive(archive, head, mac_key, copy, {REGISTER_NAME: register, **files}, software)
            return path.open("rb")
        finally:
            remove_backup_drafts(beside)
    except sqlite3.Error as error:
        raise StoreError(f"{copy}: no backup was made ({error}); check space and disk") from None
    except OSError as error:
        raise StoreError(f"{path}: no backup was made ({error.strerror}); check space and disk") from None


def read_backup(file: BinaryIO, store_key: bytes | None = None) -> BackupHead:
    """Verify every byte of a backup, with ``store_key`` also who made it; return its head.

    Raises BackupUnusable with the reason.
    """
    with _opened(file) as archive:
        return _verified(archive, store_key)


def register_in(file: BinaryIO, head: BackupHead) -> bytes:
    """Return the register of pre-shared keys in a backup. Raises BackupUnusable if it has changed since."""
    content = BytesIO()
    with _opened(file) as archive:
        archive.extract(REGISTER_NAME, head.files[REGISTER_NAME], content)
    return content.getvalue()


def extract_store(file: BinaryIO, head: BackupHead, store: Path) -> None:
    """Write the store of a verified backup to the new file ``store``, durably.

    Raises BackupUnusable if the backup has changed since, OSError if the file cannot be written.
    """
    draft = store.with_name(f"{store.name}.new")
    draft.unlink(missing_ok=True)
    try:
        with _opened(file) as archive, _new_file(draft) as content:
            archive.extract(STORE_NAME, head.files[STORE_NAME], content)
            os.fsync(content.fileno())
        os.link(draft, store)  # fails if a store has been made meanwhile
        fsync_folder(store.parent)
    finally:
        draft.unlink(missing_ok=True)


def _copy_without_keys(database: Database, path: Path) -> tuple[BackupHead, bytes]:
    """Write the store without its keys to a new file; return its head, still without files, and a MAC key."""
    path.unlink(missing_ok=True)
    _new_file(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as copy:
        for setting in ("temp_store = MEMORY", "journal_mode = OFF", "synchronous = OFF"):
            copy.execute(f"PRAGMA {setting}")  # it is thrown away after any error
        copy.execute("BEGIN")
        run_script(copy, f"schema_v{SCHEMA_VERSION}.sql")
        copy.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        copy.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        complete = False
        while not complete:
            reached = copy.execute(_LAST_ENTRY).fetchone() or (0, 0)
            # Only reads here: an error of the copy's disk must not count as one of the store's.
            with database.look() as tx:
                content = [_next_entries(tx.connection, *reached)]
                complete = len(content[0].rows) < _AUDIT_ENTRIES_AT_ONCE
                if complete:
                    content += _everything_else(tx.connection, copy)
                    head = _head_of(tx)
                    void = Tx(copy, tx.vault.over(copy), tx.role)
                    mac_key = tx.vault.derived_key(b"qnode backup")
            for part in content:
                copy.executemany(part.insertion, part.rows)
        # Entries that became too old while they were copied.
        copy.execute(_PRUNE)
        _void(void, head)
        copy.execute("COMMIT")
    return head, mac_key


class _Rows(NamedTuple):
    insertion: str
    rows: list[tuple[object, ...]]


def _next_entries(source: Statements, chain: int, number: int) -> _Rows:
    """Return the next entries of the audit, which only grows."""
    rows = source.execute(
        "SELECT chain, number, content, hash FROM audit_entry WHERE (chain, number) > (?, ?) "
        "ORDER BY chain, number LIMIT ?",
        (chain, number, _AUDIT_ENTRIES_AT_ONCE),
    )
    return _Rows("INSERT INTO audit_entry (chain, number, content, hash) VALUES (?,?,?,?)", rows.fetchall())


def _everything_else(source: Statements, copy: sqlite3.Connection) -> list[_Rows]:
    """Return all that a backup has besides the entries of the audit, for the tables of ``copy``."""
    kinds = [kind for kind in Kind if kind not in _KEY_KINDS]
    found = []
    for table in (*_WHOLE_TABLES, "sealed_unit"):
        names = [row[1] for row in copy.execute(f"PRAGMA table_info({table})")]
        columns, places = ", ".join(names), ", ".join("?" * len(names))
        chosen, values = "", list[Kind]()
        if table == "sealed_unit":
            chosen, values = f" WHERE kind IN ({', '.join('?' * len(kinds))})", kinds
        rows = source.execute(f"SELECT {columns} FROM {table}{chosen}", values)
        found.append(_Rows(f"INSERT INTO {table} ({columns}) VALUES ({places})", rows.fetchall()))
    return found


def _head_of(tx: Tx) -> BackupHead:
    own = read_positions(tx.connection)
    row = tx.connection.execute("SELECT role, kme_id, peer_kme_id, store_id FROM site").fetchone()
    return BackupHead(
        format=FORMAT,
        software="",
        saved_at_s=time.time(),
        role=row[0],
        kme_id=row[1],
        peer_kme_id=row[2],
        store_id=bytes(row[3]),
        schema=SCHEMA_VERSION,
        generation=own.generation,
        pool_epoch=own.pool_epoch,
        audit=ledger.head(tx.connection),
        files={},
    )


def _void(copy: Tx, head: BackupHead) -> None:
    """Make the copy what a store is that was put back: without keys, waiting for the peer."""
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(head.saved_at_s))
    because = f"this store was put back from the backup of {at}"
    own = read_positions(copy.connection)
    # The keys are not here: only their number can be voided.
    _restore.void_all(copy, because, own.era + 1)
    # These sums are kept by triggers of tables that were not copied.
    copy.connection.execute(
        "UPDATE site SET generation = generation + 1, own_chunks = 0, stock_chunks = 0, peer_chunks = 0"
    )
    _restore.begin_lineage(copy)
    ledger.begin(copy.connection, because)
    if _restore.waiting(copy) != Waiting.RESTORE:
        _restore.wait(copy, Waiting.ANCHORLESS, because)
    copy.write_down()


def _write_archive(
    file: BinaryIO, head: BackupHead, mac_key: bytes, store: Path, others: Mapping[str, bytes], software: str
) -> None:
    hashed = hashlib.sha256()
    with store.open("rb") as content:
        while piece := content.read(_PIECE_BYTES):
            hashed.update(piece)
        files = {STORE_NAME: BackupEntry(content.tell(), hashed.hexdigest())}
        for name, data in others.items():
            files[name] = BackupEntry(len(data), hashlib.sha256(data).hexdigest())
        told = msgspec.json.encode(msgspec.structs.replace(head, software=software, files=files))
        content.seek(0)
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
            _add(archive, HEAD_NAME, len(told), BytesIO(told))
            mac = hmac.digest(mac_key, told, "sha256").hex().encode()
            _add(archive, MAC_NAME, len(mac), BytesIO(mac))
            _add(archive, STORE_NAME, files[STORE_NAME].n_bytes, content)
            for name, data in others.items():
                _add(archive, name, len(data), BytesIO(data))
    file.flush()


def _add(archive: tarfile.TarFile, name: str, n_bytes: int, content: BinaryIO) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = n_bytes, 0o600
    archive.addfile(entry, content)


def _new_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb")


class _Archive:
    """The entries of a backup that is read."""

    def __init__(self, path: str, tar: tarfile.TarFile) -> None:
        self.path = path
        self._tar = tar
        self._entries: dict[str, tarfile.TarInfo] = {}
        # One after another: a lookup by name follows links, also those to themselves.
        while (entry := tar.next()) is not None:
            plain = entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not entry.issparse()
            if (
                not plain
                or entry.size < 0
                or entry.name in self._entries
                or len(self._entries) == _MOST_ENTRIES
            ):
                raise BackupUnusable(f"{path}: is no backup: its entry {entry.name!r} is not one of a backup")
            self._entries[entry.name] = entry

    @property
    def names(self) -> set[str]:
        return set(self._entries)

    def read(self, name: str) -> bytes:
        """Return an entry that is not listed in the head."""
        entry = self._entries.get(name)
        content = None if entry is None else self._tar.extractfile(entry)
        if content is None:
            raise BackupUnusable(f"{self.path}: is no backup: it has no {name}")
        try:
            data = content.read(_LONGEST_HEAD_BYTES + 1)
        except (tarfile.TarError, OSError) as error:
            raise BackupUnusable(f"{self.path}: is no backup, or is damaged ({error})") from None
        if not 0 < len(data) <= _LONGEST_HEAD_BYTES:
            raise BackupUnusable(f"{self.path}: its {name} is damaged")
        return data

    def extract(self, name: str, told: BackupEntry, to: BinaryIO) -> None:
        """Write an entry to ``to``; raises BackupUnusable unless it has its length and hash."""
        hashed, missing = hashlib.sha256(), told.n_bytes
        entry = self._entries.get(name)
        content = None if entry is None else self._tar.extractfile(entry)
        try:
            while content is not None and (piece := content.read(_PIECE_BYTES)):
                hashed.update(piece)
                missing -= len(piece)
                to.write(piece)
        except tarfile.TarError:  # its end is missing
            missing = -1
        if missing or hashed.hexdigest() != told.sha256:
            raise BackupUnusable(f"{self.path}: its {name} is damaged; use another backup")
        to.flush()


@contextmanager
def _opened(file: BinaryIO) -> Iterator[_Archive]:
    try:
        file.seek(0)
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # closed below
        archive = _Archive(file.name, tar)
    except OSError as error:
        raise BackupUnusable(f"{file.name}: {error.strerror or error}") from None
    # tarfile raises others as well for headers that nobody writes.
    except (tarfile.TarError, ValueError, ArithmeticError, RecursionError) as error:
        raise BackupUnusable(f"{file.name}: is no backup, or is damaged ({error})") from None
    with tar:
        yield archive


def _verified(archive: _Archive, store_key: bytes | None) -> BackupHead:
    path = archive.path
    told = archive.read(HEAD_NAME)
    mac = archive.read(MAC_NAME)
    try:
        head = msgspec.json.decode(told, type=BackupHead)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BackupUnusable(f"{path}: its {HEAD_NAME} is damaged ({error})") from None
    if head.format > FORMAT or head.schema > SCHEMA_VERSION:
        raise BackupUnusable(f"{path}: was made by a newer version, {head.software}; use that one")
    if store_key is not None:
        expected = hmac.digest(hmac.digest(store_key, b"qnode backup", "sha256"), told, "sha256")
        if not hmac.compare_digest(expected.hex().encode(), mac):
            raise BackupUnusable(
                f"{path}: was not made under this store key, or was changed; give its own key"
            )
    listed = {HEAD_NAME, MAC_NAME, *head.files}
    if lacking := {STORE_NAME, REGISTER_NAME} - head.files.keys():
        raise BackupUnusable(f"{path}: is no backup: its {HEAD_NAME} lists no {min(lacking)}")
    if further := archive.names - listed:
        raise BackupUnusable(f"{path}: is no backup: its {HEAD_NAME} does not list {min(further)!r}")
    for name, entry in head.files.items():
        with Path(os.devnull).open("wb") as nowhere:
            archive.extract(name, entry, nowhere)
    return head
