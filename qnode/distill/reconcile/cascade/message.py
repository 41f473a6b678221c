"""The messages of Cascade.

A SEARCH or BEGIN request has one octet each of kind, depth and leap (see ``nodes``), a little-endian 32-bit
count of starts, and then:

* for each query of the last request that did not reach single bits: one bit for each of the lowest nodes it
  asked about, set where Bob continues. Both sides know the nodes, so nothing else need be said;
* the queries that begin elsewhere, segment after segment: 32 bits each;
* if the last request began a pass: one bit for each of its blocks, set where the parities differ.

Each part is octet-aligned. The queries of a request are, segment after segment: those going on, starts, odd
blocks. BEGIN also begins the next pass. The response holds the parities that each query asks for, then,
octet-aligned, the block parities of a begun pass. CHECK is answered by the check tag alone.
"""

import struct
from enum import IntEnum

import msgspec
import numpy as np

from qnode.distill.reconcile.cascade.nodes import Octets
from qnode.distill.reconcile.cascade.plan import MAX_DEPTH, MAX_LEAP
from qnode.errors import ProtocolError

# A step on so few octets, or one on all bits of so short a block, takes less than a third of a millisecond.
SHORT_BYTES = 4096
SHORT_BLOCK_BITS = 2_000_000

_HEADER = struct.Struct("<BBBI")


class Kind(IntEnum):
    """What a request asks for."""

    SEARCH = 0
    BEGIN = 1
    CHECK = 2


class Request(msgspec.Struct, frozen=True, eq=False):
    """One parsed request; ``body`` is what follows the header."""

    kind: int
    depth: int
    leap: int
    n_starts: int
    body: Octets


CHECK_REQUEST = bytes((Kind.CHECK,))


def encode_request(
    kind: Kind, depth: int, leap: int, n_starts: int, codes: bytes, starts: bytes, odd_blocks: bytes
) -> bytes:
    """Encode a SEARCH or BEGIN request; all parts are packed already."""
    return b"".join((_HEADER.pack(kind, depth, leap, n_starts), codes, starts, odd_blocks))


def decode_request(message: bytes) -> Request:
    """Parse the fixed part of a request.

    Raises:
        ProtocolError: unknown kind or depth, truncated header, or a CHECK that says more.
    """
    if message == CHECK_REQUEST:
        return Request(Kind.CHECK, 1, 1, 0, np.empty(0, np.uint8))
    if len(message) < _HEADER.size:
        raise ProtocolError("reconciliation: truncated request")
    kind, depth, leap, n_starts = _HEADER.unpack_from(message)
    if kind not in (Kind.SEARCH, Kind.BEGIN):
        raise ProtocolError(f"reconciliation: unknown kind of request {kind}")
    if not (1 <= depth <= MAX_DEPTH and 1 <= leap <= MAX_LEAP):
        raise ProtocolError(f"reconciliation: a request {depth} and {leap} levels deep")
    body = np.frombuffer(message, np.uint8, offset=_HEADER.size)
    if 4 * n_starts > body.shape[0]:
        raise ProtocolError("reconciliation: request announces more starts than it holds")
    return Request(kind, depth, leap, n_starts, body)
