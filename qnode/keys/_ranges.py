"""Free chunks, kept as ranges with one owner each."""

from collections import Counter
from collections.abc import Iterable

from qnode.choices import Role
from qnode.errors import NotEnoughKeys, StoreError
from qnode.keys._model import KeyRange
from qnode.keys._tx import Tx
from qnode.keys._vault import Kind
from qnode.sql import Rows, ask


def joined(ranges: Iterable[KeyRange]) -> list[KeyRange]:
    """Return the ranges sorted, neighbours joined; overlapping ones stay separate (and fail later)."""
    result: list[KeyRange] = []
    for item in sorted(ranges):
        last = result[-1] if result else None
        if last and last.block_id == item.block_id and last.first + last.count == item.first:
            result[-1] = KeyRange(last.block_id, last.first, last.count + item.count)
        else:
            result.append(item)
    return result


def add_free(tx: Tx, item: KeyRange, owner: Role) -> None:
    """Enter chunks as free for `owner` to assign."""
    if item.count:
        tx.connection.execute(
            "INSERT INTO free_range (block_id, first, count, owner) VALUES (?,?,?,?)",
            (item.block_id, item.first, item.count, owner),
        )


def pass_on(tx: Tx, item: KeyRange, owner: Role) -> None:
    """Enter chunks as free for a new owner, joined with its existing neighbours."""
    neighbours = tx.connection.execute(
        "SELECT first, count FROM free_range WHERE block_id = ? AND owner = ? "
        "AND (first + count = ? OR first = ?)",
        (item.block_id, owner, item.first, item.first + item.count),
    ).fetchall()
    for first, _ in neighbours:
        tx.connection.execute(
            "DELETE FROM free_range WHERE block_id = ? AND first = ?", (item.block_id, first)
        )
    low = min([item.first, *(first for first, _ in neighbours)])
    count = item.count + sum(count for _, count in neighbours)
    add_free(tx, KeyRange(item.block_id, low, count), owner)


def take_free(tx: Tx, item: KeyRange, owner: Role, free: Rows | None = None) -> None:
    """Remove a range from the free chunks. Raises StoreError unless all of it is free and `owner`'s.

    `free`: of `ask_free` for this range, if no other change of the block's free chunks came between.
    """
    taken = take_what_is_free(tx, item, owner, free)
    if item.count < 1 or sum(part.count for part in taken) != item.count:
        raise StoreError(
            f"block {item.block_id}, chunks {item.first} to {item.first + item.count - 1}: not all free "
            f"and {owner}'s here (used, void, unknown, or the other site's)"
        )


def ask_free(tx: Tx, item: KeyRange, owner: Role) -> Rows:
    """Ask for the rows of `owner`'s free chunks that overlap a range."""
    return ask(
        tx.connection,
        "SELECT first, count FROM free_range WHERE block_id = ? AND owner = ? AND first < ? "
        "AND first + count > ?",
        *(item.block_id, owner, item.first + item.count, item.first),
    )


def take_what_is_free(tx: Tx, item: KeyRange, owner: Role, free: Rows | None = None) -> list[KeyRange]:
    """Take those chunks of a range that are free and `owner`'s; return them. `free`: see `take_free`."""
    end = item.first + item.count
    rows = (free or ask_free(tx, item, owner)).fetchall()
    taken = []
    for first, count in rows:
        low, high = max(first, item.first), min(first + count, end)
        taken.append(KeyRange(item.block_id, low, high - low))
        _cut_out(tx, KeyRange(item.block_id, first, count), taken[-1], owner)
    return taken


def _cut_out(tx: Tx, free: KeyRange, part: KeyRange, owner: Role) -> None:
    """Remove `part` from a row of free chunks, `free`, in which it lies."""
    end, part_end = free.first + free.count, part.first + part.count
    if part.first > free.first:
        tx.connection.execute(
            "UPDATE free_range SET count = ? WHERE block_id = ? AND first = ?",
            (part.first - free.first, free.block_id, free.first),
        )
        add_free(tx, KeyRange(free.block_id, part_end, end - part_end), owner)
    elif part_end < end:
        tx.connection.execute(
            "UPDATE free_range SET first = ?, count = ? WHERE block_id = ? AND first = ?",
            (part_end, end - part_end, free.block_id, free.first),
        )
    else:
        tx.connection.execute(
            "DELETE FROM free_range WHERE block_id = ? AND first = ?", (free.block_id, free.first)
        )


