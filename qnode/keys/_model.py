"""The values in the interface of the key store: blocks, keys, assignments, pads, counts.

Structs that are sent to the peer (`Assignment`, `Handover`, `Positions`) have no key bytes. Those with key
 bytes (`PreparedBlock`, `StoredKey`) leave them out of their `repr`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta, Struct

from qnode.audit.entries import Head
from qnode.choices import BlockState, Role
from qnode.errors import FieldError
from qnode.units import CHUNK_BITS, CHUNK_BYTES

# Limits numbers from the peer to well within SQLite's integers, even after the addition of two.
Number = Annotated[int, Meta(ge=0, le=2**48)]
NumberOrNone = Annotated[int, Meta(ge=-1, le=2**48)]
# The largest step of a number that counts up, if the peer states it. A number near the end of its range would
# leave none for later, even after the peer is repaired.
MOST_SKIPPED = 2**32
# The largest number that a peer may remember of this site. The peer could not read larger ones.
MOST_REMEMBERED = 2**47

BLOCK_SECRET_BYTES = 32
PAD_BYTES = 16


class BlockRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The claims and assumptions about the keys of a block; the record goes with each key.

    ``assumptions`` are texts for people. ``recorded``: tags or symbols of the block were recorded; the
    recording discloses its keys.
    """

    estimator: str
    eps_sec: float
    eps_cor: float
    x_mode: str
    assumptions: tuple[str, ...]
    recorded: bool = False
    simulated: bool
    n_chunks: int
    secret_bits: int
    created_at: float


class KeyLayout(Struct, frozen=True, kw_only=True):
    """The division of the final key of a block; both sites must use the same layout for a block.

    The key is, in order: the block secret (32 bytes), `pads_per_direction` refill pads (16 bytes each)
    from Alice to Bob, as many from Bob to Alice, then chunks of 32 bytes; the remainder is dropped. Alice's
    site alone assigns the first ``round(direction_share_alice * n_chunks)`` chunks, Bob's the others.
    """

    pads_per_direction: int = 8
    direction_share_alice: float = 0.5

    def __post_init__(self) -> None:
        if self.pads_per_direction < 0:
            raise FieldError("pads_per_direction", f"must not be negative, is {self.pads_per_direction}")
        if not 0.0 <= self.direction_share_alice <= 1.0:
            raise FieldError("direction_share_alice", f"must be 0 to 1, is {self.direction_share_alice}")

    @property
    def overhead_bytes(self) -> int:
        """Bytes of a block's key that become block secret and pads instead of chunks."""
        return BLOCK_SECRET_BYTES + 2 * self.pads_per_direction * PAD_BYTES

    def n_chunks(self, key_bytes: int) -> int:
        """Return the number of chunks in a final key of `key_bytes` bytes."""
        return max(0, key_bytes - self.overhead_bytes) // CHUNK_BYTES

    def n_chunks_alice(self, n_chunks: int) -> int:
        """Return how many of `n_chunks` chunks only Alice's site may assign."""
        return round(self.direction_share_alice * n_chunks)


@dataclass(frozen=True)
class PreparedBlock:
    """The final key of a block, identical at both sites, on its way into the store."""

    block_id: int
    key: bytes = field(repr=False)
    record: BlockRecord
    layout: KeyLayout


class KeyRange(Struct, frozen=True, array_like=True, order=True):
    """`count` chunks of a block, from position `first` on."""

    block_id: Number
    first: Number
    count: Number


