"""The store on a PostgreSQL server. While the server is away, the store opens again by itself.

Meanwhile every call raises StoreAway at once, and a thread tries once in `RETRY_S` to connect and to open the
store as at a start: another process, another schema, an older database are found then. A server that is away
when the node starts is the same case. A commit whose answer was lost is in the database or not, as with a
crash between commit and anchor.
"""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg

from qnode.choices import Role
from qnode.config import PostgresqlSection
from qnode.errors import FieldError, QnodeError, SaeLimitReached, StoreAway, StoreUnusable
from qnode.keys._damage import without_damage
from qnode.keys._database import Database
from qnode.keys._front_ends import clean_up, open_for_all, tend
from qnode.keys._model import FrontEnds
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
from qnode.keys._protocol import KeyStore
from qnode.keys._rates import Rates
from qnode.keys._store import SqlKeyStore, register_beside
from qnode.keys._vault import Vault

RETRY_S = 1.0
_COLUMNS_OF_FRONT_ENDS = {
    "column front_end_gate.epoch",
    "column front_end_node.seen_at",
    "column front_end.admitted_epoch",
    "column front_end_demand.asked",
    "column sae_rate.paid_until",
}
# A store that is closed leaves the thread that connects alone after this time.
CLOSES_WITHIN_S = 1.0


class PostgresqlKeyStore(SqlKeyStore):
    """The store on a server, open or away.

    ``open_database``: returns the database open, or raises like `open_server_store`; its argument says
    whether it was never open before. Its first call is the constructor's, which raises the same except
    StoreAway.
    """

    def __init__(
        self, register: PresharedRegister, beside: Path, open_database: Callable[[bool], Database]
    ) -> None:
        super().__init__(None, register, beside)
        self._open_database = open_database
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._opener: threading.Thread | None = None
        self._because = ""
        self._has_front_ends = False
        try:
            self._open()
        except StoreAway as error:
            self._because = str(error)

    @property
    def _database(self) -> Database:
        opened = self._opened
        if opened is not None and not opened.is_away:
            return opened
        with self._lock:
            if self._closed.is_set():
                raise StoreUnusable("the store was closed")
            if self._opener is None or not self._opener.is_alive():
                # A connection attempt may hang: it must not hold up the end of the process.
                self._opener = threading.Thread(target=self._open_again, name="store-opener", daemon=True)
                self._opener.start()
        if opened is not None and not self._because:
            opened.check_usable()
        raise StoreAway(self._because or "the database is away")

    def _open_again(self) -> None:
        while not self._closed.is_set():
            try:
                self._open()
            except (QnodeError, OSError) as error:
                self._because = str(error)
                self._closed.wait(RETRY_S)
            else:
                return

    def _open(self) -> None:
        former = self._opened
        if former is not None:
            former.let_go()
        database = self._open_database(former is None)
        with self._lock:
            if self._closed.is_set():
                database.close()
                return
            if former is not None:
                database.new_losses[:0] = former.new_losses
            self._opened, self._because = database, ""

    def tend_front_ends(self, key_lifetime_s: float) -> FrontEnds:
        front_ends = tend(self._database, key_lifetime_s)
        self._has_front_ends = bool(front_ends.names)
        return front_ends

    def spend(self, sae_id: str, number: int, keys_per_minute: int) -> None:
        with self._database.change(anchored=False) as tx:
            rates = Rates(tx, (sae_id,))
            if number > 0 and (wait_s := rates.wait_s(sae_id, number, keys_per_minute)):
                raise SaeLimitReached(sae_id, keys_per_minute, wait_s)
            rates.spend(sae_id, number, keys_per_minute)
            rates.write_down()

    def expire(self, now: float, ttl_s: float) -> int:
        if self._has_front_ends:
            clean_up(self._database)
        return super().expire(now, ttl_s)

    def close(self) -> None:
        """Close the store; closing twice is fine."""
        with self._lock:
            self._closed.set()
            opener = self._opener
        if opener is not None:
            opener.join(CLOSES_WITHIN_S)
        super().close()


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
    prepare: Callable[[KeyStore], None],
) -> PostgresqlKeyStore:
    """Open or create a store like `qnode.keys.open_server_store`, once the driver is known to be there."""
    if len(store_key) != 32:
        raise FieldError("store_key", f"must be 32 bytes, is {len(store_key)}")

    def opened(create: bool) -> Database:
        engine = connect(address)
        try:
            if not has_store(engine, address.schema):
                _refuse_to_start_empty(engine.name, anchor, create=create)
                _create(engine, address.schema, role, store_key, kme_id, peer_kme_id)
            check_form(engine, address.schema)
            vault = Vault(engine.statements, store_key)
            check_canary(engine.name, engine.statements, vault)
            store_id = check_owner(
                engine.name, engine.statements, role=role, kme_id=kme_id, peer_kme_id=peer_kme_id
            )
        except psycopg.Error as error:
            refusal = engine.refusal(error)
            engine.close()
            raise refusal from error
        except BaseException:
            engine.close()
            raise
        engine.statements.begin()
        database = judged(engine, role, store_key, store_id, anchor, witness)
        try:
            without_damage(database, lambda: open_for_all(database))
        except BaseException:
            database.close()
            raise
        return database

    register = PresharedRegister(register_beside(anchor))

    def ready(is_first: bool) -> Database:
        database = opened(create and is_first)
        if is_first:
            try:
                remove_backup_drafts(beside)
                prepare(SqlKeyStore(database, register, beside))
            except BaseException:
                database.close()
                raise
        return database

    try:
        beside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return PostgresqlKeyStore(register, beside, ready)
    except OSError as error:
        raise StoreUnusable(
            f"{name_of(address)}: {error}; mend permissions or disk and start again"
        ) from error


def has_store(engine: PostgresqlEngine, schema: str) -> bool:
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
    columns = _wanted_columns() | _COLUMNS_OF_FRONT_ENDS
    return {item.split()[1].partition(".")[0] for item in columns} | {"schema_version"}


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


def check_form(engine: PostgresqlEngine, schema: str) -> None:
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
    missing = (_wanted_columns() | _COLUMNS_OF_FRONT_ENDS) - found
    if missing:
        raise StoreUnusable(
            f"{engine.name}: this store is of a version between releases (no {min(missing)}); run the qnode "
            "that wrote it, or name an empty schema and load a new pre-shared key at both sites"
        )


def _wanted_columns() -> set[str]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        run_script(fresh, f"schema_v{SCHEMA_VERSION}.sql")
        return {item for item in form_of(fresh) if item.startswith("column ")}