def all_free(tx: Tx, item: KeyRange, owner: Role) -> bool:
    """Return whether each chunk of a range is free and `owner`'s."""
    end = item.first + item.count
    rows = ask_free(tx, item, owner)
    n_free_of_it: int = sum(min(first + count, end) - max(first, item.first) for first, count in rows)
    return n_free_of_it == item.count


def give_back(tx: Tx, ranges: Iterable[KeyRange], owner: Role) -> None:
    """Enter formerly assigned chunks as free for `owner`."""
    for item in joined(ranges):
        pass_on(tx, item, owner)


def take_oldest(tx: Tx, number: int, width: int) -> list[KeyRange]:
    """Take `number` keys of `width` chunks that this site owns, oldest first, each within one range.

    Raises NotEnoughKeys (the caller's transaction undoes partial results).
    """
    rows = tx.connection.execute(
        "SELECT r.block_id, r.first, r.count FROM free_range r JOIN block b USING (block_id) "
        "WHERE r.owner = ? AND r.count >= ? AND b.state = 'available' ORDER BY r.block_id, r.first LIMIT ?",
        (tx.role, width, number),
    ).fetchall()
    taken: list[KeyRange] = []
    missing = number
    for block_id, first, count in rows:
        fits = min(count // width, missing)
        if fits == 0:
            break
        taken.append(KeyRange(block_id, first, fits * width))
        _cut_out(tx, KeyRange(block_id, first, count), taken[-1], tx.role)
        missing -= fits
    if missing:
        raise NotEnoughKeys(number, number - missing)
    return taken


def take_newest(tx: Tx, number: int) -> list[KeyRange]:
    """Take `number` chunks that this site owns, newest first. Raises NotEnoughKeys."""
    rows = tx.connection.execute(
        "SELECT r.block_id, r.first, r.count FROM free_range r JOIN block b USING (block_id) "
        "WHERE r.owner = ? AND b.state = 'available' ORDER BY r.block_id DESC, r.first DESC LIMIT ?",
        (tx.role, number),
    ).fetchall()
    taken: list[KeyRange] = []
    missing = number
    for block_id, first, count in rows:
        part = min(count, missing)
        if part == 0:
            break
        taken.append(KeyRange(block_id, first + count - part, part))
        _cut_out(tx, KeyRange(block_id, first, count), taken[-1], tx.role)
        missing -= part
    if missing:
        raise NotEnoughKeys(number, number - missing)
    return taken


def n_keys_free(tx: Tx, width: int) -> int:
    """Return how many keys of `width` chunks this site could assign now."""
    return tx.one(
        "SELECT coalesce(sum(r.count / ?), 0) FROM free_range r JOIN block b USING (block_id) "
        "WHERE r.owner = ? AND b.state = 'available'",
        width,
        tx.role,
    )[0]


def n_free(tx: Tx) -> Counter[tuple[str, str]]:
    """Return the numbers of free chunks, by owner and state of their block."""
    rows = tx.connection.execute(
        "SELECT r.owner, b.state, sum(r.count) FROM free_range r JOIN block b USING (block_id) "
        "GROUP BY r.owner, b.state"
    )
    return Counter({(owner, state): count for owner, state, count in rows})


def destroy(tx: Tx, ranges: Iterable[KeyRange]) -> int:
    """Wipe chunks that have left the free ranges; with a block's last chunk its secret is wiped too.

    Returns the number of wiped chunks.
    """
    together = joined(ranges)
    tx.vault.wipe_all(Kind.CHUNK, ((item.block_id, item.first, item.count) for item in together))
    by_block: Counter[int] = Counter()
    for item in together:
        by_block[item.block_id] += item.count
    for block_id, n_chunks in by_block.items():
        tx.count_off(block_id, n_chunks)
    return by_block.total()
