"""Sifting on packed bits: one bit of many codes, and those bits that a mask names moved together."""

import numpy as np

from qnode.distill.bits import Bits
from qnode.distill.bits.array import Words
from qnode.distill.bits.words import popcount
from qnode.kernels import inline_kernel, kernel
from qnode.tags.types import Codes

U = np.uint64


def plane(codes: Codes, place: int) -> Bits:
    """Return which ``codes`` have the bit ``place`` (1, 2, 4, ...)."""
    return Bits.pack(codes & np.uint8(place))


def chosen(bits: Bits, mask: Bits) -> Bits:
    """Return those of ``bits`` that ``mask`` (of the same length) names, in their order.

    Raises:
        ValueError: the lengths differ.
    """
    if bits.n_bits != mask.n_bits:
        raise ValueError(f"a mask of {mask.n_bits} bits for {bits.n_bits}")
    words = np.zeros(bits.words.size + 1, np.uint64)
    n = int(_choose(bits.words, mask.words, words))
    return Bits(words[: (n + 63) // 64], n)


@kernel
def _choose(words: Words, masks: Words, out: Words) -> np.uint64:
    """Put the chosen bits of all words one behind the other into zeroed ``out``; return how many."""
    n = U(0)
    for i in range(words.size):
        together = _together(words[i], masks[i])
        place = n & U(63)
        out[n >> U(6)] |= together << place
        out[(n >> U(6)) + U(1)] = (together >> U(1)) >> (U(63) - place)
        n += popcount(masks[i])
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
