"""One-time authentication of a block: a running hash per direction, one Wegman-Carter tag at its end.

The tag of a transcript T is ``(h_r(T) + s) mod 2^128``: h_r is the polynomial of Poly1305 (degree up to
ceil(B/16) over 2^130 - 5 for B bytes, r clamped to 106 bits) with a long-lived secret r of the direction, s
a fresh one-time pad of 128 bits. h_r is almost Delta-universal: two different transcripts of at most B
bytes differ by any given value with probability at most ``8 ceil(B/16) 2^-106`` over r (D. J. Bernstein,
FSE 2005, theorem 3.3). Hence this bounds one attempt at forgery. Because s hides h_r(T), r may serve
for many tags, and the bounds add (M. N. Wegman, J. L. Carter, J. Comput. Syst. Sci. 22, 265 (1981);
composably: C. Portmann, IEEE Trans. Inf. Theory 60, 4383 (2014)). No computational assumption enters.

h_r(T) is computed as Poly1305 with s = 0, so the pad leaves the pool only when the transcript is complete.
Until the pad is added, h_r(T) is as secret as r: two bare hashes of known transcripts reveal r.
"""

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from cryptography.hazmat.primitives.poly1305 import Poly1305

from qnode.errors import AuthenticationError, ProtocolError, StoreAway, StoreError, StoreUnusable
from qnode.link.directions import Direction

HASH_KEY_BYTES: Final = 16
PAD_BYTES: Final = 16
TAG_BYTES: Final = 16
LARGEST_TRANSCRIPT_BYTES: Final = 1 << 30
_PLACE: Final = struct.Struct(">QQ")  # the counter and the length of a message
_COPIED_BYTES: Final = 4 << 10  # a copy of so few costs less than a second call


