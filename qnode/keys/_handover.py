"""Moving the ownership of free chunks to the other site: durably given away, then owned there.

From the moment of giving, the giver treats the chunks as the peer's; until the peer has taken them nobody
assigns them. One hand-over at a time is open per giver, and the taker acts on each number once, so a late
repetition cannot bring back chunks that have changed hands since. The giver repeats it until he has heard
that it was taken, or has voided it there and here.
"""

import msgspec

from qnode.choices import BlockState
from qnode.errors import FieldError, StoreError
from qnode.keys import _blocks, _ranges
from qnode.keys._database import Tx
from qnode.keys._model import Handover


def give(tx: Tx, number: int) -> Handover:
    """Release the newest `number` own chunks. Raises NotEnoughKeys, StoreError while one is pending."""
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
    """Return the hand-over that the peer has not confirmed, to be sent again after a cut."""
    row = tx.connection.execute("SELECT content FROM handover").fetchone()
    return None if row is None else msgspec.msgpack.decode(row[0], type=Handover)


def finish(tx: Tx, handover_id: int) -> None:
    """Note that the peer has taken a hand-over; once more is fine."""
    tx.connection.execute("DELETE FROM handover WHERE handover_id = ?", (handover_id,))


def take(tx: Tx, handover: Handover) -> None:
    """Own the chunks of a hand-over; one that was taken before changes nothing.

    Raises StoreError unless all chunks are free here, the giver's, and of prepared or available blocks, and
    when this hand-over was voided here: the giver must then do the same.
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
    """Void the chunks of a hand-over that the taker refused, first there, then here; once more is fine.

    Raises StoreError when they were taken here: the giver must not destroy them then.
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
    """Tell whether a hand-over of the peer has not been acted on."""
    if handover.giver != tx.peer:
        raise StoreError(f"hand-over {handover.handover_id} is of {handover.giver}, not of the peer")
    return handover.handover_id > tx.one("SELECT peer_last_handover_id FROM site")[0]


def _was_void(tx: Tx, handover: Handover) -> bool | None:
    """Tell whether the peer's latest hand-over was voided here, not taken; None for one before it."""
    last, void = tx.one("SELECT peer_last_handover_id, peer_last_handover_void FROM site")
    return bool(void) if handover.handover_id == last else None


def _remember(tx: Tx, handover: Handover, *, void: bool) -> None:
    tx.connection.execute(
        "UPDATE site SET peer_last_handover_id = ?, peer_last_handover_void = ?", (handover.handover_id, void)
    )
