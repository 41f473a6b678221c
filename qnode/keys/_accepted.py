"""Assignments made by the peer, whose keys wait here for their slave SAEs.

Each key that a slave may still fetch has a row under its key_ID; the row, and the bytes, go with the last
named slave or at expiry. After that a key_ID is as unknown as one that never was.
"""

from collections.abc import Sequence
from uuid import UUID

import msgspec

from qnode.errors import FieldError, KeyNotFound, NotNamed, StoreError
from qnode.keys import _blocks, _keybytes, _ranges
from qnode.keys._assigned import check_saes, decode
from qnode.keys._database import Tx
from qnode.keys._model import Assignment, BlockState, Key, KeyRange, chunks_per_key


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
    _check(tx, assignment)
    for item in _ranges.joined(assignment.keys):
        state = _blocks.state_of(tx, item.block_id)
        if state not in (BlockState.PREPARED, BlockState.AVAILABLE):
            raise StoreError(f"assignment {assignment.assignment_id}: block {item.block_id} is {state} here")
        _ranges.take_free(tx, item, tx.peer)
        _blocks.mark_peer_confirmed(tx, item.block_id)
    tx.connection.execute(
        "INSERT INTO peer_assignment (assignment_id, content, chunks_per_key, keys_left, stock, accepted_at) "
        "VALUES (?,?,?,?,?,?)",
        (
            assignment.assignment_id,
            content,
            chunks_per_key(assignment.size_bits),
            len(assignment.keys),
            assignment.stock,
            now,
        ),
    )
    waiting = (1 << len(assignment.slave_saes)) - 1
    tx.connection.executemany(
        "INSERT INTO issued_key (key_id, assignment_id, position, waiting) VALUES (?,?,?,?)",
        (
            (key_id, assignment.assignment_id, position, waiting)
            for position, key_id in enumerate(_keybytes.key_ids_of(tx, assignment.keys))
        ),
    )
    tx.connection.execute(
        "UPDATE site SET peer_last_assignment_id = max(peer_last_assignment_id, ?)",
        (assignment.assignment_id,),
    )


def deliver(tx: Tx, slave_sae: str, master_sae: str, key_ids: Sequence[UUID]) -> list[Key]:
    """Hand out the keys of these key_IDs to one slave, all or none, in the order asked.

    Raises NotNamed when the caller is not a slave of any one of them (ETSI GS QKD 014, 401), else KeyNotFound
    when one is unknown, used, expired, of another master, or asked twice.
    """
    assignments: dict[int, Assignment] = {}
    found: list[tuple[bytes, int, int, int]] = []
    missing = len(set(key_ids)) < len(key_ids)
    for key_id in key_ids:
        row = tx.connection.execute(
            "SELECT key_id, assignment_id, position, waiting FROM issued_key WHERE key_id = ?",
            (key_id.bytes,),
        ).fetchone()
        if row is None:
            missing = True
            continue
        if row[1] not in assignments:
            assignments[row[1]] = _assignment(tx, row[1])
        assignment = assignments[row[1]]
        if slave_sae not in assignment.slave_saes:
            raise NotNamed(f"{slave_sae} was not named as a slave for one of the keys")
        bit = 1 << assignment.slave_saes.index(slave_sae)
        if assignment.master_sae != master_sae or not row[3] & bit:
            missing = True
            continue
        found.append((row[0], row[1], row[2], row[3] & ~bit))
    if missing:
        raise KeyNotFound("one or more keys are unknown, used or expired")

    keys: list[Key] = []
    for assignment_id, of_one in _grouped(found).items():
        assignment = assignments[assignment_id]
        ranges = [assignment.keys[position] for _, position, _ in of_one]
        keys += _keybytes.read_keys(tx, ranges, assignment.size_bits)
        tx.connection.executemany(
            "UPDATE issued_key SET waiting = ? WHERE key_id = ?",
            [(waiting, key_id) for key_id, _, waiting in of_one if waiting],
        )
        finished = [
            (key_id, assignment.keys[position]) for key_id, position, waiting in of_one if not waiting
        ]
        tx.count_gone(delivered=_finish(tx, assignment_id, finished))
    order = {key_id: i for i, key_id in enumerate(key_ids)}
    return sorted(keys, key=lambda key: order[key.key_id])