def epsilon_of_tag(n_bytes: int = LARGEST_TRANSCRIPT_BYTES) -> float:
    """Return the probability that one forged tag is accepted, for transcripts of at most ``n_bytes``.

    ``n_bytes`` must cover the forger's transcript as well as the true one. The default is the limit at both
    ends and always suffices (7e-24). A ledger should add it per direction and attempt.
    """
    return 8 * -(-n_bytes // 16) * 2.0**-106


@dataclass(frozen=True)
class TranscriptHash:
    """The hash of a finished transcript, before its pad: secret."""

    value: bytes = field(repr=False)
    n_bytes: int


class Transcript:
    """The running hash of the messages of one direction about one block.

    Every message enters as direction (1 byte), block (8), counter (8), length (8), payload: the encoding of
    a sequence of messages is unambiguous. It begins with ``context``, the values that both ends must have in
    common (in a session: the two hellos, hence protocol version and parameters), in the same encoding.
    """

    def __init__(
        self, hash_key: bytes, direction: Direction, block_id: int, context: Sequence[bytes], purpose: bytes
    ) -> None:
        if len(hash_key) != HASH_KEY_BYTES:
            raise ValueError(f"the hash key has {len(hash_key)} bytes, expected {HASH_KEY_BYTES}")
        self._running: Poly1305 | None = Poly1305(hash_key + bytes(PAD_BYTES))
        self._finished: TranscriptHash | None = None
        self._head = bytes([direction]) + block_id.to_bytes(8, "big")
        self._n_messages = 0
        self._n_bytes = 0
        for part in (purpose, *context):
            self.enter(part)

    def __repr__(self) -> str:
        return f"Transcript({self._n_messages} entries, {self._n_bytes} bytes)"

    def enter(self, payload: bytes | memoryview) -> None:
        """Append one message.

        Raises:
            ProtocolError: the transcript is finished, or would become longer than its limit.
        """
        head = self._head + _PLACE.pack(self._n_messages, len(payload))
        n_bytes = self._n_bytes + len(head) + len(payload)
        if self._running is None:
            raise ProtocolError("a message of the block dialogue after the end of its transcript")
        if n_bytes > LARGEST_TRANSCRIPT_BYTES:
            raise ProtocolError(f"a transcript of more than {LARGEST_TRANSCRIPT_BYTES} bytes")
        if isinstance(payload, bytes) and len(payload) < _COPIED_BYTES:
            self._running.update(head + payload)
        else:
            self._running.update(head)
            self._running.update(payload)
        self._n_messages += 1
        self._n_bytes = n_bytes

    def finish(self) -> TranscriptHash:
        """Close the transcript and return its hash; a repeated call returns it again."""
        if self._running is not None:
            self._finished = TranscriptHash(self._running.finalize(), self._n_bytes)
            self._running = None
        assert self._finished is not None
        return self._finished


def transcript_tag(transcript: TranscriptHash, pad: bytes) -> bytes:
    """Return the tag: hash plus one-time pad, modulo 2^128, little endian as in Poly1305."""
    if len(pad) != PAD_BYTES:
        raise ValueError(f"the pad has {len(pad)} bytes, expected {PAD_BYTES}")
    total = int.from_bytes(transcript.value, "little") + int.from_bytes(pad, "little")
    return (total % (1 << 128)).to_bytes(TAG_BYTES, "little")


def verify_transcript_tag(transcript: TranscriptHash, pad: bytes, tag: bytes) -> bool:
    """Return, in constant time, whether ``tag`` is the tag of the transcript under ``pad``."""
    return hmac.compare_digest(transcript_tag(transcript, pad), tag)


class PadPlace(Protocol):
    """The place of a pad in its direction's half of the pool."""

    @property
    def segment(self) -> int:
        """The segment: the block whose key refilled the pool, 0 for the pre-shared key."""

    @property
    def index(self) -> int:
        """The position within the segment."""


P = TypeVar("P", bound=PadPlace)
P_co = TypeVar("P_co", bound=PadPlace, covariant=True)


class ReservedPad(Protocol[P_co]):
    """A reserved pad; no other caller gets it."""

    @property
    def pad_id(self) -> P_co:
        """Its place."""

    @property
    def pad(self) -> bytes:
        """Its 16 bytes."""


class HashKeyPair(Protocol):
    """The long-lived keys r, 16 bytes each: equal at both sites, with send and receive exchanged."""

    @property
    def send(self) -> bytes:
        """The key for messages from this site."""

    @property
    def receive(self) -> bytes:
        """The key for messages to this site."""


class PadLedger(Protocol[P]):
    """The durable pool of one-time pads. Its methods block on the disk: call them in a thread."""

    def session_root(self) -> bytes:
        """Return the secret of the pool from which session keys derive. Raises PoolExhausted."""

    def hash_keys(self) -> HashKeyPair:
        """Return the hash keys of both directions. Raises PoolExhausted."""

    def reserve_send_pad(self) -> ReservedPad[P]:
        """Take the next pad of this site's half, durably used before it is returned. Raises PoolExhausted."""

    def receive_pad(self, pad_id: P) -> bytes:
        """Return a pad of the peer's half without using it up. Raises StoreError when used or unknown."""

    def confirm_receive_pad(self, pad_id: P) -> None:
        """Use up a pad of the peer's half, durably; only a verified tag may cause this."""


@dataclass(frozen=True)
class AuthenticationTag:
    """A tag and the place of its pad, as in `TranscriptTag` and `Prepared`."""

    pad_segment: int
    pad_index: int
    tag: bytes


def make_tag(ledger: PadLedger[P], transcript: TranscriptHash) -> AuthenticationTag:
    """Make a tag of ``transcript`` with a new pad. Blocks on the disk.

    Raises:
        PoolExhausted: no pad is left.
    """
    reserved = ledger.reserve_send_pad()
    return AuthenticationTag(
        reserved.pad_id.segment, reserved.pad_id.index, transcript_tag(transcript, reserved.pad)
    )


def verify_tag(ledger: PadLedger[P], transcript: TranscriptHash, pad_id: P, tag: bytes) -> None:
    """Verify the peer's ``tag`` and use up its pad, in this order, so that a forgery uses up no pad.

    Blocks on the disk.

    Raises:
        AuthenticationError: the tag is wrong, or its pad is used or unknown. Nothing has changed.
        StoreUnusable, StoreAway: the pool cannot be read.
    """
    try:
        pad = ledger.receive_pad(pad_id)
    except (StoreUnusable, StoreAway):
        raise
    except StoreError as error:
        raise AuthenticationError(f"the tag names a pad that cannot be used: {error}") from None
    if not verify_transcript_tag(transcript, pad, tag):
        raise AuthenticationError("the one-time tag does not verify")
    ledger.confirm_receive_pad(pad_id)
