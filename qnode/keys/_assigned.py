"""Assignments made by this site, whose SAEs are the masters.

A row is unacknowledged until the peer holds the assignment too, and gone once delivered, expired, void or
released. Stock is acknowledged, kept, and delivered key by key from its front.

**Release.** Assigned but undelivered keys become free again at both sites, in three durable steps. After the
first step this site delivers nothing of the assignment. In the second step the peer frees its copies. In the
third step this site frees its own. Only this site assigns these keys, so they cannot have another use in
between. A cut leaves the assignment open, and the second step may be repeated.
"""

from collections.abc import Iterable, Set

import msgspec

from qnode.errors import FieldError, NotEnoughKeys, NotOpen, StoreError
from qnode.keys import _keybytes, _ranges
from qnode.keys._model import Assignment, KeyRange, Release, StockItem, StoredKey, chunks_per_key
from qnode.keys._tx import Tx
from qnode.sql import ask
from qnode.units import CHUNK_BITS

# More than this node allows in an SAE_ID list; each slave costs the peer one bit per key.
MAX_SLAVES = 62

# The values of `acknowledged` in a row.
_PEER_MAY_NOT_KNOW, _PEER_HOLDS, _BEING_RELEASED, _PEER_REFUSED = range(4)

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
    numbered = ask(
        tx.connection,
        "UPDATE site SET last_assignment_id = last_assignment_id + 1 RETURNING last_assignment_id",
    )
    ranges = _ranges.take_oldest(tx, number, width)
    (assignment_id,) = numbered.fetchone()
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
            int(stock),
            now,
        ),
    )
    return assignment


def acknowledge(tx: Tx, assignment_id: int) -> None:
    """Note that the peer holds the assignment durably; idempotent. Raises StoreError if unknown."""
    done = tx.connection.execute(
        "UPDATE own_assignment SET acknowledged = ?1 WHERE assignment_id = ?2 AND acknowledged <= ?1 "
        "RETURNING assignment_id",
        (_PEER_HOLDS, assignment_id),
    ).fetchone()
    if done is None:
        raise _not_open(assignment_id)


def unacknowledged(tx: Tx) -> list[Assignment]:
    """Return the assignments that the peer may not know, oldest first."""
    return [release.assignment for release in open_releases(tx) if not release.n_taken]


def begin_release(tx: Tx, assignment_id: int) -> Release:
    """End the delivery of an assignment, which is to become free. Raises StoreError if not open."""
    row = tx.connection.execute(
        "UPDATE own_assignment SET acknowledged = ? WHERE assignment_id = ? RETURNING content, n_taken",
        (_BEING_RELEASED, assignment_id),
    ).fetchone()
    if row is None:
        raise _not_open(assignment_id)
    return Release(assignment=decode(row[0]), n_taken=row[1])


def begin_open_releases(tx: Tx) -> list[Release]:
    """Begin or continue releases of assignments that the peer may not hold; return them."""
    tx.connection.execute(
        "UPDATE own_assignment SET acknowledged = ? WHERE acknowledged IN (?, ?)",
        (_BEING_RELEASED, _PEER_MAY_NOT_KNOW, _PEER_REFUSED),
    )
    return open_releases(tx)


def leave_to_expire(tx: Tx, assignment_id: int) -> None:
    """Note that the peer did not free an assignment in release; it may then expire here.

    Before the peer's answer it must not expire: the peer may have freed it, and keys that expired here would
    stay free there for ever.
    """
    tx.connection.execute(
        "UPDATE own_assignment SET acknowledged = ? WHERE assignment_id = ? AND acknowledged = ?",
        (_PEER_REFUSED, assignment_id, _BEING_RELEASED),
    )


def open_releases(tx: Tx) -> list[Release]:
    """Return the assignments in release, and those that the peer may not know, oldest first."""
    rows = tx.connection.execute(
        "SELECT content, n_taken FROM own_assignment WHERE acknowledged != ? ORDER BY assignment_id",
        (_PEER_HOLDS,),
    )
    return [Release(assignment=decode(content), n_taken=n_taken) for content, n_taken in rows]


