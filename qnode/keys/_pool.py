"""The one-time authentication pool: pads in segments, used from the front, and each only once.

`next` of a segment only grows, and is durable before a pad leaves the store. Pads for sending are
used in the order of their PadId, never backwards: a block that is confirmed after the first use of a later
one's pads gives none. So one address (`sent`, `received`: the greatest PadId ever used) describes a
direction. It is also in the anchor and at the peer, and a restored database skips everything up to it.
"""

from collections.abc import Collection

from qnode.errors import PoolExhausted, StoreError
from qnode.keys._layout import PresharedParts
from qnode.keys._model import PAD_BYTES, HashKeys, Pad, PadId, PadsLeft
from qnode.keys._tx import Tx
from qnode.keys._vault import DamagedUnit, Kind

PRESHARED_SEGMENT = 0
# Blocks refill the pool by more than they use; beyond this number of pads for sending, new ones are wiped.
_MOST_PADS = 4096
_KINDS = {"send": Kind.PAD_SEND, "receive": Kind.PAD_RECEIVE}


def add_segment(tx: Tx, segment: int, a_to_b: bytes, b_to_a: bytes, *, confirmed: bool) -> None:
    """Enter the pads of a segment, those of Alice's messages and those of Bob's."""
    send, receive = (a_to_b, b_to_a) if tx.role == "alice" else (b_to_a, a_to_b)
    for direction, pads in (("send", send), ("receive", receive)):
        if pads:
            tx.vault.put(_KINDS[direction], segment, pads)
            tx.connection.execute(
                "INSERT INTO pad_segment (direction, segment, count, confirmed) VALUES (?,?,?,?)",
                (direction, segment, len(pads) // PAD_BYTES, int(confirmed)),
            )


def confirm_segment(tx: Tx, segment: int) -> None:
    """Let a segment be used for sending, unless a later one is already in use or there are enough pads.

    Otherwise its pads for sending are wiped; the peer wipes its copies when a later segment comes into use.
    """
    if segment < tx.one("SELECT sent_segment FROM site")[0] or left(tx).send >= _MOST_PADS:
        tx.connection.execute("DELETE FROM pad_segment WHERE direction = 'send' AND segment = ?", (segment,))
        tx.vault.drop(Kind.PAD_SEND, segment)
    tx.connection.execute("UPDATE pad_segment SET confirmed = 1 WHERE segment = ?", (segment,))


def drop_segment(tx: Tx, segment: int) -> None:
    """Wipe what is left of a segment in both directions."""
    tx.connection.execute("DELETE FROM pad_segment WHERE segment = ?", (segment,))
    for kind in _KINDS.values():
        tx.vault.drop(kind, segment)


def replace_preshared(tx: Tx, parts: PresharedParts) -> None:
    """Wipe the whole pool and start a new one from a pre-shared key."""
    for kind in (*_KINDS.values(), Kind.SESSION_ROOT, Kind.HASH_KEY):
        tx.vault.drop(kind)
    tx.connection.execute("DELETE FROM pad_segment")
    tx.connection.execute(
        "UPDATE site SET pool_epoch = pool_epoch + 1, sent_segment = -1, sent_index = -1, "
        "received_segment = -1, received_index = -1, peer_sent_segment = -1, peer_sent_index = -1"
    )
    tx.vault.put(Kind.SESSION_ROOT, PRESHARED_SEGMENT, parts.session_root)
    tx.vault.put(Kind.HASH_KEY, PRESHARED_SEGMENT, parts.r_alice_to_bob + parts.r_bob_to_alice)
    add_segment(tx, PRESHARED_SEGMENT, parts.pads_alice_to_bob, parts.pads_bob_to_alice, confirmed=True)


def head(tx: Tx) -> bytes:
    """Return the start of the loaded pre-shared key: session root and hash keys, Alice's first.

    Raises PoolExhausted if none was loaded, or it cannot be decrypted.
    """
    _require_preshared(tx)
    return _read_head(tx, Kind.SESSION_ROOT, 1) + _read_head(tx, Kind.HASH_KEY, 2)


def session_root(tx: Tx) -> bytes:
    """Return the session root of the pre-shared key. Raises PoolExhausted if none was loaded."""
    _require_preshared(tx)
    return _read_head(tx, Kind.SESSION_ROOT, 1)


def hash_keys(tx: Tx) -> HashKeys:
    """Return the hash keys r of both directions. Raises PoolExhausted if none were loaded."""
    _require_preshared(tx)
    both = _read_head(tx, Kind.HASH_KEY, 2)
    a_to_b, b_to_a = both[:16], both[16:]
    return HashKeys(a_to_b, b_to_a) if tx.role == "alice" else HashKeys(b_to_a, a_to_b)


def reserve_send(tx: Tx) -> Pad:
    """Take the next pad for sending, of the oldest confirmed segment. Raises PoolExhausted."""
    row = tx.connection.execute(
        "SELECT segment, next FROM pad_segment WHERE direction = 'send' AND confirmed = 1 "
        "ORDER BY segment LIMIT 1"
    ).fetchone()
    if row is None:
        raise PoolExhausted("no one-time authentication key is left for sending; load a new pre-shared key")
    pad_id = PadId(row[0], row[1])
    pad = tx.vault.read(Kind.PAD_SEND, pad_id.segment, pad_id.index, 1)
    _use_up_to(tx, "send", pad_id)
    _count_tag(tx)
    return Pad(pad_id, pad)


def peek_receive(tx: Tx, pad_id: PadId) -> bytes:
    """Return the pad of a message to be verified, without using it. Raises StoreError if used or unknown."""
    _require_unused(tx, pad_id)
    return tx.vault.read(Kind.PAD_RECEIVE, pad_id.segment, pad_id.index, 1)


def confirm_receive(tx: Tx, pad_id: PadId) -> None:
    """Use up a verified message's pad and all before it: the peer never goes back. Raises like peek."""
    _require_unused(tx, pad_id)
    _use_up_to(tx, "receive", pad_id)
    _count_tag(tx)
    passed = tx.connection.execute(
        "DELETE FROM pad_segment WHERE direction = 'receive' AND segment < ? RETURNING segment",
        (pad_id.segment,),
    ).fetchall()
    for (segment,) in passed:
        tx.vault.drop(Kind.PAD_RECEIVE, segment)


def skip(tx: Tx, direction: str, mark: PadId) -> None:
    """Use up every pad with a PadId up to `mark`, in all segments; no effect beyond it."""
    if mark <= PadId(*tx.one(f"SELECT {_MARKS[direction]} FROM site")):
        return
    rows = tx.connection.execute(
        "SELECT segment, count FROM pad_segment WHERE direction = ? AND segment <= ?",
        (direction, mark.segment),
    ).fetchall()
    for segment, count in rows:
        last = min(mark.index, count - 1) if segment == mark.segment else count - 1
        _use_up_to(tx, direction, PadId(segment, last))
    _set_mark(tx, direction, mark)


def pass_over(tx: Tx, direction: str, segment: int, end: int) -> int:
    """Skip the pads of a segment before `end`, which cannot be decrypted; return the number of lost pads."""
    row = tx.connection.execute(
        "SELECT next, count FROM pad_segment WHERE direction = ? AND segment = ?", (direction, segment)
    ).fetchone()
    if row is None:
        return 0
    start, count = row
    if end >= count:
        tx.connection.execute(
            "DELETE FROM pad_segment WHERE direction = ? AND segment = ?", (direction, segment)
        )
        tx.vault.drop(_KINDS[direction], segment)
    else:
        tx.connection.execute(
            "UPDATE pad_segment SET next = max(next, ?) WHERE direction = ? AND segment = ?",
            (end, direction, segment),
        )
    return int(max(0, min(end, count) - start))


def skip_next(tx: Tx, number: int) -> None:
    """Use up the next `number` pads for sending, or all, of confirmed and other segments alike."""
    rows = tx.connection.execute(
        "SELECT segment, next, count FROM pad_segment WHERE direction = 'send' ORDER BY segment"
    ).fetchall()
    for segment, start, count in rows:
        part = min(number, count - start)
        if part == 0:
            break
        _use_up_to(tx, "send", PadId(segment, start + part - 1))
        number -= part


def segments(tx: Tx) -> list[int]:
    """Return the segments that have pads left in either direction."""
    return [
        row[0] for row in tx.connection.execute("SELECT DISTINCT segment FROM pad_segment ORDER BY segment")
    ]


def keep_only(tx: Tx, kept: Collection[int]) -> None:
    """Wipe every segment that is not in `kept`."""
    for segment in segments(tx):
        if segment not in kept:
            drop_segment(tx, segment)


def left(tx: Tx) -> PadsLeft:
    """Return the number of pads left per direction."""
    (send,) = tx.one(
        "SELECT coalesce(sum(count - next), 0) FROM pad_segment WHERE direction = 'send' AND confirmed = 1"
    )
    (receive,) = tx.one("SELECT coalesce(sum(count - next), 0) FROM pad_segment WHERE direction = 'receive'")
    (used,) = tx.one("SELECT tags_used FROM site")
    return PadsLeft(send, receive, used)


def has_preshared(tx: Tx) -> bool:
    """Return whether a pre-shared key was ever loaded."""
    return tx.one("SELECT pool_epoch FROM site")[0] > 0


_MARKS = {"send": "sent_segment, sent_index", "receive": "received_segment, received_index"}


def _require_preshared(tx: Tx) -> None:
    if not has_preshared(tx):
        raise PoolExhausted("no pre-shared key was loaded into this store; load one at both sites")


def _read_head(tx: Tx, kind: Kind, count: int) -> bytes:
    """Read secrets without which there is no session; the store continues to deliver without them."""
    try:
        return tx.vault.read(kind, PRESHARED_SEGMENT, 0, count)
    except DamagedUnit as damage:
        raise PoolExhausted(
            f"{damage}; there is no session without it: run qnodectl restore with a new pre-shared key at "
            "both sites"
        ) from None


def _require_unused(tx: Tx, pad_id: PadId) -> None:
    row = tx.connection.execute(
        "SELECT next, count FROM pad_segment WHERE direction = 'receive' AND segment = ?", (pad_id.segment,)
    ).fetchone()
    if row is None or not row[0] <= pad_id.index < row[1]:
        raise StoreError(f"pad {pad_id.segment}/{pad_id.index} is used, skipped or unknown")


def _use_up_to(tx: Tx, direction: str, pad_id: PadId) -> None:
    (start, count) = tx.one(
        "SELECT next, count FROM pad_segment WHERE direction = ? AND segment = ?", direction, pad_id.segment
    )
    after = pad_id.index + 1
    if after > start:
        tx.vault.wipe(_KINDS[direction], pad_id.segment, start, after - start)
    if after >= count:
        tx.connection.execute(
            "DELETE FROM pad_segment WHERE direction = ? AND segment = ?", (direction, pad_id.segment)
        )
    else:
        tx.connection.execute(
            "UPDATE pad_segment SET next = max(next, ?) WHERE direction = ? AND segment = ?",
            (after, direction, pad_id.segment),
        )
    _set_mark(tx, direction, pad_id)


def _count_tag(tx: Tx) -> None:
    tx.connection.execute("UPDATE site SET tags_used = tags_used + 1")


def _set_mark(tx: Tx, direction: str, mark: PadId) -> None:
    if mark > PadId(*tx.one(f"SELECT {_MARKS[direction]} FROM site")):
        tx.connection.execute(f"UPDATE site SET ({_MARKS[direction]}) = (?, ?)", (mark.segment, mark.index))
