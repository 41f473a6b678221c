"""Front ends of a store on a server, as the node sees them: epochs, admission, demand.

A database that may have been set back begins a new epoch: another process of the server, or tables that were
copied. Before the node uses it, each admitted front end says which generation its own anchor knows. If that
is later than the generation with which the epoch began, deliveries are missing in the database. It is then
older than an anchor, as if it were the node's own.

The node records each front end in an anchored change before that one may deliver. So a database that has
forgotten a front end is older than the node's anchor.
"""

import secrets
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from qnode.audit import ledger
from qnode.audit.entries import Head
from qnode.errors import StoreAway, StoreUnusable
from qnode.keys import _restore
from qnode.keys._database import Database, read_positions
from qnode.keys._model import FrontEnds, Waiting
from qnode.keys._tx import Tx
from qnode.keys._vault import Kind
from qnode.sql import Statements

# By its start, in a form that no setting of a session changes.
_SERVER = "extract(epoch FROM pg_postmaster_start_time())::text"
IS_CONTINUED = f"server = {_SERVER} AND written_by = xmin::text"
"""Of the gate: the database cannot have been set back since its epoch began."""


class Epoch(NamedTuple):
    """The present epoch; ``is_continued``: the database cannot have been set back since it began."""

    number: int
    server: str
    began_generation: int
    is_open: bool
    is_continued: bool


def read_epoch(connection: Statements) -> Epoch | None:
    """Return the epoch; None before the first."""
    row = connection.execute(
        f"SELECT epoch, server, began_generation, is_open, {IS_CONTINUED} FROM front_end_gate"
    ).fetchone()
    return None if row is None else Epoch(row[0], row[1], row[2], row[3] == 1, row[4])


def open_for_all(database: Database) -> None:
    """Continue the epoch, or begin one and hear the front ends.

    Raises StoreAway while one is missing: try again.
    """
    with database.look() as tx:
        epoch = read_epoch(tx.connection)
    if epoch is not None and epoch.is_open and epoch.is_continued:
        return
    if epoch is None or not epoch.is_continued:
        with database.change(anchored=False, while_waiting=True) as tx:
            _begin_epoch(tx)
    with database.look() as tx:
        epoch = read_epoch(tx.connection)
        assert epoch is not None
        missing = tx.connection.execute(
            "SELECT name FROM front_end WHERE reported_epoch != ? ORDER BY name", (epoch.number,)
        ).fetchall()
        (n_front_ends,) = tx.one("SELECT count(*) FROM front_end")
    if missing:
        raise StoreAway(
            "the database may have been set back, as its server is another process: the front end "
            f"{missing[0][0]} must say what it has delivered; start it, or, if its machine is gone, start "
            "another one of its name with --anchor-lost"
        )
    with database.change(anchored=bool(n_front_ends), while_waiting=True) as tx:
        _admit(tx, epoch)
        tx.connection.execute(
            "UPDATE front_end_gate SET is_open = 1, written_by = (txid_current() % 4294967296)::text"
        )


def _begin_epoch(tx: Tx) -> None:
    number = 1 + secrets.randbelow(2**62)  # no other, whatever state is put back how often
    tx.connection.execute("DELETE FROM front_end_gate")
    tx.connection.execute(
        "INSERT INTO front_end_gate (one, epoch, server, written_by, began_generation, is_open) "
        f"SELECT 1, ?, {_SERVER}, (txid_current() % 4294967296)::text, generation, 0 "
        "FROM site",
        (number,),
    )


def _admit(tx: Tx, epoch: Epoch) -> None:
    """Admit the front ends that have reported; void the store if one knows a later generation."""
    rows = tx.connection.execute(
        "SELECT name, anchored, audit FROM front_end WHERE reported_epoch = ? AND admitted_epoch != ? "
        "ORDER BY anchored DESC",
        (epoch.number, epoch.number),
    ).fetchall()
    if rows and rows[0][1] > epoch.began_generation:
        name, anchored, audit = rows[0]
        reason = (
            f"the database is older (generation {epoch.began_generation}) than the anchor of its front end "
            f"{name} ({anchored})"
        )
        known = msgspec.structs.replace(read_positions(tx.connection), generation=anchored)
        _restore.catch_up_with_anchor(tx, known, reason)
        if _restore.waiting(tx) == Waiting.NO:
            _restore.wait(tx, Waiting.OLDER, reason)
        ledger.begin(tx.connection, reason, msgspec.msgpack.decode(audit, type=Head) if audit else None)
    tx.connection.execute(
        "UPDATE front_end SET admitted_epoch = ? WHERE reported_epoch = ?", (epoch.number, epoch.number)
    )


def tend(database: Database, key_lifetime_s: float) -> FrontEnds:
    """Say that the node is there, admit new front ends, and return what is asked of them.

    Raises StoreUnusable if the database is no longer the one that was opened.
    """
    with database.look() as tx:
        found = list(_states(tx.connection))
        epoch = read_epoch(tx.connection)
    if epoch is not None and not epoch.is_continued:
        raise StoreUnusable(
            f"{database.name}: another database was put in its place while it was open; start again"
        )
    if not found or epoch is None:
        return FrontEnds()
    waiting = [name for name, is_admitted, has_reported in found if has_reported and not is_admitted]
    with database.change(anchored=bool(waiting), while_waiting=True) as tx:
        if waiting:
            _admit(tx, epoch)
        tx.connection.execute(
            "INSERT INTO front_end_node (one, seen_at, key_lifetime_s) VALUES (1, clock_timestamp(), ?) "
            "ON CONFLICT (one) DO UPDATE SET seen_at = excluded.seen_at, "
            "key_lifetime_s = excluded.key_lifetime_s",
            (key_lifetime_s,),
        )
        demand = tx.connection.execute(
            "SELECT master_sae, slave_sae, sum(asked)::bigint, sum(delivered)::bigint FROM front_end_demand "
            "GROUP BY master_sae, slave_sae"
        ).fetchall()
    return FrontEnds(
        names=tuple(name for name, *_ in found),
        totals={(master, slave): (asked, delivered) for master, slave, asked, delivered in demand},
    )


def clean_up(database: Database) -> None:
    """Do what front ends leave to the node when they deliver the last keys of a block or an assignment."""
    with database.change(anchored=False, while_waiting=True) as tx:
        tx.connection.execute(
            "DELETE FROM sealed_unit WHERE kind = ? AND segment IN (SELECT block_id FROM block WHERE "
            "chunks_left = 0 AND state = 'available')",
            (Kind.BLOCK_SECRET,),
        )
        left = {row[0] for row in tx.connection.execute("SELECT assignment_id FROM peer_assignment")}
        places = tx.issued.places
        gone = [name for name, place in places.items() if place.assignment_id not in left]
        tx.after_commit.append(lambda: tx.issued.forget(gone))


def _states(connection: Statements) -> Iterator[tuple[str, bool, bool]]:
    """Yield each front end: name, whether it is admitted, whether it has reported, in the present epoch."""
    yield from connection.execute(
        "SELECT f.name, f.admitted_epoch = g.epoch, f.reported_epoch = g.epoch FROM front_end f, "
        "front_end_gate g ORDER BY f.name"
    )
