"""What the rest of the node may ask of a key store, whatever keeps it."""

from collections.abc import Collection, Sequence
from typing import Protocol
from uuid import UUID

from qnode.choices import BlockState
from qnode.keys._model import (
    AgeMark,
    Assignment,
    BlockRecord,
    BlockSummary,
    Condition,
    Counts,
    Handover,
    HashKeys,
    Key,
    Loss,
    Pad,
    PadId,
    PadsLeft,
    Positions,
    PreparedBlock,
    Release,
    StockItem,
    StoreStanding,
)
from qnode.units import CHUNK_BITS


class KeyStore(Protocol):
    """The durable store of one site.

    Every method is synchronous, may be called from any thread, and is one change: on return it is on disk
    (with those of other threads that came at the same time), after an exception nothing has changed. All may
    raise StoreUnusable after an I/O error (open the store anew), StoreError when the disk is full, and, if
    they change something, LinkDown while the peer's confirmation is awaited.
    """

    def close(self) -> None:
        """Close the store; closing twice is fine."""

    # Condition and restore

    def condition(self) -> Condition:
        """Tell whether the store serves or awaits `confirm_generation`, and why."""

    def positions(self) -> Positions:
        """Return how far this site has come; its generation goes to the peer's `note_peer`."""

    def view_of_peer(self) -> Positions:
        """Return what this site remembers of the peer, for the peer's `confirm_generation`."""

    def standing(self) -> StoreStanding:
        """Return what a hello says of this store: the peer's `note_peer` and `confirm_generation` take it."""

    def note_peer(self, generation: int, peer: StoreStanding | None = None) -> None:
        """Remember what the authenticated peer states of itself; what is lower than before is ignored."""

    def confirm_generation(self, peer_view: Positions, peer: StoreStanding | None = None) -> bool:
        """Compare with what the authenticated peer remembers (each hello), and serve from now on.

        When the peer remembers a later generation or era, every chunk is voided (True is returned). The later
        of both numbers and pad positions wins. A store without its anchor is confirmed only by a peer that
        says it does not wait (`peer`) and remembers this store, and gives up what the peer cannot have seen
        used: assigned keys, and pads under way. By another peer it is voided for good (True): look at
        `condition`. Allowed while waiting.
        """

    def void_all(self, reason: str) -> None:
        """Void every chunk and enter a new era, which makes the peer do the same. Allowed while waiting."""

    # Damage: a sealed unit that does not open is given up by whichever call meets it, which then goes on

    def new_losses(self) -> list[Loss]:
        """Return what was given up since the last time, for people."""

    def open_losses(self) -> list[Loss]:
        """Return what was given up here and not yet at the peer, for his `accept_loss` and `finish_loss`."""

    def accept_loss(self, loss: Loss) -> None:
        """Give up what the peer has lost, as far as it could still be handed out here; idempotent.

        What goes with it and the peer does not know becomes a loss of this site.
        """

    def finish_loss(self, loss_id: int) -> None:
        """Note that the peer has given a loss up; idempotent."""

    # Blocks

    @property
    def last_block_id(self) -> int:
        """The last block number used, 0 before the first."""

    def record_block_opened(self, block_id: int, epsilon: float) -> None:
        """Use up a block number, and add what the block's key may fail by to the sum of epsilons.

        Every block that is opened might be accepted, so each counts, whatever becomes of it.
        Raises StoreError unless the number is above all used before.
        """

    def prepare(self, block: PreparedBlock) -> None:
        """Store the final key of an opened block as prepared.

        Raises StoreError when it was prepared or voided before, was never opened, or its record names another
        number of chunks; FieldError when the key is too short for its layout.
        """

    def confirm(self, block_id: int) -> None:
        """Make a prepared block available, once the peer's word that it prepared it is verified; idempotent.

        Raises StoreError for an unknown or void block.
        """

    def void_block(self, block_id: int, reason: str) -> None:
        """Void a prepared block, or one opened and not prepared; idempotent.

        Raises StoreError for one that is available here or, by what the peer did with it, there.
        """

    def block_state(self, block_id: int) -> BlockState:
        """Return the state of a block; one long finished and forgotten counts as void."""

    def block_record(self, block_id: int) -> BlockRecord:
        """Return the record of a block that is prepared or available. Raises StoreError of any other."""

    def unconfirmed_blocks(self) -> list[int]:
        """Return the blocks left prepared, oldest first: at resume, both sites confirm or void them."""

    def recent_blocks(self, n: int) -> list[BlockSummary]:
        """Return the latest `n` blocks, newest first."""

    def fingerprint(self, block_id: int) -> bytes:
        """Return SHA-256 of a block's chunks, none of which may have been handed out.

        Two stores that agree on it hold the same keys. It says something of the key: keep it as secret.
        Raises StoreError when the block or a chunk of it is not here (any more).
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
        """Return assignments that the peer may not know: at resume, send again or void on both sides."""

    def begin_release(self, assignment_id: int) -> Release:
        """Serve nothing of an assignment any more; for the peer's `release_accepted`, then `finish_release`.

        So keys that were assigned and not delivered become free again at both sites. Idempotent.
        Raises StoreError if not open.
        """

    def begin_open_releases(self) -> list[Release]:
        """At resume, begin to release what the peer may not know; return it, and releases not finished."""

    def open_releases(self) -> list[Release]:
        """Return releases not finished, and of assignments that the peer may not know."""

    def leave_to_expire(self, assignment_id: int) -> None:
        """Note that the peer refused a release: what was left of stock may expire here, as it does there.

        Until he has answered it may not, for he may have freed it.
        """

    def finish_release(self, assignment_id: int) -> None:
        """Free what the peer has freed: this site may assign it again. Raises StoreError if not open."""

    def void_assignment(self, assignment_id: int) -> Assignment:
        """Void what was not taken of an assignment, unacknowledged or in release; for `void_accepted`.

        Raises StoreError for an acknowledged one, and one that is not open.
        """

    def deliver_to_master(self, assignment_id: int) -> list[Key]:
        """Hand out the keys of an assignment that the peer holds durably, once, and destroy them here.

        Raises StoreError when it is stock, or not open (any more).
        """

    def take_from_stock(
        self, master_sae: str, slave_sae: str, number: int, size_bits: int = CHUNK_BITS
    ) -> list[Key]:
        """Hand out keys set aside for this pair, oldest first, destroyed here. Raises NotEnoughKeys."""

    def stock_count(self, master_sae: str, slave_sae: str, size_bits: int = CHUNK_BITS) -> int:
        """Return how many keys `take_from_stock` could give now."""

    def stock_items(self) -> list[StockItem]:
        """Return what is left of the stock of keys of one chunk, oldest first."""

    # Keys whose slave SAEs are at this site

    def accept_assignment(
        self, assignment: Assignment, now: float, *, most_chunks: int | None = None
    ) -> None:
        """Hold the keys of a peer's assignment for their slaves; idempotent.

        `now` is this site's time, `most_chunks` the store's limit: what waits for one pair has a share of it.
        Raises ShareUsedUp beyond that, else StoreError unless all chunks are free, the peer's, and of
        prepared or available blocks: the peer then releases the assignment, or voids it.
        """

    def release_accepted(self, release: Release) -> None:
        """Free, for the peer to assign, what he takes back of an assignment of his; idempotent.

        Raises StoreError unless all of it still waits here or is free: the peer then voids it.
        """

    def void_accepted(self, assignment: Assignment) -> None:
        """Void at this site what the peer has voided, whether accepted here or not; idempotent."""

    def deliver_to_slave(self, slave_sae: str, master_sae: str, key_ids: Sequence[UUID]) -> list[Key]:
        """Hand out keys to one named slave, all or none, in the order asked; each slave gets each key once.

        The bytes are destroyed with the last named slave. Raises NotNamed when the caller is no slave of
        one of the keys, else KeyNotFound when one is unknown, used, expired or of another master (ETSI GS
        QKD 014).
        """

    # Expiry and ownership

    def expire(self, now: float, ttl_s: float) -> int:
        """Destroy acknowledged and accepted keys older than `ttl_s`; return how many.

        Bounded work: call again while it returns more than zero. Stock expires after `ttl_s` at the
        master's site but after twice that at the slave's, so that a key taken late is still there to fetch.
        Also forgets long finished blocks and clears the log of sealed traces; call it regularly.
        """

    def age_mark(self) -> AgeMark | None:
        """Return what `keep_age_mark` wrote last; None before the first."""

    def keep_age_mark(self, mark: AgeMark) -> None:
        """Write down where the clock is by which keys age. Allowed while waiting."""

    def tell_witness(self) -> None:
        """Write to the witness, if there is one, how far the store is; it may hang, so call it by itself.

        Raises StoreUnusable when this machine was set back while the store was open, OSError when the witness
        cannot be reached.
        """

    @property
    def uncleared(self) -> int:
        """How many times in a row sealed traces of destroyed keys could not be cleared from the log."""

    def give_away(self, number: int) -> Handover:
        """Release the newest `number` own chunks to the peer.

        Raises NotEnoughKeys (nothing released), StoreError while a hand-over is pending, FieldError.
        """

    def pending_handover(self) -> Handover | None:
        """Return the hand-over the peer has not confirmed: send it again in the next session."""

    def finish_handover(self, handover_id: int) -> None:
        """Note that the peer has taken a hand-over over; idempotent."""

    def take_over(self, handover: Handover) -> None:
        """Own the chunks that the peer gave away; a repetition changes nothing.

        Raises StoreError unless all are free here, or when it was voided: then both sites `void_handover`,
        this one first.
        """

    def void_handover(self, handover: Handover) -> None:
        """Void the chunks of a hand-over that its taker refused; idempotent."""

    # Counts

    def counts(self) -> Counts:
        """Return the chunks at this site by state."""

    def stored_key_count(self, size_bits: int = CHUNK_BITS) -> int:
        """Return how many keys of a size this site could assign now (besides any stock)."""

    # One-time authentication pool

    def load_preshared(self, data: bytes, *, replace: bool = False) -> None:
        """Load a pre-shared key: session root (32 bytes), r Alice to Bob (16), r Bob to Alice (16), pads.

        The first half of the pads is for Alice's messages. With `replace` the whole pool is wiped and
        every chunk voided first, and waiting for the peer ends: do the same at both sites.
        Raises StoreError when one is loaded already and not `replace`, and when this one was loaded at this
        site before, by whatever store; FieldError when it is too short.
        """

    def session_root(self) -> bytes:
        """Return the 32 bytes that session keys derive from. Raises PoolExhausted when none was loaded."""

    def hash_keys(self) -> HashKeys:
        """Return the hash keys r of both directions. Raises PoolExhausted when none were loaded."""

    def reserve_send_pad(self) -> Pad:
        """Take the next pad for a tag to be sent, never to be given again. Raises PoolExhausted."""

    def receive_pad(self, pad_id: PadId) -> bytes:
        """Return the pad to verify a received tag with, leaving it in place, also of a prepared block.

        Raises StoreError when it is used, skipped or unknown.
        """

    def confirm_receive_pad(self, pad_id: PadId) -> None:
        """Use up the pad of a verified tag and all before it, for the peer never goes back.

        Raises StoreError like `receive_pad`.
        """

    def pads_left(self) -> PadsLeft:
        """Return how many pads are left for sending and for receiving."""

    def pad_segments(self) -> list[int]:
        """Return the segments with pads left here, for the hello after a restore."""

    def keep_pad_segments(self, segments: Collection[int]) -> None:
        """Wipe all other segments: both sites keep those that both still hold. Allowed while waiting."""
