"""Blocks: their numbers, the two-step commit, voiding, and forgetting finished ones."""

import hashlib
from functools import lru_cache

import msgspec

from qnode.choices import BlockState
from qnode.errors import StoreError
from qnode.keys import _pool, _ranges
from qnode.keys._layout import cut_block
from qnode.keys._model import MOST_SKIPPED, BlockRecord, KeyRange, PreparedBlock, StoredBlock
from qnode.keys._tx import Tx
from qnode.keys._vault import Kind
from qnode.sql import Rows, ask

# The number of rows of finished blocks kept, for people and for a peer that returns late.
_BLOCKS_REMEMBERED = 4096


def open_block(tx: Tx, block_id: int, epsilon: float) -> None:
    """Make `block_id` the last one used, and add its `epsilon` to the sum.

    Raises StoreError unless it is larger than all earlier ones.
    """
    (last,) = tx.one("SELECT last_block_id FROM site")
    if block_id <= last:
        raise StoreError(f"block {block_id} cannot be opened: numbers up to {last} were used before")
    if block_id > last + MOST_SKIPPED:
        raise StoreError(f"block {block_id} cannot be opened: the last one was {last}")
    tx.connection.execute("UPDATE site SET last_block_id = ?, epsilon = epsilon + ?", (block_id, epsilon))


def state_of(tx: Tx, block_id: int) -> BlockState:
    """Return the state of a block; a forgotten block counts as void."""
    return state_in(tx, block_id, ask_state(tx, block_id))


def ask_state(tx: Tx, block_id: int) -> Rows:
    """Ask for the state of a block, for `state_in`."""
    return ask(tx.connection, "SELECT state FROM block WHERE block_id = ?", block_id)


def state_in(tx: Tx, block_id: int, answer: Rows) -> BlockState:
    """Return the state of a block that was asked for before."""
    row = answer.fetchone()
    if row is not None:
        return BlockState(row[0])
    (forgotten,) = tx.one("SELECT forgotten_block_id FROM site")
    return BlockState.VOID if 0 < block_id <= forgotten else BlockState.UNKNOWN


def prepare(tx: Tx, block: PreparedBlock) -> None:
    """Store the key of a block as prepared. Raises StoreError unless opened and unknown, FieldError."""
    (last,) = tx.one("SELECT last_block_id FROM site")
    _require(tx, block.block_id, BlockState.UNKNOWN, "prepared")
    if not 0 < block.block_id <= last:
        raise StoreError(f"block {block.block_id} cannot be prepared: it was never opened (last is {last})")
    parts = cut_block(block.key, block.layout)
    if parts.n_chunks != block.record.n_chunks:
        raise StoreError(
            f"block {block.block_id}: the key gives {parts.n_chunks} chunks, its record says "
            f"{block.record.n_chunks}"
        )
    tx.connection.execute(
        "INSERT INTO block (block_id, state, record, chunks_left) VALUES (?, 'prepared', ?, ?)",
        (block.block_id, msgspec.json.encode(block.record), parts.n_chunks),
    )
    tx.vault.put(Kind.CHUNK, block.block_id, parts.chunks)
    if parts.n_chunks:
        tx.vault.put(Kind.BLOCK_SECRET, block.block_id, parts.block_secret)
    n_alice = parts.n_chunks_alice
    _ranges.add_free(tx, KeyRange(block.block_id, 0, n_alice), "alice")
    _ranges.add_free(tx, KeyRange(block.block_id, n_alice, parts.n_chunks - n_alice), "bob")
    _pool.add_segment(tx, block.block_id, parts.pads_alice_to_bob, parts.pads_bob_to_alice, confirmed=False)


def confirm(tx: Tx, block_id: int) -> None:
    """Make a prepared block available; repetition is allowed. Raises StoreError otherwise."""
    if state_of(tx, block_id) == BlockState.AVAILABLE:
        return
    _require(tx, block_id, BlockState.PREPARED, "confirmed")
    tx.connection.execute("UPDATE block SET state = 'available' WHERE block_id = ?", (block_id,))
    _pool.confirm_segment(tx, block_id)


