"""Writes the store of a stopped site back into the form of the release before, with all its keys.

No copy from before the upgrade is needed: such a copy would still hold the keys that were delivered since,
and that release could deliver them again. Numbers, positions and the anchor stay where they are, so the
release before goes on where this one stopped. If a roll-back is interrupted, run it again.
"""

from pathlib import Path

import msgspec

from qnode.audit import ledger
from qnode.audit.entries import OperatorChanged
from qnode.choices import Role
from qnode.errors import LinkDown, StoreError, StoreUnusable
from qnode.keys import _assigned, _damage
from qnode.keys._anchor import Anchor
from qnode.keys._database import Database, Tx, read_lineage, read_positions
from qnode.keys._opening import open_database, run_script

RELEASE_BEFORE = "0.1.0"
_SCHEMA_BEFORE = 1


class RolledBack(msgspec.Struct, frozen=True, kw_only=True):
    """The result: chunks that the release before finds in the store, and chunks that had to be voided."""

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
) -> RolledBack:
    """Convert the store at ``path`` and its anchor for `RELEASE_BEFORE`. No daemon may have it open.

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
        void = _settle(database)
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
    return RolledBack(kept_chunks=kept, void_chunks=void)


def _settle(database: Database) -> int:
    """Bring the store into a state that the schema before can express; return the number of void chunks."""
    try:
        with database.change(anchored=True) as tx:
            if _damage.open_losses(tx):
                raise StoreError(
                    f"{database.path}: entries that could not be decrypted are not given up by the peer yet; "
                    "start the node again until it has met the peer, then roll back"
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


def _end_releases(tx: Tx) -> int:
    """End the releases of assignments, which the schema before does not know; return the void chunks.

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
    return int(tx.one("SELECT void FROM site")[0] - before)


def _convert(database: Database) -> None:
    with database.look() as tx:
        tx.connection.execute("BEGIN IMMEDIATE")
        try:
            run_script(tx.connection, f"from_v{_SCHEMA_BEFORE + 1}_to_v{_SCHEMA_BEFORE}.sql")
            tx.connection.execute("COMMIT")
        except BaseException:
            if tx.connection.in_transaction:
                tx.connection.execute("ROLLBACK")
            raise
