"""Assignments made by the peer, whose keys wait here for their slave SAEs.

A row has a bit for each slave and key that this slave may still fetch. The bytes of a key are destroyed with
the delivery to its last named slave, or at expiry. The positions of key_IDs are in memory only (`Tx.issued`),
because the key_IDs follow from the block's secret. After the opening of a store they are computed again,
newest first, when an unknown key_ID is requested. A key_ID that is missing after all are computed does not
exist.

**Share.** Keys that nobody fetches would fill the store until they expire, and then no block has room. The
waiting keys of a pair are limited to `SHARE` times the space that all pairs together leave free. A single
pair can thus use four fifths of the store, and there is always some space for the next pair (the dynamic
threshold of shared memory in switches). A pair without waiting keys is never refused. Stock counts from its
acceptance: how much of it the master has got is not known here.
"""

from collections.abc import Iterable, Sequence, Set
from uuid import UUID

import msgspec

from qnode.choices import BlockState
from qnode.errors import FieldError, KeyNotFound, NotNamed, ShareUsedUp, StoreError
from qnode.keys import _blocks, _keybytes, _ranges, _waiting
from qnode.keys._assigned import check_saes, rest_of
from qnode.keys._model import MOST_SKIPPED, Assignment, KeyRange, Release, StoredKey, chunks_per_key
from qnode.keys._tx import Tx
from qnode.sql import Rows, ask

SHARE = 4

_NAMED_AT_ONCE = 512


def accept(tx: Tx, assignment: Assignment, now: float, most_chunks: int | None) -> None:
    """Keep the keys of a peer's assignment for their slaves; repetition is allowed.

    Raises ShareUsedUp if more would wait than a pair's share of `most_chunks`. Raises StoreError for chunks
    that are not prepared or available here, owned by this site or already used, and for invalid contents.
    """
    content = msgspec.msgpack.encode(assignment)
    width = _check(tx, assignment)
    ranges = _ranges.joined(assignment.ranges)
    known = ask(
        tx.connection,
        "SELECT content FROM peer_assignment WHERE assignment_id = ?",
        assignment.assignment_id,
    )
    site = ask(tx.connection, "SELECT peer_last_assignment_id, peer_chunks FROM site")
    blocks: dict[int, tuple[Rows, Rows]] = {}  # the state of each block, and what its first range overlaps
    for item in ranges:
        if item.block_id not in blocks:
            free = _ranges.ask_free(tx, item, tx.peer)
            blocks[item.block_id] = _blocks.ask_state(tx, item.block_id), free
    pairs = [_ask_waiting(tx, assignment.master_sae, slave) for slave in assignment.slave_saes]
    _keybytes.ask_secrets(tx, ranges)
    row = known.fetchone()
    if row is not None:
        if row[0] != content:
            raise StoreError(f"assignment {assignment.assignment_id} was accepted with other contents before")
        return
    last, n_all = site.fetchone()
    if assignment.assignment_id > last + MOST_SKIPPED:
        raise StoreError(f"assignment {assignment.assignment_id}: the last one was {last}")
    if assignment.assignment_id in tx.issued.released:  # released during a call that hung
        raise StoreError(f"assignment {assignment.assignment_id} was released before it was accepted")
    if most_chunks is not None:
        _check_shares(tx, assignment, pairs, n_all, width * assignment.n_keys, most_chunks)
    states = {block_id: _blocks.state_in(tx, block_id, asked) for block_id, (asked, _) in blocks.items()}
    for item in ranges:
        state = states[item.block_id]
        if state not in (BlockState.PREPARED, BlockState.AVAILABLE):
            raise StoreError(f"assignment {assignment.assignment_id}: block {item.block_id} is {state} here")
        asked = blocks.pop(item.block_id, None)
        _ranges.take_free(tx, item, tx.peer, None if asked is None else asked[1])
        if state == BlockState.PREPARED:
            _blocks.mark_peer_confirmed(tx, item.block_id)
    n_keys = assignment.n_keys
    held = _waiting.Held(assignment, [(1 << n_keys) - 1] * len(assignment.slave_saes))
    tx.connection.execute(
        "INSERT INTO peer_assignment (assignment_id, content, waiting, chunks_per_key, keys_left, stock, "
        "accepted_at) VALUES (?,?,?,?,?,?,?)",
        (assignment.assignment_id, content, held.encoded(), width, n_keys, int(assignment.stock), now),
    )
    tx.connection.execute(
        "UPDATE site SET peer_last_assignment_id = max(peer_last_assignment_id, ?)",
        (assignment.assignment_id,),
    )
    for slave in assignment.slave_saes:
        tx.add_waiting(assignment.master_sae, slave, width * n_keys)
    places = _waiting.places([held], _waiting.all_names(tx, [held]))
    tx.after_commit.append(lambda: tx.issued.places.update(places))


