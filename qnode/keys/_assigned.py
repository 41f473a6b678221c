"""Assignments made by this site, whose SAEs are the masters.

A row is unacknowledged until the peer holds the assignment too, and gone once delivered, expired or void.
Stock is acknowledged, kept, and delivered key by key from its front.
"""

from collections.abc import Iterable

import msgspec

from qnode.errors import FieldError, NotEnoughKeys, StoreError
from qnode.keys import _keybytes, _ranges
from qnode.keys._database import Tx
from qnode.keys._model import Assignment, Key, KeyRange, chunks_per_key

# More than ETSI GS QKD 014's SAE_ID lists of this node ever name; each costs the peer a bit a key.
MAX_SLAVES = 62

_decoder = msgspec.msgpack.Decoder(Assignment)


def decode(content: bytes) -> Assignment:
    """Return an assignment from its stored form."""
    return _decoder.decode(content)


def check_saes(master_sae: str, slave_saes: tuple[str, ...]) -> None:
    """Raise FieldError unless the slaves are one or more, all different, and not the master."""
    if not 0 < len(slave_saes) <= MAX_SLAVES:
        raise FieldError("slave_saes", f"must be 1 to {MAX_SLAVES}, are {len(slave_saes)}")
    if len(set(slave_saes)) < len(slave_saes):
        raise FieldError("slave_saes", "one is named twice")
    if master_sae in slave_saes:
        raise FieldError("slave_saes", f"{master_sae} is the master")


def assign(
    tx: Tx,
    master_sae: str,
    slave_saes: tuple[str, ...],
    number: int,
    size_bits: int,
    now: float,
    *,
    stock: bool,
) -> Assignment:
    """Assign the oldest own chunks, not yet acknowledged by the peer. Raises NotEnoughKeys, FieldError."""
    check_saes(master_sae, slave_saes)
    if stock and len(slave_saes) != 1:
        raise FieldError("slave_saes", "stock is for one slave")
    if number < 1:
        raise FieldError("number", f"must be at least 1, is {number}")
    width = chunks_per_key(size_bits)
    ranges = _ranges.take_oldest(tx, number, width)
    (assignment_id,) = tx.one(
        "UPDATE site SET last_assignment_id = last_assignment_id + 1 RETURNING last_assignment_id"
    )
    assignment = Assignment(
        assignment_id=assignment_id,
        owner=tx.role,
        master_sae=master_sae,
        slave_saes=slave_saes,
        size_bits=size_bits,
        ranges=tuple(ranges),
        stock=stock,
    )
    tx.connection.execute(
        "INSERT INTO own_assignment (assignment_id, content, master_sae, slave_sae, size_bits, "
        "chunks_per_key, n_keys, stock, assigned_at) VALUES (?,?,?,?,?,?,?,?,?)",
        (
            assignment.assignment_id,
            msgspec.msgpack.encode(assignment),
            master_sae,
            slave_saes[0] if stock else None,
            size_bits,
            width,
            number,
            stock,
            now,
        ),
    )
    return assignment


def acknowledge(tx: Tx, assignment_id: int) -> None:
    """Note that the peer holds the assignment durably; once more is fine. Raises StoreError if unknown."""
    done = tx.connection.execute(
        "UPDATE own_assignment SET acknowledged = 1 WHERE assignment_id = ?", (assignment_id,)
    )
    if done.rowcount != 1:
        raise _not_open(assignment_id)


def unacknowledged(tx: Tx) -> list[Assignment]:
    """Return the assignments that the peer may not know, oldest first."""
    rows = tx.connection.execute(
        "SELECT content FROM own_assignment WHERE acknowledged = 0 ORDER BY assignment_id"
    )
    return [decode(row[0]) for row in rows]


def deliver(tx: Tx, assignment_id: int) -> list[Key]:
    """Hand out the keys of an assignment that the peer holds, and destroy them here.

    Raises StoreError when it is stock, or not open.
    """
    row = tx.connection.execute(
        "SELECT content, stock FROM own_assignment WHERE assignment_id = ?", (assignment_id,)
    ).fetchone()
    if row is None:
        raise _not_open(assignment_id)
    content, stock = row
    if stock:
        raise StoreError(f"assignment {assignment_id} is stock; take its keys from the stock")
    assignment = decode(content)
    width = chunks_per_key(assignment.size_bits)
    keys = _keybytes.read_keys(tx, assignment.ranges, width, assignment.size_bits)
    tx.count_gone(delivered=_remove(tx, assignment_id, assignment.ranges))
    return keys


