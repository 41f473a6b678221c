"""One connection to a database with one writer at a time; each change is durable or undone.

Changes that threads request while another one is written share one transaction, and so one flush of the log
and one of the anchor. None returns before both flushes. Each is a savepoint, undone by itself if it fails.

After an I/O error during a commit the contents of the disk are unknown, so the connection is not used again.
Every later call raises StoreUnusable until the store is opened again, and the database recovers the written
data.
After a full disk the transaction is undone, and the next one may succeed.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, RLock, get_ident
from typing import Any, NamedTuple, Protocol, Self

from qnode.audit import ledger
from qnode.audit.entries import Head
from qnode.choices import Role
from qnode.errors import LinkDown, StoreAway, StoreError, StoreUnusable
from qnode.keys._anchor import Anchor
from qnode.keys._engine import Engine
from qnode.keys._model import Answer, Loss, PadId, Positions
from qnode.keys._tx import Issued, Mark, Tx
from qnode.keys._vault import Vault
from qnode.sql import Statements, ask

# The largest number of changes in a commit, so that waiting threads are not delayed for ever.
_MOST_TOGETHER = 64
_TIDY_PAUSES_S = (0.0, 0.01, 0.1)


_POSITIONS = (
    "generation, era, pool_epoch, last_block_id, last_assignment_id, last_handover_id, sent_segment, "
    "sent_index, received_segment, received_index, epsilon"
)
_PROGRESS = (
    f"{_POSITIONS}, lineage, awaiting_peer, (SELECT chain_id FROM {ledger.LIVE}), "
    f"(SELECT last_number FROM {ledger.LIVE}), (SELECT last_hash FROM {ledger.LIVE})"
)
_ONE_GENERATION_ON = f"UPDATE site SET generation = generation + 1 RETURNING {_PROGRESS}"


def read_positions(connection: Statements) -> Positions:
    """Return the site's own positions in the open transaction."""
    return _positions_of(connection.execute(f"SELECT {_POSITIONS} FROM site").fetchone())


def _positions_of(row: Sequence[Any]) -> Positions:
    return Positions(
        generation=row[0],
        era=row[1],
        pool_epoch=row[2],
        last_block_id=row[3],
        last_assignment_id=row[4],
        last_handover_id=row[5],
        sent=PadId(row[6], row[7]),
        received=PadId(row[8], row[9]),
        epsilon=row[10],
    )


class _Progress(NamedTuple):
    """What an anchor records of a state of the store, and whether that waits for the peer."""

    positions: Positions
    lineage: bytes
    awaiting_peer: str
    audit: Head

    @classmethod
    def of(cls, row: Sequence[Any]) -> Self:
        """Return the progress that a row of `_PROGRESS` tells."""
        return cls(_positions_of(row), row[11], row[12], Head(*row[13:]))


class Lineage(NamedTuple):
    """The lineage of the store, and the one before its latest change (see `begin_lineage`)."""

    own: bytes
    before: bytes


def read_lineage(connection: Statements) -> Lineage:
    """Return the store's lineage in the open transaction."""
    return Lineage(*connection.execute("SELECT lineage, lineage_before FROM site").fetchone())


class Follower(Protocol):
    """A follower of the store outside this machine (`qnode.keys._witness.Witness`)."""

    def follow(self, own: Positions, lineage: Lineage, audit: Head) -> None:
        """Record the progress of the store."""


class _Group:
    """Changes that share one commit."""

    def __init__(self) -> None:
        self.n_changes = 0
        self.anchored = False
        self.serves = False  # known of the transaction after the latest change
        self.after_commit: list[Callable[[], None]] = []
        self.done = Event()
        self.error: StoreError | None = None

    def wait(self) -> None:
        """Return when the changes are durable. Raises StoreError if they were undone, or may be."""
        self.done.wait()
        if self.error is not None:
            raise type(self.error)(*self.error.args) from self.error


