"""The audit in the database of a store: entries are appended in the transaction of what they tell.

There is one chain for each process that delivers keys and each life of its store: the last one is live, the
ones before it have ended. Its first entry has the heads of the chains before. So the entries of a restored
database are never taken for later ones, and several processes on one database would not wait for each other.
"""

import secrets
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, Self

from qnode.audit.entries import (
    CHAIN_ID_BYTES,
    Chain,
    ChainBegun,
    ChainPruned,
    Entry,
    Head,
    Row,
    chained,
    decode,
    encode,
    genesis,
)
from qnode.sql import Rows, Statements, ask

LIVE = "audit_chain ORDER BY chain DESC LIMIT 1"
_CHAINS = "SELECT chain, chain_id, pruned_number, pruned_hash, last_number, last_hash FROM audit_chain"
# Old entries are deleted a day's worth at a time: each time adds an entry that says so.
PRUNED_TOGETHER_US = 86_400_000_000
MOST_PRUNED_AT_ONCE = 4096
READ_AT_ONCE = 256


def begin(connection: Statements, because: str, lost: Head | None = None) -> None:
    """Begin a new chain, which is live from now on."""
    heads = tuple(one.head for one in chains(connection))
    chain_id = secrets.token_bytes(CHAIN_ID_BYTES)
    start = genesis(chain_id)
    connection.execute(
        "INSERT INTO audit_chain (chain, chain_id, pruned_number, pruned_hash, last_number, last_hash) "
        "SELECT coalesce(max(chain), 0) + 1, ?, 0, ?, 0, ? FROM audit_chain",
        (chain_id, start, start),
    )
    append(connection, ChainBegun, because, heads, lost)


class Told(NamedTuple):
    """An entry without its number, which is that of its place in the chain."""

    kind: type[Entry]
    at_us: int
    fields: tuple[Any, ...]

    @classmethod
    def now(cls, kind: type[Entry], *fields: Any) -> Self:
        """Return an entry with the time of day."""
        return cls(kind, time.time_ns() // 1000, fields)


def ask_end(connection: Statements) -> Rows:
    """Ask for the end of the live chain: for the next `append_all`, and only for that."""
    return ask(connection, f"SELECT chain, last_number, last_hash FROM {LIVE}")


def append(connection: Statements, kind: type[Entry], *fields: Any) -> None:
    """Append an entry to the live chain: its number and the time of day, then ``fields``."""
    append_all(connection, ask_end(connection), [Told.now(kind, *fields)])


def append_all(connection: Statements, end: Rows, entries: Iterable[Told]) -> None:
    """Append entries to the live chain, whose ``end`` was asked for before."""
    chain, number, digest = end.fetchone()
    added = []
    for entry in entries:
        number += 1
        content = encode(entry.kind(number, entry.at_us, *entry.fields))
        digest = chained(digest, content)
        added.append((chain, number, content, digest))
    connection.executemany("INSERT INTO audit_entry (chain, number, content, hash) VALUES (?,?,?,?)", added)
    connection.execute(
        "UPDATE audit_chain SET last_number = ?, last_hash = ? WHERE chain = ?", (number, digest, chain)
    )


def chains(connection: Statements) -> list[Chain]:
    """Return all chains, the live one last."""
    return [Chain(*row) for row in connection.execute(f"{_CHAINS} ORDER BY chain")]


def head(connection: Statements) -> Head:
    """Return the head of the live chain."""
    return Head(*connection.execute(f"SELECT chain_id, last_number, last_hash FROM {LIVE}").fetchone())


def rows(connection: Statements, chain: int, after: int) -> Iterator[Row]:
    """Yield the entries of a chain after a number, in order; only some are in memory at a time."""
    while True:
        found = connection.execute(
            "SELECT number, content, hash FROM audit_entry WHERE chain = ? AND number > ? "
            "ORDER BY number LIMIT ?",
            (chain, after, READ_AT_ONCE),
        ).fetchall()
        yield from map(Row._make, found)
        if len(found) < READ_AT_ONCE:
            return
        after = found[-1][0]


def missing(connection: Statements, known: Head) -> str:
    """Say how the audit does not continue from a head that was known before; empty if it does."""
    for one in chains(connection):
        if one.chain_id != known.chain_id:
            continue
        if known.number > one.last_number:
            return f"entries {one.last_number + 1} to {known.number} are missing"
        if known.number <= one.pruned_number:
            return ""
        found = connection.execute(
            "SELECT hash FROM audit_entry WHERE chain = ? AND number = ?", (one.chain, known.number)
        ).fetchone()
        return "" if found == (known.hash,) else f"entry {known.number} is another one"
    return f"the whole chain {known.chain_id.hex()} is missing"


def is_old(connection: Statements, before_us: int) -> bool:
    """Return whether `prune` would delete entries."""
    oldest = chains(connection)[0]
    first = next(rows(connection, oldest.chain, oldest.pruned_number), None)
    return first is not None and decode(first.content).at_us < before_us - PRUNED_TOGETHER_US


def prune(connection: Statements, before_us: int) -> int:
    """Delete the oldest entries, of before a time, if the first is a day older; return their number.

    They are deleted in their order only: one that is not old keeps all after it. The last entry of the live
    chain stays. Call it again until it returns 0.
    """
    known = chains(connection)
    oldest = known[0]
    last = None
    for row in islice(rows(connection, oldest.chain, oldest.pruned_number), MOST_PRUNED_AT_ONCE):
        limit_us = before_us if last is not None else before_us - PRUNED_TOGETHER_US
        is_live_head = len(known) == 1 and row.number == oldest.last_number
        if decode(row.content).at_us >= limit_us or is_live_head:
            break
        last = Head(oldest.chain_id, row.number, row.hash)
    if last is None:
        return 0
    connection.execute("DELETE FROM audit_entry WHERE chain = ? AND number <= ?", (oldest.chain, last.number))
    if last.number == oldest.last_number:
        connection.execute("DELETE FROM audit_chain WHERE chain = ?", (oldest.chain,))
    else:
        connection.execute(
            "UPDATE audit_chain SET pruned_number = ?, pruned_hash = ? WHERE chain = ?",
            (last.number, last.hash, oldest.chain),
        )
    append(connection, ChainPruned, last)
    return last.number - oldest.pruned_number