def finish_release(tx: Tx, assignment_id: int) -> None:
    """Free an assignment that the peer has freed. Raises StoreError unless it is open, not acknowledged."""
    row = tx.connection.execute(
        "DELETE FROM own_assignment WHERE assignment_id = ? AND acknowledged != ? RETURNING content, n_taken",
        (assignment_id, _PEER_HOLDS),
    ).fetchone()
    if row is None:
        raise _not_open(assignment_id)
    _ranges.give_back(tx, rest_of(Release(assignment=decode(row[0]), n_taken=row[1])), tx.role)


def rest_of(release: Release) -> list[KeyRange]:
    """Return the chunks of a release."""
    assignment = release.assignment
    width = chunks_per_key(assignment.size_bits)
    return _keybytes.part_of(
        assignment.ranges, width, release.n_taken, max(0, assignment.n_keys - release.n_taken)
    )


def deliver(tx: Tx, assignment_id: int) -> list[StoredKey]:
    """Deliver the keys of an assignment that the peer holds, and destroy them here.

    Raises StoreError if it is stock, or not open.
    """
    asked = ask(
        tx.connection,
        "SELECT content, stock FROM own_assignment WHERE assignment_id = ? AND acknowledged <= ?",
        *(assignment_id, _PEER_HOLDS),
    )
    tx.ask_audit_end()
    row = asked.fetchone()
    if row is None:
        raise _not_open(assignment_id)
    content, stock = row
    if stock:
        raise StoreError(f"assignment {assignment_id} is stock; take its keys from the stock")
    assignment = decode(content)
    width = chunks_per_key(assignment.size_bits)
    keys = _keybytes.Reading(tx, assignment.ranges, width, assignment.size_bits).read()
    tx.count_gone(delivered=_remove(tx, assignment_id, assignment.ranges))
    tx.audit("master", assignment.master_sae, assignment.slave_saes, assignment.size_bits, keys)
    return keys


def take_from_stock(tx: Tx, master_sae: str, slave_sae: str, number: int, size_bits: int) -> list[StoredKey]:
    """Deliver keys from stock, oldest first, and destroy them here. Raises NotEnoughKeys."""
    if number < 1:
        raise FieldError("number", f"must be at least 1, is {number}")
    width = chunks_per_key(size_bits)
    asked = ask(
        tx.connection,
        "SELECT assignment_id, content, n_taken, n_keys FROM own_assignment WHERE stock = 1 "
        "AND acknowledged = 1 AND master_sae = ? AND slave_sae = ? AND size_bits = ? "
        "ORDER BY assignment_id LIMIT ?",
        *(master_sae, slave_sae, size_bits, number),
    )
    tx.ask_audit_end()
    missing = number
    readings: list[_keybytes.Reading] = []
    for assignment_id, content, n_taken, n_keys in asked.fetchall():
        part = min(missing, n_keys - n_taken)
        if part == 0:
            break
        missing -= part
        chosen = _keybytes.part_of(decode(content).ranges, width, n_taken, part)
        readings.append(_keybytes.Reading(tx, chosen, width, size_bits))
        if n_taken + part == n_keys:
            tx.connection.execute("DELETE FROM own_assignment WHERE assignment_id = ?", (assignment_id,))
        else:
            tx.connection.execute(
                "UPDATE own_assignment SET n_taken = n_taken + ? WHERE assignment_id = ?",
                (part, assignment_id),
            )
    if missing:
        raise NotEnoughKeys(number, number - missing)
    taken = [key for reading in readings for key in reading.read()]
    n_chunks = _ranges.destroy(tx, [item for reading in readings for item in reading.ranges])
    tx.count_gone(delivered=n_chunks)
    tx.audit("master", master_sae, (slave_sae,), size_bits, taken)
    return taken


def stock_count(tx: Tx, master_sae: str, slave_sae: str, size_bits: int) -> int:
    """Return the number of keys that `take_from_stock` could deliver now."""
    return tx.one(
        "SELECT coalesce(sum(n_keys - n_taken), 0) FROM own_assignment WHERE stock = 1 AND acknowledged = 1 "
        "AND master_sae = ? AND slave_sae = ? AND size_bits = ?",
        master_sae,
        slave_sae,
        size_bits,
    )[0]


