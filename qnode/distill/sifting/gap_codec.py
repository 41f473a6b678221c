"""The announcement of protocol 2: near its entropy, by the gaps between clicks.

As in `qnode.distill.sifting.codec` there is no place for the bin of a Z click. A batch is a head of 24 bytes
and up to five bit strings, each from a whole byte on, least significant bit first. With g_i the empty slots
between click i - 1 and click i (for the first: from the first slot on), and s_i = g_0 >> k + ... + g_i >> k:

- high parts: bit ``s_i + i`` is one for each click, all others are zero; it ends with the last one;
- low parts: the k low bits of each g_i (R. F. Rice and J. R. Plaunt, IEEE Transactions on Communication
  Technology 19, 889, 1971: the quotient in unary, the remainder in binary);
- the clicks of the X arm: one bit a click, or, where they are rare, their gaps in high and low parts;
- one bit a click of the X arm: it is a boundary click.

k is the best one for gaps of the mean e / n that follow a geometric distribution (A. Kiely, IPN Progress
Report 42-159, 2004), from integers of the head alone. X clicks are rare where their k is not 0.
"""

import struct
from typing import Final

import numpy as np

from qnode.distill.bits import Bits
from qnode.distill.bits.array import Words
from qnode.distill.bits.words import load, popcount, trailing_zeros
from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.codec import MOST_CLICKS, NO_CLICKS_ANNOUNCED, SPARE_WORDS, parts_of
from qnode.errors import ProtocolError
from qnode.kernels import kernel
from qnode.tags.types import Slots

# Clicks n, empty slots e, bits of the high parts, clicks of the X arm, bits of their high parts.
_HEAD: Final = struct.Struct("<IQIII")
# -ln((sqrt(5) - 1) / 2) in units of 2^-16: the mean gap from which one more low bit pays is 2^k / 0.4812.
_GOLDEN: Final = 31537
_MOST_SLOTS: Final = 1 << 56  # so that low parts have at most 57 bits, which eight octets hold
_U = np.uint64


def encode_gaps(announced: Announced, first_slot: int) -> bytes:
    """Encode a batch of clicks; none is before ``first_slot``.

    Raises:
        ValueError: the slots do not ascend, or begin before ``first_slot``.
    """
    slots, x_arm, boundary = announced.slots, announced.x_arm, announced.boundary
    n = len(announced)
    if not n:
        return _HEAD.pack(0, 0, 0, 0, 0)
    n_empty = int(slots[-1]) - first_slot + 1 - n
    n_high, gaps = _encoded(slots, first_slot, n_empty)
    n_x, n_x_high, x_bytes = boundary.n_bits, 0, b""
    if low_bits(n_x, n - n_x):
        n_x_high, x_bytes = _encoded(_positions(x_arm, n_x), 0, n - n_x)
    elif n_x:
        x_bytes = x_arm.to_bytes()
    return b"".join((_HEAD.pack(n, n_empty, n_high, n_x, n_x_high), gaps, x_bytes, boundary.to_bytes()))


