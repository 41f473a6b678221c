"""Bytes of the open device protocol to frames, and its tag frames to tags (docs/device-protocol.md).

Two kernels: `scan` finds the frames in a stream with noise, `decode_tags` reads the records of one frame.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from qnode.kernels import inline_kernel, inner_kernel, kernel
from qnode.tags.types import Channels, Times

ByteArray = npt.NDArray[np.uint8]

SYNC: Final = b"\xc5\x9a"
HEADER_BYTES: Final = 8
CRC_BYTES: Final = 4
MOST_PAYLOAD_BYTES: Final = 1024
LONGEST_FRAME_BYTES: Final = HEADER_BYTES + MOST_PAYLOAD_BYTES + CRC_BYTES
TAGS_HEAD_BYTES: Final = 32
MOST_TAGS_IN_FRAME: Final = (MOST_PAYLOAD_BYTES - TAGS_HEAD_BYTES) // 4

_SYNC_0, _SYNC_1 = SYNC
_DELTA_BITS: Final = 27
_DELTA_MASK: Final = (1 << _DELTA_BITS) - 1
_DELTA_SIGN: Final = 1 << (_DELTA_BITS - 1)
_SPECIAL: Final = 1 << 31
_WRAP: Final = 0
_FIRST_OPTIONAL_KIND: Final = (
    8  # special records from this kind on may be skipped by those who do not know them
)
# A tag lies at most this many ticks from the time of its frame, so that the arithmetic is exact.
FURTHEST_TICKS: Final = 1 << 40
FRAMES_AT_ONCE: Final = 1024


def _crc_tables() -> npt.NDArray[np.uint32]:
    """Return eight tables: row k is the effect of a byte that k more bytes follow."""
    tables = np.empty((8, 256), np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
        tables[0, byte] = value
    for row in range(1, 8):
        tables[row] = tables[0, tables[row - 1] & 0xFF] ^ (tables[row - 1] >> 8)
    return tables


_CRC = _crc_tables()


class ScannedFrame(NamedTuple):
    """A frame of right CRC: its payload is ``length`` bytes from ``start`` on."""

    kind: int
    request: int
    start: int
    length: int


class Scanned(NamedTuple):
    """The frames of a buffer. The first ``consumed`` bytes are done with; the rest may begin a frame.

    ``noise_bytes``: those among them that belong to no frame. ``broken``: frames of wrong CRC.
    """

    frames: list[ScannedFrame]
    consumed: int
    noise_bytes: int
    broken: int


@inline_kernel
def _word(data: ByteArray, at: Any) -> Any:
    return (
        np.int64(data[at])
        | np.int64(data[at + 1]) << 8
        | np.int64(data[at + 2]) << 16
        | np.int64(data[at + 3]) << 24
    )


@inline_kernel
def _crc(data: ByteArray, first: Any, end: Any) -> Any:
    """Return the CRC-32 of a part of ``data``, eight bytes at a time."""
    crc = np.int64(0xFFFFFFFF)
    at = first
    while at + 8 <= end:
        a, b = _word(data, at) ^ crc, _word(data, at + 4)
        crc = np.int64(
            _CRC[7, a & 255] ^ _CRC[6, a >> 8 & 255] ^ _CRC[5, a >> 16 & 255] ^ _CRC[4, a >> 24]
            ^ _CRC[3, b & 255] ^ _CRC[2, b >> 8 & 255] ^ _CRC[1, b >> 16 & 255] ^ _CRC[0, b >> 24]
        )  # fmt: skip
        at += 8
    while at < end:
        crc = np.int64(_CRC[0, (crc ^ data[at]) & 255]) ^ (crc >> 8)
        at += 1
    return crc ^ 0xFFFFFFFF


@inner_kernel
def _frame_at(data: ByteArray, at: int) -> int:
    """Return the end of the frame that begins at ``at``; 0 if none does.

    -1: a frame whose CRC is wrong. -2: one that is not whole yet.
    """
    left = data.size - at
    if data[at] != _SYNC_0 or (left > 1 and data[at + 1] != _SYNC_1):
        return 0
    if left < HEADER_BYTES:
        return -2
    length = np.int64(data[at + 4]) | np.int64(data[at + 5]) << 8
    inverse = np.int64(data[at + 6]) | np.int64(data[at + 7]) << 8
    if length ^ inverse != 0xFFFF or length > MOST_PAYLOAD_BYTES:
        return 0
    end = at + HEADER_BYTES + length + CRC_BYTES
    if end > data.size:
        return -2
    if _crc(data, at + 2, end - CRC_BYTES) != _word(data, end - CRC_BYTES):
        return -1
    return int(end)


@kernel
def _scan(data: ByteArray, found: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> int:
    """Fill rows of ``found``: kind, request, start, length. ``counts``: consumed, noise bytes, broken."""
    n, noise, broken, size = 0, 0, 0, data.size
    i = 0  # everything before is done with
    at = 0  # what is looked at: behind ``i`` while the frame there is not whole
    while n < found.shape[0] and at < size:
        end = _frame_at(data, at)
        if end > 0:
            if at > i:  # a whole frame inside of one that is not whole: bytes of that one are missing
                noise += at - i
                broken += 1
            found[n, 0], found[n, 1] = data[at + 2], data[at + 3]
            found[n, 2], found[n, 3] = at + HEADER_BYTES, end - at - HEADER_BYTES - CRC_BYTES
            n += 1
            i = at = end
        elif at > i or end == -2:
            at += 1
        else:
            broken += end == -1
            noise += 1
            i = at = at + 1
    counts[0], counts[1], counts[2] = i, noise, broken
    return n


def scan(data: ByteArray) -> Scanned:
    """Find the frames in ``data``, at most 1024; call again with the rest and what comes after it."""
    if not data.flags.writeable:
        data = data.copy()  # one type of array, or the kernel is compiled twice
    found = np.empty((FRAMES_AT_ONCE, 4), np.int64)
    counts = np.empty(3, np.int64)
    n = _scan(data, found, counts)
    consumed, noise, broken = counts.tolist()
    return Scanned([ScannedFrame(*row) for row in found[:n].tolist()], consumed, noise, broken)


@kernel
def _decode(
    data: ByteArray,
    first: int,
    end: int,
    base_ps: int,
    rest: int,
    numerator: int,
    denominator: int,
    numbers: Channels,
    times_ps: Times,
    channels: Channels,
) -> int:
    ticks, tags, n = np.int64(0), 0, 0
    for at in range(first, end, 4):
        word = _word(data, at)
        field = word & _DELTA_MASK
        kind = (word >> _DELTA_BITS) & 15
        if word & _SPECIAL:
            if kind == _WRAP:
                turns = field - (1 << _DELTA_BITS) if field & _DELTA_SIGN else field
                if turns > FURTHEST_TICKS >> _DELTA_BITS or turns < -(FURTHEST_TICKS >> _DELTA_BITS):
                    return -1
                ticks += turns << _DELTA_BITS
            elif kind < _FIRST_OPTIONAL_KIND:
                return -1
        else:
            ticks += field
            if n == times_ps.size:
                return -1
            times_ps[n] = base_ps + (rest + ticks * numerator) // denominator
            channels[n] = numbers[kind]
            n += numbers[kind] >= 0
            tags += 1
        if ticks > FURTHEST_TICKS or ticks < -FURTHEST_TICKS:
            return -1
    return tags << 16 | n


def decode_tags(
    data: ByteArray,
    frame: ScannedFrame,
    base_ps: int,
    rest: int,
    tick: tuple[int, int],
    numbers: Channels,
    times_ps: Times,
    channels: Channels,
) -> tuple[int, int]:
    """Decode the records of a tag frame; return how many tags it has, and how many are in the arrays now.

    ``base_ps`` and ``rest``: the frame's time as picoseconds, signed, and what is left over in parts of the
    denominator. ``tick``: numerator and denominator of the tick in picoseconds. ``numbers``: the
    channel of each of the 16 inputs, -1 for one whose tags are dropped. -1 tags: no firmware that follows the
    protocol sends such records, or the arrays are full.
    """
    first, end = frame.start + TAGS_HEAD_BYTES, frame.start + frame.length
    both = _decode(data, first, end, base_ps, rest, tick[0], tick[1], numbers, times_ps, channels)
    return both >> 16, both & 0xFFFF


def warm() -> None:
    """Load the kernels, or compile them, so that no event loop waits for it later."""
    data = np.zeros(TAGS_HEAD_BYTES, np.uint8)
    scan(data)
    frame = ScannedFrame(0, 0, 0, TAGS_HEAD_BYTES)
    numbers = np.zeros(16, np.int8)
    decode_tags(data, frame, 0, 0, (1, 1), numbers, np.empty(1, np.int64), np.empty(1, np.int8))
