"""Assignments made by the peer, whose keys wait here for their slave SAEs.

A row has a bit for each slave and key that this slave may still fetch; the bytes of a key go with its last
named slave or at expiry. Where a key_ID lies stands in memory only (`Tx.issued`), for names follow from the
block's secret: it is made anew at every opening. A key_ID that is not there is as unknown as one that never
was.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self
from uuid import UUID

import msgspec

from qnode.errors import FieldError, KeyNotFound, NotNamed, StoreError
from qnode.keys import _blocks, _keybytes, _ranges
from qnode.keys._assigned import check_saes, decode
from qnode.keys._database import Place, Tx
from qnode.keys._model import Assignment, BlockState, Key, KeyRange, chunks_per_key


@dataclass
class _Held:
    """An assignment with what of it still waits: bit p of ``waiting[i]`` is key p for slave i."""

    assignment: Assignment
    waiting: list[int]

    @property
    def wanted(self) -> int:
        """A bit for each key that any slave may still fetch."""
        wanted = 0
        for of_slave in self.waiting:
            wanted |= of_slave
        return wanted

    @classmethod
    def decode(cls, content: bytes, waiting: bytes) -> Self:
        """Return an assignment from its stored form."""
        assignment = decode(content)
        width = _mask_bytes(assignment)
        masks = [int.from_bytes(waiting[i : i + width], "little") for i in range(0, len(waiting), width)]
        return cls(assignment, masks)

    def encoded(self) -> bytes:
        """Return ``waiting`` as it is stored."""
        width = _mask_bytes(self.assignment)
        return b"".join(of_slave.to_bytes(width, "little") for of_slave in self.waiting)


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
    n_keys = assignment.n_keys
    held = _Held(assignment, [(1 << n_keys) - 1] * len(assignment.slave_saes))
    tx.connection.execute(
        "INSERT INTO peer_assignment (assignment_id, content, waiting, chunks_per_key, keys_left, stock, "
        "accepted_at) VALUES (?,?,?,?,?,?,?)",
        (assignment.assignment_id, content, held.encoded(), width, n_keys, assignment.stock, now),
    )
    tx.connection.execute(
        "UPDATE site SET peer_last_assignment_id = max(peer_last_assignment_id, ?)",
        (assignment.assignment_id,),
    )
    places = _places(tx, held)
    tx.after_commit.append(lambda: tx.issued.update(places))


def find_issued(tx: Tx) -> None:
    """Fill `Tx.issued` from what is stored; when a store is opened."""
    for row in tx.connection.execute("SELECT content, waiting FROM peer_assignment").fetchall():
        tx.issued.update(_places(tx, _Held.decode(*row)))


def deliver(tx: Tx, slave_sae: str, master_sae: str, key_ids: Sequence[UUID]) -> list[Key]:
    """Hand out the keys of these key_IDs to one slave, all or none, in the order asked.

    Raises NotNamed when the caller is not a slave of any one of them (ETSI GS QKD 014, 401), else KeyNotFound
    when one is unknown, used, expired, of another master, or asked twice.
    """
    asked: dict[int, dict[int, UUID]] = {}  # by assignment and position
    for key_id in key_ids:
        place = tx.issued.get(key_id.bytes)
        if place is not None:
            asked.setdefault(place.assignment_id, {})[place.position] = key_id
    all_held = [held for assignment_id in asked if (held := _held(tx, assignment_id)) is not None]
    if any(slave_sae not in held.assignment.slave_saes for held in all_held):
        raise NotNamed(f"{slave_sae} was not named as a slave for one of the keys")

    keys: dict[UUID, Key] = {}
    for held in all_held:
        assignment = held.assignment
        by_position = asked[assignment.assignment_id]
        slave = assignment.slave_saes.index(slave_sae)
        positions = sorted(by_position)
        mask = sum(1 << position for position in positions)
        if assignment.master_sae != master_sae or mask & ~held.waiting[slave]:
            break
        width = chunks_per_key(assignment.size_bits)
        ranges = _keybytes.parts_of(assignment.ranges, width, positions)
        named = [by_position[position] for position in positions]
        opened = _keybytes.with_ids(tx, ranges, width, assignment.size_bits, named)
        keys.update(zip(named, opened, strict=True))
        held.waiting[slave] &= ~mask
        finished = mask & ~held.wanted
        names = [by_position[position].bytes for position in _positions(finished)]
        tx.count_gone(delivered=_finish(tx, held, finished, names))
    if len(keys) < len(key_ids):
        raise KeyNotFound("one or more keys are unknown, used or expired")
    return [keys[key_id] for key_id in key_ids]


def void(tx: Tx, assignment: Assignment) -> None:
    """Void what is here of a peer's assignment, accepted or not; nothing left to void is fine."""
    held = _held(tx, assignment.assignment_id)
    if held is not None and held.assignment == assignment:
        n_chunks = _give_up(tx, held)
    else:
        free = [part for item in assignment.ranges for part in _ranges.take_what_is_free(tx, item, tx.peer)]
        n_chunks = _ranges.destroy(tx, free)
    tx.count_gone(void=n_chunks)