def release(tx: Tx, release: Release) -> None:
    """Free the keys of an assignment that the peer releases; repetition is allowed.

    Raises StoreError unless all of them still wait here, or are free and owned by the peer: nothing has
    changed then.
    """
    assignment = release.assignment
    _check(tx, assignment)
    rest = rest_of(release)
    held = _held(tx, assignment.assignment_id)
    if held is not None and held.assignment != assignment:
        raise StoreError(f"assignment {assignment.assignment_id} was accepted with other contents")
    wanted = (1 << assignment.n_keys) - (1 << min(release.n_taken, assignment.n_keys))
    if held is not None and held.wanted & wanted:
        if any(of_slave & wanted != wanted for of_slave in held.waiting):
            raise StoreError(f"assignment {assignment.assignment_id}: keys to be released were fetched here")
        names = _waiting.names(tx, held, wanted)
        for i, slave in enumerate(assignment.slave_saes):
            held.waiting[i] &= ~wanted
            tx.add_waiting(assignment.master_sae, slave, -sum(item.count for item in rest))
        _write_down(tx, held, names)
        _ranges.give_back(tx, rest, tx.peer)
    elif not all(_ranges.all_free(tx, item, tx.peer) for item in rest):
        raise StoreError(f"assignment {assignment.assignment_id}: keys to be released are gone here")
    if held is None:
        tx.after_commit.append(lambda: tx.issued.released.append(assignment.assignment_id))


def expect_unnamed(tx: Tx) -> None:
    """Note which assignments have no key_IDs in `Tx.issued`, at the opening of a store."""
    (last,) = tx.one("SELECT coalesce(max(assignment_id), -1) FROM peer_assignment")
    tx.issued.unnamed_below = last + 1


def name_more(tx: Tx) -> None:
    """Compute the key_IDs of some assignments from before the opening, newest first."""
    rows = tx.connection.execute(
        "SELECT assignment_id, content, waiting FROM peer_assignment WHERE assignment_id < ? "
        "ORDER BY assignment_id DESC LIMIT ?",
        (tx.issued.unnamed_below, _NAMED_AT_ONCE),
    ).fetchall()
    helds = [_waiting.Held.decode(content, waiting) for _, content, waiting in rows]
    tx.issued.places.update(_waiting.places(helds, _waiting.all_names(tx, helds)))
    tx.issued.unnamed_below = rows[-1][0] if len(rows) == _NAMED_AT_ONCE else 0


def count_waiting(tx: Tx) -> None:
    """Fill the table of waiting chunks by pair, at the opening of a store of an earlier version."""
    for row in tx.connection.execute("SELECT content, waiting FROM peer_assignment").fetchall():
        held = _waiting.Held.decode(*row)
        assignment = held.assignment
        width = chunks_per_key(assignment.size_bits)
        for slave, of_slave in zip(assignment.slave_saes, held.waiting, strict=True):
            tx.add_waiting(assignment.master_sae, slave, of_slave.bit_count() * width)


def deliver(tx: Tx, slave_sae: str, master_sae: str, key_ids: Sequence[UUID]) -> list[StoredKey]:
    """Deliver the keys of these key_IDs to one slave, all or none, in the requested order.

    Raises NotNamed if the caller is not a slave of one of them (ETSI GS QKD 014, 401), else KeyNotFound if
    one is unknown, used, expired, of another master, or requested twice.
    """
    asked: dict[int, dict[int, UUID]] = {}  # by assignment and position
    for key_id in key_ids:
        place = tx.issued.places.get(key_id.bytes)
        if place is not None:
            asked.setdefault(place.assignment_id, {})[place.position] = key_id
    rows = [_ask_held(tx, assignment_id) for assignment_id in asked]
    tx.ask_audit_end()
    all_held = [_waiting.Held.decode(*row) for answer in rows if (row := answer.fetchone()) is not None]
    if any(slave_sae not in held.assignment.slave_saes for held in all_held):
        raise NotNamed(f"{slave_sae} was not named as a slave for one of the keys")

    readings: list[tuple[_waiting.Held, list[int], _keybytes.Reading]] = []
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
        reading = _keybytes.Reading(tx, ranges, width, assignment.size_bits, named)
        readings.append((held, positions, reading))

    keys: dict[UUID, StoredKey] = {}
    by_size: dict[int, list[StoredKey]] = {}
    gone: list[KeyRange] = []
    for held, positions, reading in readings:
        assignment = held.assignment
        width = chunks_per_key(assignment.size_bits)
        opened = reading.read()
        keys.update((key.key_id, key) for key in opened)
        by_size.setdefault(assignment.size_bits, []).extend(opened)
        slave = assignment.slave_saes.index(slave_sae)
        held.waiting[slave] &= ~sum(1 << position for position in positions)
        tx.add_waiting(master_sae, slave_sae, -width * len(positions))
        wanted, by_position = held.wanted, asked[assignment.assignment_id]
        finished = [position for position in positions if not wanted >> position & 1]
        _write_down(tx, held, [by_position[position].bytes for position in finished])
        gone += _keybytes.parts_of(assignment.ranges, width, finished)
    if len(keys) < len(key_ids):
        raise KeyNotFound("one or more keys are unknown, used or expired")
    tx.count_gone(delivered=_ranges.destroy(tx, gone))
    for size_bits, of_size in by_size.items():
        tx.audit("slave", slave_sae, (master_sae,), size_bits, of_size)
    return [keys[key_id] for key_id in key_ids]


