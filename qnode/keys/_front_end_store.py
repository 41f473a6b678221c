"""The store as a front end uses it: keys agreed ahead and waiting keys, beside the node and other front ends.

A front end has an anchor of its own, with the generation that it has seen, and the epoch in which it saw it
(`qnode.keys._front_ends`). A session that ends, for whatever reason, is replaced by the next call, at most
once in `RETRY_S`: it connects, and says what its anchor knows. What a lost commit has delivered has left the
store, or is still there; nobody has seen it.

Not thread-safe: one thread at a time makes the calls.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import psycopg

from qnode.audit import ledger
from qnode.config import PostgresqlSection
from qnode.errors import ConfigError, FieldError, StoreAway, StoreError, StoreUnusable
from qnode.keys import _waiting
from qnode.keys._anchor import Anchor
from qnode.keys._database import read_positions
from qnode.keys._front_end_batch import Batch, Fetch, Take
from qnode.keys._front_ends import IS_CONTINUED, Epoch, read_epoch
from qnode.keys._model import Positions
from qnode.keys._opening import check_canary, check_owner
from qnode.keys._postgresql import PostgresqlEngine, connect
from qnode.keys._postgresql_store import check_form, has_store
from qnode.keys._tx import Place, Tx
from qnode.keys._vault import DamagedUnit, Vault
from qnode.units import CHUNK_BITS

RETRY_S = 1.0
FORGET_PERIOD_S = 60.0
_NAMED_AT_ONCE = 512
# Assignments are accepted nearly in the order of their numbers. One that is not found among the numbers after
# those known is looked for among all at most once in this time.
_LOOK_AMONG_ALL_S = 1.0
# The node is away if it has not been seen for this time, by the server's clock.
NODE_AWAY_S = 5.0

Pair = tuple[str, str]


class _Session:
    """A session with the server, in an epoch. ``admitted``: this front end may deliver."""

    def __init__(self, engine: PostgresqlEngine, tx: Tx, epoch: Epoch) -> None:
        self.engine = engine
        self.tx = tx
        self.epoch = epoch
        self.node_is_away = True


class FrontEndStore:
    """The store at ``address`` for the front end ``name``. ``anchor``: its own file.

    ``anchor_lost``: the anchor is known to be lost, together with what it knew: every key is voided.
    """

    def __init__(
        self,
        address: PostgresqlSection,
        *,
        name: str,
        store_key: bytes,
        anchor: Path,
        kme_id: str,
        peer_kme_id: str,
        anchor_lost: bool = False,
    ) -> None:
        if len(store_key) != 32:
            raise FieldError("store_key", f"must be 32 bytes, is {len(store_key)}")
        self.name = name
        self._address = address
        self._store_key = store_key
        self._anchor_path = anchor
        self._owner = {"kme_id": kme_id, "peer_kme_id": peer_kme_id}
        self._anchor_lost = anchor_lost
        self._anchor: Anchor | None = None
        self._session: _Session | None = None
        self._next_try_s = 0.0
        self._because = "not connected yet"
        self._places: dict[bytes, Place] = {}
        self._named: set[int] = set()
        self._named_up_to = -1
        self._next_look_s = 0.0
        self._next_forget_s = 0.0
        self.ended: StoreUnusable | None = None
        """Why this store cannot be used any more."""

    # Calls

    def perform(self, requests: Sequence[Take | Fetch], demand: dict[Pair, tuple[int, int]]) -> None:
        """Answer requests, each by keys or an error; what they got is durable, and known to the anchor.

        ``demand``: by pair (master, slave), the keys asked and delivered lately; it is emptied when the
        node can read them. Raises StoreError: a request without keys got none.
        """
        session = self._connected()
        try:
            self._write_demand(session, demand)
            if time.monotonic() >= self._next_forget_s:
                self._forget_gone(session)
            if requests:  # last: after an error nobody would get what was delivered
                self._answer(session, requests)
        except psycopg.Error as error:
            raise self._lost(session, error) from error

    def stock_count(self, master_sae: str, slave_sae: str) -> int:
        """Return the number of keys agreed ahead for a pair. Raises StoreError."""
        session = self._connected()
        try:
            self._check(session)
            (count,) = session.tx.one(
                "SELECT coalesce(sum(n_keys - n_taken), 0)::bigint FROM own_assignment WHERE stock = 1 AND "
                "acknowledged = 1 AND master_sae = ? AND slave_sae = ? AND size_bits = ?",
                master_sae,
                slave_sae,
                CHUNK_BITS,
            )
            return count
        except psycopg.Error as error:
            raise self._lost(session, error) from error

    @property
    def node_is_away(self) -> bool:
        """Whether the node has not been seen for some time: nobody agrees on more keys."""
        return self._session is None or self._session.node_is_away

    def look(self) -> str:
        """Say why this front end cannot deliver; empty if it can."""
        try:
            session = self._connected()
            try:
                self._check(session)
            except psycopg.Error as error:
                raise self._lost(session, error) from error
        except StoreError as error:
            return str(error)
        return ""

    def leave(self) -> None:
        """Leave in order: the node no longer waits for this front end. Then close."""
        try:
            session = self._connected()
            assert self._anchor is not None
            knows = self._anchor.positions.generation
            self._in_transaction(
                session,
                # Only one that has nothing more to say; otherwise the node waits for it.
                lambda: session.tx.connection.execute(
                    "DELETE FROM front_end WHERE name = ? AND admitted_epoch = ? AND EXISTS (SELECT 1 FROM "
                    f"front_end_gate WHERE epoch = ? AND is_open = 1 AND {IS_CONTINUED}) "
                    "AND (SELECT generation FROM site) >= ?",
                    (self.name, session.epoch.number, session.epoch.number, knows),
                ),
            )
        except (psycopg.Error, StoreError):
            pass  # it is expected back
        self.close()

    def close(self) -> None:
        """End the session."""
        session, self._session = self._session, None
        if session is not None:
            session.engine.close()
        if self._anchor is not None:
            self._anchor.close()
            self._anchor = None

    # The session

    def _connected(self) -> _Session:
        if self.ended is not None:
            raise self.ended
        if self._session is not None:
            return self._session
        if time.monotonic() < self._next_try_s:
            raise StoreAway(self._because)
        try:
            self._session = self._connect()
        except (StoreError, ConfigError, OSError) as error:
            self._next_try_s = time.monotonic() + RETRY_S
            self._because = str(error)
            raise StoreAway(self._because) from error
        return self._session

    def _connect(self) -> _Session:
        engine = connect(self._address, front_end=self.name)
        try:
            if not has_store(engine, self._address.schema):
                raise StoreAway(f"{engine.name}: there is no store; start its node first")
            check_form(engine, self._address.schema)
            vault = Vault(engine.statements, self._store_key)
            check_canary(engine.name, engine.statements, vault)
            (role,) = engine.statements.execute("SELECT role FROM site").fetchone()
            store_id = check_owner(engine.name, engine.statements, role=role, **self._owner)
            epoch = read_epoch(engine.statements)
            if epoch is None or not epoch.is_continued:
                raise StoreAway(f"{engine.name}: waits until the node has opened this database")
            session = _Session(engine, Tx(engine.statements, vault, role), epoch)
            self._report(session, store_id)
        except psycopg.Error as error:
            refusal = engine.refusal(error)
            engine.close()
            raise refusal from error
        except BaseException:
            engine.close()
            raise
        self._places.clear()
        self._named.clear()
        self._named_up_to = -1
        return session

    def _report(self, session: _Session, store_id: bytes) -> None:
        """Say what the anchor knows, for the epoch, unless that was said; a first anchor is made."""
        connection, epoch = session.tx.connection, session.epoch
        former, self._anchor = self._anchor, None
        if former is not None:
            former.close()
        self._anchor = Anchor.open(self._anchor_path, self._store_key, store_id)
        row = connection.execute(
            "SELECT admitted_epoch FROM front_end WHERE name = ?", (self.name,)
        ).fetchone()
        in_this_epoch = _mark(epoch)
        if self._anchor is None:
            if row is not None and row[0] != epoch.number and not self._anchor_lost:
                raise StoreAway(
                    f"{session.engine.name}: the anchor {self._anchor_path} of the front end {self.name} is "
                    "missing, and the database may have been set back; put the file back, or start once with "
                    "--anchor-lost, which voids every key"
                )
            lost = row is not None and row[0] != epoch.number
            known, audit = (epoch.began_generation + 1 if lost else 0), None
        elif self._anchor.lineage == in_this_epoch:
            known, audit = 0, None  # this epoch continues what the anchor knows
        else:
            known, audit = self._anchor.positions.generation, self._anchor.audit
        self._in_transaction(
            session,
            lambda: connection.execute(
                "INSERT INTO front_end (name, reported_epoch, anchored, audit) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET reported_epoch = excluded.reported_epoch, "
                "anchored = excluded.anchored, audit = excluded.audit "
                "WHERE front_end.reported_epoch != excluded.reported_epoch",
                (self.name, epoch.number, known, None if audit is None else msgspec.msgpack.encode(audit)),
            ),
        )

        if self._anchor is None:  # after the report: with an anchor of this epoch there is nothing to report
            positions = Positions(generation=read_positions(connection).generation)
            self._anchor = Anchor.create(
                self._anchor_path, self._store_key, store_id, positions, in_this_epoch
            )

    def _lost(self, session: _Session, error: Exception) -> StoreError:
        """End a session after an error, and return what to say. Its transaction is undone or in doubt."""
        told = session.engine.translated(error)
        self._because = f"{session.engine.name}: {told}"
        session.engine.close()
        self._session = None
        return StoreAway(self._because)

    def _in_transaction(self, session: _Session, work: Callable[[], object]) -> None:
        session.engine.begin()
        try:
            work()
        except BaseException:
            if session.engine.in_transaction:
                session.engine.roll_back()
            raise
        session.engine.commit()

    def _check(self, session: _Session) -> None:
        """Refuse unless this front end may deliver now."""
        row = session.tx.connection.execute(
            "SELECT g.epoch, g.server, g.is_open, s.awaiting_peer, f.admitted_epoch, "
            "extract(epoch FROM clock_timestamp() - n.seen_at)::double precision, n.key_lifetime_s, "
            "g.written_by = g.xmin::text "
            "FROM front_end_gate g CROSS JOIN site s LEFT JOIN front_end f ON f.name = ? "
            "LEFT JOIN front_end_node n ON n.one = 1",
            (self.name,),
        ).fetchone()
        name = session.engine.name
        epoch = session.epoch
        if row is None or row[:2] != (epoch.number, epoch.server) or row[4] is None or not row[7]:
            session.engine.close()
            self._session = None
            raise StoreAway(f"{name}: a new epoch has begun; connects again")
        _, _, is_open, awaiting_peer, admitted_epoch, unseen_s, lifetime_s, _ = row
        session.node_is_away = unseen_s is None or abs(unseen_s) > NODE_AWAY_S
        if not is_open:
            raise StoreAway(f"{name}: waits until all front ends have compared their anchors")
        if admitted_epoch != session.epoch.number:
            raise StoreAway(f"{name}: waits until the node has admitted this front end")
        if awaiting_peer:
            raise StoreError(f"{name}: waits for the peer to confirm its generation ({awaiting_peer})")
        if unseen_s is None or unseen_s > lifetime_s:
            raise StoreError(f"{name}: the node is away for longer than keys live; start it")

    # Delivery

    def _answer(self, session: _Session, requests: Sequence[Take | Fetch]) -> None:
        try:
            self._answer_together(session, requests)
        except DamagedUnit as damage:
            if len(requests) == 1:
                requests[0].error = StoreError(f"{session.engine.name}: {damage}; the node discards it")
                return
            for request in requests:
                request.keys, request.error = [], None
                self._answer(session, [request])

    def _answer_together(self, session: _Session, requests: Sequence[Take | Fetch]) -> None:
        assert self._anchor is not None
        connection, engine = session.tx.connection, session.engine
        fetches = [one for one in requests if isinstance(one, Fetch)]
        # Of many waiting keys this takes long: the node must not wait for it.
        with suppress(DamagedUnit), session.tx.vault.holding():
            self._name(session, fetches)
        engine.begin()
        try:
            self._check(session)
            batch = Batch(session.tx, self._places)
            with session.tx.vault.holding():
                self._name(session, fetches)
                batch.answer(requests)
            if not batch.changes:
                engine.roll_back()
                return
            positions, head = read_positions(connection), ledger.head(connection)
            if positions.generation <= self._anchor.positions.generation:
                raise self._set_back(positions.generation)
            engine.commit()
        except BaseException:
            session.tx.forget()
            for request in requests:
                request.keys = []
            if engine.in_transaction and not engine.connection.closed:
                engine.roll_back()
            raise
        try:
            self._anchor.advance(positions, _mark(session.epoch), head)
        except OSError as error:
            for request in requests:
                request.keys = []
            self.ended = StoreUnusable(f"{self._anchor_path}: {error}; mend its disk and start again")
            raise self.ended from error

    def _set_back(self, generation: int) -> StoreUnusable:
        self.ended = StoreUnusable(
            f"{self._address.schema}: the database was set back while its server ran: it is at "
            f"generation {generation}, the anchor {self._anchor_path} knows a later one; run qnodectl restore"
        )
        return self.ended

    def _write_demand(self, session: _Session, demand: dict[Pair, tuple[int, int]]) -> None:
        rows = [(self.name, *pair, *counts) for pair, counts in sorted(demand.items())]
        if not rows:
            return
        session.engine.begin()
        session.tx.connection.execute("SET LOCAL synchronous_commit = off")  # a hint that may be lost
        session.tx.connection.executemany(
            "INSERT INTO front_end_demand (front_end, master_sae, slave_sae, asked, delivered) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT (front_end, master_sae, slave_sae) DO UPDATE SET "
            "asked = front_end_demand.asked + excluded.asked, "
            "delivered = front_end_demand.delivered + excluded.delivered",
            rows,
        )
        session.engine.commit()
        demand.clear()

    # Key_IDs

    def _name(self, session: _Session, fetches: Sequence[Fetch]) -> None:
        """Compute the key_IDs of assignments that are not known here, if one of those asked is missing."""

        def is_missing() -> bool:
            return any(key_id.bytes not in self._places for one in fetches for key_id in one.key_ids)

        if not is_missing():
            return
        after = self._named_up_to
        self._learn(session, "assignment_id > ?", after)
        if is_missing() and time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + _LOOK_AMONG_ALL_S
            self._learn(session, "assignment_id <= ?", after)

    def _learn(self, session: _Session, which: str, number: int) -> None:
        connection = session.tx.connection
        rows = connection.execute(f"SELECT assignment_id FROM peer_assignment WHERE {which}", (number,))
        unknown = sorted({row[0] for row in rows} - self._named, reverse=True)
        for first in range(0, len(unknown), _NAMED_AT_ONCE):
            some = unknown[first : first + _NAMED_AT_ONCE]
            found = connection.execute(
                "SELECT content, waiting FROM peer_assignment WHERE assignment_id = ANY(?::bigint[])", (some,)
            ).fetchall()
            helds = [_waiting.Held.decode(*row) for row in found]
            self._places.update(_waiting.places(helds, _waiting.all_names(session.tx, helds)))
            self._named.update(held.assignment.assignment_id for held in helds)
            self._named_up_to = max(self._named_up_to, *some)

    def _forget_gone(self, session: _Session) -> None:
        self._next_forget_s = time.monotonic() + FORGET_PERIOD_S
        rows = session.tx.connection.execute("SELECT assignment_id FROM peer_assignment")
        left = {row[0] for row in rows}
        if gone := self._named - left:
            self._named &= left
            self._places = {
                name: place for name, place in self._places.items() if place.assignment_id not in gone
            }


def _mark(epoch: Epoch) -> bytes:
    """Return what names an epoch in an anchor."""
    return hashlib.sha256(f"{epoch.number} {epoch.server}".encode()).digest()[:16]
