"""The reaction of a site if its anchor or its peer remember a later state than its store.

The anchor knows the whole progress of a site. The peer knows what it has seen: assignments, hand-overs,
verified tags, and the generation and sent pads as of the last hello. The peer does not know which assigned
keys were delivered, or the pads of tags that did not arrive. So a store that only the peer can confirm
discards its assigned keys, and skips as many pads as can have been in transit. The peer cannot confirm
anything while its own store waits, or if it has never met this store. Then nobody knows: every chunk is void,
every pad is wiped, and only a new pre-shared key at both sites ends the wait.
"""

import secrets

import msgspec

from qnode.audit import ledger
from qnode.audit.entries import PeerHead
from qnode.errors import FieldError
from qnode.keys import _accepted, _assigned, _damage, _pool
from qnode.keys._database import read_positions
from qnode.keys._model import MOST_REMEMBERED, MOST_SKIPPED, PadId, Positions, StoreStanding, Waiting
from qnode.keys._tx import Tx
from qnode.keys._vault import Kind

# Two per direction; for blocks that this store does not remember, the number of used ones is unknown.
_MOST_TAGS_OF_A_BLOCK = 4
# The numbers of `Positions` that count up, without pads.
_NUMBERS = ("generation", "era", "pool_epoch", "last_block_id", "last_assignment_id", "last_handover_id")
# Two for each block in progress: a session cannot have more tags on their way to the peer.
MOST_TAGS_UNDER_WAY = 64
LINEAGE_BYTES = 16


def void_all(tx: Tx, reason: str, era: int) -> None:
    """Void every chunk, whatever its state, and enter `era`; blocks stay recorded, as void."""
    (n_left,) = tx.one("SELECT coalesce(sum(chunks_left), 0) FROM block")
    prepared = tx.connection.execute("SELECT block_id FROM block WHERE state = 'prepared'").fetchall()
    for (block_id,) in prepared:
        _pool.drop_segment(tx, block_id)
    for kind in (Kind.CHUNK, Kind.BLOCK_SECRET):
        tx.vault.drop(kind)
    for table in ("free_range", "own_assignment", "peer_assignment", "waiting_pair", "handover", "loss"):
        tx.connection.execute(f"DELETE FROM {table}")
    tx.connection.execute(
        "UPDATE block SET state = 'void', chunks_left = 0, void_reason = ? WHERE state != 'void'", (reason,)
    )
    tx.connection.execute("UPDATE site SET era = ?", (era,))
    tx.count_gone(void=n_left)
    tx.after_commit.append(tx.issued.clear)


def catch_up_with_anchor(tx: Tx, known: Positions, reason: str) -> None:
    """Void all of a database that is older than its anchor, and continue from the anchor's positions."""
    own = read_positions(tx.connection)
    _catch_up(tx, known, reason, era=max(known.era, own.era) + 1)
    begin_lineage(tx)
    if known.pool_epoch > own.pool_epoch:
        _pool.keep_only(tx, ())
    else:
        _skip_pads(tx, known)


def confirm_with_peer(tx: Tx, known: Positions, peer: StoreStanding | None) -> bool:
    """Take over the authenticated peer's memory of this site; return whether all chunks were voided.

    `known` with a later generation, assignment, hand-over or sent pad means that this site was set back:
    every chunk is void. With a later era, the peer has voided all of its chunks, so this site does the same.
    The later of both numbers wins, and pads up to the later position are skipped. Waiting ends, unless nobody
    can confirm this site. `peer` is None if the peer cannot state its condition (protocol 1).
    Raises FieldError for a memory that no site can have given cause for; nothing has changed.
    """
    for name in _NUMBERS:
        number: int = getattr(known, name)
        if number > MOST_REMEMBERED:
            raise FieldError(name, f"the peer remembers {number} of this site")
    waits = waiting(tx)
    if waits == Waiting.RESTORE or (waits == Waiting.ANCHORLESS and peer is None):
        return False
    if waits == Waiting.ANCHORLESS and peer is not None:
        doubt = ""
        if peer.waits:
            doubt = "neither site knows which keys and pads were used: both lack what tells"
        elif known.generation == 0:
            doubt = "the anchor is missing, and the peer does not remember this store"
        if doubt:
            give_up(tx, f"{doubt}; run qnodectl restore with a new pre-shared key at both sites")
            return True
    own = read_positions(tx.connection)
    # The peer learns our generation from the hello only, but sees each assignment, hand-over and pad when it
    # is used. All of these are durable here before the peer can see them. The hello proves that the peer has
    # the pool of the same pre-shared key.
    set_back = (
        known.generation > own.generation
        or known.last_assignment_id > own.last_assignment_id
        or known.last_handover_id > own.last_handover_id
        or known.sent > own.sent
    )
    voids = set_back or known.era > own.era
    if not voids and waits == Waiting.NO:  # the sum of epsilons is known better here
        known = msgspec.structs.replace(known, epsilon=own.epsilon)
    reason = "the peer remembers a later state than this store"
    # A site that was set back must enter an era that is new to the peer as well; otherwise the peer keeps its
    # copies.
    era = max(known.era, own.era) + 1 if set_back else known.era
    _catch_up(tx, known, reason, era=era if voids else None)
    _skip_pads(tx, known)
    if waits == Waiting.ANCHORLESS and not voids:
        # The peer may have these chunks as free, or in stock.
        _damage.tell_peer(tx, _assigned.void_every(tx) + _accepted.void_every(tx))
    if waits == Waiting.ANCHORLESS or set_back:
        _pool.skip_next(tx, MOST_TAGS_UNDER_WAY)
        begin_lineage(tx)
    if set_back:
        ledger.begin(tx.connection, reason)
    wait(tx, Waiting.NO, "")
    return voids