def void(tx: Tx, assignment: Assignment) -> None:
    """Void the rest of a peer's assignment, accepted or not; there may be no rest."""
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
        held = _waiting.Held.decode(*row)
        n_keys += held.wanted.bit_count()
        tx.count_gone(expired=_give_up(tx, held))
    return n_keys


def _check_shares(
    tx: Tx, assignment: Assignment, pairs: Iterable[Rows], n_all: int, n_new: int, most_chunks: int
) -> None:
    """Raise ShareUsedUp if a pair has no room for `n_new` chunks; ``pairs``: of `_ask_waiting`, by slave."""
    most = max(0, SHARE * (most_chunks - n_all - n_new))
    for slave, answer in zip(assignment.slave_saes, pairs, strict=True):
        row, pair = answer.fetchone(), (assignment.master_sae, slave)
        n_waiting = (0 if row is None else row[0]) + tx.gathered.waiting.get(pair, 0)
        if n_waiting > 0 and n_waiting + n_new > most:
            raise ShareUsedUp(
                f"{n_waiting} chunks of key of {assignment.master_sae} wait for {slave} to fetch them, "
                "its share of the store"
            )


def _ask_waiting(tx: Tx, master_sae: str, slave_sae: str) -> Rows:
    return ask(
        tx.connection,
        "SELECT chunks FROM waiting_pair WHERE master_sae = ? AND slave_sae = ?",
        *(master_sae, slave_sae),
    )


def lose(tx: Tx, chunks: Set[tuple[int, int]]) -> list[KeyRange]:
    """Discard the waiting keys that use one of `chunks`; return the chunks of these keys."""
    lost: list[KeyRange] = []
    for row in tx.connection.execute("SELECT content, waiting FROM peer_assignment").fetchall():
        held = _waiting.Held.decode(*row)
        mask, width = 0, chunks_per_key(held.assignment.size_bits)
        for position in _waiting.positions(held.wanted):
            key = _keybytes.part_of(held.assignment.ranges, width, position, 1)
            if any((item.block_id, item.first + i) in chunks for item in key for i in range(item.count)):
                mask |= 1 << position
                lost += key
        if mask:
            for i, slave in enumerate(held.assignment.slave_saes):
                n_given_up = (held.waiting[i] & mask).bit_count()
                tx.add_waiting(held.assignment.master_sae, slave, -width * n_given_up)
                held.waiting[i] &= ~mask
            # Their key_IDs may depend on a secret that cannot be decrypted: they stay, without effect.
            _write_down(tx, held, ())
    return lost


def void_every(tx: Tx) -> list[KeyRange]:
    """Destroy every waiting key; return their chunks."""
    rows = tx.connection.execute("DELETE FROM peer_assignment RETURNING content, waiting").fetchall()
    tx.connection.execute("DELETE FROM waiting_pair")
    helds = [_waiting.Held.decode(*row) for row in rows]
    given_up = [part for held in helds for part in _waiting.parts(held, held.wanted)]
    tx.count_gone(void=_ranges.destroy(tx, given_up))
    tx.after_commit.append(tx.issued.clear)
    return given_up


def _check(tx: Tx, assignment: Assignment) -> int:
    """Refuse invalid contents; return the number of chunks of each key."""
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


def _ask_held(tx: Tx, assignment_id: int) -> Rows:
    return ask(
        tx.connection, "SELECT content, waiting FROM peer_assignment WHERE assignment_id = ?", assignment_id
    )


def _held(tx: Tx, assignment_id: int) -> _waiting.Held | None:
    row = _ask_held(tx, assignment_id).fetchone()
    return None if row is None else _waiting.Held.decode(*row)


def _give_up(tx: Tx, held: _waiting.Held) -> int:
    """Destroy the waiting keys; return the number of chunks."""
    assignment, wanted = held.assignment, held.wanted
    unnamed = assignment.assignment_id < tx.issued.unnamed_below
    names = [] if unnamed else _waiting.names(tx, held, wanted)
    width = chunks_per_key(assignment.size_bits)
    for slave, of_slave in zip(assignment.slave_saes, held.waiting, strict=True):
        tx.add_waiting(assignment.master_sae, slave, -width * of_slave.bit_count())
    held.waiting = [0] * len(held.waiting)
    return _finish(tx, held, wanted, names)


def _finish(tx: Tx, held: _waiting.Held, finished: int, names: Iterable[bytes]) -> int:
    """Store the waiting keys, and destroy the keys whose bit is in ``finished``, with key_IDs ``names``.

    Returns the number of chunks destroyed.
    """
    _write_down(tx, held, names)
    return _ranges.destroy(tx, _waiting.parts(held, finished))


def _write_down(tx: Tx, held: _waiting.Held, names: Iterable[bytes]) -> None:
    """Store the waiting keys, and forget the keys ``names``, which no longer wait."""
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
    tx.after_commit.append(lambda: tx.issued.forget(names))
