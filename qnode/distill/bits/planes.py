"""Sifting on packed bits: one bit of many codes, and those bits that a mask names moved together."""

from collections.abc import Sequence

import numpy as np

from qnode.distill.bits import Bits
from qnode.distill.bits.array import Words
from qnode.distill.bits.words import HAS_EXTRACT, extract, load, popcount
from qnode.kernels import inline_kernel, kernel
from qnode.tags.types import Codes

U = np.uint64
# The lowest bit of each of eight octets; a product with the second has them side by side in its top octet.
_LOWEST, _GATHER = U(0x0101_0101_0101_0101), U(0x0102_0408_1020_4080)


def plane(codes: Codes, place: int) -> Bits:
    """Return which ``codes`` have the bit ``place`` (1, 2, 4, ...)."""
    return Bits.pack(codes & np.uint8(place))


@inline_kernel
def three_planes(codes: Codes, first: int, n: int) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Return the bits 1, 2 and 4 of n codes from ``first`` on, n at most 64."""
    low, middle, high = U(0), U(0), U(0)
    if n == 64:
        for i in range(8):
            octets, place = load(codes, U(first + 8 * i)), U(8 * i)
            low |= (octets & _LOWEST) * _GATHER >> U(56) << place
            middle |= (octets >> U(1) & _LOWEST) * _GATHER >> U(56) << place
            high |= (octets >> U(2) & _LOWEST) * _GATHER >> U(56) << place
    else:
        for i in range(n):
            code = U(codes[first + i])
            low |= (code & U(1)) << U(i)
            middle |= (code >> U(1) & U(1)) << U(i)
            high |= (code >> U(2) & U(1)) << U(i)
    return low, middle, high


def joined(parts: Sequence[Bits]) -> Bits:
    """Return the bits of all parts, one behind the other."""
    n_bits = sum(part.n_bits for part in parts)
    words, at = np.zeros(n_bits // 64 + 2, np.uint64), 0
    for part in parts:
        _append(part.words, words, at)
        at += part.n_bits
    return Bits(words[: (n_bits + 63) // 64], n_bits)


@kernel
def _append(words: Words, out: Words, at: int) -> None:
    for w in range(words.size):
        put_word(words[w], out, U(at + 64 * w))


@inline_kernel
def put_word(word: np.uint64, out: Words, at: np.uint64) -> None:
    """Put 64 bits into ``out`` from bit ``at`` on, where it has no ones yet; one more word is cleared."""
    place = at & U(63)
    out[at >> U(6)] |= word << place
    out[(at >> U(6)) + U(1)] = (word >> U(1)) >> (U(63) - place)


def ones_before(bits: Bits, places: Sequence[int]) -> list[int]:
    """Return how many of the bits before each of ``places`` (0 to ``bits.n_bits``) are ones."""
    below = np.concatenate(([0], np.cumsum(np.bitwise_count(bits.words), dtype=np.int64)))
    words = np.append(bits.words, U(0))
    at = np.asarray(places, np.int64)
    masks = (U(1) << (at & 63).astype(np.uint64)) - U(1)
    return [int(n) for n in below[at >> 6] + np.bitwise_count(words[at >> 6] & masks)]


def chosen(bits: Bits, mask: Bits, *, portable: bool = not HAS_EXTRACT) -> Bits:
    """Return those of ``bits`` that ``mask`` (of the same length) names, in their order.

    ``portable``: without the processor's instruction for it, which gives the same.

    Raises:
        ValueError: the lengths differ.
    """
    if bits.n_bits != mask.n_bits:
        raise ValueError(f"a mask of {mask.n_bits} bits for {bits.n_bits}")
    words = np.zeros(bits.words.size + 1, np.uint64)
    n = int(_choose(bits.words, mask.words, words, portable))
    return Bits(words[: (n + 63) // 64], n)


@kernel
def _choose(words: Words, masks: Words, out: Words, portable: bool) -> np.uint64:
    """Put the chosen bits of all words one behind the other into zeroed ``out``; return how many."""
    n = U(0)
    for i in range(words.size):
        together = _together(words[i], masks[i]) if portable else extract(words[i], masks[i])
        put_word(together, out, n)
        n += popcount(masks[i])
    return n


def spread(bits: Bits, mask: Bits) -> Bits:
    """Put ``bits`` at the ones of ``mask``, in their order: the inverse of `chosen`.

    Raises:
        ValueError: ``mask`` has not as many ones as there are bits.
    """
    words = np.empty(mask.words.size, np.uint64)
    n = int(_spread(np.append(bits.words, np.zeros(2, np.uint64)), bits.n_bits, mask.words, words))
    if n != bits.n_bits:
        raise ValueError(f"a mask of {n} ones for {bits.n_bits} bits")
    return Bits(words, mask.n_bits)


@kernel
def _spread(words: Words, n_bits: int, masks: Words, out: Words) -> np.uint64:
    """Fill ``out``; return the ones of all masks. ``words``: with two more at the end."""
    n = U(0)
    for i in range(masks.size):
        n += popcount(masks[i])
    if n != U(n_bits):
        return n
    moves = np.empty(6, np.uint64)
    at = U(0)
    for i in range(masks.size):
        place = at & U(63)
        word = words[at >> U(6)] >> place | (words[(at >> U(6)) + U(1)] << U(1)) << (U(63) - place)
        out[i] = _apart(word, masks[i], moves)
        at += popcount(masks[i])
    return n


@inline_kernel
def _together(word: np.uint64, mask: np.uint64) -> np.uint64:
    """Move the bits of ``word`` that ``mask`` names to the low end (Warren, Hacker's Delight, 7-4: compress).

    Each bit goes down by the number of zeros of the mask below it, by one power of two after the other. No
    step depends on what the bits are: they are secret, and random, so that a branch would be guessed wrongly.
    """
    word &= mask
    zeros_below = ~mask << U(1)
    for step in range(6):
        odd = zeros_below ^ (zeros_below << U(1))  # becomes the parity of the zeros below each bit
        odd ^= odd << U(2)
        odd ^= odd << U(4)
        odd ^= odd << U(8)
        odd ^= odd << U(16)
        odd ^= odd << U(32)
        distance = U(1) << U(step)
        moving = mask & odd
        mask = (mask ^ moving) | (moving >> distance)
        moving &= word
        word = (word ^ moving) | (moving >> distance)
        zeros_below &= ~odd
    return word


@inline_kernel
def _apart(word: np.uint64, mask: np.uint64, moves: Words) -> np.uint64:
    """Move the low bits of ``word`` to the ones of ``mask`` (Warren, Hacker's Delight, 7-5: expand)."""
    kept = mask
    zeros_below = ~mask << U(1)
    for step in range(6):
        odd = zeros_below ^ (zeros_below << U(1))
        odd ^= odd << U(2)
        odd ^= odd << U(4)
        odd ^= odd << U(8)
        odd ^= odd << U(16)
        odd ^= odd << U(32)
        moves[step] = odd & mask
        mask = (mask ^ moves[step]) | (moves[step] >> (U(1) << U(step)))
        zeros_below &= ~odd
    for back in range(6):
        step = 5 - back
        word = (word & ~moves[step]) | ((word << (U(1) << U(step))) & moves[step])
    return word & kept
