"""The store on a PostgreSQL server. If the server goes away, the store opens again by itself.

While it is away, every call raises StoreAway. The next call, at most once in `RETRY_S`, connects and opens
the store as at a start: another process, another schema, an older database are found then. A commit whose
answer was lost is in the database or not, as with a crash between commit and anchor.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg

from qnode.choices import Role
from qnode.config import PostgresqlSection
from qnode.errors import ConfigError, FieldError, StoreAway, StoreError, StoreUnusable
from qnode.keys._database import Database
from qnode.keys._model import Loss
from qnode.keys._opening import (
    SCHEMA_VERSION,
    check_canary,
    check_owner,
    fill,
    form_of,
    judged,
    remove_backup_drafts,
    run_script,
)
from qnode.keys._postgresql import PostgresqlEngine, connect, name_of
from qnode.keys._preshared import PresharedRegister
from qnode.keys._store import SqlKeyStore, register_beside
from qnode.keys._vault import Vault

RETRY_S = 1.0


class PostgresqlKeyStore(SqlKeyStore):
    """The store on a server. ``open_again``: returns it open, or raises like `open_server_store`."""

    def __init__(
        self,
        database: Database,
        register: PresharedRegister,
        beside: Path,
        open_again: Callable[[], Database],
    ) -> None:
        super().__init__(database, register, beside)
        self._open_again = open_again
        self._opening = threading.Lock()
        self._because = ""
        self._next_try_s = 0.0

    @property
    def _database(self) -> Database:
        if not self._opened.is_away:
            return self._opened
        # Others do not wait for a server that may not answer.
        if not self._opening.acquire(blocking=False):
            raise StoreAway(self._because or f"{self._opened.name}: the database is away")
        try:
            if self._opened.is_away:
                self._replace()
            return self._opened
        finally:
            self._opening.release()

    def _replace(self) -> None:
        if time.monotonic() < self._next_try_s:
            raise StoreAway(self._because)
        former = self._opened
        former.let_go()
        try:
            database = self._open_again()
        except (StoreError, ConfigError, OSError) as error:
            self._next_try_s = time.monotonic() + RETRY_S
            self._because = str(error)
            raise StoreAway(self._because) from error
        database.new_losses[:0] = former.new_losses
        self._opened = database

    def new_losses(self) -> list[Loss]:
        """Return the losses since the last call, also while the server is away."""
        found = self._opened.new_losses
        return [found.pop(0) for _ in range(len(found))]


def open_postgresql_store(
    address: PostgresqlSection,
    *,
    beside: Path,
    role: Role,
    store_key: bytes,
    anchor: Path,
    kme_id: str,
    peer_kme_id: str,
    create: bool,
    witness: Path | None,
) -> PostgresqlKeyStore:
    """Open or create a store like `qnode.keys.open_server_store`, once the driver is known to be there."""
    if len(store_key) != 32:
        raise FieldError("store_key", f"must be 32 bytes, is {len(store_key)}")

    def opened(create: bool) -> Database:
        engine = connect(address)
        try:
            if not _has_store(engine, address.schema):
                _refuse_to_start_empty(engine.name, anchor, create=create)
                _create(engine, address.schema, role, store_key, kme_id, peer_kme_id)
            _check_form(engine, address.schema)
            vault = Vault(engine.statements, store_key)
            check_canary(engine.name, engine.statements, vault)
            store_id = check_owner(
                engine.name, engine.statements, role=role, kme_id=kme_id, peer_kme_id=peer_kme_id
            )
        except psycopg.Error as error:
            told = engine.translated(error)
            engine.close()
            raise type(told)(f"{engine.name}: {told}") from error
        except BaseException:
            engine.close()
            raise
        return judged(engine, role, store_key, store_id, anchor, witness)

    try:
        beside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = opened(create)
        try:
            remove_backup_drafts(beside)
        except OSError:
            database.close()
            raise
    except OSError as error:
        raise StoreUnusable(
            f"{name_of(address)}: {error}; mend permissions or disk and start again"
        ) from error
    try:
        register = PresharedRegister(register_beside(anchor))
        return PostgresqlKeyStore(database, register, beside, lambda: opened(False))
    except BaseException:
        database.close()
        raise


def _has_store(engine: PostgresqlEngine, schema: str) -> bool:
    """Return whether the schema has a store.

    Raises StoreUnusable if it has something else, and if this role may not use it.
    """
    # information_schema shows only what this role may use: a store without rights would look like none.
    allowed = engine.statements.execute(
        "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = ?", (schema,)
    ).fetchone()
    if allowed == (False,):
        raise _without_rights(engine, f"the schema {schema}")
    rows = engine.statements.execute(
        "SELECT c.relname, has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') "
        "AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE') "
        "FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE n.nspname = ? AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
        (schema,),
    ).fetchall()
    tables = {row[0] for row in rows}
    if tables and "schema_version" not in tables:
        raise StoreUnusable(
            f"{engine.name}: this schema has other tables ({min(tables)}) and no key store; name "
            "another schema"
        )
    closed = {table for table, is_allowed in rows if not is_allowed} & _own_tables()
    if closed:
        raise _without_rights(engine, f"the table {schema}.{min(closed)}")
    return bool(tables)


def _own_tables() -> set[str]:
    return {item.split()[1].partition(".")[0] for item in _wanted_columns()} | {"schema_version"}


def _without_rights(engine: PostgresqlEngine, what: str) -> StoreUnusable:
    role = engine.connection.info.user
    return StoreUnusable(
        f"{engine.name}: the role {role} may not use {what}; GRANT it the rights, or make it the owner "
        "of the schema and its tables"
    )


def _refuse_to_start_empty(name: str, anchor: Path, *, create: bool) -> None:
    if anchor.exists():
        raise StoreUnusable(
            f"{name}: the store is gone, but its anchor {anchor} remembers it; restore the database, or "
            "remove the anchor to begin again with a new pre-shared key at both sites"
        )
    if not create:
        raise StoreUnusable(f"{name}: there is no key store; create one, or correct the address")


def _create(
    engine: PostgresqlEngine, schema: str, role: Role, store_key: bytes, kme_id: str, peer_kme_id: str
) -> None:
    """Create the schema with an empty store, completely or not at all."""
    quoted = schema.replace('"', '""')
    script = Path(__file__).with_name(f"schema_v{SCHEMA_VERSION}_postgresql.sql").read_text(encoding="utf-8")
    with engine.connection.transaction():
        there = engine.statements.execute(
            "SELECT 1 FROM pg_namespace WHERE nspname = ?", (schema,)
        ).fetchone()
        if there is None:  # the right to make one is needed only then
            engine.connection.execute(f'CREATE SCHEMA "{quoted}"')
        engine.connection.execute(script)
        fill(engine.statements, role=role, store_key=store_key, kme_id=kme_id, peer_kme_id=peer_kme_id)


def _check_form(engine: PostgresqlEngine, schema: str) -> None:
    """Refuse a store of another version, and one without a column that this version uses."""
    (version,) = engine.statements.execute("SELECT version FROM schema_version").fetchone()
    if version != SCHEMA_VERSION:
        raise StoreUnusable(
            f"{engine.name}: schema {version}, but this qnode knows {SCHEMA_VERSION}; run the qnode that "
            "wrote it"
        )
    rows = engine.statements.execute(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = ?", (schema,)
    )
    found = {f"column {table}.{column}" for table, column in rows}
    missing = _wanted_columns() - found
    if missing:
        raise StoreUnusable(
            f"{engine.name}: this store is of a version between releases (no {min(missing)}); run the qnode "
            "that wrote it, or name an empty schema and load a new pre-shared key at both sites"
        )


def _wanted_columns() -> set[str]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        run_script(fresh, f"schema_v{SCHEMA_VERSION}.sql")
        return {item for item in form_of(fresh) if item.startswith("column ")}