def void(tx: Tx, assignment: Assignment) -> None:
    """Void what is here of a peer's assignment, accepted or not; nothing left to void is fine."""
    row = tx.connection.execute(
        "SELECT content FROM peer_assignment WHERE assignment_id = ?", (assignment.assignment_id,)
    ).fetchone()
    if row is not None and decode(row[0]) == assignment:
        n_chunks = _finish(tx, assignment.assignment_id, _waiting(tx, assignment))
    else:
        free = [part for key in assignment.keys for part in _ranges.take_what_is_free(tx, key, tx.peer)]
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
        waiting = _waiting(tx, decode(content))
        tx.count_gone(expired=_finish(tx, assignment_id, waiting))
        n_keys += len(waiting)
    return n_keys


def n_chunks(tx: Tx) -> int:
    """Return the number of chunks in assignments of the peer."""
    return tx.one("SELECT coalesce(sum(keys_left * chunks_per_key), 0) FROM peer_assignment")[0]


def _check(tx: Tx, assignment: Assignment) -> None:
    if assignment.owner != tx.peer:
        raise StoreError(f"assignment {assignment.assignment_id} is of {assignment.owner}, not of the peer")
    try:
        check_saes(assignment.master_sae, assignment.slave_saes)
        width = chunks_per_key(assignment.size_bits)
    except FieldError as error:
        raise StoreError(f"assignment {assignment.assignment_id}: {error}") from error
    if not assignment.keys or any(key.count != width for key in assignment.keys):
        raise StoreError(
            f"assignment {assignment.assignment_id}: keys of {assignment.size_bits} bits need {width} "
            "chunks each"
        )


def _assignment(tx: Tx, assignment_id: int) -> Assignment:
    (content,) = tx.connection.execute(
        "SELECT content FROM peer_assignment WHERE assignment_id = ?", (assignment_id,)
    ).fetchone()
    return decode(content)


def _grouped(found: list[tuple[bytes, int, int, int]]) -> dict[int, list[tuple[bytes, int, int]]]:
    groups: dict[int, list[tuple[bytes, int, int]]] = {}
    for key_id, assignment_id, position, waiting in found:
        groups.setdefault(assignment_id, []).append((key_id, position, waiting))
    return groups


def _waiting(tx: Tx, assignment: Assignment) -> list[tuple[bytes, KeyRange]]:
    """Return the keys of an assignment that still wait for a slave."""
    secrets_left = [
        key for key in assignment.keys if _blocks.has_chunks(tx, key.block_id)
    ]  # a block's secret goes with its last chunk, and no key waits then
    candidates = zip(_keybytes.key_ids_of(tx, secrets_left), secrets_left, strict=True)
    return [
        (key_id, key)
        for key_id, key in candidates
        if tx.connection.execute("SELECT 1 FROM issued_key WHERE key_id = ?", (key_id,)).fetchone()
    ]


def _finish(tx: Tx, assignment_id: int, keys: list[tuple[bytes, KeyRange]]) -> int:
    """Destroy keys that no slave waits for any more; return the number of chunks."""
    tx.connection.executemany("DELETE FROM issued_key WHERE key_id = ?", [(key_id,) for key_id, _ in keys])
    tx.connection.execute(
        "UPDATE peer_assignment SET keys_left = keys_left - ? WHERE assignment_id = ?",
        (len(keys), assignment_id),
    )
    tx.connection.execute(
        "DELETE FROM peer_assignment WHERE assignment_id = ? AND keys_left = 0", (assignment_id,)
    )
    return _ranges.destroy(tx, [key for _, key in keys])