def _catch_up(tx: Tx, known: Positions, reason: str, *, era: int | None) -> None:
    """Take over the known state of this site, except its pads; void all and enter `era`, if given."""
    if era is not None:
        void_all(tx, reason, era)
    tx.connection.execute(
        "UPDATE site SET generation = max(generation, ?), pool_epoch = max(pool_epoch, ?), "
        "last_block_id = max(last_block_id, ?), last_assignment_id = max(last_assignment_id, ?), "
        "last_handover_id = max(last_handover_id, ?), epsilon = max(epsilon, ?), "
        "tags_used = tags_used + ? * max(0, ? - last_block_id)",
        (
            known.generation,
            known.pool_epoch,
            known.last_block_id,
            known.last_assignment_id,
            known.last_handover_id,
            known.epsilon,
            _MOST_TAGS_OF_A_BLOCK,
            known.last_block_id,
        ),
    )


def _skip_pads(tx: Tx, known: Positions) -> None:
    _pool.skip(tx, "send", known.sent)
    _pool.skip(tx, "receive", known.received)


def give_up(tx: Tx, reason: str) -> None:
    """Void every chunk and wipe every pad; only a new pre-shared key ends the wait."""
    void_all(tx, reason, read_positions(tx.connection).era + 1)
    _pool.keep_only(tx, ())
    begin_lineage(tx)
    wait(tx, Waiting.RESTORE, reason)


def begin_lineage(tx: Tx) -> None:
    """Distinguish this store from later copies of it, which the site does not remember.

    Generations count within a lineage, so that such a copy does not count as a later state of this store.
    """
    tx.connection.execute(
        "UPDATE site SET lineage_before = lineage, lineage = ?", (secrets.token_bytes(LINEAGE_BYTES),)
    )


def view_of_peer(tx: Tx) -> Positions:
    """Return this site's memory of its peer, for the hello."""
    own = read_positions(tx.connection)
    generation, last_assignment_id, last_handover_id, segment, index = tx.one(
        "SELECT peer_generation, peer_last_assignment_id, peer_last_handover_id, peer_sent_segment, "
        "peer_sent_index FROM site"
    )
    return Positions(
        generation=generation,
        era=own.era,
        pool_epoch=own.pool_epoch,
        last_block_id=own.last_block_id,
        last_assignment_id=last_assignment_id,
        last_handover_id=last_handover_id,
        sent=max(own.received, PadId(segment, index)),
        received=own.sent,
        epsilon=own.epsilon,
    )


def note_peer(tx: Tx, generation: int, peer: StoreStanding | None) -> None:
    """Record the authenticated peer's statement about itself; lower values than before are ignored.

    Raises FieldError for a generation far beyond the last one; nothing has changed.
    """
    (before,) = tx.one("SELECT peer_generation FROM site")
    if generation > before + MOST_SKIPPED:
        raise FieldError("generation", f"the peer is at {generation}, after {before}")
    tx.connection.execute("UPDATE site SET peer_generation = max(peer_generation, ?)", (generation,))
    if peer is None:
        return
    if peer.audit is not None:
        (kme_id,) = tx.connection.execute("SELECT peer_kme_id FROM site").fetchone()
        ledger.append(tx.connection, PeerHead, kme_id, peer.audit)
    sent = peer.positions.sent
    if sent > PadId(*tx.one("SELECT peer_sent_segment, peer_sent_index FROM site")):
        tx.connection.execute(
            "UPDATE site SET peer_sent_segment = ?, peer_sent_index = ?", (sent.segment, sent.index)
        )


def waiting(tx: Tx) -> Waiting:
    """Return why the store waits."""
    (word,) = tx.connection.execute("SELECT waits FROM site").fetchone()
    return Waiting(word)


def wait(tx: Tx, why: Waiting, reason: str) -> None:
    """Let the store wait from now on, or serve again (`Waiting.NO`)."""
    tx.connection.execute("UPDATE site SET waits = ?, awaiting_peer = ?", (why.value, reason))