def chunks_per_key(size_bits: int) -> int:
    """Return how many chunks a key of `size_bits` uses.

    Raises FieldError unless the size is a positive multiple of 8.
    """
    if size_bits <= 0 or size_bits % 8:
        raise FieldError("size_bits", f"must be a positive multiple of 8, is {size_bits}")
    return -(-size_bits // CHUNK_BITS)


class Assignment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The chunks that become keys for certain SAEs. It has no key bytes, and is sent to the peer unchanged.

    `owner` is the site that assigns (the master's), `assignment_id` counts up per owner. The keys are
    consecutive in `ranges`, each within one of them.
    """

    assignment_id: Number
    owner: Role
    master_sae: str
    slave_saes: tuple[str, ...]
    size_bits: Number
    ranges: tuple[KeyRange, ...]
    stock: bool = False

    @property
    def n_keys(self) -> int:
        """The number of keys."""
        return sum(item.count for item in self.ranges) // chunks_per_key(self.size_bits)


class Release(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The undelivered keys of an assignment that its owner releases: all from key `n_taken` on."""

    assignment: Assignment
    n_taken: Number = 0


class StockItem(Struct, frozen=True, kw_only=True):
    """The rest of keys that were assigned in advance for a pair."""

    assignment_id: int
    master_sae: str
    slave_sae: str
    n_keys: int
    assigned_at: float


class Handover(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Chunks whose ownership `giver` gives to its peer."""

    handover_id: Number
    giver: Role
    ranges: tuple[KeyRange, ...]


class StoredKey(Struct, frozen=True, eq=False, gc=False):
    """One key on its way to an SAE, with the record of its block."""

    key_id: UUID
    key: bytes
    record: BlockRecord

    def __repr__(self) -> str:
        return f"Key(key_id={self.key_id}, {8 * len(self.key)} bits)"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        # The inherited method lists every field, and tracebacks with local variables use it.
        return [("key_id", self.key_id)]


class PadId(Struct, frozen=True, array_like=True, order=True):
    """Address of a one-time authentication pad: segment (block_id, 0 = pre-shared key) and index.

    Alice's and Bob's pads of a segment are numbered separately: the direction is that of the message.
    """

    segment: NumberOrNone
    index: NumberOrNone


class Loss(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Entries that one site could not decrypt and discarded: the other site discards them as well.

    `ranges`: the chunks. `pads`: the number of one-time pads. `send_after`: the other site sends with later
    pads only. It has no key bytes, and is sent to the peer unchanged.
    """

    loss_id: Number
    ranges: tuple[KeyRange, ...]
    pads: Number = 0
    send_after: PadId

    @property
    def n_chunks(self) -> int:
        """The number of chunks."""
        return sum(item.count for item in self.ranges)


@dataclass(frozen=True)
class Pad:
    """A one-time authentication pad and its address."""

    pad_id: PadId
    pad: bytes = field(repr=False)


@dataclass(frozen=True)
class HashKeys:
    """The long-lived halves r of the authentication hash, one per direction, 16 bytes each."""

    send: bytes = field(repr=False)
    receive: bytes = field(repr=False)


class PadsLeft(Struct, frozen=True):
    """Pads left in the pool per direction; `send` counts those of confirmed segments only.

    `used`: one-time tags sent, and those of the peer that were verified, since the link's first block.
    """

    send: int
    receive: int
    used: int = 0


class Positions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The progress of a site, in numbers that only grow; no secrets.

    Kept in the anchor by the site itself and, mirrored, by the peer (`KeyStore.view_of_peer`). `era` counts
    how often all chunks were voided, `pool_epoch` how often a pre-shared key was loaded; `sent` and
    `received` are the greatest addresses of pads used, (-1, -1) before the first. `epsilon` is the sum of
    eps_sec + eps_cor over the blocks that were opened, since the link's first.
    """

    generation: Number = 0
    era: Number = 0
    pool_epoch: Number = 0
    last_block_id: Number = 0
    last_assignment_id: Number = 0
    last_handover_id: Number = 0
    sent: PadId = PadId(-1, -1)
    received: PadId = PadId(-1, -1)
    epsilon: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0


class StoreCondition(StrEnum):
    """Whether the store serves keys."""

    SERVING = "serving"
    NEEDS_PEER_CONFIRMATION = "needs_peer_confirmation"
    NEEDS_RESTORE = "needs_restore"


class Waiting(StrEnum):
    """The reasons for which a store waits.

    `older`: it is older than its anchor, which has the progress of the site. `anchorless`: only the peer can
    know the progress. `restore`: nobody knows it; a new pre-shared key ends the wait.
    """

    NO = ""
    OLDER = "older"
    ANCHORLESS = "anchorless"
    RESTORE = "restore"


class StoreStanding(Struct, frozen=True, kw_only=True):
    """A site's statement in the hello: why its store waits ('' if it serves), and its progress.

    `time_of_day_s` is its wall clock in Unix seconds, `audit` the head of its audit.
    """

    waits: Annotated[str, Meta(max_length=32)]
    positions: Positions
    time_of_day_s: Annotated[float, Meta(ge=0.0, le=1e12)] | None = None
    audit: Head | None = None


class AuditStanding(Struct, frozen=True, kw_only=True):
    """The extent of the audit: entries ever written in the live chain, entries kept in all, its head.

    `damage`: what the anchor showed to be missing when the store was opened; empty: nothing.
    """

    chains: int
    entries_total: int
    entries_kept: int
    head: Head
    damage: str = ""


class FrontEnds(Struct, frozen=True, kw_only=True):
    """The front ends of a store: their names, and what they were asked for and have delivered.

    ``totals``: by (master, slave), keys asked and delivered; both grow.
    """

    names: tuple[str, ...] = ()
    totals: dict[tuple[str, str], tuple[int, int]] = {}


class AgeMark(Struct, frozen=True, kw_only=True):
    """The last state of the clock for the age of keys: its seconds, and the other clocks at that time.

    `boot_id` identifies the machine's boot, `since_boot_s` counts from it; `time_of_day_s` is in Unix
    seconds.
    """

    age_s: float
    boot_id: str
    since_boot_s: float
    time_of_day_s: float


class Condition(Struct, frozen=True):
    """Whether the store serves keys, and if not, the ``reason`` for people."""

    state: StoreCondition
    reason: str = ""

    @property
    def serves(self) -> bool:
        """Return whether the store serves keys."""
        return self.state == StoreCondition.SERVING


class Counts(Struct, frozen=True, kw_only=True):
    """Chunks at this site by state; the last three are totals since the store was created.

    `stock` are those among the assigned that this site has set aside and not yet delivered.
    """

    available_own: int
    available_peer: int
    prepared: int
    assigned: int
    stock: int
    delivered: int
    void: int
    expired: int

    @property
    def here(self) -> int:
        """All chunks in the store."""
        return self.available_own + self.available_peer + self.prepared + self.assigned


class StoredBlock(Struct, frozen=True, kw_only=True):
    """One block for people and metrics."""

    block_id: int
    state: BlockState
    record: BlockRecord | None
    chunks_left: int
    void_reason: str


@dataclass(frozen=True)
class Answer:
    """What a call of `KeyStore.together` returned, or raised."""

    value: Any = field(default=None, repr=False)
    error: BaseException | None = None

    @classmethod
    def of(cls, call: Callable[[], object]) -> "Answer":
        """Make a call."""
        try:
            return cls(call())
        except BaseException as error:  # noqa: BLE001 - for its caller
            return cls(error=error)
