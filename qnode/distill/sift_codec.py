"""The announcement on the wire: in which slots Bob clicked, in which arm, and in the X arm in which slot
class.

Never the bin of a Z click: an announcement has no place for it.

A batch is a 5-byte head (n_clicks, Rice parameter k) and a bit string, least significant bit first. Each
click is the gap to the slot expected next: gap >> k zeros and a one, then the k low bits of the gap (Rice's
code, within 0.03 bit of the best for the exponential gaps of random clicks), then 0 for the Z arm, 01 for a
central and 11 for a boundary click. Twenty-four zeros announce a gap written out in 40 bits instead, so that
a dark second costs eight bytes and not a flood of zeros.
"""

import math
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.errors import ProtocolError
from qnode.kernels import kernel
from qnode.tags.types import OUTCOME_BOUNDARY, OUTCOME_CENTRAL, Codes, Slots

Words = npt.NDArray[np.uint64]

CLASS_Z: Final = 0
CLASS_CENTRAL: Final = 1
CLASS_BOUNDARY: Final = 2

MOST_CLICKS: Final = 1 << 26
_HEAD: Final = struct.Struct("<IB")
_MOST_K: Final = 32
_ESCAPE_ZEROS: Final = 24
_GAP_BITS: Final = 40
LARGEST_GAP: Final = (1 << _GAP_BITS) - 1
_MOST_BITS_A_CLICK: Final = 66
_LOWEST_ONE: Final = np.array([8] + [(i & -i).bit_length() - 1 for i in range(1, 256)], np.uint8)


@dataclass(frozen=True, eq=False)
class Announced:
    """Announced clicks: ``slots`` int64, strictly ascending; ``classes`` uint8 (`CLASS_Z`, ...)."""

    slots: Slots
    classes: Codes

    def __len__(self) -> int:
        return int(self.slots.shape[0])


