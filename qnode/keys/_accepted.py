"""Assignments made by the peer, whose keys wait here for their slave SAEs.

Each key that a slave may still fetch has a row under its key_ID; the row, and the bytes, go with the last
named slave or at expiry. After that a key_ID is as unknown as one that never was.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

import msgspec

from qnode.errors import FieldError, KeyNotFound, NotNamed, StoreError
from qnode.keys import _blocks, _keybytes, _ranges
from qnode.keys._assigned import check_saes, decode
from qnode.keys._database import Tx
from qnode.keys._model import Assignment, BlockState, Key, chunks_per_key

_AT_ONCE = 128
_COLUMNS = "key_id, assignment_id, position, waiting"


def accept(tx: Tx, assignment: Assignment, now: float) -> None:
    """Hold the keys of a peer's assignment for their slaves; the same one once more is fine.

    Raises StoreError for chunks not prepared or available here, owned by this site or used already, and for
    contents that make no sense.
    """
    content = msgspec.msgpack.encode(assignment)
    row = tx.connection.execute(
        "SELECT content FROM peer_assignment WHERE assignment_id = ?", (assignment.assignment_id,)
    ).fetchone()
    if row is not None:
        if row[0] != content:
            raise StoreError(f"assignment {assignment.assignment_id} was accepted with other contents before")
        return
    width = _check(tx, assignment)
    for item in _ranges.joined(assignment.ranges):
        state = _blocks.state_of(tx, item.block_id)
        if state not in (BlockState.PREPARED, BlockState.AVAILABLE):
            raise StoreError(f"assignment {assignment.assignment_id}: block {item.block_id} is {state} here")
        _ranges.take_free(tx, item, tx.peer)
        if state == BlockState.PREPARED:
            _blocks.mark_peer_confirmed(tx, item.block_id)
    key_ids = _keybytes.key_ids_of(tx, assignment.ranges, width)
    tx.connection.execute(
        "INSERT INTO peer_assignment (assignment_id, content, chunks_per_key, keys_left, stock, accepted_at) "
        "VALUES (?,?,?,?,?,?)",
        (assignment.assignment_id, content, width, len(key_ids), assignment.stock, now),
    )
    waiting = (1 << len(assignment.slave_saes)) - 1
    tx.connection.executemany(
        "INSERT INTO issued_key (key_id, assignment_id, position, waiting) VALUES (?,?,?,?)",
        [(key_id, assignment.assignment_id, position, waiting) for position, key_id in enumerate(key_ids)],
    )
    tx.connection.execute(
        "UPDATE site SET peer_last_assignment_id = max(peer_last_assignment_id, ?)",
        (assignment.assignment_id,),
    )


class _Issued(NamedTuple):
    """A row of `issued_key`."""

    key_id: bytes
    assignment_id: int
    position: int
    waiting: int


def deliver(tx: Tx, slave_sae: str, master_sae: str, key_ids: Sequence[UUID]) -> list[Key]:
    """Hand out the keys of these key_IDs to one slave, all or none, in the order asked.

    Raises NotNamed when the caller is not a slave of any one of them (ETSI GS QKD 014, 401), else KeyNotFound
    when one is unknown, used, expired, of another master, or asked twice.
    """
    asked = {key_id.bytes: key_id for key_id in key_ids}
    of_assignment: dict[int, list[_Issued]] = {}
    for row in _issued(tx, list(asked)):
        of_assignment.setdefault(row.assignment_id, []).append(row)
    assignments = {assignment_id: _assignment(tx, assignment_id) for assignment_id in of_assignment}
    if any(slave_sae not in assignment.slave_saes for assignment in assignments.values()):
        raise NotNamed(f"{slave_sae} was not named as a slave for one of the keys")

    keys: dict[UUID, Key] = {}
    for assignment_id, rows in of_assignment.items():
        assignment = assignments[assignment_id]
        bit = 1 << assignment.slave_saes.index(slave_sae)
        if assignment.master_sae != master_sae or not all(row.waiting & bit for row in rows):
            break
        rows.sort(key=lambda row: row.position)
        width = chunks_per_key(assignment.size_bits)
        ranges = _keybytes.parts_of(assignment.ranges, width, [row.position for row in rows])
        named = [asked[row.key_id] for row in rows]
        opened = _keybytes.with_ids(tx, ranges, width, assignment.size_bits, named)
        keys.update(zip(named, opened, strict=True))
        left = [(row.waiting & ~bit, row.key_id) for row in rows if row.waiting != bit]
        tx.connection.executemany("UPDATE issued_key SET waiting = ? WHERE key_id = ?", left)
        finished = [row for row in rows if row.waiting == bit]
        tx.count_gone(delivered=_finish(tx, assignment_id, assignment, finished))
    if len(keys) < len(key_ids):
        raise KeyNotFound("one or more keys are unknown, used or expired")
    return [keys[key_id] for key_id in key_ids]


def void(tx: Tx, assignment: Assignment) -> None:
    """Void what is here of a peer's assignment, accepted or not; nothing left to void is fine."""
    row = tx.connection.execute(
        "SELECT content FROM peer_assignment WHERE assignment_id = ?", (assignment.assignment_id,)
    ).fetchone()
    if row is not None and decode(row[0]) == assignment:
        n_chunks = _finish(tx, assignment.assignment_id, assignment, _waiting(tx, assignment))
    else:
        free = [part for item in assignment.ranges for part in _ranges.take_what_is_free(tx, item, tx.peer)]
        n_chunks = _ranges.destroy(tx, free)
    tx.count_gone(void=n_chunks)


