"""A store's database on a PostgreSQL server, in a schema of its own, with psycopg.

One node at a time uses a store: its session holds an advisory lock, which the server lets go with the
session. A session that ends, for whatever reason, ends the connection for good, so nothing is ever written
without the lock; the store then opens anew (`qnode.keys._postgresql_store`).

Front ends deliver from the same store. Each change of the node excludes theirs until its commit, by a second
advisory lock, which front ends share with each other.
"""

import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from qnode.config import PostgresqlSection
from qnode.errors import ConfigError, StoreAway, StoreError, StoreUnusable
from qnode.keys._pipeline import Pipeline
from qnode.secret_files import read_secret

# Advisory locks: of the one node, of each front end by its name, and of changes.
_NODE_CLASS, _FRONT_END_CLASS, _CHANGE_CLASS = 0x514E4F44, 0x514E4F46, 0x514E4F43  # "QNOD", "QNOF", "QNOC"
# A front end that hangs must not keep the node and others waiting.
_OF_FRONT_ENDS = (
    "SET idle_in_transaction_session_timeout = '2s'",
    "SET lock_timeout = '5s'",
    "SET qnode.front_end = 'on'",
)
# A server that is not heard for about ten seconds is gone, for both ends.
_DEFAULTS = {
    "application_name": "qnode",
    "target_session_attrs": "read-write",
    "connect_timeout": "3",
    "keepalives_idle": "4",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_SETTINGS = (
    "SET tcp_keepalives_idle = 4",
    "SET tcp_keepalives_interval = 2",
    "SET tcp_keepalives_count = 3",
    "SET tcp_user_timeout = 10000",
    "SET idle_in_transaction_session_timeout = 0",
    "SET jit = off",
    # After the wait for a lock, what was committed meanwhile is read.
    "SET default_transaction_isolation = 'read committed'",
)
# Classes and codes of errors (PostgreSQL, appendix A).
_AWAY = ("08", "57P", "25006", "53300")  # connection, shutdown, read-only, too many connections
_TAKEN_AWAY = ("3F000", "42P01", "42703", "42501")  # schema, table, column or right: opening says more
_DAMAGED = ("XX001", "XX002", "58030")
_FULL = "53100"
_PASSWORDS = {"password", "sslpassword"}
# Parameters whose values are shown in messages.
_SHOWN = {"host", "hostaddr", "port", "dbname", "user", "service", *_DEFAULTS}


def name_of(address: PostgresqlSection) -> str:
    """Return the address in messages: host, database and schema."""
    known = conninfo_to_dict(address.parameters)
    place = known.get("host") or known.get("hostaddr") or known.get("service") or "local"
    return f"postgresql {place}/{known.get('dbname', '')}/{address.schema}"


def check_parameters(parameters: str) -> None:
    """Refuse parameters that libpq does not understand, and a password among them, by ConfigError.

    What was typed is not quoted: a password may be anywhere in it.
    """
    try:
        known = conninfo_to_dict(parameters)
    except psycopg.Error:
        raise ConfigError(
            "[store.postgresql] parameters: libpq does not understand them; write keyword=value pairs, with "
            "blanks between them and single quotes around a value that has blanks itself"
        ) from None
    if not _PASSWORDS.isdisjoint(known):
        raise ConfigError(
            "[store.postgresql] parameters: has a password; put it into a file and name it password_file"
        )
    for keyword in ("host", "dbname"):  # they are shown
        value = str(known.get(keyword, ""))
        if "=" in value or "@" in value[1:]:  # a socket may begin with @
            raise ConfigError(
                f"[store.postgresql] parameters: {keyword} is not a name but an address of its own; write "
                "each part of it under its own keyword, and a password into the file password_file"
            )


def _told(error: BaseException, known: dict[str, Any]) -> str:
    """Return what libpq tells about a connection, without a word of a value that may be secret."""
    text = _first_line(error)
    for keyword in known.keys() - _SHOWN:
        for word in re.split(r"[\s=,]+", str(known[keyword])):
            if len(word) > 2:
                text = text.replace(word, f"<{keyword}>")
    return text


class PostgresqlEngine:
    """A session on a server (`qnode.keys._engine.Engine`)."""

    error: type[Exception] = psycopg.Error

    def __init__(self, name: str, connection: "psycopg.Connection[Any]", begin: str) -> None:
        self.name = name
        self.connection = connection
        self.statements = Pipeline(connection)
        self._begin = begin

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        self.statements.drain()
        status = self.connection.info.transaction_status
        return status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

    @property
    def is_sound(self) -> bool:
        """Whether a transaction is open and no statement failed, which may be one of an earlier change."""
        self.statements.drain()
        return bool(self.connection.info.transaction_status == pq.TransactionStatus.INTRANS)

    def begin(self) -> None:
        """Begin a transaction that excludes those of front ends, or, of a front end, those of the node."""
        self.statements.execute("BEGIN")
        self.statements.execute(self._begin)

    def guard(self, sql: str, check: Callable[[Any], None]) -> None:
        """Let `check` have the row of a query before any row of a later statement is returned."""
        self.statements.guard(sql, check)

    def heed_guards(self) -> None:
        """Raise what the checks of `guard` raise, if they were not called yet."""
        self.statements.heed_guards()

    def wait(self) -> None:
        """Return when the server has run all statements; raise the error of one that failed."""
        self.statements.wait()

    def commit(self) -> None:
        """Make the transaction durable, also on a synchronous standby."""
        done = self.statements.run("COMMIT")
        if done != "COMMIT":  # of a transaction with a failed statement, PostgreSQL undoes all
            raise psycopg.errors.InFailedSqlTransaction("a statement failed, the transaction was undone")

    def roll_back(self) -> None:
        """Undo the open transaction."""
        self.statements.drain()
        self.statements.run("ROLLBACK")

    def translated(self, error: Exception) -> StoreError:
        """Return what to say about an error; a session that ended may be replaced."""
        code = getattr(error, "sqlstate", None) or ""
        text = _first_line(error)
        if self.connection.closed or code.startswith((*_AWAY, *_TAKEN_AWAY)):
            return StoreAway(f"the database is away ({text}); no key is served until it is back")
        if code == _FULL:
            return StoreError("the database's disk is full, nothing was changed; free some space")
        if code in _DAMAGED:
            return StoreUnusable(
                f"{text}; check the database's disk, or fail over to a standby, then start again"
            )
        return StoreError(text)

    def refusal(self, error: Exception) -> StoreError:
        """Return what to say about an error at an opening, where a missing right is not a server away."""
        told = self.translated(error)
        code = getattr(error, "sqlstate", None) or ""
        if isinstance(told, StoreAway) and code.startswith(_TAKEN_AWAY) and not self.connection.closed:
            told = StoreUnusable(
                f"{_first_line(error)}; GRANT the role {self.connection.info.user} the rights, or "
                "correct the schema"
            )
        return type(told)(f"{self.name}: {told}")

    def remove_traces(self) -> bool:
        """Nothing to do: the server clears and reuses pages by itself, and its log is its own."""
        return True

    def close(self) -> None:
        """End the session; the lock is free when this returns, if the server still answers."""
        self.statements.end()
        if self.connection.info.transaction_status == pq.TransactionStatus.IDLE:
            with suppress(psycopg.Error):
                self.statements.run("SELECT pg_advisory_unlock_all()")
        self.connection.close()


def connect(address: PostgresqlSection, front_end: str | None = None) -> PostgresqlEngine:
    """Begin a session that holds the lock of the node, or of a front end; its schema may not exist yet.

    Raises StoreAway if the server does not let us in; StoreUnusable if another process has the store open, or
    the server cannot keep keys; ConfigError for the file of the password.
    """
    given = conninfo_to_dict(address.parameters)
    parameters: dict[str, Any] = {**_DEFAULTS, **given}
    if address.password_file is not None:
        secret = read_secret(address.password_file, "store.postgresql.password_file")
        parameters["password"] = secret.decode("utf-8", "replace").rstrip("\r\n")
    name = name_of(address)
    try:
        connection = psycopg.connect(autocommit=True, cursor_factory=psycopg.RawCursor, **parameters)
    except (psycopg.Error, ValueError) as error:  # ValueError: a file of the password that is none
        raise StoreAway(f"{name}: cannot be reached: {_told(error, given)}") from None
    shared = "" if front_end is None else "_shared"
    change = f"pg_advisory_xact_lock{shared}({_CHANGE_CLASS}, {_number(address.schema)})"
    engine = PostgresqlEngine(name, connection, f"SELECT {change}")
    try:
        _set_up(engine, address, front_end)
    except psycopg.Error as error:
        engine.close()
        raise StoreAway(f"{name}: {_first_line(error)}") from None
    except BaseException:
        engine.close()
        raise
    return engine


def _set_up(engine: PostgresqlEngine, address: PostgresqlSection, front_end: str | None) -> None:
    connection = engine.connection
    (process_id,) = _one(engine, "SELECT pg_backend_pid()")
    if process_id != connection.info.backend_pid:
        raise StoreUnusable(
            f"{engine.name}: a connection pooler is in between: the lock of the store needs a session of its "
            "own; connect to the server itself, or let the pooler keep sessions"
        )
    for setting in (*_SETTINGS, *(() if front_end is None else _OF_FRONT_ENDS)):
        connection.execute(setting)
    quoted = address.schema.replace('"', '""')
    connection.execute(f'SET search_path TO "{quoted}"')
    fsync, whole_pages, synchronous = _one(
        engine,
        "SELECT current_setting('fsync'), current_setting('full_page_writes'), "
        "current_setting('synchronous_commit')",
    )
    if (fsync, whole_pages) != ("on", "on"):
        raise StoreUnusable(
            f"{engine.name}: the server has fsync = {fsync} and full_page_writes = {whole_pages}: a power "
            "cut could bring delivered keys back; set both to on"
        )
    if synchronous in ("off", "local"):
        connection.execute("SET synchronous_commit = on")
    own_lock = (_NODE_CLASS, _number(address.schema))
    if front_end is not None:
        own_lock = (_FRONT_END_CLASS, _number(f"{address.schema}/{front_end}"))
    (is_free,) = _one(engine, "SELECT pg_try_advisory_lock(?, ?)", *own_lock)
    if not is_free and front_end is not None:
        raise StoreAway(f"{engine.name}: another front end of the name {front_end} runs; stop it first")
    if not is_free:
        raise StoreUnusable(f"{engine.name}: another process has this store open; stop it first")


def _one(engine: PostgresqlEngine, sql: str, *values: object) -> Any:
    return engine.statements.execute(sql, values).fetchone()


def _number(name: str) -> int:
    """Return a signed number of 32 bits for a name."""
    number = zlib.crc32(name.encode())
    return number - (1 << 32) if number >= 1 << 31 else number


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