def expire(tx: Tx, before: float, stock_before: float, limit: int) -> int:
    """Destroy keys accepted before the given times and not fetched by all slaves; return their number."""
    rows = tx.connection.execute(
        "SELECT content, waiting FROM peer_assignment WHERE (stock = 0 AND accepted_at < ?) OR "
        "(stock = 1 AND accepted_at < ?) ORDER BY accepted_at LIMIT ?",
        (before, stock_before, limit),
    ).fetchall()
    n_keys = 0
    for row in rows:
        held = _Held.decode(*row)
        n_keys += held.wanted.bit_count()
        tx.count_gone(expired=_give_up(tx, held))
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


def _held(tx: Tx, assignment_id: int) -> _Held | None:
    row = tx.connection.execute(
        "SELECT content, waiting FROM peer_assignment WHERE assignment_id = ?", (assignment_id,)
    ).fetchone()
    return None if row is None else _Held.decode(*row)


def _mask_bytes(assignment: Assignment) -> int:
    return -(-assignment.n_keys // 8)


def _give_up(tx: Tx, held: _Held) -> int:
    """Destroy what still waits; return the number of chunks."""
    wanted = held.wanted
    names = _names(tx, held, wanted)
    held.waiting = [0] * len(held.waiting)
    return _finish(tx, held, wanted, names)


def _finish(tx: Tx, held: _Held, finished: int, names: Iterable[bytes]) -> int:
    """Write down what still waits, and destroy the keys whose bit is in ``finished``, called ``names``.

    Returns the number of chunks destroyed.
    """
    assignment = held.assignment
    if wanted := held.wanted:
        tx.connection.execute(
            "UPDATE peer_assignment SET waiting = ?, keys_left = ? WHERE assignment_id = ?",
            (held.encoded(), wanted.bit_count(), assignment.assignment_id),
        )
    else:
        tx.connection.execute(
            "DELETE FROM peer_assignment WHERE assignment_id = ?", (assignment.assignment_id,)
        )
    tx.after_commit.append(lambda: _forget(tx, names))
    return _ranges.destroy(tx, _parts(held, finished))


def _forget(tx: Tx, names: Iterable[bytes]) -> None:
    for name in names:
        del tx.issued[name]


def _places(tx: Tx, held: _Held) -> dict[bytes, Place]:
    """Return where each key lies that still waits, by key_ID."""
    wanted, assignment_id = held.wanted, held.assignment.assignment_id
    return {
        name: Place(assignment_id, position)
        for name, position in zip(_names(tx, held, wanted), _positions(wanted), strict=True)
    }


def _names(tx: Tx, held: _Held, mask: int) -> list[bytes]:
    """Return the key_IDs of the keys whose bit is in ``mask``, in their order."""
    return _keybytes.key_ids_of(tx, _parts(held, mask), chunks_per_key(held.assignment.size_bits))


def _parts(held: _Held, mask: int) -> list[KeyRange]:
    """Return the chunks of the keys whose bit is in ``mask``, in their order."""
    width = chunks_per_key(held.assignment.size_bits)
    return _keybytes.parts_of(held.assignment.ranges, width, _positions(mask))


def _positions(mask: int) -> list[int]:
    """Return the positions of the bits in ``mask``, ascending."""
    return [position for position, bit in enumerate(reversed(f"{mask:b}")) if bit == "1"]
