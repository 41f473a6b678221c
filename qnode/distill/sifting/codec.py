"""The announcement of protocol 1: in which slots Bob clicked, in which arm, and in the X arm in which class.

A batch is a 12-byte head (clicks n, empty slots before the last of them e) and four bit strings, each from a
whole byte on, least significant bit first. With e_i the empty slots before click i, which never fall:

- high parts: bit ``(e_i >> k) + i`` is one for each click, all others are zero (Elias, J. ACM 21, 246, 1974;
  Fano, 1971), ``n + (e >> k)`` bits;
- low parts: the k low bits of each e_i;
- one bit a click: it is of the X arm;
- one bit a click: it is a boundary click.

k = floor(log2(e / n)), at least 0, follows from the head, so that a click costs less than k + 5 bits however
unevenly the clicks lie. No field's place depends on another field's value, which makes both directions fast.
"""

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from qnode.distill.bits import Bits
from qnode.distill.bits.array import Words
from qnode.distill.bits.planes import chosen, spread
from qnode.distill.bits.words import popcount, trailing_zeros
from qnode.distill.sifting.announced import Announced
from qnode.errors import ProtocolError
from qnode.kernels import kernel
from qnode.tags.types import Slots

MOST_CLICKS: Final = 1 << 26
# A field of the low parts is read from two words, also if it has no bits and stands behind the last one.
SPARE_WORDS: Final = 2
NO_CLICKS_ANNOUNCED: Final = Announced(
    np.empty(0, np.int64), Bits(np.empty(0, np.uint64), 0), Bits(np.empty(0, np.uint64), 0)
)
_HEAD: Final = struct.Struct("<IQ")


