"""Every message of the classical channel, with the limits of its fields.

Three groups: the session (hello, goodbye, keep-alive), the control of link and keys, and the block dialogue.
The messages of the dialogue share a base, `DialogueMessage`: the session enters each of them into the running
transcript of its block and direction, which one one-time tag authenticates at the end
(`qnode.link.authentication`).

The kind on the wire is the name of the class in snake case. Limits are checked on encoding and on decoding.
Kinds and fields that protocol 1 lacks are marked with the protocol that introduced them (``since``).

**Nonces.** The dialogue is authenticated only at its end, so it does not show *when* a message was sent. An
adversary who can predict Bob's messages might send them to Alice early. Alice would then disclose the bases
before Bob has measured, or the verification seed before Bob has corrected. Bob would later send the same
messages, and both tags would verify. The code on each frame prevents this under a computational assumption;
``nonce`` prevents it without one. Each message of Bob that makes Alice disclose something (`ClicksEnded`,
`VerifyBegin`, `Verified`) has 128 fresh random bits that nobody can predict.
"""

import re
from typing import Annotated, Any, ClassVar

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import fields

from qnode.choices import BlockState
from qnode.config import SAE_ID_CHARACTERS, Role
from qnode.distill.counts import TagCounts
from qnode.link.protocol import OLDEST_PROTOCOL, Since
from qnode.units import BULK_BYTES

LARGEST_INTEGER = (1 << 63) - 1
MANY = 4096
WORD_CHARACTERS = 128

Count = Annotated[int, Meta(ge=0, le=LARGEST_INTEGER)]
Identifier = Annotated[int, Meta(ge=0, le=LARGEST_INTEGER)]
Slot = Annotated[int, Meta(ge=0, le=LARGEST_INTEGER)]
Tick = Annotated[int, Meta(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER)]
Nanoseconds = Annotated[int, Meta(ge=0, le=LARGEST_INTEGER)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]
Bulk = Annotated[bytes, Meta(max_length=BULK_BYTES)]
Opaque = Annotated[bytes, Meta(max_length=1 << 20)]
Seed = Annotated[bytes, Meta(min_length=8, max_length=64)]
Nonce = Annotated[bytes, Meta(min_length=16, max_length=16)]
Tag = Annotated[bytes, Meta(min_length=16, max_length=16)]
VerificationTag = Annotated[bytes, Meta(min_length=8, max_length=64)]
Word = Annotated[str, Meta(max_length=WORD_CHARACTERS)]
Text = Annotated[str, Meta(max_length=2000)]
CountPair = tuple[Count, Count]
SaeId = Annotated[str, Meta(max_length=SAE_ID_CHARACTERS)]
Pair = tuple[SaeId, SaeId]