def take_from_stock(tx: Tx, master_sae: str, slave_sae: str, number: int, size_bits: int) -> list[Key]:
    """Hand out keys assigned beforehand, oldest first, and destroy them here. Raises NotEnoughKeys."""
    if number < 1:
        raise FieldError("number", f"must be at least 1, is {number}")
    width = chunks_per_key(size_bits)
    rows = tx.connection.execute(
        "SELECT assignment_id, content, n_taken, n_keys FROM own_assignment WHERE stock = 1 "
        "AND acknowledged = 1 AND master_sae = ? AND slave_sae = ? AND size_bits = ? "
        "ORDER BY assignment_id LIMIT ?",
        (master_sae, slave_sae, size_bits, number),
    ).fetchall()
    taken: list[Key] = []
    for assignment_id, content, n_taken, n_keys in rows:
        part = min(number - len(taken), n_keys - n_taken)
        if part == 0:
            break
        chosen = _keybytes.part_of(decode(content).ranges, width, n_taken, part)
        taken += _keybytes.read_keys(tx, chosen, width, size_bits)
        if n_taken + part == n_keys:
            n_chunks = _remove(tx, assignment_id, chosen)
        else:
            n_chunks = _ranges.destroy(tx, chosen)
            tx.connection.execute(
                "UPDATE own_assignment SET n_taken = n_taken + ? WHERE assignment_id = ?",
                (part, assignment_id),
            )
        tx.count_gone(delivered=n_chunks)
    if len(taken) < number:
        raise NotEnoughKeys(number, len(taken))
    return taken


def stock_count(tx: Tx, master_sae: str, slave_sae: str, size_bits: int) -> int:
    """Return how many keys `take_from_stock` could give now."""
    return tx.one(
        "SELECT coalesce(sum(n_keys - n_taken), 0) FROM own_assignment WHERE stock = 1 AND acknowledged = 1 "
        "AND master_sae = ? AND slave_sae = ? AND size_bits = ?",
        master_sae,
        slave_sae,
        size_bits,
    )[0]


def void(tx: Tx, assignment_id: int) -> Assignment:
    """Void an unacknowledged assignment. Raises StoreError for an acknowledged one and an unknown one."""
    row = tx.connection.execute(
        "SELECT content, acknowledged FROM own_assignment WHERE assignment_id = ?", (assignment_id,)
    ).fetchone()
    if row is None:
        raise _not_open(assignment_id)
    if row[1]:
        raise StoreError(
            f"assignment {assignment_id} is acknowledged: it is delivered or expires, never undone"
        )
    assignment = decode(row[0])
    tx.count_gone(void=_remove(tx, assignment_id, assignment.ranges))
    return assignment


def expire(tx: Tx, before: float, limit: int) -> int:
    """Destroy acknowledged assignments made before `before` and not delivered; return the number of keys."""
    rows = tx.connection.execute(
        "SELECT assignment_id, content, chunks_per_key, n_taken, n_keys FROM own_assignment "
        "WHERE acknowledged = 1 AND assigned_at < ? ORDER BY assigned_at LIMIT ?",
        (before, limit),
    ).fetchall()
    n_expired = 0
    for assignment_id, content, width, n_taken, n_keys in rows:
        rest = _keybytes.part_of(decode(content).ranges, width, n_taken, n_keys - n_taken)
        tx.count_gone(expired=_remove(tx, assignment_id, rest))
        n_expired += n_keys - n_taken
    return n_expired


def n_chunks(tx: Tx) -> int:
    """Return the number of chunks in assignments of this site."""
    return tx.one("SELECT coalesce(sum((n_keys - n_taken) * chunks_per_key), 0) FROM own_assignment")[0]


def n_chunks_in_stock(tx: Tx) -> int:
    """Return how many of them are in acknowledged stock."""
    return tx.one(
        "SELECT coalesce(sum((n_keys - n_taken) * chunks_per_key), 0) FROM own_assignment "
        "WHERE stock = 1 AND acknowledged = 1"
    )[0]


def _remove(tx: Tx, assignment_id: int, ranges: Iterable[KeyRange]) -> int:
    tx.connection.execute("DELETE FROM own_assignment WHERE assignment_id = ?", (assignment_id,))
    return _ranges.destroy(tx, ranges)


def _not_open(assignment_id: int) -> StoreError:
    return StoreError(f"assignment {assignment_id} is not open here: delivered, expired, void or unknown")
