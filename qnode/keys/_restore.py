"""What a site does when it finds that others remember more of it than it does itself."""

from qnode.keys import _pool
from qnode.keys._database import Tx, read_positions
from qnode.keys._model import Positions
from qnode.keys._vault import Kind

# Two in each direction; of blocks that this store does not remember, nobody knows how many they used.
_MOST_TAGS_OF_A_BLOCK = 4


def void_all(tx: Tx, reason: str, era: int) -> None:
    """Void every chunk, whatever its state, and enter `era`; blocks stay known, as void."""
    (n_left,) = tx.one("SELECT coalesce(sum(chunks_left), 0) FROM block")
    prepared = tx.connection.execute("SELECT block_id FROM block WHERE state = 'prepared'").fetchall()
    for (block_id,) in prepared:
        _pool.drop_segment(tx, block_id)
    for kind in (Kind.CHUNK, Kind.BLOCK_SECRET):
        tx.vault.drop(kind)
    for table in ("free_range", "own_assignment", "peer_assignment", "waiting_pair", "handover"):
        tx.connection.execute(f"DELETE FROM {table}")
    tx.connection.execute(
        "UPDATE block SET state = 'void', chunks_left = 0, void_reason = ? WHERE state != 'void'", (reason,)
    )
    tx.connection.execute("UPDATE site SET era = ?", (era,))
    tx.count_gone(void=n_left)
    tx.after_commit.append(tx.issued.clear)


def catch_up(tx: Tx, known: Positions, reason: str) -> bool:
    """Take over what the anchor or the peer remembers of this site; return whether all chunks were voided.

    `known` with a later generation, assignment, hand-over or sent pad means that the database was restored:
    every chunk is void. With a later era, the peer has voided all of its chunks: the same here. Numbers go to
    the later of both; pads up to the later position are skipped, all of them when even the pre-shared key is
    an older one.
    """
    own = read_positions(tx.connection)
    # The peer hears our generation in the hello only, but sees each assignment, hand-over and pad as we use
    # it; all of these are durable here before he can see them.
    restored = (
        known.generation > own.generation
        or known.last_assignment_id > own.last_assignment_id
        or known.last_handover_id > own.last_handover_id
        or (known.pool_epoch == own.pool_epoch and known.sent > own.sent)
    )
    voids = restored or known.era > own.era
    if voids:
        void_all(tx, reason, max(known.era, own.era + 1 if restored else 0))
    tx.connection.execute(
        "UPDATE site SET generation = max(generation, ?), last_block_id = max(last_block_id, ?), "
        "last_assignment_id = max(last_assignment_id, ?), last_handover_id = max(last_handover_id, ?), "
        "epsilon = max(epsilon, ?), tags_used = tags_used + ? * max(0, ? - last_block_id)",
        (
            known.generation,
            known.last_block_id,
            known.last_assignment_id,
            known.last_handover_id,
            known.epsilon,
            _MOST_TAGS_OF_A_BLOCK,
            known.last_block_id,
        ),
    )
    if known.pool_epoch > own.pool_epoch:
        _pool.keep_only(tx, ())
        tx.connection.execute("UPDATE site SET pool_epoch = ?", (known.pool_epoch,))
    elif known.pool_epoch == own.pool_epoch:
        _pool.skip(tx, "send", known.sent)
        _pool.skip(tx, "receive", known.received)
    return voids


def view_of_peer(tx: Tx) -> Positions:
    """Return what this site remembers of its peer: to be sent in the hello."""
    own = read_positions(tx.connection)
    generation, last_assignment_id, last_handover_id = tx.one(
        "SELECT peer_generation, peer_last_assignment_id, peer_last_handover_id FROM site"
    )
    return Positions(
        generation=generation,
        era=own.era,
        pool_epoch=own.pool_epoch,
        last_block_id=own.last_block_id,
        last_assignment_id=last_assignment_id,
        last_handover_id=last_handover_id,
        sent=own.received,
        received=own.sent,
        epsilon=own.epsilon,
    )


def await_peer(tx: Tx, reason: str) -> None:
    """Serve nothing until the peer has confirmed; '' ends it."""
    tx.connection.execute("UPDATE site SET awaiting_peer = ?", (reason,))