def stock_items(tx: Tx) -> list[StockItem]:
    """Return the stock of keys of one chunk, oldest first."""
    rows = tx.connection.execute(
        "SELECT assignment_id, master_sae, slave_sae, n_keys - n_taken, assigned_at FROM own_assignment "
        "WHERE stock = 1 AND +acknowledged = ? AND size_bits = ?",  # by the index of stock, not that of age
        (_PEER_HOLDS, CHUNK_BITS),
    )
    items = [
        StockItem(
            assignment_id=row[0], master_sae=row[1], slave_sae=row[2], n_keys=row[3], assigned_at=row[4]
        )
        for row in rows
    ]
    return sorted(items, key=lambda item: item.assignment_id)


def void(tx: Tx, assignment_id: int) -> Assignment:
    """Void an unacknowledged assignment. Raises StoreError for an acknowledged one and an unknown one."""
    row = tx.connection.execute(
        "SELECT content, n_taken, acknowledged FROM own_assignment WHERE assignment_id = ?", (assignment_id,)
    ).fetchone()
    if row is None:
        raise _not_open(assignment_id)
    content, n_taken, acknowledged = row
    if acknowledged == _PEER_HOLDS:
        raise StoreError(f"assignment {assignment_id} is acknowledged: it is delivered, released or expires")
    assignment = decode(content)
    rest = rest_of(Release(assignment=assignment, n_taken=n_taken))
    tx.count_gone(void=_remove(tx, assignment_id, rest))
    return assignment


def expire(tx: Tx, before: float, limit: int) -> int:
    """Destroy acknowledged assignments made before `before` and not delivered; return the number of keys.

    This includes the rest of stock that the peer did not free: it also expires there.
    """
    rows = tx.connection.execute(
        "SELECT assignment_id, content, chunks_per_key, n_taken, n_keys FROM own_assignment WHERE "
        "(acknowledged = ?1 OR (acknowledged = ?2 AND n_taken > 0)) AND assigned_at < ?3 "
        "ORDER BY assigned_at LIMIT ?4",
        (_PEER_HOLDS, _PEER_REFUSED, before, limit),
    ).fetchall()
    n_expired = 0
    for assignment_id, content, width, n_taken, n_keys in rows:
        rest = _keybytes.part_of(decode(content).ranges, width, n_taken, n_keys - n_taken)
        tx.count_gone(expired=_remove(tx, assignment_id, rest))
        n_expired += n_keys - n_taken
    return n_expired


def lose(tx: Tx, chunks: Set[tuple[int, int]]) -> list[KeyRange]:
    """Remove every assignment that uses one of `chunks`; return their remaining chunks."""
    lost: list[KeyRange] = []
    rows = tx.connection.execute(
        "SELECT assignment_id, content, chunks_per_key, n_taken, n_keys FROM own_assignment"
    ).fetchall()
    for assignment_id, content, width, n_taken, n_keys in rows:
        rest = _keybytes.part_of(decode(content).ranges, width, n_taken, n_keys - n_taken)
        if any((item.block_id, item.first + i) in chunks for item in rest for i in range(item.count)):
            tx.connection.execute("DELETE FROM own_assignment WHERE assignment_id = ?", (assignment_id,))
            lost += rest
    return lost


def void_every(tx: Tx) -> list[KeyRange]:
    """Destroy the rest of every assignment; return its chunks."""
    rows = tx.connection.execute("DELETE FROM own_assignment RETURNING content, n_taken").fetchall()
    given_up = [
        item
        for content, n_taken in rows
        for item in rest_of(Release(assignment=decode(content), n_taken=n_taken))
    ]
    tx.count_gone(void=_ranges.destroy(tx, given_up))
    return given_up


def _remove(tx: Tx, assignment_id: int, ranges: Iterable[KeyRange]) -> int:
    tx.connection.execute("DELETE FROM own_assignment WHERE assignment_id = ?", (assignment_id,))
    return _ranges.destroy(tx, ranges)


def _not_open(assignment_id: int) -> NotOpen:
    return NotOpen(f"assignment {assignment_id} is not open here: delivered, expired, void or unknown")
