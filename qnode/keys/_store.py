"""The key store of one site in a database: every method is one change, durable when it returns.

A restored database is always detected, at whatever point a crash comes. A transaction that consumes or
decides something (a delivery, a pad, a block's number or state, a change of owner, an expiry) raises the
*generation* in the database. The order is: commit (write-ahead log, fsync) - advance the anchor (fdatasync) -
return to the caller. So:

- crash before the commit: nothing happened; database and anchor agree.
- crash between commit and anchor: the database is *ahead* of the anchor, which is fine: the anchor catches up
  at the next start. Delivered keys are removed from the store, but no caller has seen them. A backup from
  before that transaction then counts as current, rightly: the transaction was never visible outside.
- crash after the anchor: any backup from before has a smaller generation than the anchor. It is voided,
  and numbers and pads continue after those of the anchor.

One flush of the anchor per transaction, so per batch of keys and for all concurrent calls, is the minimum
that distinguishes a backup made just before a delivery from the database after it. `assign`, `acknowledge`,
`accept_assignment` and the voiding of assignments do not change the generation: if a restore loses
them and nothing was consumed since, no key is delivered twice, because the peer refuses chunks that it has
seen in use. Only the acceptance of stock does, because the peer delivers it for long without asking again.

The anchor cannot detect a virtual machine that was set back together with its disk. The peer can: it
remembers the generation and the pads (`note_peer`, `view_of_peer`), and `confirm_generation` compares.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self
from uuid import UUID

import msgspec

from qnode.audit import ledger
from qnode.audit.entries import AuditPage, OperatorChanged, Row
from qnode.audit.operator import by_operator
from qnode.choices import BlockState, Role
from qnode.errors import FieldError, PoolExhausted, StoreError, StoreUnusable
from qnode.keys import (
    _accepted,
    _assigned,
    _backup,
    _blocks,
    _damage,
    _handover,
    _opening,
    _pool,
    _ranges,
    _restore,
)
from qnode.keys._damage import mending
from qnode.keys._database import Database, read_lineage, read_positions
from qnode.keys._layout import cut_preshared
from qnode.keys._model import (
    AgeMark,
    Answer,
    Assignment,
    AuditStanding,
    BlockRecord,
    Condition,
    Counts,
    FrontEnds,
    Handover,
    HashKeys,
    Loss,
    Pad,
    PadId,
    PadsLeft,
    Positions,
    PreparedBlock,
    Release,
    StockItem,
    StoreCondition,
    StoredBlock,
    StoredKey,
    StoreStanding,
    Waiting,
    chunks_per_key,
)
from qnode.keys._preshared import HEAD_BYTES, PresharedRegister, preshared_fingerprint
from qnode.keys._protocol import KeyStore
from qnode.units import CHUNK_BITS

# The largest number of assignments that one call of expire() destroys, so that it is never slow.
_EXPIRED_AT_ONCE = 16


class SqlKeyStore(KeyStore):
    """`qnode.keys.KeyStore` documents the methods. ``beside``: the file in whose folder backups are made."""

    def __init__(self, database: Database | None, register: PresharedRegister, beside: Path) -> None:
        self._opened = database
        self._register = register
        self._beside = beside
        if database is None:  # on a server that is away
            return
        with suppress(PoolExhausted), database.look() as tx:
            # By an earlier version, or by an interrupted start; without a head there is no pool.
            register.finish(preshared_fingerprint(_pool.head(tx)))

    @property
    def _database(self) -> Database:
        assert self._opened is not None
        return self._opened

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'away' if self._opened is None else self._opened.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def together(self, calls: Iterable[Callable[[], object]]) -> list[Answer]:
        try:
            database = self._database
        except StoreError:  # each call finds the same, or an open store
            return [Answer.of(call) for call in calls]
        return database.together(calls)

    # Condition and restore

    def condition(self) -> Condition:
        with self._database.look() as tx:
            waits = _restore.waiting(tx)
            (reason,) = tx.connection.execute("SELECT awaiting_peer FROM site").fetchone()
        if waits == Waiting.NO:
            return Condition(StoreCondition.SERVING)
        if waits == Waiting.RESTORE:
            return Condition(StoreCondition.NEEDS_RESTORE, reason)
        return Condition(StoreCondition.NEEDS_PEER_CONFIRMATION, reason)

    def standing(self) -> StoreStanding:
        with self._database.look() as tx:
            return StoreStanding(
                waits=_restore.waiting(tx),
                positions=read_positions(tx.connection),
                audit=ledger.head(tx.connection),
            )

    def positions(self) -> Positions:
        with self._database.look() as tx:
            return read_positions(tx.connection)

    def view_of_peer(self) -> Positions:
        with self._database.look() as tx:
            return _restore.view_of_peer(tx)

    def note_peer(self, generation: int, peer: StoreStanding | None = None) -> None:
        with self._database.change(anchored=False, while_waiting=True) as tx:
            _restore.note_peer(tx, generation, peer)

    @mending
    def confirm_generation(self, peer_view: Positions, peer: StoreStanding | None = None) -> bool:
        with self._database.change(anchored=True, while_waiting=True) as tx:
            return _restore.confirm_with_peer(tx, peer_view, peer)

    def void_all(self, reason: str) -> None:
        with self._database.change(anchored=True, while_waiting=True) as tx:
            _restore.void_all(tx, reason, read_positions(tx.connection).era + 1)

    # Damage

    def new_losses(self) -> list[Loss]:
        found = [] if self._opened is None else self._opened.new_losses
        return [found.pop(0) for _ in range(len(found))]

    def open_losses(self) -> list[Loss]:
        with self._database.look() as tx:
            return _damage.open_losses(tx)

    @mending
    def accept_loss(self, loss: Loss) -> None:
        with self._database.change(anchored=True) as tx:
            further = _damage.accept(tx, loss)
        if further is not None:
            self._database.new_losses.append(further)

    def finish_loss(self, loss_id: int) -> None:
        with self._database.change(anchored=False) as tx:
            _damage.finish(tx, loss_id)

    # Blocks

    @property
    def last_block_id(self) -> int:
        return self.positions().last_block_id

    def record_block_opened(self, block_id: int, epsilon: float) -> None:
        with self._database.change(anchored=True) as tx:
            _blocks.open_block(tx, block_id, epsilon)

    def prepare(self, block: PreparedBlock) -> None:
        with self._database.change(anchored=True) as tx:
            _blocks.prepare(tx, block)

    def confirm(self, block_id: int) -> None:
        with self._database.change(anchored=True) as tx:
            _blocks.confirm(tx, block_id)

    def void_block(self, block_id: int, reason: str) -> None:
        with self._database.change(anchored=True) as tx:
            _blocks.void(tx, block_id, reason)

    def block_state(self, block_id: int) -> BlockState:
        with self._database.look() as tx:
            return _blocks.state_of(tx, block_id)

    def block_record(self, block_id: int) -> BlockRecord:
        with self._database.look() as tx:
            if _blocks.state_of(tx, block_id) not in (BlockState.PREPARED, BlockState.AVAILABLE):
                raise StoreError(f"block {block_id} is not here: it has no record")
            return _blocks.record_of(tx, block_id)

    def unconfirmed_blocks(self) -> list[int]:
        with self._database.look() as tx:
            return _blocks.unconfirmed(tx)

    def recent_blocks(self, n: int) -> list[StoredBlock]:
        with self._database.look() as tx:
            return _blocks.recent(tx, n)

    @mending
    def fingerprint(self, block_id: int) -> bytes:
        with self._database.look() as tx:
            return _blocks.fingerprint(tx, block_id)

    # Keys of masters here

    def assign(
        self,
        master_sae: str,
        slave_saes: Sequence[str],
        number: int,
        size_bits: int,
        now: float,
        *,
        stock: bool = False,
    ) -> Assignment:
        with self._database.change(anchored=False, gathers=True) as tx:
            return _assigned.assign(tx, master_sae, tuple(slave_saes), number, size_bits, now, stock=stock)

    def acknowledge(self, assignment_id: int) -> None:
        with self._database.change(anchored=False, gathers=True) as tx:
            _assigned.acknowledge(tx, assignment_id)

    def unacknowledged_assignments(self) -> list[Assignment]:
        with self._database.look() as tx:
            return _assigned.unacknowledged(tx)

    def begin_release(self, assignment_id: int) -> Release:
        with self._database.change(anchored=True) as tx:
            return _assigned.begin_release(tx, assignment_id)

    def begin_open_releases(self) -> list[Release]:
        with self._database.change(anchored=True) as tx:
            return _assigned.begin_open_releases(tx)

    def leave_to_expire(self, assignment_id: int) -> None:
        with self._database.change(anchored=False) as tx:
            _assigned.leave_to_expire(tx, assignment_id)

    def open_releases(self) -> list[Release]:
        with self._database.look() as tx:
            return _assigned.open_releases(tx)

    def finish_release(self, assignment_id: int) -> None:
        with self._database.change(anchored=True) as tx:
            _assigned.finish_release(tx, assignment_id)

    @mending
    def void_assignment(self, assignment_id: int) -> Assignment:
        with self._database.change(anchored=False) as tx:
            return _assigned.void(tx, assignment_id)

    @mending
    def deliver_to_master(self, assignment_id: int) -> list[StoredKey]:
        with self._database.change(anchored=True, gathers=True) as tx:
            return _assigned.deliver(tx, assignment_id)

    @mending
    def take_from_stock(
        self, master_sae: str, slave_sae: str, number: int, size_bits: int = CHUNK_BITS
    ) -> list[StoredKey]:
        with self._database.change(anchored=True, gathers=True) as tx:
            return _assigned.take_from_stock(tx, master_sae, slave_sae, number, size_bits)

    def stock_count(self, master_sae: str, slave_sae: str, size_bits: int = CHUNK_BITS) -> int:
        with self._database.look() as tx:
            return _assigned.stock_count(tx, master_sae, slave_sae, size_bits)

    def stock_items(self) -> list[StockItem]:
        with self._database.look() as tx:
            return _assigned.stock_items(tx)

    # Keys of slaves here

    @mending
    def accept_assignment(
        self, assignment: Assignment, now: float, *, most_chunks: int | None = None
    ) -> None:
        # A store that forgot what it accepted would keep the chunks free for ever: its peer has them no more.
        with self._database.change(anchored=True, gathers=True) as tx:
            _accepted.accept(tx, assignment, now, most_chunks)

    @mending
    def release_accepted(self, release: Release) -> None:
        with self._database.change(anchored=True) as tx:
            _accepted.release(tx, release)

    @mending
    def void_accepted(self, assignment: Assignment) -> None:
        with self._database.change(anchored=False) as tx:
            _accepted.void(tx, assignment)

    @mending
    def deliver_to_slave(self, slave_sae: str, master_sae: str, key_ids: Sequence[UUID]) -> list[StoredKey]:
        names = [key_id.bytes for key_id in key_ids]
        database = self._database  # one that is opened anew meanwhile knows other positions
        while database.issued.may_lack(names):
            with database.look() as tx:
                _accepted.name_more(tx)
        with database.change(anchored=True, gathers=True) as tx:
            return _accepted.deliver(tx, slave_sae, master_sae, key_ids)

    # Expiry and ownership

    @mending
    def expire(self, now: float, ttl_s: float) -> int:
        before = now - ttl_s
        with self._database.change(anchored=True) as tx:
            n_keys = _assigned.expire(tx, before, _EXPIRED_AT_ONCE)
            n_keys += _accepted.expire(tx, before, before - ttl_s, _EXPIRED_AT_ONCE)
            tx.write_down()
            _blocks.forget_finished(tx)
        self._database.tidy()
        return n_keys

    def age_mark(self) -> AgeMark | None:
        with self._database.look() as tx:
            (content,) = tx.connection.execute("SELECT age_mark FROM site").fetchone()
        return msgspec.msgpack.decode(content, type=AgeMark) if content else None

    def keep_age_mark(self, mark: AgeMark) -> None:
        with self._database.change(anchored=False, while_waiting=True) as tx:
            tx.connection.execute("UPDATE site SET age_mark = ?", (msgspec.msgpack.encode(mark),))

    def tell_witness(self) -> None:
        if self._database.witness is None:
            return
        with self._database.look() as tx:
            own, lineage = read_positions(tx.connection), read_lineage(tx.connection)
            audit = ledger.head(tx.connection)
        self._database.witness.follow(own, lineage, audit)

    @property
    def uncleared(self) -> int:
        return 0 if self._opened is None else self._opened.untidied

    def tend_front_ends(self, key_lifetime_s: float) -> FrontEnds:
        return FrontEnds()

    def spend(self, sae_id: str, number: int, keys_per_minute: int) -> None:
        raise StoreError(f"{self._database.name}: limits are counted in memory")

    def give_away(self, number: int) -> Handover:
        with self._database.change(anchored=True) as tx:
            return _handover.give(tx, number)

    def pending_handover(self) -> Handover | None:
        with self._database.look() as tx:
            return _handover.pending(tx)

    def finish_handover(self, handover_id: int) -> None:
        with self._database.change(anchored=False) as tx:
            _handover.finish(tx, handover_id)

    def take_over(self, handover: Handover) -> None:
        with self._database.change(anchored=True) as tx:
            _handover.take(tx, handover)

    @mending
    def void_handover(self, handover: Handover) -> None:
        with self._database.change(anchored=True) as tx:
            _handover.void(tx, handover)

    # Counts

    def counts(self) -> Counts:
        with self._database.look() as tx:
            delivered, void, expired, own, stock, peer = tx.one(
                "SELECT delivered, void, expired, own_chunks, stock_chunks, peer_chunks FROM site"
            )
            free = _ranges.n_free(tx)
            return Counts(
                available_own=free[tx.role, "available"],
                available_peer=free[tx.peer, "available"],
                prepared=free[tx.role, "prepared"] + free[tx.peer, "prepared"],
                assigned=own + peer,
                stock=stock,
                delivered=delivered,
                void=void,
                expired=expired,
            )

    def stored_key_count(self, size_bits: int = CHUNK_BITS) -> int:
        with self._database.look() as tx:
            return _ranges.n_keys_free(tx, chunks_per_key(size_bits))

    # The audit

    def record_changes(self, *changes: tuple[str, str, str]) -> None:
        # A store that waits for the peer keeps its generation: the peer compares it.
        with self._database.change(anchored=self.condition().serves, while_waiting=True) as tx:
            for change in changes:
                ledger.append(tx.connection, OperatorChanged, *by_operator(change))

    def audit_standing(self) -> AuditStanding:
        with self._database.look() as tx:
            chains = ledger.chains(tx.connection)
        return AuditStanding(
            chains=len(chains),
            entries_total=chains[-1].last_number,
            entries_kept=sum(one.last_number - one.pruned_number for one in chains),
            head=chains[-1].head,
            damage=self._database.audit_damage,
        )

    def audit_page(self, chain: int, after: int, most_bytes: int) -> AuditPage:
        rows: list[Row] = []
        n_bytes = 0
        with self._database.look() as tx:
            for row in ledger.rows(tx.connection, chain, after):
                rows.append(row)
                n_bytes += len(row.content)
                if n_bytes >= most_bytes:
                    break
            chains = ledger.chains(tx.connection)
            anchor = self._database.anchor
        return AuditPage(chains=chains, rows=rows, anchored=None if anchor is None else anchor.audit)

    def save_backup(self, files: Mapping[str, bytes], software: str) -> BinaryIO:
        return _backup.save_backup(self._database, self._beside, self._register.content(), files, software)

    def prune_audit(self, before_s: float) -> int:
        with self._database.look() as tx:
            if not ledger.is_old(tx.connection, round(before_s * 1e6)):
                return 0
        with self._database.change(anchored=True) as tx:
            return ledger.prune(tx.connection, round(before_s * 1e6))

    # One-time authentication pool

    def load_preshared(self, data: bytes, *, replace: bool = False) -> None:
        parts = cut_preshared(data)
        key = preshared_fingerprint(data[:HEAD_BYTES])
        with self._database.look() as tx:
            if _pool.has_preshared(tx) and not replace:
                raise StoreError("a pre-shared key is loaded already; replacing it voids every key")
        self._register.begin(key)
        with self._database.change(anchored=True, while_waiting=True) as tx:
            if _pool.has_preshared(tx):
                change = ("restore", "store", "a new pre-shared key")
                ledger.append(tx.connection, OperatorChanged, *by_operator(change))
                _restore.void_all(tx, "new pre-shared key", read_positions(tx.connection).era + 1)
                _restore.begin_lineage(tx)
            _pool.replace_preshared(tx, parts)
            _restore.wait(tx, Waiting.NO, "")
        self._register.finish(key)

    def session_root(self) -> bytes:
        with self._database.look() as tx:
            return _pool.session_root(tx)

    def hash_keys(self) -> HashKeys:
        with self._database.look() as tx:
            return _pool.hash_keys(tx)

    @mending
    def reserve_send_pad(self) -> Pad:
        with self._database.change(anchored=True) as tx:
            return _pool.reserve_send(tx)

    @mending
    def receive_pad(self, pad_id: PadId) -> bytes:
        with self._database.look() as tx:
            return _pool.peek_receive(tx, pad_id)

    @mending
    def confirm_receive_pad(self, pad_id: PadId) -> None:
        with self._database.change(anchored=True) as tx:
            _pool.confirm_receive(tx, pad_id)
            _blocks.mark_peer_confirmed(tx, pad_id.segment)

    def pads_left(self) -> PadsLeft:
        with self._database.look() as tx:
            return _pool.left(tx)

    def pad_segments(self) -> list[int]:
        with self._database.look() as tx:
            return _pool.segments(tx)

    def keep_pad_segments(self, segments: Collection[int]) -> None:
        with self._database.change(anchored=True, while_waiting=True) as tx:
            _pool.keep_only(tx, segments)


class SqliteKeyStore(SqlKeyStore):
    """The store in a file of SQLite."""


def open_store(
    path: Path,
    *,
    role: Role,
    store_key: bytes,
    anchor: Path,
    kme_id: str,
    peer_kme_id: str,
    create: bool = False,
    witness: Path | None = None,
) -> SqliteKeyStore:
    """Open the store at `path`, or create it if there is none and `create` is set.

    `store_key` is 32 secret bytes, `anchor` a file outside the database's folder. An existing store is
    never replaced. After opening check `KeyStore.condition`: a store that seems restored waits until the
    peer has confirmed it. `witness` is a file on another machine, which `KeyStore.tell_witness` updates.

    Raises StoreUnusable with the error and the remedy; FieldError for a store key of another length.
    """
    if len(store_key) != 32:
        raise FieldError("store_key", f"must be 32 bytes, is {len(store_key)}")
    _opening.check_place_of_anchor(path, anchor)
    is_new = not path.exists()
    if is_new:
        _refuse_to_start_empty(path, anchor, create=create)
    try:
        if is_new:
            _opening.create_database(
                path, role=role, store_key=store_key, kme_id=kme_id, peer_kme_id=peer_kme_id
            )
        database = _opening.open_database(
            path,
            role=role,
            store_key=store_key,
            anchor_path=anchor,
            kme_id=kme_id,
            peer_kme_id=peer_kme_id,
            witness_path=witness,
        )
    except OSError as error:
        raise StoreUnusable(f"{path}: {error}; mend permissions or disk and start again") from error
    try:
        return SqliteKeyStore(database, PresharedRegister(register_beside(anchor)), path)
    except BaseException:
        database.close()
        raise


def register_beside(anchor: Path) -> Path:
    """Return the file of the register of pre-shared keys that belongs to an anchor."""
    return anchor.with_name(anchor.name + ".preshared")


def _refuse_to_start_empty(path: Path, anchor: Path, *, create: bool) -> None:
    if anchor.exists():
        raise StoreUnusable(
            f"{path}: the database is gone, but its anchor {anchor} remembers it; restore the database, or "
            "remove the anchor to begin again with a new pre-shared key at both sites"
        )
    log = path.with_name(path.name + "-wal")
    if log.exists():
        raise StoreUnusable(f"{path}: the database is gone, but its log {log} is there; restore the database")
    if not create:
        raise StoreUnusable(f"{path}: there is no key store; create one, or correct the path")