def encode_announcement(slots: Slots, outcomes: Codes, first_slot: int) -> bytes:
    """Encode a batch of clicks; ``slots`` strictly ascending, none before ``first_slot``.

    Early and late clicks encode alike.

    Raises:
        ValueError: the slots do not ascend, begin before ``first_slot``, or are too far apart.
    """
    n = slots.shape[0]
    if not n:
        return _HEAD.pack(0, 0)
    mean_gap = (int(slots[-1]) - first_slot + 1) / n - 1.0
    k = min(_MOST_K, max(0, math.floor(math.log2(max(mean_gap, 0.0) * math.log(2.0) + 1.0))))
    words = np.zeros(n * _MOST_BITS_A_CLICK // 64 + 2, np.uint64)
    n_bits = int(_encode(slots, outcomes, first_slot, k, words))
    if n_bits < 0:
        raise ValueError("announcement: slots must ascend strictly from first_slot")
    return _HEAD.pack(n, k) + words.tobytes()[: (n_bits + 7) // 8]


def decode_announcement(data: bytes, first_slot: int, n_slots: int) -> Announced:
    """Decode a batch whose clicks must lie in ``first_slot <= slot < first_slot + n_slots``.

    Raises:
        ProtocolError: cut short, too long, not in its one canonical form, or a slot outside the span.
    """
    if len(data) < _HEAD.size:
        raise ProtocolError(f"announcement: {len(data)} bytes are no head")
    n, k = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    # Each click costs at least k + 2 bits, so that a small message cannot ask for much memory.
    if k > _MOST_K or n > MOST_CLICKS or n * (k + 2) > 8 * len(body):
        raise ProtocolError(f"announcement: {n} clicks (k = {k}) do not fit {len(body)} bytes")
    padded = np.zeros(len(body) // 8 + 4, np.uint64)
    padded.view(np.uint8)[: len(body)] = np.frombuffer(body, np.uint8)
    slots, classes = np.empty(n, np.int64), np.empty(n, np.uint8)
    n_bits = int(_decode(padded, 8 * len(body), k, first_slot, n_slots, slots, classes, _LOWEST_ONE))
    if n_bits < 0:
        raise ProtocolError("announcement: cut short, or a slot outside its span")
    tail = int(padded[n_bits >> 6]) >> (n_bits & 63) if n_bits < 8 * len(body) else 0
    if (n_bits + 7) // 8 != len(body) or tail:
        raise ProtocolError("announcement: bits after the last click")
    return Announced(slots, classes)


@kernel
def _encode(slots: Slots, outcomes: Codes, first_slot: int, k: int, words: Words) -> np.int64:
    one = np.uint64(1)
    expected = np.int64(first_slot)
    shift = np.uint64(k)
    low_mask = (one << shift) - one
    word = 0
    fill = np.uint64(0)  # bits of `pending`, which goes to words[word] when it has 64
    pending = np.uint64(0)
    for i in range(slots.size):
        gap = slots[i] - expected
        if gap < 0 or gap > LARGEST_GAP:
            return np.int64(-1)
        expected = slots[i] + 1
        g = np.uint64(gap)
        zeros = g >> shift
        is_x = np.uint64(outcomes[i] >= OUTCOME_CENTRAL)
        kind = is_x | (np.uint64(outcomes[i] == OUTCOME_BOUNDARY) << one)
        if zeros < np.uint64(_ESCAPE_ZEROS):
            length = zeros + one + shift
            code = ((one | ((g & low_mask) << one)) << zeros) | (kind << length)
            length += one + is_x
        else:
            code = g << np.uint64(_ESCAPE_ZEROS)
            words[word] = pending | (code << fill)
            pending = (code >> one) >> (np.uint64(63) - fill)
            word += 1
            code = kind
            length = one + is_x
        pending |= code << fill
        if fill + length >= np.uint64(64):
            words[word] = pending
            pending = (code >> one) >> (np.uint64(63) - fill)
            word += 1
        fill = (fill + length) & np.uint64(63)
    words[word] = pending
    return np.int64(64 * word) + np.int64(fill)


@kernel
def _decode(
    words: Words,
    n_bits: int,
    k: int,
    first_slot: int,
    n_slots: int,
    slots: Slots,
    classes: Codes,
    lowest: Codes,
) -> np.int64:
    one = np.uint64(1)
    shift = np.uint64(k)
    low_mask = (one << shift) - one
    position = np.uint64(0)
    expected = np.int64(first_slot)
    end = np.int64(first_slot) + np.int64(n_slots)
    for i in range(slots.size):
        if position >= np.uint64(n_bits):
            return np.int64(-1)
        word = position >> np.uint64(6)
        bit = position & np.uint64(63)
        x = (words[word] >> bit) | ((words[word + one] << one) << (np.uint64(63) - bit))
        zeros = np.uint64(lowest[x & np.uint64(255)])
        if zeros == np.uint64(8):
            zeros += np.uint64(lowest[(x >> np.uint64(8)) & np.uint64(255)])
            if zeros == np.uint64(16):
                zeros += np.uint64(lowest[(x >> np.uint64(16)) & np.uint64(255)])
        if zeros < np.uint64(_ESCAPE_ZEROS):
            x >>= zeros + one
            gap = (zeros << shift) | (x & low_mask)
            x >>= shift
            position += zeros + one + shift
        else:
            gap = x >> np.uint64(_ESCAPE_ZEROS)
            if (gap >> shift) < np.uint64(_ESCAPE_ZEROS):
                return np.int64(-1)  # had a shorter form
            position += np.uint64(_ESCAPE_ZEROS + _GAP_BITS)
            x = (words[word + one] >> bit) | ((words[word + np.uint64(2)] << one) << (np.uint64(63) - bit))
        slot = expected + np.int64(gap)
        is_x = x & one
        position += one + is_x
        if slot >= end or position > np.uint64(n_bits):
            return np.int64(-1)
        slots[i] = slot
        classes[i] = is_x + (is_x & (x >> one))
        expected = slot + 1
    return np.int64(position)
