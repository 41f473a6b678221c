"""The interface of a key store, independent of its implementation."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import BinaryIO, Protocol
from uuid import UUID

from qnode.audit.entries import AuditPage
from qnode.choices import BlockState
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
    StoredBlock,
    StoredKey,
    StoreStanding,
)
from qnode.units import CHUNK_BITS


class KeyStore(Protocol):
    """The durable store of one site.

    Every method is synchronous, may be called from any thread, and is one change: on return it is on disk
    (together with concurrent changes of other threads); after an exception nothing has changed. All may
    raise StoreUnusable after an I/O error (open the store again), StoreError when the disk is full, and, if
    they change something, LinkDown while the peer's confirmation is awaited.
    """

    def close(self) -> None:
        """Close the store; closing twice is fine."""

    def together(self, calls: Iterable[Callable[[], object]]) -> list[Answer]:
        """Make calls of this store, one after the other, and return their answers once all are on disk.

        The changes of many calls cost one commit. Each call is a change of its own: one that fails takes no
        other with it.
        """
        ...

    # Condition and restore

    def condition(self) -> Condition:
        """Return whether the store serves or awaits `confirm_generation`, with the reason."""

    def positions(self) -> Positions:
        """Return the positions of this site; the generation goes to the peer's `note_peer`."""

    def view_of_peer(self) -> Positions:
        """Return this site's memory of the peer, for the peer's `confirm_generation`."""

    def standing(self) -> StoreStanding:
        """Return this store's statement for a hello: for `note_peer` and `confirm_generation` of the peer."""

    def note_peer(self, generation: int, peer: StoreStanding | None = None) -> None:
        """Record the authenticated peer's statement about itself; lower values than before are ignored."""

    def confirm_generation(self, peer_view: Positions, peer: StoreStanding | None = None) -> bool:
        """Compare with the authenticated peer's memory (each hello), and serve from now on.

        When the peer remembers a later generation or era, every chunk is voided (True is returned). The later
        of both numbers and pad positions wins. A store without its anchor is confirmed only by a peer that
        does not wait itself (`peer`) and remembers this store. It then discards entries whose use the peer
        cannot have seen: assigned keys, and pads in transit. With another peer it is voided for good (True):
        see `condition`. Allowed while waiting.
        """

    def void_all(self, reason: str) -> None:
        """Void every chunk and enter a new era, which makes the peer do the same. Allowed while waiting."""

    # Damage: a call that finds a unit that cannot be decrypted discards the unit, and then continues

    def new_losses(self) -> list[Loss]:
        """Return the losses since the last call, for people."""

    def open_losses(self) -> list[Loss]:
        """Return the losses that the peer has not processed yet, for its `accept_loss`."""

    def accept_loss(self, loss: Loss) -> None:
        """Discard what the peer has lost, as far as it could still be delivered here; idempotent.

        Further chunks that are discarded with it become a loss of this site.
        """

    def finish_loss(self, loss_id: int) -> None:
        """Note that the peer has processed a loss; idempotent."""

    # Blocks

    @property
    def last_block_id(self) -> int:
        """The last block number used, 0 before the first."""

    def record_block_opened(self, block_id: int, epsilon: float) -> None:
        """Use up a block number, and add the failure probability of the block's key to the sum of epsilons.

        Every opened block might be accepted, so each counts, whatever its outcome.
        Raises StoreError unless the number is larger than all used before, within `MOST_SKIPPED`.
        """

    def prepare(self, block: PreparedBlock) -> None:
        """Store the final key of an opened block as prepared.

        Raises StoreError if it was prepared or voided before, was never opened, or its record has another
        number of chunks; FieldError if the key is too short for its layout.
        """

    def confirm(self, block_id: int) -> None:
        """Make a prepared block available, after the peer's statement is verified; idempotent.

        Raises StoreError for an unknown or void block.
        """

    def void_block(self, block_id: int, reason: str) -> None:
        """Void a prepared block, or one opened and not prepared; idempotent.

        Raises StoreError for one that is available here, or known to be available at the peer.
        """

    def block_state(self, block_id: int) -> BlockState:
        """Return the state of a block; a forgotten block counts as void."""

    def block_record(self, block_id: int) -> BlockRecord:
        """Return the record of a block that is prepared or available. Raises StoreError for any other."""

    def unconfirmed_blocks(self) -> list[int]:
        """Return the blocks left prepared, oldest first: at resume, both sites confirm or void them."""

    def recent_blocks(self, n: int) -> list[StoredBlock]:
        """Return the latest `n` blocks, newest first."""

    def fingerprint(self, block_id: int) -> bytes:
        """Return SHA-256 of a block's chunks, none of which may have been delivered.

        Two stores with the same value have the same keys. It depends on the key: keep it secret.
        Raises StoreError if the block or a chunk of it is missing.
        """

    # Keys whose master SAE is at this site

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
        """Assign `number` keys of `size_bits` from the oldest own chunks; unacknowledged at first.

        A key's chunks are neighbours within a block. `stock` sets keys aside for one slave, for
        `take_from_stock`. `now` is this site's time in seconds, for expiry.
        Raises NotEnoughKeys (nothing taken), FieldError.
        """

    def acknowledge(self, assignment_id: int) -> None:
        """Note that the peer holds an assignment durably; idempotent. Raises StoreError if not open."""

    def unacknowledged_assignments(self) -> list[Assignment]:
        """Return assignments that the peer may not know: at resume, repeat or void them on both sides."""

    def begin_release(self, assignment_id: int) -> Release:
        """End the delivery of an assignment; for the peer's `release_accepted`, then `finish_release`.

        Undelivered keys thus become free again at both sites. Idempotent.
        Raises StoreError if not open.
        """

    def begin_open_releases(self) -> list[Release]:
        """At resume, begin to release assignments that the peer may not know; return all open releases."""

    def open_releases(self) -> list[Release]:
        """Return the open releases, and those of assignments that the peer may not know."""

    def leave_to_expire(self, assignment_id: int) -> None:
        """Note that the peer refused a release: the rest of stock may expire here, as it does there.

        Before the answer it may not, because the peer may have freed it.
        """

    def finish_release(self, assignment_id: int) -> None:
        """Free an assignment that the peer has freed, for new use. Raises StoreError if not open."""

    def void_assignment(self, assignment_id: int) -> Assignment:
        """Void the untaken keys of an assignment, unacknowledged or in release; for `void_accepted`.

        Raises StoreError for an acknowledged one, and one that is not open.
        """

    def deliver_to_master(self, assignment_id: int) -> list[StoredKey]:
        """Deliver the keys of an assignment that the peer holds durably, once, and destroy them here.

        Raises StoreError if it is stock, or not open.
        """

    def take_from_stock(
        self, master_sae: str, slave_sae: str, number: int, size_bits: int = CHUNK_BITS
    ) -> list[StoredKey]:
        """Deliver keys from the stock of this pair, oldest first, and destroy them. Raises NotEnoughKeys."""

    def stock_count(self, master_sae: str, slave_sae: str, size_bits: int = CHUNK_BITS) -> int:
        """Return the number of keys that `take_from_stock` could deliver now."""

    def stock_items(self) -> list[StockItem]:
        """Return the rest of the stock of keys of one chunk, oldest first."""

    # Keys whose slave SAEs are at this site

    def accept_assignment(
        self, assignment: Assignment, now: float, *, most_chunks: int | None = None
    ) -> None:
        """Keep the keys of a peer's assignment for their slaves; idempotent.

        `now` is this site's time, `most_chunks` the store's limit, of which each pair has a share.
        Raises ShareUsedUp beyond the share, else StoreError unless all chunks are free, the peer's, and of
        prepared or available blocks: the peer then releases the assignment, or voids it.
        """

    def release_accepted(self, release: Release) -> None:
        """Free the keys of an assignment that the peer releases; idempotent.

        Raises StoreError unless all of them still wait here or are free: the peer then voids them.
        """

    def void_accepted(self, assignment: Assignment) -> None:
        """Void an assignment that the peer has voided, whether accepted here or not; idempotent."""

    def deliver_to_slave(self, slave_sae: str, master_sae: str, key_ids: Sequence[UUID]) -> list[StoredKey]:
        """Deliver keys to one named slave, all or none, in the requested order, each key once.

        The bytes are destroyed after the last named slave. Raises NotNamed if the caller is not a slave of
        one of the keys, else KeyNotFound if one is unknown, used, expired or of another master (ETSI GS
        QKD 014).
        """

    # Expiry and ownership

    def expire(self, now: float, ttl_s: float) -> int:
        """Destroy acknowledged and accepted keys older than `ttl_s`; return their number.

        The work is limited: call again while the result is above zero. Stock expires after `ttl_s` at the
        master's site, but after twice that at the slave's site, so that a late key can still be fetched
        there. This also forgets finished blocks and clears the log of encrypted traces; call it regularly.
        """

    def age_mark(self) -> AgeMark | None:
        """Return the last mark of `keep_age_mark`; None before the first."""

    def keep_age_mark(self, mark: AgeMark) -> None:
        """Record the state of the clock for the age of keys. Allowed while waiting."""

    def tell_witness(self) -> None:
        """Write the progress of the store to the witness, if there is one; it may hang.

        Raises StoreUnusable if this machine was set back while the store was open, OSError if the witness is
        not reachable.
        """

    @property
    def uncleared(self) -> int:
        """How many times in a row the log could not be cleared of destroyed keys."""

    def tend_front_ends(self, key_lifetime_s: float) -> FrontEnds:
        """Admit front ends, tell them that the node is there, and return what is asked of them."""

    def spend(self, sae_id: str, number: int, keys_per_minute: int) -> None:
        """Count keys for the limit of a master, with what front ends give it; a negative number gives back.

        Raises SaeLimitReached (nothing counted). Only for a store on a server.
        """

    def give_away(self, number: int) -> Handover:
        """Give the newest `number` own chunks to the peer.

        Raises NotEnoughKeys (nothing given), StoreError while a hand-over is pending, FieldError.
        """

    def pending_handover(self) -> Handover | None:
        """Return the hand-over that the peer has not confirmed: repeat it in the next session."""

    def finish_handover(self, handover_id: int) -> None:
        """Note that the peer has taken a hand-over; idempotent."""

    def take_over(self, handover: Handover) -> None:
        """Take over the chunks that the peer gave; idempotent.

        Raises StoreError unless all are free here, or if it was voided: then both sites `void_handover`,
        this one first.
        """

    def void_handover(self, handover: Handover) -> None:
        """Void the chunks of a hand-over that its taker refused; idempotent."""

    # Counts

    def counts(self) -> Counts:
        """Return the chunks at this site by state."""

    def stored_key_count(self, size_bits: int = CHUNK_BITS) -> int:
        """Return how many keys of a size this site could assign now (without any stock)."""

    # One-time authentication pool

    # The audit (`qnode.audit`); deliveries are recorded by their own calls, in the same transaction

    def record_changes(self, *changes: tuple[str, str, str]) -> None:
        """Record in the audit what an operator changed (what, its subject, how); nothing of it is secret."""
        ...

    def audit_standing(self) -> AuditStanding:
        """Return the extent of the audit."""
        ...

    def audit_page(self, chain: int, after: int, most_bytes: int) -> AuditPage:
        """Return about `most_bytes` of the entries of a chain after a number."""
        ...

    def save_backup(self, files: Mapping[str, bytes], software: str) -> BinaryIO:
        """Return a backup as an open file without a name: all but the keys (`qnode.keys._backup`)."""

    def prune_audit(self, before_s: float) -> int:
        """Delete some entries from before a time (Unix seconds); return how many, 0 at the end."""
        ...

    def load_preshared(self, data: bytes, *, replace: bool = False) -> None:
        """Load a pre-shared key: session root (32 bytes), r Alice to Bob (16), r Bob to Alice (16), pads.

        The first half of the pads is for Alice's messages. With `replace` the whole pool is wiped and
        every chunk voided first, and waiting for the peer ends: do the same at both sites.
        Raises StoreError if one is already loaded and not `replace`, and if this one was loaded at this site
        before, by any store; FieldError if it is too short.
        """

    def session_root(self) -> bytes:
        """Return the 32 bytes that session keys derive from. Raises PoolExhausted if none was loaded."""

    def hash_keys(self) -> HashKeys:
        """Return the hash keys r of both directions. Raises PoolExhausted if none were loaded."""

    def reserve_send_pad(self) -> Pad:
        """Take the next pad for a tag to be sent, which is never returned again. Raises PoolExhausted."""

    def receive_pad(self, pad_id: PadId) -> bytes:
        """Return the pad for the verification of a received tag without using it; also of a prepared block.

        Raises StoreError if it is used, skipped or unknown.
        """

    def confirm_receive_pad(self, pad_id: PadId) -> None:
        """Use up the pad of a verified tag and all before it, because the peer never goes back.

        Raises StoreError like `receive_pad`.
        """

    def pads_left(self) -> PadsLeft:
        """Return the numbers of pads left for sending and for receiving."""

    def pad_segments(self) -> list[int]:
        """Return the segments with pads left here, for the hello after a restore."""

    def keep_pad_segments(self, segments: Collection[int]) -> None:
        """Wipe all other segments: both sites keep those that both still hold. Allowed while waiting."""