class Database:
    """The connection of a store: lock, transactions, anchor, and the end after an I/O error."""

    def __init__(
        self,
        engine: Engine,
        vault: Vault,
        role: Role,
        new_anchor: Callable[[Positions, bytes, Head], Anchor],
    ) -> None:
        self.name = engine.name
        self.anchor: Anchor | None = None
        self.witness: Follower | None = None
        self._new_anchor = new_anchor
        self._engine = engine
        self._tx = Tx(engine.statements, vault, role)
        self._lock = RLock()
        self._arriving: deque[None] = deque()
        self._group: _Group | None = None
        self._together: int | None = None
        """The thread in `together`."""
        self._joined: list[_Group] = []
        """The groups of its present call."""
        self._ended: StoreError | None = None
        self.untidied = 0
        """How many times in a row the log could not be cut."""
        self.new_losses: list[Loss] = []
        """New losses, to be reported to people."""
        self.audit_damage = ""
        """What the anchor showed to be missing in the audit when the store was opened; empty: nothing."""

    @property
    def is_away(self) -> bool:
        """Whether the database's server is gone: a new connection may find it again."""
        return isinstance(self._ended, StoreAway)

    def check_usable(self) -> None:
        """Raise StoreAway or StoreUnusable, with the reason, if the connection is not used any more."""
        if self._ended is not None:
            raise type(self._ended)(f"{self.name}: {self._ended}")

    @property
    def issued(self) -> Issued:
        """The positions of the keys that slaves here may fetch; may be read without the lock."""
        return self._tx.issued

    @contextmanager
    def look(self) -> Iterator[Tx]:
        """Read a consistent state, which is on disk; a full disk does not make a read fail."""
        with self._turn(alone=True):
            self.check_usable()
            try:
                with self._tx.vault.holding():
                    yield self._tx
                self._engine.wait()
            except self._engine.error as error:
                raise self._translated(error) from error

    @contextmanager
    def change(self, *, anchored: bool, while_waiting: bool = False, gathers: bool = False) -> Iterator[Tx]:
        """Make one change: at the end all of it is on disk, or nothing after an exception.

        `anchored`: the generation grows, and the anchor follows before this returns, so before any
        effect is visible outside. `while_waiting`: allowed before the peer's confirmation. `gathers`: the
        change reads nothing that `Tx.write_down` writes, so those in one commit write it together.
        Raises LinkDown while the peer's confirmation is awaited, StoreError for a full disk (nothing
        changed), StoreUnusable after an I/O error or damage.
        """
        connection = self._tx.connection
        with self._turn():
            if not gathers and self._tx.has_gathered:
                self._commit()
            self.check_usable()
            group = self._group
            mark = None if group is None else self._tx.mark()
            try:
                if group is None:
                    self._engine.begin()
                else:
                    connection.execute("SAVEPOINT change")
                if not while_waiting and (group is None or not group.serves):
                    self._engine.guard("SELECT awaiting_peer FROM site", self._check_serving)
                yield self._tx
                if not gathers:
                    self._tx.write_down()
                self._engine.heed_guards()
                if group is not None:
                    connection.execute("RELEASE change")
            except BaseException as error:
                self._tx.after_commit.clear()
                self._undo(error, mark)
                if isinstance(error, self._engine.error):
                    raise self._translated(error) from error
                raise
            if group is None:
                group = self._group = _Group()
            group.n_changes += 1
            group.serves = not while_waiting
            group.anchored |= anchored
            group.after_commit += self._tx.after_commit
            self._tx.after_commit.clear()

    def together(self, calls: Iterable[Callable[[], object]]) -> list[Answer]:
        """Make calls of one thread, one after the other; their changes share a commit.

        Each answer is final: the changes of its call are durable, or it has their error.
        """
        answers: list[tuple[Answer, list[_Group]]] = []
        with suppress(StoreError), self._turn():  # an error of the commit is that of the calls
            self._together = get_ident()
            try:
                for call in calls:
                    self._joined = []
                    answers.append((Answer.of(call), self._joined))
            finally:
                self._together = None
        return [_final(answer, groups) for answer, groups in answers]

    def catch_up_anchor(self) -> None:
        """Bring the anchor up to the state of the database."""
        with self._turn(alone=True):
            self.check_usable()
            rows = self._tx.connection.execute(f"SELECT {_PROGRESS} FROM site")
            self._advance(_Progress.of(rows.fetchone()))

    def tidy(self) -> bool:
        """Remove encrypted traces of wiped slots, where the database can.

        If something prevents it, it tries again for a moment; False, and counted, if that does not help.
        """
        for pause_s in _TIDY_PAUSES_S:
            time.sleep(pause_s)
            if self._remove_traces():
                self.untidied = 0
                return True
        self.untidied += 1
        return False

    def _remove_traces(self) -> bool:
        with self._turn(alone=True):
            self.check_usable()
            try:
                return self._engine.remove_traces()
            except self._engine.error as error:
                raise self._translated(error) from error

    def let_go(self) -> None:
        """Close the connection and the anchor of a database that is away, so that it can be opened again."""
        with self._lock:
            self._engine.close()
            if self.anchor is not None:
                self.anchor.close()
                self.anchor = None

    def close(self) -> None:
        """Close database and anchor; closing twice is fine."""
        with self._turn(alone=True):
            self._engine.close()
            if self.anchor is not None:
                self.anchor.close()
                self.anchor = None
            if self._ended is None or self.is_away:
                self._ended = StoreUnusable("the store was closed")

    @contextmanager
    def _turn(self, *, alone: bool = False) -> Iterator[None]:
        """Lock the connection; the last thread of a group commits the changes of the whole group.

        At the end, every change in the body is durable; in `together`, at the end of that. `alone`: commit
        before the body, so that the state in the body is durable too.
        """
        if self._together == get_ident():
            try:
                if alone:
                    self._commit()
                yield
            finally:
                if self._group is not None:
                    self._joined.append(self._group)
            return
        self._arriving.append(None)
        try:
            self._lock.acquire()
        finally:
            self._arriving.pop()
        try:
            if alone:
                self._commit()
            yield
        finally:
            group = self._group
            try:
                if group is not None and (not self._arriving or group.n_changes >= _MOST_TOGETHER):
                    self._commit()
            finally:
                self._lock.release()
        if group is not None:
            group.wait()

    def _commit(self) -> None:
        """Make the open group durable, then advance the anchor; notify the members of the group."""
        group, self._group = self._group, None
        if group is None:
            return
        connection = self._tx.connection
        try:
            self.check_usable()
            self._tx.write_down()
            progress = ask(connection, _ONE_GENERATION_ON) if group.anchored else None
            self._engine.commit()
            for step in group.after_commit:
                step()
            if progress is not None:
                self._advance(_Progress.of(progress.fetchone()))
        except self._engine.error as error:
            self._roll_back()
            group.error = self._translated(error)
        except StoreError as error:
            self._roll_back()
            group.error = error
        except BaseException as error:
            group.error = self._end(f"a transaction ended half done ({type(error).__name__}); start again")
            raise
        finally:
            self._tx.forget()
            group.done.set()

    def _end(self, because: str) -> StoreError:
        """Use the connection no more; return the error."""
        self._ended = StoreUnusable(because)
        return StoreUnusable(f"{self.name}: {because}")

    def _check_serving(self, row: tuple[str]) -> None:
        (reason,) = row
        if reason:
            raise LinkDown(f"{self.name}: waits for the peer to confirm its generation ({reason})")

    def _advance(self, progress: "_Progress") -> None:
        if self.anchor is None and progress.awaiting_peer:
            return  # a lost anchor is made again only after the peer has confirmed its contents
        positions = progress.positions
        try:
            if self.anchor is None:
                self.anchor = self._new_anchor(positions, progress.lineage, progress.audit)
            else:
                assert positions.generation >= self.anchor.positions.generation, "the anchor only goes on"
                self.anchor.advance(positions, progress.lineage, progress.audit)
        except OSError as error:
            told = self._end(f"the anchor could not be written ({error}); mend its disk and start again")
            raise told from error

    def _undo(self, error: BaseException, mark: Mark | None) -> None:
        """Undo the present change, and only that if the database can; ``mark``: of its begin."""
        connection, group = self._tx.connection, self._group
        if group is None or mark is None:
            self._roll_back()
        elif self._engine.is_sound:
            try:
                connection.execute("ROLLBACK TO change")
                connection.execute("RELEASE change")
                self._engine.wait()
                self._tx.back_to(mark)
                return
            except self._engine.error as failure:
                error = failure
                self._roll_back()
        else:
            self._roll_back()
        if group is not None:  # the earlier ones are undone as well, as with a full disk
            self._group = None
            group.error = (
                self._translated(error)
                if isinstance(error, self._engine.error)
                else StoreError(f"{self.name}: a transaction was undone; nothing was changed")
            )
            group.done.set()

    def _roll_back(self) -> None:
        self._tx.forget()
        if not self._engine.in_transaction:
            return
        try:
            self._engine.roll_back()
        except self._engine.error as error:
            if not isinstance(self._translated(error), StoreAway):
                self._end(f"a failed transaction could not be undone ({error}); start again")

    def _translated(self, error: Exception) -> StoreError:
        told = self._engine.translated(error)
        if isinstance(told, StoreUnusable | StoreAway) and self._ended is None:
            self._ended = told
        return type(told)(f"{self.name}: {told}")


def _final(answer: Answer, groups: Iterable[_Group]) -> Answer:
    """Return the answer of a call whose changes were in ``groups``, all of which are done."""
    if answer.error is None:
        for group in groups:
            try:
                group.wait()
            except StoreError as error:
                return Answer(error=error)
    return answer
