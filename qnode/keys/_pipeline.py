"""Statements to a PostgreSQL server that do not wait for the answers of those before.

On the way to a server and back, a statement takes many times as long as at the server. So statements are sent
at once, and the caller waits only where it needs a row, or at the end of a transaction, for all of them
together (the pipeline mode of libpq). The error of a statement is raised at the next wait. Until then the
server skips those after it, so nothing after a failed statement has an effect.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from typing import Any

import psycopg

from qnode.sql import Rows

_PLACE = re.compile(r"\?(\d*)")
# The first wait after an error may end with the errors of skipped statements.
_MOST_WAITS = 3


@lru_cache(maxsize=1024)
def numbered(sql: str) -> str:
    """Return a statement with the places for values as PostgreSQL writes them."""
    numbers = iter(range(1, 1000))
    return _PLACE.sub(lambda place: f"${place[1] or next(numbers)}", sql)


class Pipeline:
    """The connection, for the parts of the store (`qnode.sql.Statements`); not before `begin` a pipeline."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._connection = connection
        self._mode: AbstractContextManager[Any] | None = None
        self._pipeline: Any = None
        self._under_way = False
        self._guards: list[tuple[psycopg.Cursor[Any], Callable[[Any], None]]] = []
        self.waits = 0
        """How often a caller has waited for the server."""

    def begin(self) -> None:
        """Send statements without waiting from now on, until the connection is closed."""
        self._mode = self._connection.pipeline()
        self._pipeline = self._mode.__enter__()

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Rows:
        """Send a statement; its rows are there when they are fetched."""
        with self._drained_after_error():
            cursor = self._connection.cursor().execute(numbered(sql), values)
        return _Later(self, cursor)

    def run(self, command: str) -> str | None:
        """Return the server's word about a command, after all statements before it. Raises their errors."""
        with self._drained_after_error():
            cursor = self._connection.cursor().execute(command)
        self.wait()
        return cursor.statusmessage

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> object:
        """Send a statement once for each row of values."""
        with self._drained_after_error():
            cursor = self._connection.cursor()
            cursor.executemany(numbered(sql), rows)
        return cursor

    def guard(self, sql: str, check: Callable[[Any], None]) -> None:
        """Send a query; its row goes to `check`, which may raise, before any later row is returned."""
        with self._drained_after_error():
            cursor = self._connection.cursor().execute(numbered(sql))
        self._guards.append((cursor, check))
        if self._pipeline is None:
            self.heed_guards()

    def heed_guards(self) -> None:
        """Wait for the guards, if there are any."""
        while self._guards:
            cursor, check = self._guards[0]
            if cursor.pgresult is None:
                self.wait()
            del self._guards[0]
            check(cursor.fetchone())

    def wait(self) -> None:
        """Wait until the server has done all statements; raise the first error of one."""
        if self._under_way:
            self.waits += 1
            with self._drained_after_error():
                self._pipeline.sync()
            self._under_way = False

    def end(self) -> None:
        """Let go of the pipeline, before the connection is closed."""
        self.drain()
        if self._mode is not None:
            with suppress(psycopg.Error):
                self._mode.__exit__(None, None, None)
            self._mode = self._pipeline = None

    def drain(self) -> None:
        """Wait as well, whatever the answers; without any, the connection is closed."""
        self._guards.clear()
        if not self._under_way:
            return
        for _ in range(_MOST_WAITS):
            with suppress(psycopg.Error):
                self._pipeline.sync()
                self._under_way = False
                return
        self._under_way = False
        self._connection.close()

    @contextmanager
    def _drained_after_error(self) -> Iterator[None]:
        self._under_way = self._pipeline is not None
        try:
            yield
        except psycopg.Error:
            self.drain()
            raise


class _Later:
    """Rows that are under way (`qnode.sql.Rows`)."""

    def __init__(self, pipeline: Pipeline, cursor: "psycopg.Cursor[Any]") -> None:
        self._pipeline = pipeline
        self._cursor = cursor

    def fetchone(self) -> Any:
        return self._arrived().fetchone()

    def fetchall(self) -> list[Any]:
        return self._arrived().fetchall()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._arrived())

    def _arrived(self) -> "psycopg.Cursor[Any]":
        if self._cursor.pgresult is None:
            self._pipeline.wait()
        self._pipeline.heed_guards()
        return self._cursor
