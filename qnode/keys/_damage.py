"""The reaction to a unit that cannot be decrypted: this site discards its contents, and so does the peer.

One flipped bit damages one unit: up to 128 chunks, the secret of a block, or up to 128 pads. Of the chunks,
those that could still be delivered are discarded: free ones, this site's assignments that use one of them
(with the rest of these assignments), and each single key that waits for its slaves. Other chunks of these
assignments are wiped as usual. Further units that cannot be decrypted on the way are discarded too.

A discard is recorded as a `Loss` until the peer has done the same. If a loss affects more chunks at the peer,
the peer answers with a loss of its own.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import msgspec

from qnode.keys import _accepted, _assigned, _blocks, _pool, _ranges
from qnode.keys._database import Database
from qnode.keys._model import KeyRange, Loss, PadId
from qnode.keys._tx import Tx
from qnode.keys._vault import SLOTS_PER_UNIT, DamagedUnit, Kind

P = ParamSpec("P")
T = TypeVar("T")
_NO_PAD = PadId(-1, -1)
# The limit for one message, which has room for a mebibyte.
_RANGES_OF_A_LOSS = 1 << 15

Chunks = set[tuple[int, int]]
"""Chunks by block and position."""


class Mendable(Protocol):
    """A store whose calls discard units that cannot be decrypted."""

    @property
    def _database(self) -> Database: ...


S = TypeVar("S", bound=Mendable)


def mending(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Let a method of a store discard units that cannot be decrypted, and try again without them."""

    @functools.wraps(method)
    def work(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return without_damage(self._database, lambda: method(self, *args, **kwargs))

    return work


def without_damage(database: Database, work: Callable[[], T], *, anchored: bool = True) -> T:
    """Return the result of `work`; after each unit that cannot be decrypted, discard it and repeat.

    `anchored`: False before the comparison of the store with its anchor, which must not be overwritten then.
    """
    while True:
        try:
            return work()
        except DamagedUnit as damage:
            with database.change(anchored=anchored, while_waiting=True) as tx:
                loss = give_up(tx, damage)
            database.new_losses.append(loss)


def give_up(tx: Tx, damage: DamagedUnit) -> Loss:
    """Discard the contents of a unit that cannot be decrypted, and record this for the peer.

    Raises StoreUnusable for a unit without which the store is useless.
    """
    segment, first = damage.segment, damage.unit * SLOTS_PER_UNIT
    if damage.kind == Kind.CHUNK:
        return _written_down(
            tx, _in_ranges(lose(tx, _expand([KeyRange(segment, first, SLOTS_PER_UNIT)]), damage))
        )
    if damage.kind == Kind.BLOCK_SECRET:
        n_chunks = _blocks.record_of(tx, segment).n_chunks
        lost = lose(tx, _expand([KeyRange(segment, 0, n_chunks)]), None)
        tx.vault.drop(Kind.BLOCK_SECRET, segment)
        return _written_down(tx, _in_ranges(lost))
    if damage.kind in (Kind.PAD_SEND, Kind.PAD_RECEIVE):
        direction = "send" if damage.kind == Kind.PAD_SEND else "receive"
        unit = damage.unit
        while tx.vault.spoilt(
            damage.kind, segment, unit
        ):  # all neighbours at once, because each costs a session
            tx.vault.drop(damage.kind, segment, unit)
            unit += 1
        end = max(unit * SLOTS_PER_UNIT, first + SLOTS_PER_UNIT)
        n_pads = _pool.pass_over(tx, direction, segment, end)
        last = PadId(segment, end - 1) if direction == "receive" else _NO_PAD
        return _written_down(tx, (), pads=n_pads, send_after=last)
    raise damage


def lose(tx: Tx, lost: Chunks, damage: DamagedUnit | None) -> Chunks:
    """Discard those of `lost` that could still be delivered, and dependent chunks; return them.

    `damage`: the unit that cannot be decrypted, if there is one.
    """
    given_up: Chunks = set()
    unreadable: set[tuple[int, int]] = set()
    if damage is not None:
        unreadable.add((damage.segment, damage.unit))
        tx.vault.drop(Kind.CHUNK, damage.segment, damage.unit)
    open_chunks = lost
    while open_chunks:
        gone = _expand(_take(tx, open_chunks))
        given_up |= gone
        open_chunks = set()
        for block_id in {block for block, _ in gone}:
            positions = sorted(position for block, position in gone if block == block_id)
            tx.count_off(block_id, len(positions))
            for item in _joined(block_id, positions):
                for piece in _pieces(item):
                    unit = (block_id, piece.first // SLOTS_PER_UNIT)
                    if unit in unreadable:
                        continue
                    try:
                        tx.vault.wipe(Kind.CHUNK, block_id, piece.first, piece.count)
                    except DamagedUnit:
                        unreadable.add(unit)
                        tx.vault.drop(Kind.CHUNK, *unit)
                        start = unit[1] * SLOTS_PER_UNIT
                        open_chunks |= _expand([KeyRange(block_id, start, SLOTS_PER_UNIT)])
    tx.count_gone(void=len(given_up))
    return given_up


def accept(tx: Tx, loss: Loss) -> Loss | None:
    """Discard what the peer has lost; return a loss of the further affected chunks, if any."""
    told = _expand(part for item in loss.ranges for part in _of_known_block(tx, item))
    further = lose(tx, told, None) - told
    if loss.send_after > PadId(*tx.one("SELECT sent_segment, sent_index FROM site")):
        _pool.skip(tx, "send", loss.send_after)
    return _written_down(tx, _in_ranges(further)) if further else None


def tell_peer(tx: Tx, given_up: Iterable[KeyRange]) -> None:
    """Have the peer discard chunks that were discarded here for another reason than damage."""
    joined = _ranges.joined(given_up)
    for first in range(0, len(joined), _RANGES_OF_A_LOSS):
        _written_down(tx, joined[first : first + _RANGES_OF_A_LOSS])


def open_losses(tx: Tx) -> list[Loss]:
    """Return the losses that the peer has not processed yet, oldest first."""
    rows = tx.connection.execute("SELECT content FROM loss ORDER BY loss_id")
    return [msgspec.msgpack.decode(row[0], type=Loss) for row in rows]


def finish(tx: Tx, loss_id: int) -> None:
    """Note that the peer has processed a loss; repetition is allowed."""
    tx.connection.execute("DELETE FROM loss WHERE loss_id = ?", (loss_id,))


def _take(tx: Tx, chunks: Chunks) -> list[KeyRange]:
    """Remove assignments and keys that use `chunks`."""
    taken: list[KeyRange] = []
    for block_id in {block for block, _ in chunks}:
        positions = sorted(position for block, position in chunks if block == block_id)
        for item in _joined(block_id, positions):
            for owner in (tx.role, tx.peer):
                taken += _ranges.take_what_is_free(tx, item, owner)
    return taken + _assigned.lose(tx, chunks) + _accepted.lose(tx, chunks)


def _written_down(tx: Tx, ranges: Sequence[KeyRange], *, pads: int = 0, send_after: PadId = _NO_PAD) -> Loss:
    # Larger than all earlier numbers, finished ones included: a late message about one of them must not
    # finish this one.
    (loss_id,) = tx.one("SELECT max(generation, coalesce((SELECT max(loss_id) FROM loss), 0)) + 1 FROM site")
    loss = Loss(loss_id=loss_id, ranges=tuple(ranges), pads=pads, send_after=send_after)
    if ranges or send_after != _NO_PAD:
        tx.connection.execute(
            "INSERT INTO loss (loss_id, content) VALUES (?, ?)", (loss_id, msgspec.msgpack.encode(loss))
        )
    return loss


def _of_known_block(tx: Tx, item: KeyRange) -> list[KeyRange]:
    """Return the part of a range from the peer that lies in a block of this store."""
    row = tx.connection.execute(
        "SELECT record FROM block WHERE block_id = ? AND chunks_left > 0", (item.block_id,)
    ).fetchone()
    if row is None or row[0] is None:
        return []
    count = min(item.first + item.count, _blocks.record_of(tx, item.block_id).n_chunks) - item.first
    return [KeyRange(item.block_id, item.first, count)] if count > 0 else []


def _expand(ranges: Iterable[KeyRange]) -> Chunks:
    return {(item.block_id, item.first + i) for item in ranges for i in range(item.count)}


def _in_ranges(chunks: Chunks) -> list[KeyRange]:
    return _ranges.joined(KeyRange(block_id, position, 1) for block_id, position in chunks)


def _joined(block_id: int, positions: list[int]) -> list[KeyRange]:
    return _ranges.joined(KeyRange(block_id, position, 1) for position in positions)


def _pieces(item: KeyRange) -> Iterable[KeyRange]:
    """Divide a range at the borders of units."""
    first, end = item.first, item.first + item.count
    while first < end:
        stop = min(end, (first // SLOTS_PER_UNIT + 1) * SLOTS_PER_UNIT)
        yield KeyRange(item.block_id, first, stop - first)
        first = stop
