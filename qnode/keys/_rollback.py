"""Writes the store of a stopped site back into the form of the release before, with all its keys.

No copy from before the upgrade is needed: such a copy would still hold the keys that were delivered since,
and that release could deliver them again. Numbers, positions and the anchor stay where they are, so the
release before goes on where this one stopped. If a roll-back is interrupted, run it again.

That release cannot free keys that were assigned and not delivered. So a roll-back first wants that the sites
have met and settled what they were agreeing on. If the peer does not come back, such keys can be voided.
"""

import sqlite3
from pathlib import Path
from typing import NamedTuple

import msgspec

from qnode.audit import ledger
from qnode.audit.entries import OperatorChanged
from qnode.choices import Role
from qnode.errors import LinkDown, StoreError, StoreUnusable
from qnode.keys import _assigned, _damage
from qnode.keys._anchor import Anchor
from qnode.keys._database import Database, read_lineage, read_positions
from qnode.keys._opening import open_database, run_script
from qnode.keys._tx import Tx

RELEASE_BEFORE = "0.1.0"
_SCHEMA_BEFORE = 1
_MEET = "start the node until qnodectl status shows the peer, stop it, and roll back again"


class RolledBack(msgspec.Struct, frozen=True, kw_only=True):
    """The result: chunks that the release before goes on with, and chunks that it voids or that are void.

    ``void_chunks`` were open between the sites: nobody has been given them.
    """

    kept_chunks: int
    void_chunks: int


def roll_back(
    path: Path,
    *,
    role: Role,
    store_key: bytes,
    anchor: Path,
    kme_id: str,
    peer_kme_id: str,
    witness: Path | None = None,
    void_open: bool = False,
) -> RolledBack:
    """Convert the store at ``path`` and its anchor for `RELEASE_BEFORE`. No daemon may have it open.

    ``void_open``: give up the keys that the sites are still agreeing on or freeing, instead of refusing.
    Raises StoreUnusable or StoreError with the reason and the remedy; the store is unchanged then, or
    complete in its present form. Raises OSError if the witness or the anchor
    cannot be written.
    """
    database = open_database(
        path,
        role=role,
        store_key=store_key,
        anchor_path=anchor,
        kme_id=kme_id,
        peer_kme_id=peer_kme_id,
        witness_path=witness,
    )
    try:
        void = _damage.without_damage(database, lambda: _settle(database, void_open=void_open))
        with database.look() as tx:
            own = read_positions(tx.connection)
            (store_id,) = tx.connection.execute("SELECT store_id FROM site").fetchone()
            (kept,) = tx.one("SELECT coalesce(sum(chunks_left), 0) FROM block WHERE state != 'void'")
            if database.witness is not None:
                database.witness.follow(own, read_lineage(tx.connection), ledger.head(tx.connection))
        _convert(database)
        database.tidy()
        # The release before refuses fields of an anchor that it does not know. The store is still locked.
        Anchor.create(anchor, store_key, bytes(store_id), own, b"").close()
    finally:
        database.close()
    return RolledBack(kept_chunks=kept - void.at_the_meeting, void_chunks=void.at_the_meeting + void.already)


class _Void(NamedTuple):
    """Chunks that are void ``already``, and those that the sites void ``at_the_meeting``."""

    already: int
    at_the_meeting: int


def _settle(database: Database, *, void_open: bool) -> _Void:
    """Bring the store into a state that the schema before can express; return what becomes void."""
    try:
        with database.change(anchored=True) as tx:
            if _damage.open_losses(tx):
                raise StoreError(
                    f"{database.name}: entries that could not be decrypted are not given up by the peer yet; "
                    f"{_MEET}, or load a new pre-shared key first (qnodectl restore)"
                )
            # The peer may not know an assignment, or may have freed it already. Only a meeting tells.
            n_open = _chunks_assigned(tx, "acknowledged IN (0, 2)")
            if n_open and not void_open:
                raise StoreError(
                    f"{database.name}: {n_open:,} chunks that the sites were agreeing on or freeing are not "
                    f"settled; {_MEET}, or give them up with --void-open: nobody has been given them"
                )
            void = _end_releases(tx)
            # A lineage is unknown to the schema before. One that is empty is the same before and after.
            # An interrupted roll-back has done so already: a witness may still hold what it remembered.
            tx.connection.execute(
                "UPDATE site SET lineage_before = lineage, lineage = x'' WHERE lineage != x''"
            )
            ledger.append(
                tx.connection, OperatorChanged, "store.rolled_back", "store", f"for version {RELEASE_BEFORE}"
            )
        return void
    except LinkDown as error:
        raise StoreUnusable(
            f"{error}; start the node again until it serves keys, or run qnodectl restore, then roll back"
        ) from None


def _end_releases(tx: Tx) -> _Void:
    """End the releases of assignments, which the schema before does not know.

    It voids an assignment that the peer may not know at both sites, when they meet. What is left of a stock
    of which keys were delivered is voided here at once.
    """
    rows = tx.connection.execute(
        "SELECT assignment_id, n_taken FROM own_assignment WHERE acknowledged > 1"
    ).fetchall()
    before = tx.one("SELECT void FROM site")[0]
    for assignment_id, n_taken in rows:
        if n_taken:
            _assigned.void(tx, assignment_id)
        else:
            tx.connection.execute(
                "UPDATE own_assignment SET acknowledged = 0 WHERE assignment_id = ?", (assignment_id,)
            )
    tx.write_down()
    void = tx.one("SELECT void FROM site")[0] - before
    return _Void(already=void, at_the_meeting=_chunks_assigned(tx, "acknowledged = 0"))


def _chunks_assigned(tx: Tx, which: str) -> int:
    sums = tx.one(
        f"SELECT coalesce(sum((n_keys - n_taken) * chunks_per_key), 0) FROM own_assignment WHERE {which}"
    )
    return sums[0]


def _convert(database: Database) -> None:
    with database.look() as tx:
        connection = tx.connection
        assert isinstance(connection, sqlite3.Connection), "the release before knows no other database"
        connection.execute("BEGIN IMMEDIATE")
        try:
            run_script(connection, f"from_v{_SCHEMA_BEFORE + 1}_to_v{_SCHEMA_BEFORE}.sql")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
