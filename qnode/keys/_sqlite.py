"""A store's database in a file, with SQLite."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qnode.errors import StoreError, StoreUnusable


class SqliteEngine:
    """A connection to the file ``path`` (`qnode.keys._engine.Engine`)."""

    error: type[Exception] = sqlite3.Error

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.name = str(path)
        self.statements = connection

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self.statements.in_transaction

    @property
    def is_sound(self) -> bool:
        """Whether a transaction is open: a statement that fails does so at once."""
        return self.in_transaction

    def begin(self) -> None:
        """Begin a transaction that writes."""
        self.statements.execute("BEGIN IMMEDIATE")

    def guard(self, sql: str, check: Callable[[Any], None]) -> None:
        """Check the row of a query at once."""
        check(self.statements.execute(sql).fetchone())

    def heed_guards(self) -> None:
        """Nothing to do: `guard` did it."""

    def wait(self) -> None:
        """Nothing to do: a statement that returns was run."""

    def commit(self) -> None:
        """Flush the transaction to the log."""
        self.statements.execute("COMMIT")

    def roll_back(self) -> None:
        """Undo the open transaction."""
        self.statements.execute("ROLLBACK")

    def translated(self, error: Exception) -> StoreError:
        """Return what to say about an error; after one of the disk the file's contents are in doubt."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StoreError("the disk is full, nothing was changed; free some space")
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreUnusable(f"{error}; check the disk, then start again or restore the database")
        return StoreError(str(error))

    def remove_traces(self) -> bool:
        """Move the log into the database and truncate it; False while another process reads."""
        try:
            busy, *_ = self.statements.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                return False
            raise
        return not busy

    def close(self) -> None:
        """Close the file."""
        self.statements.close()
