"""Statements to a PostgreSQL server that do not wait for the answers of those before.

On the way to a server and back, a statement takes many times as long as at the server. So statements are
gathered, and sent together when the caller needs a row, or at the end of a transaction (the pipeline mode of
libpq). The error of a statement is raised at that wait. The server skips those after it, so nothing after a
failed statement has an effect.

Cursors of the driver send each statement by itself, and wake the server for each. So this uses the driver's
libpq, and its types.
"""

import re
import select
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import count
from typing import Any

import psycopg
from psycopg import pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.types.numeric import Int8BinaryDumper, NumericBinaryLoader

from qnode.sql import Rows

_PLACE = re.compile(r"\?(\d*)")
_DONE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)

Types = tuple[int, ...] | None


@lru_cache(maxsize=1024)
def numbered(sql: str) -> str:
    """Return a statement with the places for values as PostgreSQL writes them."""
    numbers = iter(range(1, 1000))
    return _PLACE.sub(lambda place: f"${place[1] or next(numbers)}", sql)


class _Whole(NumericBinaryLoader):  # type: ignore[misc, unused-ignore]  # without psycopg it is Any
    """Sums of whole numbers are of the type numeric; all others of it there are not."""

    def load(self, data: Any) -> Any:
        return int(super().load(data))


class Pipeline:
    """The connection, for the parts of the store (`qnode.sql.Statements`); not before `begin` a pipeline."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._connection = connection
        self._libpq = connection.pgconn
        self._begun = False
        self._values = Transformer(connection)
        self._prepared: dict[tuple[str, Types], bytes] = {}
        self._numbers = count()
        self._under_way: list[_Sent] = []
        self._guards: list[tuple[_Sent, Callable[[Any], None]]] = []
        self.waits = 0
        """How often a caller has waited for the server."""

    def begin(self) -> None:
        """Send statements without waiting from now on, until the connection is closed."""
        adapters = self._connection.adapters
        adapters.register_dumper(int, Int8BinaryDumper)  # small and large ones in one prepared statement
        adapters.register_loader("numeric", _Whole)
        self._values = Transformer(self._connection)
        self._libpq.enter_pipeline_mode()
        self._begun = True

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Rows:
        """Send a statement; its rows are there when they are fetched."""
        if not self._begun:
            return self._connection.cursor().execute(numbered(sql), values)
        content = self._values.dump_sequence(values, [PyFormat.AUTO] * len(values))
        key = sql, self._values.types
        name = self._prepared.get(key)
        if name is None:
            name = self._prepared[key] = b"q%d" % next(self._numbers)
            self._libpq.send_prepare(name, numbered(sql).encode(), self._values.types)
            self._send(prepares=key)
        self._libpq.send_query_prepared(name, content, self._values.formats, pq.Format.BINARY)
        return self._send()

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> object:
        """Send a statement once for each row of values."""
        return [self.execute(sql, row) for row in rows]

    def run(self, command: str) -> str | None:
        """Return the server's word about a command, after all statements before it. Raises their errors."""
        if not self._begun:
            return self._connection.cursor().execute(command).statusmessage
        self._libpq.send_query_params(command.encode(), None)
        sent = self._send()
        self.wait()
        return str(sent.answer.command_status, "ascii")

    def guard(self, sql: str, check: Callable[[Any], None]) -> None:
        """Send a query; its row goes to `check`, which may raise, before any later row is returned."""
        row = self.execute(sql)
        if isinstance(row, _Sent):
            self._guards.append((row, check))
        else:
            check(row.fetchone())

    def heed_guards(self) -> None:
        """Wait for the guards, if there are any."""
        while self._guards:
            sent, check = self._guards[0]
            if sent.answer is None:
                self.wait()
            del self._guards[0]
            check(next(sent.rows()))

    def loaded(self, answer: Any) -> list[Any]:
        """Return the rows of an answer."""
        self._values.set_pgresult(answer)
        return self._values.load_rows(0, answer.ntuples, tuple)

    def wait(self) -> None:
        """Wait until the server has done all statements; raise the first error of one."""
        if not self._under_way:
            return
        self.waits += 1
        under_way, self._under_way = self._under_way, []
        lost: psycopg.Error | None = None
        try:
            self._receive(under_way)
        except psycopg.Error as error:  # of the connection, not of a statement
            lost = error
            self._connection.close()
        except BaseException:  # a later answer would be taken for another one
            self._connection.close()
            raise
        for sent in under_way:
            if sent.prepares is not None and not sent.is_done:
                del self._prepared[sent.prepares]
        for sent in under_way:
            if sent.answer is not None and sent.answer.status == pq.ExecStatus.FATAL_ERROR:
                raise error_from_result(sent.answer) from lost
        if lost is not None:
            raise lost

    def drain(self) -> None:
        """Wait as well, whatever the answers; without any, the connection is closed."""
        self._guards.clear()
        with suppress(psycopg.Error):
            self.wait()

    def end(self) -> None:
        """Let go of the pipeline, before the connection is closed."""
        self.drain()
        if self._begun:
            self._begun = False
            with suppress(psycopg.Error):
                self._libpq.exit_pipeline_mode()

    def _send(self, prepares: tuple[str, Types] | None = None) -> "_Sent":
        sent = _Sent(self, prepares)
        self._under_way.append(sent)
        return sent

    def _receive(self, under_way: Sequence["_Sent"]) -> None:
        """Send all that is left, and receive an answer to each statement."""
        self._libpq.pipeline_sync()
        waiting = iter(under_way)
        while True:
            self._exchange()
            result = self._libpq.get_result()
            if result is None:  # between the answers of two statements
                if self._libpq.status == pq.ConnStatus.BAD:
                    raise psycopg.OperationalError("the connection to the server is lost")
            elif result.status == pq.ExecStatus.PIPELINE_SYNC:
                return
            elif (sent := next(waiting, None)) is not None:
                sent.answer = result
            else:  # of the connection
                raise error_from_result(result)

    def _exchange(self) -> None:
        """Send and receive until the next answer has come."""
        while True:
            is_left = self._libpq.flush()
            if not self._libpq.is_busy():
                return
            socket = select.poll()
            socket.register(self._libpq.socket, select.POLLIN | (select.POLLOUT if is_left else 0))
            socket.poll()
            self._libpq.consume_input()


class _Sent:
    """A statement under way, and its rows (`qnode.sql.Rows`); ``prepares``: it only prepares another."""

    def __init__(self, pipeline: Pipeline, prepares: tuple[str, Types] | None) -> None:
        self.prepares = prepares
        self.answer: Any = None
        self._pipeline = pipeline
        self._rows: Iterator[Any] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the server has run it without an error."""
        return self.answer is not None and self.answer.status in _DONE

    def rows(self) -> Iterator[Any]:
        """Return the rows that are left, once it has an answer."""
        if self._rows is None:
            self._rows = iter(self._pipeline.loaded(self.answer))
        return self._rows

    def fetchone(self) -> Any:
        return next(self._arrived(), None)

    def fetchall(self) -> list[Any]:
        return list(self._arrived())

    def __iter__(self) -> Iterator[Any]:
        return self._arrived()

    def _arrived(self) -> Iterator[Any]:
        if self.answer is None:
            self._pipeline.wait()
        self._pipeline.heed_guards()
        return self.rows()
