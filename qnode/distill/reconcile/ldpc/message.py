"""The requests: two kinds.

START (octet 0, then the number of whole rows, 16 bits) asks for the syndromes of every frame over these
rows; the answer holds them frame by frame, then the check parities of every frame. EXTEND (octet 1) holds,
for each frame that did not decode, its number (32 bits) and how many pieces are now wanted of it in all (16
bits), ascending by frame; the answer holds the syndromes of the new pieces. Everything is little-endian and
whole octets.
"""

import struct
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.errors import ProtocolError

_START: Final = struct.Struct("<BH")
_WANTED: Final = np.dtype([("frame", "<u4"), ("n_pieces", "<u2")])


class Kind(IntEnum):
    """What a request asks for."""

    START = 0
    EXTEND = 1


def kind_of(message: bytes) -> Kind:
    """Return the kind of a request.

    Raises:
        ProtocolError: it has none.
    """
    if not message or message[0] not in (Kind.START, Kind.EXTEND):
        raise ProtocolError("reconciliation: unknown kind of request")
    return Kind(message[0])


def encode_start(n_rows: int) -> bytes:
    """Encode a START request."""
    return _START.pack(Kind.START, n_rows)


def decode_start(message: bytes) -> int:
    """Return the number of rows asked for.

    Raises:
        ProtocolError: another length.
    """
    if len(message) != _START.size:
        raise ProtocolError(f"reconciliation: a START request of {len(message)} octets")
    n_rows: int = _START.unpack(message)[1]
    return n_rows


def encode_extend(wanted: dict[int, int]) -> bytes:
    """Encode an EXTEND request: pieces wanted in all, by frame."""
    entries = np.array(sorted(wanted.items()), np.int64).reshape(-1, 2)
    table = np.empty(entries.shape[0], _WANTED)
    table["frame"], table["n_pieces"] = entries[:, 0], entries[:, 1]
    return bytes((Kind.EXTEND,)) + table.tobytes()


def decode_extend(message: bytes) -> dict[int, int]:
    """Return the pieces wanted in all, by frame.

    Raises:
        ProtocolError: broken, empty or not ascending.
    """
    if (len(message) - 1) % _WANTED.itemsize or len(message) == 1:
        raise ProtocolError(f"reconciliation: an EXTEND request of {len(message)} octets")
    table = np.frombuffer(message, _WANTED, offset=1)
    frames: npt.NDArray[np.int64] = table["frame"].astype(np.int64)
    if np.any(np.diff(frames) <= 0):
        raise ProtocolError("reconciliation: an EXTEND request whose frames do not ascend")
    return dict(zip(frames.tolist(), table["n_pieces"].tolist(), strict=True))