def _kind(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Message(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag=_kind):
    """A message; its repr shows the number of bytes only. ``since``: the first protocol that has it."""

    since: ClassVar[int] = OLDEST_PROTOCOL

    def __repr__(self) -> str:
        shown = ", ".join(f"{field.name}={_shown(getattr(self, field.name))}" for field in fields(self))
        return f"{type(self).__name__}({shown})"


def _shown(value: Any) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else repr(value)


def printable(text: str) -> str:
    """Return a text of the peer for a log: one line, no control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)


# --- the session --------------------------------------------------------------------------------------------


class SinceProtocol2(Struct, frozen=True, kw_only=True):
    """The fields of a hello that protocol 1 lacks.

    ``parameters``: the tables that came with protocol 2 (`qnode.link.protocol`). ``store`` belongs to the key
    store and is opaque here.
    """

    parameters: dict[str, Any]
    store: Annotated[bytes, Meta(max_length=4096)] = b""


class Hello(Message, frozen=True, forbid_unknown_fields=False):
    """The identity of the sender, its protocols, and its parameters of the link.

    ``parameters`` are the tables of `LinkParameters` as protocol 1 had them, so that each side can *name* a
    difference; a newer peer's additional fields are ignored, since a hello must stay readable to every
    version. ``last_block_id`` is 0 before the first block; ``positions`` belongs to the key store and is
    opaque here.
    """

    protocol: Count
    oldest_protocol: Count
    role: Role
    kme_id: Word
    link_name: Word
    parameters_digest: Annotated[bytes, Meta(min_length=32, max_length=32)]
    parameters: dict[str, Any]
    nonce: Annotated[bytes, Meta(min_length=32, max_length=32)]
    last_block_id: Identifier
    generation: Count
    positions: Annotated[bytes, Meta(max_length=1 << 16)]
    software: Word
    simulated: bool = False
    since_2: Annotated[SinceProtocol2 | UnsetType, Since(2)] = UNSET


class HelloProof(Message, frozen=True):
    """Prove knowledge of the session root over both hellos."""

    proof: Annotated[bytes, Meta(min_length=32, max_length=32)]


class Refused(Message, frozen=True):
    """Tell, before the proofs, why there will be no session."""

    reason: Text


class Goodbye(Message, frozen=True):
    """End the session in order."""

    reason: Text


class Ping(Message, frozen=True):
    """Show life; ``sent_ns`` is the sender's monotonic clock and comes back in the `Pong`."""

    sent_ns: Nanoseconds


class Pong(Message, frozen=True):
    """Answer a `Ping` with its own time."""

    sent_ns: Nanoseconds


# --- control of the link ------------------------------------------------------------------------------------


class EmissionRunStarted(Message, frozen=True):
    """Alice: slot 0 of run ``run_id`` left at about ``started_at_s`` (Unix time)."""

    run_id: Identifier
    started_at_s: Finite
    qubit_rate_hz: Annotated[float, Meta(gt=0.0, le=1e15)]


class AlignmentProbeMessage(Message, frozen=True):
    """Bob: clicks in units of the recovered slot grid, which Alice correlates with the sent symbols.

    ``ticks`` are int64 differences (little endian) from ``first_tick`` on. Their qubits never enter a key.
    """

    run_id: Identifier
    probe_id: Identifier
    ticks: Bulk
    first_tick: Tick
    last_tick: Tick


class AlignmentResult(Message, frozen=True):
    """Alice: the tick of slot 0, or None if no offset is significant."""

    probe_id: Identifier
    offset: Tick | None
    score: Finite
    significance: Finite


# --- the block dialogue -------------------------------------------------------------------------------------


class DialogueMessage(Message, frozen=True):
    """A message that enters the transcript of its block."""

    block_id: Identifier


class BlockProposed(DialogueMessage, frozen=True):
    """Open a block, a fixed span of slots agreed before it starts, and the transcripts of both directions."""

    run_id: Identifier
    first_slot: Slot
    n_slots: Count


class BlockAgreed(DialogueMessage, frozen=True):
    """Accept a proposed block."""


class ClickBatch(DialogueMessage, frozen=True):
    """Bob: slots and arms of accepted clicks from ``first_slot`` on, as an announcement encodes them."""

    first_slot: Slot
    payload: Bulk


class ClicksEnded(DialogueMessage, frozen=True, omit_defaults=True):
    """Bob: the whole block is announced; only now may Alice disclose anything.

    ``dropped``: clicks since the previous block that could not be announced, because there was no session.
    ``recorded``: Bob's tags were being recorded when the block was opened. ``tags``: further counts of the
    tags.
    """

    n_clicks: Count
    dropped: Count
    nonce: Nonce
    recorded: bool
    tags: Annotated[TagCounts | None, Since(2)] = None


class Sifted(DialogueMessage, frozen=True, omit_defaults=True):
    """Alice: which announced Z clicks to keep, which kept ones are decoys, and the X classes per intensity.

    ``x_counts``: (signal, decoy) of C_+, C_Z, E_same, E_plus, E_dark. ``keep_mask`` and ``decoy_bits`` are
    packed. ``dropped``: clicks before the start of Alice's record of symbols.
    ``recorded``: Alice's symbols were being recorded when the block was opened. ``n_z_plus``: per intensity
    the Z clicks on |+> that would be kept if Alice had sent Z. ``boundary``: all clicks in boundary slots
    between known qubits (`qnode.distill.sifting.sift`).
    """

    keep_mask: Bulk
    decoy_bits: Bulk
    n_kept: Count
    x_counts: tuple[CountPair, CountPair, CountPair, CountPair, CountPair]
    dropped: Count
    recorded: bool
    n_z_plus: Annotated[CountPair | None, Since(2)] = None
    boundary: Annotated[Count | None, Since(2)] = None


class SampleRequest(DialogueMessage, frozen=True):
    """Bob: request a sample, because there is no error estimate or the block could not be corrected."""


class SampleAnswer(DialogueMessage, frozen=True):
    """Alice: the sample, spread evenly over the block; lambda_EC counts every bit of it."""

    payload: Bulk


class ReconcileBegin(DialogueMessage, frozen=True):
    """Bob: open the correction of the block by ``method``; ``seed`` drives its permutations."""

    method: Word
    seed: Seed
    qber_estimate: Fraction


class ReconcileRequest(DialogueMessage, frozen=True):
    """Bob: ask for parities."""

    payload: Bulk


class ReconcileAnswer(DialogueMessage, frozen=True):
    """Alice: the requested parities."""

    payload: Bulk


class VerifyBegin(DialogueMessage, frozen=True):
    """Bob: the block is corrected; only now may the seed of verification be drawn."""

    nonce: Nonce


class VerifyChallenge(DialogueMessage, frozen=True):
    """Alice: seed and tag of the universal hash of the corrected block."""

    seed: Seed
    tag: VerificationTag


class Verified(DialogueMessage, frozen=True):
    """Bob: whether the tags agree, and the error counts; only now may the hash be seeded."""

    equal: bool
    m_z_signal: Count
    m_z_decoy: Count
    nonce: Nonce


class Amplify(DialogueMessage, frozen=True, omit_defaults=True):
    """Alice: final length, seed of the Toeplitz hash, the sum of the ledger; the transcripts end here.

    ``refill_pads``: one-time pads of either direction that the block's key refills the pool by.
    """

    length: Count
    seed: Bulk
    lambda_ec_bits: Count
    refill_pads: Annotated[Count | None, Since(2)] = None


# --- the end of a block: authenticated by separate one-time tags
# -----------------------------------------------


class TranscriptTag(Message, frozen=True):
    """The one-time tag of the sender's transcript of a block, and the address of its pad."""

    block_id: Identifier
    pad_segment: Identifier
    pad_index: Identifier
    tag: Tag


class Prepared(Message, frozen=True):
    """The sender's key of the block is durable; a one-time tag of that statement."""

    block_id: Identifier
    pad_segment: Identifier
    pad_index: Identifier
    tag: Tag


class BlockDiscarded(Message, frozen=True):
    """The sender discards the block; ``reason`` is a counted word, ``detail`` is for people."""

    block_id: Identifier
    reason: Word
    detail: Text = ""


# --- control of keys ----------------------------------------------------------------------------------------


class Assign(Message, frozen=True):
    """Make an assignment durable at the peer; its content is the key store's.

    ``taken_chunks``: what the sender's encryptors have got of its stock since its last such message.
    """

    request_id: Identifier
    assignment: Opaque
    taken_chunks: Annotated[Count | UnsetType, Since(2, optional=True)] = UNSET


class KeyAnswer(Message, frozen=True):
    """The answer of the sender's key store: whether the request was performed durably.

    ``share_used_up``: an assignment was refused because too many keys of the pair already wait here.
    """

    request_id: Identifier
    ok: bool
    error: Text | None = None
    share_used_up: Annotated[bool | UnsetType, Since(2, optional=True)] = UNSET


class VoidAssignments(Message, frozen=True):
    """Void assignments that were never acknowledged; its content is the key store's."""

    request_id: Identifier
    assignments: Opaque


class ReleaseAssignments(Message, frozen=True):
    """Free undelivered assignments; its content is the key store's."""

    since: ClassVar[int] = 2
    request_id: Identifier
    releases: Opaque


class VoidLost(Message, frozen=True):
    """Void entries that the sender's key store cannot decrypt; its content is the key store's."""

    since: ClassVar[int] = 2
    request_id: Identifier
    loss: Opaque


class BlockStateQuery(Message, frozen=True):
    """Request the states of blocks at the peer, after a cut."""

    request_id: Identifier
    block_ids: Annotated[tuple[Identifier, ...], Meta(max_length=MANY)]


class StateOfBlock(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The state of a block at the sender."""

    block_id: Identifier
    state: BlockState


class BlockStateAnswer(Message, frozen=True):
    """Answer a `BlockStateQuery`."""

    request_id: Identifier
    states: Annotated[tuple[StateOfBlock, ...], Meta(max_length=MANY)]


class GiveAway(Message, frozen=True):
    """The sender has durably given free chunks to the receiver; its content is the key store's."""

    request_id: Identifier
    handover: Opaque


class VoidHandover(Message, frozen=True):
    """Void the chunks of a `GiveAway` that was refused; its content is the key store's."""

    request_id: Identifier
    handover: Opaque


class SaesRegistered(Message, frozen=True):
    """The pairs of the sender's and the receiver's encryptors that share keys, by their names.

    Sent at the start of a session, and again after a change. ``pairs``: (the sender's, the receiver's).
    ``more``: another part follows.
    """

    since: ClassVar[int] = 2
    pairs: Annotated[tuple[Pair, ...], Meta(max_length=MANY)]
    more: bool = False


class StreamRequest(Message, frozen=True):
    """Ask for something about a key stream whose home is the receiver; its content is the streams' own."""

    since: ClassVar[int] = 2
    request_id: Identifier
    request: Opaque


class StreamAnswer(Message, frozen=True):
    """Answer a `StreamRequest`; empty from a site without streams."""

    since: ClassVar[int] = 2
    request_id: Identifier
    answer: Opaque


BlockDialogue = (
    BlockProposed
    | BlockAgreed
    | ClickBatch
    | ClicksEnded
    | Sifted
    | SampleRequest
    | SampleAnswer
    | ReconcileBegin
    | ReconcileRequest
    | ReconcileAnswer
    | VerifyBegin
    | VerifyChallenge
    | Verified
    | Amplify
)
BlockEnd = TranscriptTag | Prepared | BlockDiscarded
LinkControl = EmissionRunStarted | AlignmentProbeMessage | AlignmentResult
KeyControl = (
    Assign
    | VoidAssignments
    | ReleaseAssignments
    | GiveAway
    | VoidHandover
    | VoidLost
    | KeyAnswer
    | BlockStateQuery
    | BlockStateAnswer
    | SaesRegistered
    | StreamRequest
    | StreamAnswer
)
KeepAlive = Goodbye | Ping | Pong

NodeMessage = LinkControl | BlockDialogue | BlockEnd | KeyControl
"""The messages of the node over a session."""

SessionMessage = NodeMessage | KeepAlive
"""The messages after the hello."""

HelloMessage = Hello | HelloProof | Refused
"""The messages of a hello."""
