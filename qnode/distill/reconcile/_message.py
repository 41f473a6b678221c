"""The messages of Cascade.

A request is one octet of kind, and for SEARCH and BEGIN two little-endian 32-bit counts and then:

* two bits for each query of the last request that did not ask for a single bit (word queries before tree
  queries): in which children Bob goes on. Both sides know the nodes, so nothing else need be said;
* the word queries, then the tree queries, that begin elsewhere: 32 bits each;
* if the last request began a pass: one bit for each of its blocks, set where the parities differ.

BEGIN also begins the next pass. The response holds one bit for each query (their order: ``_alice_kernels``),
then, octet-aligned, the block parities of a begun pass. CHECK is answered by the check parities alone.
"""

import struct
from enum import IntEnum

import msgspec
import numpy as np

from qnode.distill.reconcile._nodes import Octets, Queries
from qnode.errors import ProtocolError

# What fits so few octets is worked out faster than it is handed to a thread.
SHORT_BYTES = 512

_HEADER = struct.Struct("<BII")


class Kind(IntEnum):
    """What a request asks for."""

    SEARCH = 0
    BEGIN = 1
    CHECK = 2


class Request(msgspec.Struct, frozen=True, eq=False):
    """One parsed request; ``body`` is what follows the header."""

    kind: int
    n_word_starts: int
    n_tree_starts: int
    body: Octets


def encode_request(
    kind: Kind, codes: bytes, word_starts: Queries, tree_starts: Queries, odd_blocks: bytes
) -> bytes:
    """Encode a SEARCH or BEGIN request; ``codes`` and ``odd_blocks`` are packed already."""
    header = _HEADER.pack(kind, word_starts.shape[0], tree_starts.shape[0])
    return b"".join((header, codes, word_starts.tobytes(), tree_starts.tobytes(), odd_blocks))


def encode_check() -> bytes:
    """Encode a CHECK request."""
    return bytes((Kind.CHECK,))


def decode_request(message: bytes) -> Request:
    """Parse the fixed part of a request.

    Raises:
        ProtocolError: unknown kind, truncated header, or a CHECK that says more.
    """
    if len(message) == 1 and message[0] == Kind.CHECK:
        return Request(Kind.CHECK, 0, 0, np.empty(0, np.uint8))
    if len(message) < _HEADER.size:
        raise ProtocolError("reconciliation: truncated request")
    kind, n_word_starts, n_tree_starts = _HEADER.unpack_from(message)
    if kind not in (Kind.SEARCH, Kind.BEGIN):
        raise ProtocolError(f"reconciliation: unknown kind of request {kind}")
    body = np.frombuffer(message, np.uint8, offset=_HEADER.size)
    if 4 * (n_word_starts + n_tree_starts) > body.shape[0]:
        raise ProtocolError("reconciliation: request announces more starts than it holds")
    return Request(kind, n_word_starts, n_tree_starts, body)