def void(tx: Tx, block_id: int, reason: str) -> None:
    """Void a block that is prepared, or opened and never prepared; repetition is allowed.

    Raises StoreError for a block that is available here, or known to be available at the peer.
    """
    state = state_of(tx, block_id)
    if state == BlockState.VOID:
        return
    if state == BlockState.UNKNOWN:
        (last,) = tx.one("SELECT last_block_id FROM site")
        if not 0 < block_id <= last:
            raise StoreError(f"block {block_id} cannot be voided: it was never opened (last is {last})")
        tx.connection.execute(
            "INSERT INTO block (block_id, state, chunks_left, void_reason) VALUES (?, 'void', 0, ?)",
            (block_id, reason),
        )
        return
    _require(tx, block_id, BlockState.PREPARED, "voided")
    if tx.one("SELECT peer_confirmed FROM block WHERE block_id = ?", block_id)[0]:
        raise StoreError(f"block {block_id} cannot be voided: it is available at the peer; confirm it")
    (n_chunks,) = tx.one("SELECT chunks_left FROM block WHERE block_id = ?", block_id)
    tx.vault.drop(Kind.CHUNK, block_id)
    tx.vault.drop(Kind.BLOCK_SECRET, block_id)
    tx.connection.execute("DELETE FROM free_range WHERE block_id = ?", (block_id,))
    tx.connection.execute(
        "UPDATE block SET state = 'void', chunks_left = 0, void_reason = ? WHERE block_id = ?",
        (reason, block_id),
    )
    _pool.drop_segment(tx, block_id)
    tx.count_gone(void=n_chunks)


def mark_peer_confirmed(tx: Tx, block_id: int) -> None:
    """Remember that the peer uses a block: it is available there, so it must not be voided here."""
    tx.connection.execute(
        "UPDATE block SET peer_confirmed = 1 WHERE block_id = ? AND peer_confirmed = 0", (block_id,)
    )


def unconfirmed(tx: Tx) -> list[int]:
    """Return the prepared blocks, oldest first."""
    rows = tx.connection.execute("SELECT block_id FROM block WHERE state = 'prepared' ORDER BY block_id")
    return [row[0] for row in rows]


def recent(tx: Tx, n: int) -> list[StoredBlock]:
    """Return the latest `n` blocks, newest first."""
    rows = tx.connection.execute(
        "SELECT block_id, state, record, chunks_left, void_reason FROM block ORDER BY block_id DESC LIMIT ?",
        (n,),
    )
    return [
        StoredBlock(
            block_id=block_id,
            state=BlockState(state),
            record=None if record is None else msgspec.json.decode(record, type=BlockRecord),
            chunks_left=chunks_left,
            void_reason=void_reason,
        )
        for block_id, state, record, chunks_left, void_reason in rows
    ]


def fingerprint(tx: Tx, block_id: int) -> bytes:
    """Return the hash of all chunks of a block. Raises StoreError if one is missing."""
    row = tx.connection.execute("SELECT chunks_left FROM block WHERE block_id = ?", (block_id,)).fetchone()
    if row is None or not row[0] or row[0] != record_of(tx, block_id).n_chunks:
        raise StoreError(f"block {block_id} is not whole here: its keys cannot be compared")
    return hashlib.sha256(tx.vault.read(Kind.CHUNK, block_id, 0, row[0])).digest()


def record_of(tx: Tx, block_id: int) -> BlockRecord:
    """Return the record of a block that was prepared."""
    return record_in(ask_record(tx, block_id))


def ask_record(tx: Tx, block_id: int) -> Rows:
    """Ask for the record of a block that was prepared, for `record_in`."""
    return ask(tx.connection, "SELECT record FROM block WHERE block_id = ?", block_id)


def record_in(answer: Rows) -> BlockRecord:
    """Return the record of a block that was asked for before."""
    (record,) = answer.fetchone()
    return _decoded(record)


@lru_cache(maxsize=16)
def _decoded(record: bytes | str) -> BlockRecord:
    return msgspec.json.decode(record, type=BlockRecord)


def forget_finished(tx: Tx) -> None:
    """Drop the rows of finished blocks, oldest first and without a gap, beyond those to remember."""
    last, forgotten = tx.one("SELECT last_block_id, forgotten_block_id FROM site")
    floor = last - _BLOCKS_REMEMBERED
    (alive,) = tx.one(
        "SELECT coalesce(min(block_id), ?) FROM block WHERE block_id <= ? AND state != 'void' AND "
        "(state = 'prepared' OR chunks_left > 0)",
        floor + 1,
        floor,
    )
    if alive - 1 > forgotten:
        tx.connection.execute("DELETE FROM block WHERE block_id < ?", (alive,))
        tx.connection.execute("UPDATE site SET forgotten_block_id = ?", (alive - 1,))


def _require(tx: Tx, block_id: int, wanted: BlockState, move: str) -> None:
    state = state_of(tx, block_id)
    if state != wanted:
        raise StoreError(f"block {block_id} cannot be {move}: it is {state}, not {wanted}")
