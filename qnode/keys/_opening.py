"""Creates a store, or opens one and checks whether it can be trusted. Refusals state the remedy."""

import os
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

from qnode.audit import ledger
from qnode.choices import Role
from qnode.errors import StoreError, StoreUnusable
from qnode.keys import _accepted, _damage, _restore
from qnode.keys._anchor import Anchor, fsync_folder
from qnode.keys._database import Database, read_lineage, read_positions
from qnode.keys._engine import Engine
from qnode.keys._model import Positions, Waiting
from qnode.keys._sqlite import SqliteEngine
from qnode.keys._tx import Tx
from qnode.keys._vault import DamagedUnit, Kind, Vault
from qnode.keys._witness import Witness
from qnode.sql import Statements

SCHEMA_VERSION = 2
APPLICATION_ID = 0x514E4F44  # "QNOD"
BACKUP_DRAFTS = (".backup.new", ".backup.copy")
"""What follows the name of a store in the names of the drafts of its backups."""
_CANARY = b"qnode canary 16b"


def create_database(path: Path, *, role: Role, store_key: bytes, kme_id: str, peer_kme_id: str) -> None:
    """Write a fresh, empty store under another name, then rename it: there is never an incomplete store.

    Raises StoreUnusable, or OSError where it cannot even begin.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    path.with_name(draft.name + "-journal").unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(draft, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("BEGIN")
        run_script(connection, f"schema_v{SCHEMA_VERSION}.sql")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        fill(connection, role=role, store_key=store_key, kme_id=kme_id, peer_kme_id=peer_kme_id)
        connection.execute("COMMIT")
    except sqlite3.Error as error:  # a full or broken disk
        raise StoreUnusable(
            f"{path}: the new store cannot be written ({error}): make room on its disk, or mend it, "
            "and start again"
        ) from error
    finally:
        connection.close()
    draft.replace(path)
    fsync_folder(path.parent)


def fill(connection: Statements, *, role: Role, store_key: bytes, kme_id: str, peer_kme_id: str) -> None:
    """Enter what a new store has, into its empty tables."""
    connection.execute(
        "INSERT INTO site (one, store_id, role, kme_id, peer_kme_id) VALUES (1, ?, ?, ?, ?)",
        (secrets.token_bytes(16), role, kme_id, peer_kme_id),
    )
    Vault(connection, store_key).put(Kind.CANARY, 0, _CANARY)
    ledger.begin(connection, "a new store")


def open_database(
    path: Path,
    *,
    role: Role,
    store_key: bytes,
    anchor_path: Path,
    kme_id: str,
    peer_kme_id: str,
    witness_path: Path | None = None,
) -> Database:
    """Open an existing store: its file, its key, its owner, then its age against the anchor.

    Raises StoreUnusable, or StoreError for a full disk; OSError if its mode cannot be set. A store older than
    its anchor is returned empty, one without an anchor unchanged; both wait for the peer.
    """
    check_place_of_anchor(path, anchor_path)
    _close_to_others(path)
    try:
        connection = _connect(path)
    except sqlite3.Error as error:
        raise _refusal(path, error) from error
    try:
        _set_up(connection)
        _check_schema(path, connection)
        remove_backup_drafts(path)
        vault = Vault(connection, store_key)
        check_canary(str(path), connection, vault)
        store_id = check_owner(str(path), connection, role=role, kme_id=kme_id, peer_kme_id=peer_kme_id)
        _bring_up_to_date(path, connection, Tx(connection, vault, role))
    except sqlite3.Error as error:
        connection.close()
        raise _refusal(path, error) from error
    except BaseException:
        connection.close()
        raise
    return judged(SqliteEngine(path, connection), role, store_key, store_id, anchor_path, witness_path)


def judged(
    engine: Engine,
    role: Role,
    store_key: bytes,
    store_id: bytes,
    anchor_path: Path,
    witness_path: Path | None,
) -> Database:
    """Compare an open store with its anchor and witness; the connection is closed after an error.

    Raises StoreUnusable; OSError if the witness is not reachable.
    """
    try:
        anchor = Anchor.open(anchor_path, store_key, store_id)
    except BaseException:
        engine.close()
        raise
    database = Database(
        engine,
        Vault(engine.statements, store_key),
        role,
        lambda now, lineage, audit: Anchor.create(anchor_path, store_key, store_id, now, lineage, audit),
    )
    database.anchor = anchor
    try:
        _damage.without_damage(database, lambda: _compare_with_anchor(database, anchor_path), anchored=False)
        if witness_path is not None:
            witness = Witness(witness_path, store_key, store_id)
            _damage.without_damage(database, lambda: _compare_with_witness(database, witness))
            database.witness = witness
        with database.look() as tx:
            _accepted.expect_unnamed(tx)
    except BaseException:
        database.close()
        raise
    return database


def check_place_of_anchor(path: Path, anchor: Path) -> None:
    """Refuse an anchor in the folder of its store, by StoreUnusable."""
    folder = path.resolve().parent
    if anchor.resolve().is_relative_to(folder):
        raise StoreUnusable(
            f"{anchor}: the anchor must lie outside {folder}, or a restore would take it along"
        )


def _close_to_others(path: Path) -> None:
    path.parent.chmod(0o700)
    for file in (path, path.with_name(path.name + "-wal")):
        if file.exists():
            file.chmod(0o600)


def remove_backup_drafts(path: Path) -> None:
    """Remove the drafts of a backup of the store at ``path``, which is open here: nobody makes one."""
    for ending in BACKUP_DRAFTS:
        path.with_name(f"{path.name}{ending}").unlink(missing_ok=True)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=0,
    )


def _set_up(connection: sqlite3.Connection) -> None:
    # Exclusive: a second process is refused, and the log needs no shared-memory file.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


def _check_schema(path: Path, connection: sqlite3.Connection) -> None:
    try:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            raise StoreUnusable(f"{path}: another process has this store open; stop it first") from error
        raise
    if application_id != APPLICATION_ID:
        raise StoreUnusable(
            f"{path}: this file is not a qnode key store; correct the path, or restore the file"
        )
    if not 1 <= version <= SCHEMA_VERSION:
        raise StoreUnusable(
            f"{path}: schema {version}, but this qnode knows 1 to {SCHEMA_VERSION}; "
            "run the qnode that wrote it"
        )
    found = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
    if found != ["ok"]:
        raise _damaged(path, "; ".join(found))
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreUnusable(f"{path}: the file system does not allow a write-ahead log; move the store")
    connection.execute("PRAGMA synchronous = FULL")


def _bring_up_to_date(path: Path, connection: sqlite3.Connection, tx: Tx) -> None:
    """Convert a store of an earlier version to the present one, completely or not at all.

    Raises StoreUnusable if no released version wrote this store; it is unchanged then.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in range(version, SCHEMA_VERSION):
            run_script(connection, f"from_v{step}_to_v{step + 1}.sql")
            if step == 1:
                _accepted.count_waiting(tx)
                tx.write_down()
                ledger.begin(connection, "a store of a version that had no audit")
        _check_form(path, connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself has undone it on a full disk
            connection.execute("ROLLBACK")
        raise


def _check_form(path: Path, connection: sqlite3.Connection) -> None:
    """Refuse a store without all that this version uses: a version number alone does not show that."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        run_script(fresh, f"schema_v{SCHEMA_VERSION}.sql")
        missing = form_of(fresh) - form_of(connection)
    if missing:
        raise _between_releases(path, f"no {min(missing)}")


def form_of(connection: sqlite3.Connection) -> set[str]:
    """Return the names of all tables, columns, indices and triggers."""
    names = connection.execute("SELECT type, name FROM sqlite_schema").fetchall()
    columns = [
        f"column {name}.{column[1]}"
        for kind, name in names
        if kind == "table"
        for column in connection.execute(f"PRAGMA table_info({name})")
    ]
    return {*(f"{kind} {name}" for kind, name in names), *columns}


def run_script(connection: Statements, name: str) -> None:
    """Run the statements of an SQL file of this package, in the open transaction."""
    for statement in Path(__file__).with_name(name).read_text(encoding="utf-8").split(";\n"):
        connection.execute(statement)


def check_canary(name: str, connection: Statements, vault: Vault) -> None:
    """Refuse a wrong store key, by StoreUnusable; a canary that alone cannot be decrypted is made again."""
    try:
        canary = vault.read(Kind.CANARY, 0, 0, 1)
    except DamagedUnit as error:
        others = [kind for kind in Kind if kind != Kind.CANARY]
        if not vault.opens_any(others):
            raise StoreUnusable(
                f"{name}: the store key does not open this store; give the right key file"
            ) from error
        connection.execute("BEGIN")
        vault.drop(Kind.CANARY)
        vault.put(Kind.CANARY, 0, _CANARY)
        connection.execute("COMMIT")
        return
    assert canary == _CANARY


def check_owner(name: str, connection: Statements, **wanted: str) -> bytes:
    """Return the store's own identity. Raises StoreUnusable if it is of another site or link."""
    row = connection.execute("SELECT store_id, role, kme_id, peer_kme_id FROM site").fetchone()
    for field, found in zip(("role", "kme_id", "peer_kme_id"), row[1:], strict=True):
        if wanted[field] != found:
            raise StoreUnusable(
                f"{name}: {field} of this store is {found!r}, configured is {wanted[field]!r}; correct the "
                "configuration or the path"
            )
    return bytes(row[0])


def _compare_with_anchor(database: Database, anchor_path: Path) -> None:
    audited = None if database.anchor is None else database.anchor.audit
    with database.look() as tx:
        own, lineage = read_positions(tx.connection), read_lineage(tx.connection)
        missing = "" if audited is None else ledger.missing(tx.connection, audited)
    database.audit_damage = missing
    if database.anchor is None:
        if own == Positions():  # fresh: the creation was interrupted before the anchor
            database.catch_up_anchor()
            return
        with database.change(anchored=False, while_waiting=True) as tx:
            if _restore.waiting(tx) != Waiting.RESTORE:
                reason = f"its anchor {anchor_path} is missing or unreadable"
                _restore.wait(tx, Waiting.ANCHORLESS, reason)
        return
    known, later = database.anchor.positions, own.generation > database.anchor.positions.generation
    foreign = lineage.own != database.anchor.lineage
    if foreign and later and lineage.before == database.anchor.lineage:
        foreign = False  # the commit that began this lineage was interrupted before the anchor
    if foreign or own.generation < known.generation:
        reason = f"the database is older (generation {own.generation}) than its anchor ({known.generation})"
        if foreign:
            reason = "the database is a copy from before this site was restored, as its anchor shows"
        with database.change(anchored=True, while_waiting=True) as tx:
            _restore.catch_up_with_anchor(tx, known, reason)
            if _restore.waiting(tx) != Waiting.RESTORE:
                _restore.wait(tx, Waiting.OLDER, reason)
            if missing:
                ledger.begin(tx.connection, f"{reason}: {missing}", audited)
    elif missing:
        with database.change(anchored=True, while_waiting=True) as tx:
            ledger.begin(tx.connection, f"the audit does not continue from its anchor: {missing}", audited)
    elif later:
        database.catch_up_anchor()


def _compare_with_witness(database: Database, witness: Witness) -> None:
    """Void a store that was set back together with its anchor; only the peer knows the rest."""
    with database.look() as tx:
        own, lineage = read_positions(tx.connection), read_lineage(tx.connection)
    later = witness.later_than(own, lineage)
    if later is None:
        return
    known, audited = later
    reason = "this machine was set back: the witness knows a later state of its store"
    with database.change(anchored=True, while_waiting=True) as tx:
        _restore.catch_up_with_anchor(tx, known, reason)
        if _restore.waiting(tx) != Waiting.RESTORE:
            _restore.wait(tx, Waiting.ANCHORLESS, reason)
        ledger.begin(tx.connection, reason, audited)
    with database.look() as tx:
        witness.replace(
            read_positions(tx.connection), read_lineage(tx.connection), ledger.head(tx.connection)
        )


def _refusal(path: Path, error: sqlite3.Error) -> StoreError:
    """Return what to say about an error of SQLite while a store is opened; a full disk may pass."""
    if str(error).startswith("no such "):
        return _between_releases(path, str(error))
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StoreError(f"{path}: the disk is full, nothing was changed; free some space and start again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return StoreUnusable(
            f"{path}: this user cannot write the store or its folder ({error}); correct their owner and mode"
        )
    return _damaged(path, str(error))


def _between_releases(path: Path, what: str) -> StoreUnusable:
    return StoreUnusable(
        f"{path}: this store is of a version between releases ({what}); run the qnode that wrote it, or move "
        "the store and its anchor away and load a new pre-shared key at both sites"
    )


def _damaged(path: Path, what: str) -> StoreUnusable:
    return StoreUnusable(
        f"{path}: the database is damaged ({what}); restore it from a backup, or load a new pre-shared "
        "key at both sites into a new store"
    )
