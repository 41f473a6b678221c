"""Moving the ownership of free chunks to the other site: durably given, then owned there.

From the start of the hand-over, the giver treats the chunks as the peer's. Nobody assigns them until the peer
has taken them. Each giver has at most one open hand-over, and the taker acts on each number once, so a late
repetition cannot return chunks that have moved since. The giver repeats the hand-over until the taker has
confirmed it, or until it is voided at both sites.
"""

import msgspec

from qnode.choices import BlockState
from qnode.errors import FieldError, StoreError
from qnode.keys import _blocks, _ranges
from qnode.keys._model import MOST_SKIPPED, Handover
from qnode.keys._tx import Tx


def give(tx: Tx, number: int) -> Handover:
    """Give the newest `number` own chunks. Raises NotEnoughKeys, StoreError while one is pending."""
    if number < 1:
        raise FieldError("number", f"must be at least 1, is {number}")
    before = pending(tx)
    if before is not None:
        raise StoreError(f"hand-over {before.handover_id} is not finished yet")
    ranges = _ranges.joined(_ranges.take_newest(tx, number))
    for item in ranges:
        _ranges.pass_on(tx, item, tx.peer)
    (last,) = tx.one("SELECT last_handover_id FROM site")
    handover = Handover(handover_id=last + 1, giver=tx.role, ranges=tuple(ranges))
    tx.connection.execute("UPDATE site SET last_handover_id = ?", (handover.handover_id,))
    tx.connection.execute(
        "INSERT INTO handover (handover_id, content) VALUES (?, ?)",
        (handover.handover_id, msgspec.msgpack.encode(handover)),
    )
    return handover


def pending(tx: Tx) -> Handover | None:
    """Return the hand-over that the peer has not confirmed, to be repeated after a cut."""
    row = tx.connection.execute("SELECT content FROM handover").fetchone()
    return None if row is None else msgspec.msgpack.decode(row[0], type=Handover)


def finish(tx: Tx, handover_id: int) -> None:
    """Note that the peer has taken a hand-over; repetition is allowed."""
    tx.connection.execute("DELETE FROM handover WHERE handover_id = ?", (handover_id,))


def take(tx: Tx, handover: Handover) -> None:
    """Take over the chunks of a hand-over; no effect if it was taken before.

    Raises StoreError unless all chunks are free here, the giver's, and of prepared or available blocks, and
    if this hand-over was voided here: the giver must then void it too.
    """
    if not _is_new(tx, handover):
        if _was_void(tx, handover) is True:
            raise StoreError(f"hand-over {handover.handover_id} was voided here")
        return
    for item in _ranges.joined(handover.ranges):
        state = _blocks.state_of(tx, item.block_id)
        if state not in (BlockState.PREPARED, BlockState.AVAILABLE):
            raise StoreError(f"hand-over {handover.handover_id}: block {item.block_id} is {state} here")
        _ranges.take_free(tx, item, tx.peer)
        _ranges.pass_on(tx, item, tx.role)
        _blocks.mark_peer_confirmed(tx, item.block_id)
    _remember(tx, handover, void=False)


def void(tx: Tx, handover: Handover) -> None:
    """Void the chunks of a hand-over that the taker refused, first there, then here; repetition is allowed.

    Raises StoreError if they were taken here: the giver must not destroy them then.
    """
    if handover.giver == tx.role:
        if pending(tx) != handover:
            return
        finish(tx, handover.handover_id)
    elif _is_new(tx, handover):
        _remember(tx, handover, void=True)
    elif _was_void(tx, handover) is False:
        raise StoreError(f"hand-over {handover.handover_id} was taken here")
    else:
        return
    free = [part for item in handover.ranges for part in _ranges.take_what_is_free(tx, item, tx.peer)]
    tx.count_gone(void=_ranges.destroy(tx, free))


def _is_new(tx: Tx, handover: Handover) -> bool:
    """Return whether a hand-over of the peer is new."""
    if handover.giver != tx.peer:
        raise StoreError(f"hand-over {handover.handover_id} is of {handover.giver}, not of the peer")
    (last,) = tx.one("SELECT peer_last_handover_id FROM site")
    if handover.handover_id > last + MOST_SKIPPED:
        raise StoreError(f"hand-over {handover.handover_id}: the last one was {last}")
    return handover.handover_id > last


def _was_void(tx: Tx, handover: Handover) -> bool | None:
    """Return whether the peer's latest hand-over was voided here; None for an earlier one."""
    last, void = tx.one("SELECT peer_last_handover_id, peer_last_handover_void FROM site")
    return bool(void) if handover.handover_id == last else None


def _remember(tx: Tx, handover: Handover, *, void: bool) -> None:
    tx.connection.execute(
        "UPDATE site SET peer_last_handover_id = ?, peer_last_handover_void = ?",
        (handover.handover_id, int(void)),
    )
