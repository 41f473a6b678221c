"""What the SQL of a store needs of a database's connection, so that one text serves SQLite and PostgreSQL.

The text is SQLite's, in the part of SQL that PostgreSQL understands too: places for values are ``?`` or
``?1``, ``?2``. `sqlite3.Connection` is a `Statements` as it is.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol


class Rows(Protocol):
    """The result of a statement."""

    @property
    def rowcount(self) -> int:
        """The number of rows that were changed."""

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
