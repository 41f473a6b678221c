"""What the SQL of a store needs of a database's connection, so that one text serves SQLite and PostgreSQL.

The text is SQLite's, in the part of SQL that PostgreSQL understands too: places for values are ``?`` or
``?1``, ``?2``. `sqlite3.Connection` is a `Statements` as it is. On a server, a statement may still be under
way when `Statements.execute` returns: fetching waits for it. So functions ask for all that they are about to
need (`ask`), and then fetch.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol


class Rows(Protocol):
    """The result of a statement."""

    def fetchone(self) -> Any:
        """Return the next row; None after the last one."""

    def fetchall(self) -> list[Any]:
        """Return all further rows."""

    def __iter__(self) -> Iterator[Any]:
        """Yield all further rows."""


class Statements(Protocol):
    """A connection that runs statements, each in the open transaction or, without one, for itself."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Rows:
        """Run a statement with a value for each of its places."""

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> object:
        """Run a statement once for each row of values."""


class _Fetched:
    """Rows that are in memory."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = iter(rows)

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def __iter__(self) -> Iterator[Any]:
        return self._rows


def ask(connection: Statements, sql: str, *values: Any) -> Rows:
    """Run a statement whose rows are fetched later: they are those of this moment, whatever comes between."""
    rows = connection.execute(sql, values)
    return _Fetched(rows.fetchall()) if isinstance(connection, sqlite3.Connection) else rows
