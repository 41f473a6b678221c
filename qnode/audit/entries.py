"""The entries of the audit, their encoding, and the hash that chains them.

An entry is encoded with MessagePack: an array of the kind of the event and the fields of its class, in order,
each integer in its shortest form. There is one encoding of an entry, so whoever has the fields has the bytes.
The hash of an entry is SHA-256 over the hash of the entry before (32 bytes) and the encoded entry. In the
place of the hash before the first entry stands `genesis`, which depends on the chain's id.

No entry has a key, or anything from which a key could be computed.
"""

import hashlib
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

CHAIN_ID_BYTES = 16
HASH_BYTES = 32
KEY_ID_BYTES = 16

Number = Annotated[int, Meta(ge=0, le=2**62)]


class Head(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last entry of a chain at some time: its number and its hash stand for everything before."""

    chain_id: Annotated[bytes, Meta(min_length=CHAIN_ID_BYTES, max_length=CHAIN_ID_BYTES)]
    number: Number
    hash: Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]

    def __str__(self) -> str:
        return f"{self.chain_id.hex()}:{self.number}:{self.hash.hex()}"

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Return the head that `str` has written; raises ValueError."""
        chain_id, number, digest = text.split(":")
        return msgspec.convert((bytes.fromhex(chain_id), int(number), bytes.fromhex(digest)), cls)


class KeyDelivered(
    Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="key.delivered", gc=False
):
    """Keys left the store for an encryptor of this site.

    ``side``: `master` (it asked for new keys, ``peers`` are its slaves) or `slave` (``peers`` is the master).
    ``door``: the interface. ``key_ids``: 16 bytes each.
    """

    number: Number
    at_us: int
    door: str
    side: str
    sae: str
    peers: tuple[str, ...]
    size_bits: Number
    key_ids: bytes


class OperatorChanged(
    Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="operator.changed", gc=False
):
    """An operator changed something: ``what`` of ``subject``, and how."""

    number: Number
    at_us: int
    what: str
    subject: str
    details: str


class ChainBegun(
    Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="chain.begun", gc=False
):
    """The first entry of a chain. ``heads``: of the chains before it.

    ``lost``: a later entry of the chain before, which the anchor knows and the database does not.
    """

    number: Number
    at_us: int
    because: str
    heads: tuple[Head, ...]
    lost: Head | None


class ChainPruned(
    Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="chain.pruned", gc=False
):
    """The entries up to ``last`` of a chain were deleted because of their age."""

    number: Number
    at_us: int
    last: Head


class PeerHead(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="peer.head", gc=False):
    """What the proven peer said about its own audit at the begin of a session."""

    number: Number
    at_us: int
    kme_id: str
    head: Head


Entry = KeyDelivered | OperatorChanged | ChainBegun | ChainPruned | PeerHead

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)
encode = _encoder.encode
decode = _decoder.decode


class Row(NamedTuple):
    """An entry as it is stored."""

    number: int
    content: bytes
    hash: bytes


class Chain(Struct, frozen=True, array_like=True):
    """A chain as it is stored: entries after ``pruned`` up to ``last``."""

    chain: int
    chain_id: bytes
    pruned_number: int
    pruned_hash: bytes
    last_number: int
    last_hash: bytes

    @property
    def head(self) -> Head:
        """The last entry."""
        return Head(self.chain_id, self.last_number, self.last_hash)

    @property
    def pruned(self) -> Head:
        """The last entry that was deleted because of its age; number 0 if there is none."""
        return Head(self.chain_id, self.pruned_number, self.pruned_hash)


class AuditPage(Struct, frozen=True, kw_only=True):
    """Part of the audit: all chains, the entries after a place, and the head that the anchor knows."""

    chains: list[Chain]
    rows: list[Row]
    anchored: Head | None


def genesis(chain_id: bytes) -> bytes:
    """Return what stands in the place of the hash before the first entry of a chain."""
    return hashlib.sha256(b"qnode audit 1\0" + chain_id).digest()


def chained(previous: bytes, content: bytes) -> bytes:
    """Return the hash of an entry after the one with the hash ``previous``."""
    return hashlib.sha256(previous + content).digest()


def kind_of(entry: Entry) -> str:
    """Return the kind of an event, a stable word."""
    return str(entry.__struct_config__.tag)


def fields_of(entry: Entry) -> dict[str, Any]:
    """Return the fields of an entry by their names."""
    return {name: getattr(entry, name) for name in entry.__struct_fields__}