def expire(tx: Tx, before: float, stock_before: float, limit: int) -> int:
    """Destroy keys accepted before the given times and not fetched by all slaves; return their number."""
    rows = tx.connection.execute(
        "SELECT assignment_id, content FROM peer_assignment WHERE (stock = 0 AND accepted_at < ?) OR "
        "(stock = 1 AND accepted_at < ?) ORDER BY accepted_at LIMIT ?",
        (before, stock_before, limit),
    ).fetchall()
    n_keys = 0
    for assignment_id, content in rows:
        assignment = decode(content)
        waiting = _waiting(tx, assignment)
        tx.count_gone(expired=_finish(tx, assignment_id, assignment, waiting))
        n_keys += len(waiting)
    return n_keys


def n_chunks(tx: Tx) -> int:
    """Return the number of chunks in assignments of the peer."""
    return tx.one("SELECT coalesce(sum(keys_left * chunks_per_key), 0) FROM peer_assignment")[0]


def _check(tx: Tx, assignment: Assignment) -> int:
    """Refuse contents that make no sense; return the chunks of each key."""
    if assignment.owner != tx.peer:
        raise StoreError(f"assignment {assignment.assignment_id} is of {assignment.owner}, not of the peer")
    try:
        check_saes(assignment.master_sae, assignment.slave_saes)
        width = chunks_per_key(assignment.size_bits)
    except FieldError as error:
        raise StoreError(f"assignment {assignment.assignment_id}: {error}") from error
    if not assignment.ranges or any(not item.count or item.count % width for item in assignment.ranges):
        raise StoreError(
            f"assignment {assignment.assignment_id}: keys of {assignment.size_bits} bits need {width} "
            "chunks each"
        )
    return width


def _assignment(tx: Tx, assignment_id: int) -> Assignment:
    (content,) = tx.connection.execute(
        "SELECT content FROM peer_assignment WHERE assignment_id = ?", (assignment_id,)
    ).fetchone()
    return decode(content)


def _issued(tx: Tx, key_ids: Sequence[bytes]) -> Iterator[_Issued]:
    """Yield the rows of these key_IDs, those that exist."""
    for some in _in_groups(key_ids):
        yield from map(
            _Issued._make,
            tx.connection.execute(f"SELECT {_COLUMNS} FROM issued_key WHERE key_id IN {_places(some)}", some),
        )


def _waiting(tx: Tx, assignment: Assignment) -> list[_Issued]:
    """Return the keys of an assignment that still wait for a slave, in their order."""
    width = chunks_per_key(assignment.size_bits)
    secrets_left = [
        item for item in assignment.ranges if _blocks.has_chunks(tx, item.block_id)
    ]  # a block's secret goes with its last chunk, and no key waits then
    return sorted(_issued(tx, _keybytes.key_ids_of(tx, secrets_left, width)), key=lambda row: row.position)


def _finish(tx: Tx, assignment_id: int, assignment: Assignment, keys: Sequence[_Issued]) -> int:
    """Destroy keys, in ascending order, that no slave waits for any more; return the number of chunks."""
    for some in _in_groups([key.key_id for key in keys]):
        tx.connection.execute(f"DELETE FROM issued_key WHERE key_id IN {_places(some)}", some)
    (keys_left,) = tx.one(
        "UPDATE peer_assignment SET keys_left = keys_left - ? WHERE assignment_id = ? RETURNING keys_left",
        len(keys),
        assignment_id,
    )
    if not keys_left:
        tx.connection.execute("DELETE FROM peer_assignment WHERE assignment_id = ?", (assignment_id,))
    width = chunks_per_key(assignment.size_bits)
    return _ranges.destroy(tx, _keybytes.parts_of(assignment.ranges, width, [key.position for key in keys]))


def _in_groups(key_ids: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut a list to lengths that a statement can name."""
    for start in range(0, len(key_ids), _AT_ONCE):
        yield key_ids[start : start + _AT_ONCE]


def _places(values: Sequence[bytes]) -> str:
    return f"({','.join('?' * len(values))})"