def decode_gaps(data: bytes, first_slot: int, n_slots: int) -> Announced:
    """Decode a batch whose clicks must lie in ``first_slot <= slot < first_slot + n_slots``.

    Raises:
        ProtocolError: cut short, too long, not in its one canonical form, or a slot outside the span.
    """
    if len(data) < _HEAD.size:
        raise ProtocolError(f"announcement: {len(data)} bytes are no head")
    n, n_empty, n_high, n_x, n_x_high = _HEAD.unpack_from(data)
    if not any((n, n_empty, n_high, n_x, n_x_high)) and len(data) == _HEAD.size:
        return NO_CLICKS_ANNOUNCED
    if not 0 < n <= MOST_CLICKS or n + n_empty > min(n_slots, _MOST_SLOTS) or n_x > n:
        raise ProtocolError(f"announcement: {n} clicks and {n_empty} empty slots in a span of {n_slots}")
    k, k_x = low_bits(n, n_empty), low_bits(n_x, n - n_x)
    most_x_high = n_x + ((n - n_x) >> k_x) if k_x else 0
    x_bits = n_x_high if k_x else n if n_x else 0
    lengths = (n_high, n * k, x_bits, n_x * k_x, n_x)
    # Each click costs a high part here, so that a small message cannot ask for much memory.
    whole = _HEAD.size + sum((length + 7) // 8 for length in lengths)
    fits = n <= n_high <= n + (n_empty >> k) and (n_x if k_x else 0) <= n_x_high <= most_x_high
    if len(data) != whole or not fits:
        raise ProtocolError(f"announcement: {len(data)} bytes for {n} clicks and {n_empty} empty slots")
    high, low, x_high, x_low, boundary = parts_of(data, _HEAD.size, lengths)
    slots = _decoded(high, n_high, low, n, k, first_slot)
    if int(slots[-1]) - first_slot + 1 - n != n_empty:
        raise ProtocolError("announcement: its clicks do not fit its head")
    if k_x or not n_x:
        x_arm = np.zeros((n + 63) // 64, np.uint64)
    if k_x:
        positions = _decoded(x_high, n_x_high, x_low, n_x, k_x, 0)
        if positions[-1] >= n:
            raise ProtocolError("announcement: a click of the X arm after the last click")
        _put_ones(positions, x_arm)
    elif n_x:
        x_arm = x_high[:-SPARE_WORDS]
        if int(np.bitwise_count(x_arm).sum()) != n_x:
            raise ProtocolError("announcement: the clicks of the X arm do not fit the head")
    return Announced(slots, Bits(x_arm, n), Bits(boundary[:-SPARE_WORDS], n_x))


def low_bits(n: int, n_empty: int) -> int:
    """Return the number of low bits of each gap that costs least, for n gaps of n_empty slots together."""
    return ((n_empty * _GOLDEN) // (n << 16)).bit_length() if n else 0


def _encoded(places: Slots, first: int, n_empty: int) -> tuple[int, bytes]:
    """Return the number of bits of the high parts, and both parts."""
    n = places.shape[0]
    n_empty = max(0, n_empty)  # below 0 if the places do not ascend, which `_encode` sees
    k = low_bits(n, n_empty)
    high = np.zeros((n + (n_empty >> k)) // 64 + 1, np.uint64)
    low = np.zeros(n * k // 64 + 1, np.uint64)
    n_high = int(_encode(places, first, k, high, low))
    if not n_high:
        raise ValueError("announcement: slots must ascend strictly from first_slot")
    return n_high, high.tobytes()[: (n_high + 7) // 8] + low.tobytes()[: (n * k + 7) // 8]


def _decoded(high: Words, n_high: int, low: Words, n: int, k: int, first: int) -> Slots:
    places = np.empty(n, np.int64)
    if not _decode(high, n_high, low, k, first, places):
        raise ProtocolError("announcement: its high parts do not fit its head")
    return places


def _positions(bits: Bits, n: int) -> Slots:
    positions = np.empty(n, np.int64)
    _list_ones(bits.words, positions)
    return positions


@kernel
def _encode(places: Slots, first: int, k: int, high: Words, low: Words) -> int:
    """Fill zeroed ``high`` and ``low``; return the bits of ``high``, 0 if places do not ascend."""
    descends = places[0] < first
    for i in range(1, places.size):
        descends |= places[i] <= places[i - 1]
    if descends:
        return 0
    one, shift = _U(1), _U(k)
    low_mask = (one << shift) - one
    high_word, high_value = _U(0), _U(0)  # the word in which ones are put at present, and those so far
    low_word, low_value = _U(0), _U(0)
    fill, place = _U(0), _U(0)
    before = np.int64(first - 1)
    for i in range(places.size):
        gap = _U(places[i] - before - 1)
        before = places[i]
        place += gap >> shift
        if place >> _U(6) != high_word:
            high[high_word] = high_value
            high_word, high_value = place >> _U(6), _U(0)
        high_value |= one << (place & _U(63))
        place += one
        field = gap & low_mask
        low_value |= field << fill
        fill += shift
        if fill >= _U(64):
            low[low_word] = low_value
            fill -= _U(64)
            low_word += one
            low_value = (field >> one) >> (shift - fill - one)
    high[high_word] = high_value
    low[low_word] = low_value
    return int(place)


@kernel
def _decode(high: Words, n_high: int, low: Words, k: int, first: int, places: Slots) -> bool:
    """Fill ``places``; return False when ``high`` has another number of ones, or does not end with one."""
    n_ones = _U(0)
    for w in range(high.size):
        n_ones += popcount(high[w])
    if n_ones != _U(places.size):
        return False
    one, three, six, seven = _U(1), _U(3), _U(6), _U(7)
    shift = _U(k)
    low_mask = (one << shift) - one
    i, at, lows, here = _U(0), _U(0), _U(0), _U(0)  # `lows`: the sum of the low parts
    for w in range(high.size):
        word = high[w]
        base = _U(w) << six
        while word != _U(0):
            here = base + trailing_zeros(word)
            word &= word - one
            lows += load(low, at >> three) >> (at & seven) & low_mask
            at += shift
            # Before the one of click i there are i others, so the zeros are the sum of the high parts.
            places[i] = first + np.int64(((here - i) << shift) + lows + i)
            i += one
    return bool(here + one == _U(n_high))


@kernel
def _list_ones(words: Words, positions: Slots) -> None:
    """List the ones of ``words``, as many as ``positions`` has room for."""
    i = 0
    for w in range(words.size):
        word = words[w]
        while word != _U(0):
            positions[i] = np.int64((_U(w) << _U(6)) + trailing_zeros(word))
            word &= word - _U(1)
            i += 1


@kernel
def _put_ones(positions: Slots, words: Words) -> None:
    """Set the bits of ``words`` at ``positions``."""
    for position in positions:
        words[position >> 6] |= _U(1) << _U(position & 63)