def encode_announcement(announced: Announced, first_slot: int) -> bytes:
    """Encode a batch of clicks; none is before ``first_slot``.

    Raises:
        ValueError: the slots do not ascend, or begin before ``first_slot``.
    """
    slots, n = announced.slots, len(announced)
    if not n:
        return _HEAD.pack(0, 0)
    n_empty = int(slots[-1]) - first_slot + 1 - n
    k, n_high = _layout(n, max(0, n_empty))
    high, low = np.zeros(n_high // 64 + 1, np.uint64), np.zeros(n * k // 64 + 1, np.uint64)
    if not _encode(slots, first_slot, k, high, low):
        raise ValueError("announcement: slots must ascend strictly from first_slot")
    return b"".join(
        (
            _HEAD.pack(n, n_empty),
            high.tobytes()[: (n_high + 7) // 8],
            low.tobytes()[: (n * k + 7) // 8],
            announced.x_arm.to_bytes(),
            spread(announced.boundary, announced.x_arm).to_bytes(),
        )
    )


def decode_announcement(data: bytes, first_slot: int, n_slots: int) -> Announced:
    """Decode a batch whose clicks must lie in ``first_slot <= slot < first_slot + n_slots``.

    Raises:
        ProtocolError: cut short, too long, not in its one canonical form, or a slot outside the span.
    """
    if len(data) < _HEAD.size:
        raise ProtocolError(f"announcement: {len(data)} bytes are no head")
    n, n_empty = _HEAD.unpack_from(data)
    if not n and not n_empty and len(data) == _HEAD.size:
        return NO_CLICKS_ANNOUNCED
    if not 0 < n <= MOST_CLICKS or n + n_empty > n_slots:
        raise ProtocolError(f"announcement: {n} clicks and {n_empty} empty slots in a span of {n_slots}")
    k, n_high = _layout(n, n_empty)
    lengths = (n_high, n * k, n, n)
    # Each click costs bits here, so that a small message cannot ask for much memory.
    if len(data) != _HEAD.size + sum((length + 7) // 8 for length in lengths):
        raise ProtocolError(f"announcement: {len(data)} bytes for {n} clicks and {n_empty} empty slots")
    high, low, x_arm, boundary = parts_of(data, _HEAD.size, lengths)
    slots = np.empty(n, np.int64)
    if not _decode(high, low, n_empty, k, first_slot, slots):
        raise ProtocolError("announcement: its clicks do not fit its head")
    if np.any(boundary & ~x_arm):
        raise ProtocolError("announcement: a boundary click outside the X arm")
    of_x = Bits(x_arm[:-SPARE_WORDS], n)
    return Announced(slots, of_x, chosen(Bits(boundary[:-SPARE_WORDS], n), of_x))


def _layout(n: int, n_empty: int) -> tuple[int, int]:
    """Return the bits of a low part, and how many bits the high parts have together."""
    k = max(0, (n_empty // n).bit_length() - 1)
    return k, n + (n_empty >> k)


def parts_of(data: bytes, at: int, lengths: Sequence[int]) -> list[Words]:
    """Return the bit strings from byte ``at`` of ``data`` on, each with `SPARE_WORDS` more at its end.

    Raises:
        ProtocolError: the last byte of one is not filled up with zeros.
    """
    octets = np.frombuffer(data, np.uint8)
    parts = list[Words]()
    for n_bits in lengths:
        words, n_octets = np.zeros((n_bits + 63) // 64 + SPARE_WORDS, np.uint64), (n_bits + 7) // 8
        words.view(np.uint8)[:n_octets] = octets[at : at + n_octets]
        at += n_octets
        if n_bits % 8 and data[at - 1] >> (n_bits % 8):
            raise ProtocolError("announcement: bits after the last of a part")
        parts.append(words)
    return parts


@kernel
def _encode(slots: Slots, first_slot: int, k: int, high: Words, low: Words) -> bool:
    """Fill zeroed ``high`` and ``low``; return False when the slots do not ascend from ``first_slot``."""
    descends = slots[0] < first_slot
    for i in range(1, slots.size):
        descends |= slots[i] <= slots[i - 1]
    if descends:
        return False
    one, shift = np.uint64(1), np.uint64(k)
    low_mask = (one << shift) - one
    high_word = np.uint64(0)
    high_bits = np.uint64(0)  # of that word, so far
    low_word = np.uint64(0)
    low_bits = np.uint64(0)
    fill = np.uint64(0)
    for i in range(slots.size):
        empty = np.uint64(slots[i] - first_slot - i)
        place = (empty >> shift) + np.uint64(i)
        word = place >> np.uint64(6)
        high_bits = (high_bits if word == high_word else np.uint64(0)) | (one << (place & np.uint64(63)))
        high_word = word
        high[word] = high_bits
        field = empty & low_mask
        low_bits |= field << fill
        low[low_word] = low_bits
        fill += shift
        if fill >= np.uint64(64):
            fill -= np.uint64(64)
            low_word += one
            low_bits = (field >> one) >> (shift - fill - one)
            low[low_word] = low_bits
    return True


@kernel
def _decode(high: Words, low: Words, n_empty: int, k: int, first_slot: int, slots: Slots) -> bool:
    """Fill ``slots``; return False when the bit strings are not those of as many clicks and empty slots."""
    n_ones = np.uint64(0)
    for w in range(high.size):
        n_ones += popcount(high[w])
    if n_ones != np.uint64(slots.size):
        return False
    one, six, low_63 = np.uint64(1), np.uint64(6), np.uint64(63)
    shift = np.uint64(k)
    low_mask = (one << shift) - one
    i = np.uint64(0)
    at = np.uint64(0)
    before = np.uint64(0)
    falls = False
    for w in range(high.size):
        word = high[w]
        base = np.uint64(w) << six
        while word != np.uint64(0):
            high_part = base + trailing_zeros(word) - i
            word &= word - one
            bit = at & low_63
            field = low[at >> six] >> bit | (low[(at >> six) + one] << one) << (low_63 - bit)
            at += shift
            empty = high_part << shift | field & low_mask
            falls |= empty < before
            before = empty
            slots[i] = first_slot + np.int64(empty + i)
            i += one
    return not falls and before == np.uint64(n_empty)
