"""An open transaction of a store, and what its changes write together at its end.

Changes that share a commit mostly touch the same rows: the unit of the chunks, the count of the block, the
totals of the site, the end of the audit. They gather this in memory; `Tx.write_down` writes each row once.
Whoever reads such a row from the database calls that before.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from qnode.audit import ledger
from qnode.audit.door import present_door
from qnode.audit.entries import KeyDelivered
from qnode.choices import Role, peer_of
from qnode.keys._model import BlockRecord, StoredKey
from qnode.keys._vault import Vault, VaultMark
from qnode.sql import Rows, Statements

_MOST_RELEASED = 1024


class Place(NamedTuple):
    """The position of a key: an assignment of the peer, and the number of the key in it."""

    assignment_id: int
    position: int


@dataclass
class Issued:
    """The keys that slaves here may fetch, by key_ID; after an opening some key_IDs are still missing."""

    places: dict[bytes, Place] = field(default_factory=dict, repr=False)
    unnamed_below: int = 0
    """Assignments of the peer with lower numbers may have no key_IDs yet; 0: all have them."""
    released: deque[int] = field(default_factory=lambda: deque(maxlen=_MOST_RELEASED), repr=False)
    """The latest assignments that the peer released before they were accepted here."""

    def may_lack(self, names: Iterable[bytes]) -> bool:
        """Return whether one of the key_IDs may be among the missing ones."""
        return self.unnamed_below > 0 and any(name not in self.places for name in names)

    def forget(self, names: Iterable[bytes]) -> None:
        """Drop keys that no longer wait."""
        for name in names:
            self.places.pop(name, None)

    def clear(self) -> None:
        """Drop all keys: none waits."""
        self.places.clear()
        self.unnamed_below = 0


@dataclass
class Gathered:
    """What the changes of a transaction write together, by `Tx.write_down`."""

    delivered: int = 0
    """Chunks, for the site's totals, like the next two."""
    void: int = 0
    expired: int = 0
    counted_off: dict[int, int] = field(default_factory=dict)
    """Chunks, by block."""
    waiting: dict[tuple[str, str], int] = field(default_factory=dict)
    """Chunks that begin (or cease) to wait, by master and slave."""
    audit: list[ledger.Told] = field(default_factory=list)
    audit_end: Rows | None = None

    def copy(self) -> "Gathered":
        """Return a copy, to which nothing is added."""
        return Gathered(
            self.delivered,
            self.void,
            self.expired,
            self.counted_off.copy(),
            self.waiting.copy(),
            self.audit.copy(),
            self.audit_end,
        )


class Mark(NamedTuple):
    """A point in a transaction to which memory can be set back with the database."""

    gathered: Gathered
    vault: VaultMark


@dataclass
class Tx:
    """An open transaction of one site's store, for the functions of the parts of the store."""

    connection: Statements
    vault: Vault
    role: Role
    issued: Issued = field(default_factory=Issued, repr=False)
    """The positions of the keys that slaves here may fetch."""
    after_commit: list[Callable[[], None]] = field(default_factory=list, repr=False)
    """Updates in memory, made when the transaction is durable, and only then."""
    gathered: Gathered = field(default_factory=Gathered, repr=False)
    records: dict[int, BlockRecord] = field(default_factory=dict, repr=False)
    """Those of blocks with delivered keys that were read in this transaction; they never change."""

    @property
    def peer(self) -> Role:
        """The other site's role."""
        return peer_of(self.role)

    def one(self, sql: str, *values: object) -> tuple[int, ...]:
        """Return the single row of integers of `sql`."""
        row: tuple[int, ...] = self.connection.execute(sql, values).fetchone()
        return row

    def count_gone(self, *, delivered: int = 0, void: int = 0, expired: int = 0) -> None:
        """Add chunks to the site's totals."""
        self.gathered.delivered += delivered
        self.gathered.void += void
        self.gathered.expired += expired

    def count_off(self, block_id: int, n_chunks: int) -> None:
        """Count chunks off a block; with its last chunk its secret is destroyed too."""
        self.gathered.counted_off[block_id] = self.gathered.counted_off.get(block_id, 0) + n_chunks

    def add_waiting(self, master_sae: str, slave_sae: str, n_chunks: int) -> None:
        """Count chunks that begin (or, if negative, cease) to wait for a slave."""
        pair = master_sae, slave_sae
        self.gathered.waiting[pair] = self.gathered.waiting.get(pair, 0) + n_chunks

    def ask_audit_end(self) -> None:
        """Ask the database for what the next `audit` needs, if that was not asked for."""
        if self.gathered.audit_end is None:
            self.gathered.audit_end = ledger.ask_end(self.connection)

    def audit(
        self, side: str, sae: str, peers: tuple[str, ...], size_bits: int, keys: Iterable[StoredKey]
    ) -> None:
        """Record a delivery of keys of one size to an SAE of this site."""
        self.ask_audit_end()
        ids = b"".join(key.key_id.bytes for key in keys)
        told = ledger.Told.now(KeyDelivered, present_door(), side, sae, peers, size_bits, ids)
        self.gathered.audit.append(told)

    @property
    def has_gathered(self) -> bool:
        """Whether there is something for `write_down`."""
        return self.vault.has_unwritten or self.gathered != Gathered()

    def write_down(self) -> None:
        """Write what was gathered: before the commit, and before anybody reads it from the database."""
        gathered, self.gathered = self.gathered, Gathered()
        self.vault.write_down()
        for block_id, n_chunks in gathered.counted_off.items():
            self.connection.execute(
                "UPDATE block SET chunks_left = chunks_left - ? WHERE block_id = ?", (n_chunks, block_id)
            )
            self.vault.drop_secret_of_finished(block_id)
        for (master_sae, slave_sae), n_chunks in gathered.waiting.items():
            self._write_waiting(master_sae, slave_sae, n_chunks)
        if gathered.delivered or gathered.void or gathered.expired:
            self.connection.execute(
                "UPDATE site SET delivered = delivered + ?, void = void + ?, expired = expired + ?",
                (gathered.delivered, gathered.void, gathered.expired),
            )
        if gathered.audit:
            assert gathered.audit_end is not None
            ledger.append_all(self.connection, gathered.audit_end, gathered.audit)

    def _write_waiting(self, master_sae: str, slave_sae: str, n_chunks: int) -> None:
        if n_chunks:
            self.connection.execute(
                "INSERT INTO waiting_pair (master_sae, slave_sae, chunks) VALUES (?, ?, ?) ON CONFLICT "
                "(master_sae, slave_sae) DO UPDATE SET chunks = waiting_pair.chunks + excluded.chunks",
                (master_sae, slave_sae, n_chunks),
            )
        if n_chunks < 0:  # below 0: stock of a store that did not count it when it came
            self.connection.execute(
                "DELETE FROM waiting_pair WHERE master_sae = ? AND slave_sae = ? AND chunks <= 0",
                (master_sae, slave_sae),
            )

    def mark(self) -> Mark:
        """Return what `back_to` needs."""
        return Mark(self.gathered.copy(), self.vault.mark())

    def back_to(self, mark: Mark) -> None:
        """Forget what changes gathered that the database has undone."""
        self.gathered = mark.gathered
        self.vault.back_to(mark.vault)

    def forget(self) -> None:
        """Forget what was gathered and held: the transaction has ended."""
        self.gathered = Gathered()
        self.records.clear()
        self.vault.forget()
