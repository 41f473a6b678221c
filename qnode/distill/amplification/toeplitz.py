"""Exact product of a Toeplitz matrix over GF(2) with a bit vector, by an additive Fourier transform.

In words of 64 bits, as polynomials over GF(2): with S the words of the seed and x those of the vector, row r
is the 128-bit sum over j of S[r - j] x[j], and word r of the result is the low half of row r plus the high
half of row r - 1. Rows are sums of products in a ring R of 128 bits, four copies of GF(2^32), where a
polynomial of degree below 128 is its values at four points: nothing wraps around.

Over R, the product of a vector by the reversed x is linear in the vector: change of basis, transform,
products with the transform of the reversed x, and all back. The rows are the transpose of that map applied to
S. It needs no room for what a product has beyond S, so the transform has as many points as S has words,
rounded up.
"""

from functools import cache
from typing import Final

import numpy as np

from qnode.distill.amplification.basis import change_basis
from qnode.distill.amplification.field import POINTS
from qnode.distill.amplification.steps import (
    TILE_WORDS,
    conversion_tables,
    evaluate,
    factor_table,
    interpolate,
    lane_table,
    multiply_values,
    octets_to_words,
    words_to_octets,
)
from qnode.distill.amplification.transform import GROUP_TILES, forward, inverse
from qnode.distill.bits.array import Words
from qnode.kernels import kernel

_TILE: Final = 64  # elements, or words before they become elements
_GROUP: Final = _TILE * GROUP_TILES
_COPIES: Final = len(POINTS)


@kernel
def change(words: Words, first: int, bits: int, row: int, end: int, upwards: bool, back: bool) -> None:
    """Do what ``change_basis`` does, as a kernel of its own."""
    change_basis(words, first, bits, row, end, upwards, back)


@kernel
def separate(words: Words, back: bool) -> None:
    """Make eight vectors of octets of every 64 words; ``back``: words of the vectors."""
    for tile in range(words.size // _TILE):
        if back:
            octets_to_words(words, tile * _TILE)
        else:
            words_to_octets(words, tile * _TILE)


@kernel
def multiply(
    seed: Words,
    x: Words,
    rows: Words,
    factors: Words,
    lanes: Words,
    to_values: Words,
    from_values: Words,
    values: Words,
    others: Words,
) -> None:
    """Add to ``rows``, first halves before second ones, the transposed product of ``seed`` and ``x``.

    All three are vectors of octets in the basis of the transform. ``values`` and ``others`` are room for as
    many elements as ``seed`` has words. (``turned`` is a loop's variable, since numba compiles functions
    again for each constant that they are called with, and then cannot load recursive ones from its cache.)
    """
    groups = seed.size // _GROUP
    x_tiles = x.size // _TILE
    for copy in range(_COPIES):
        for turned in range(2):
            if turned:
                evaluate(others, x, to_values, x_tiles, copy)
                for i in range(x_tiles * TILE_WORDS, others.size):
                    others[i] = np.uint64(0)
                forward(others, factors, lanes, groups, turned)
            else:
                evaluate(values, seed, to_values, groups * GROUP_TILES, copy)
                forward(values, factors, lanes, groups, turned)
        multiply_values(values, others, groups * GROUP_TILES)
        inverse(values, factors, lanes, groups)
        interpolate(rows, values, from_values, rows.size // (2 * _TILE), copy)


@cache
def _tables() -> tuple[Words, Words, Words, Words]:
    return factor_table(), lane_table(), *conversion_tables()


def toeplitz_product(seed: Words, x: Words, row_bits: int, column_bits: int) -> Words:
    """Return y with y_i = sum_j seed_(column_bits - 1 + i - j) x_j, i < row_bits, packed in uint64 words.

    ``seed`` holds ``row_bits + column_bits - 1`` bits and ``x`` ``column_bits``, both packed with a zero
    tail; both numbers of bits are at least one.
    """
    result_words, columns = -(-row_bits // 64), -(-column_bits // 64)
    points = _groups(result_words + columns) * _GROUP
    # One row more than the result has words: its high halves are what reaches into the first word from below.
    # Coefficient column_bits - 1 of the product, which is y_0, becomes the first bit of row 1.
    window = _aligned_zeros(points)
    _place_bits(window, seed, columns * 64 - (column_bits - 1))
    reversed_x = _aligned_zeros(_tiles(columns) * _TILE)
    reversed_x[:columns] = x[::-1]
    half = _tiles(result_words + 1) * _TILE
    rows = _aligned_zeros(2 * half)
    _change(window, 0, points, upwards=True, back=False)
    _change(reversed_x, 0, reversed_x.size, upwards=False, back=False)
    separate(window, False)
    separate(reversed_x, False)
    room = _aligned_zeros(points)
    multiply(window, reversed_x, rows, *_tables(), room[: points // 2], room[points // 2 :])
    separate(rows, True)
    for first in (0, half):
        _change(rows, first, half, upwards=True, back=True)
    y: Words = rows[1 : result_words + 1] ^ rows[half : half + result_words]
    if row_bits % 64:
        y[-1] &= np.uint64((1 << (row_bits % 64)) - 1)
    return y


def _tiles(words: int) -> int:
    return -(-words // _TILE)


def _groups(points: int) -> int:
    """Return how many groups hold ``points``: a power of two, or three times one."""
    groups = -(-points // _GROUP)
    power = 1 << (groups - 1).bit_length()
    return power * 3 // 4 if power >= 4 and groups <= power * 3 // 4 else power


def _change(words: Words, first: int, n: int, *, upwards: bool, back: bool) -> None:
    change(words, first, (n - 1).bit_length(), 1, first + n, upwards, back)


def _place_bits(target: Words, source: Words, offset_bits: int) -> None:
    """Write ``source`` into the zero words ``target`` from bit ``offset_bits`` on, as far as it fits."""
    first, shift = divmod(offset_bits, 64)
    fits = min(source.shape[0], target.shape[0] - first)
    target[first : first + fits] = source[:fits] << np.uint64(shift)
    if shift:
        fits = min(source.shape[0], target.shape[0] - first - 1)
        target[first + 1 : first + 1 + fits] |= source[:fits] >> np.uint64(64 - shift)


def _aligned_zeros(n: int) -> Words:
    """Return ``n`` zero words that begin at a whole cache line."""
    words = np.zeros(n + 7, np.uint64)
    first = -words.ctypes.data // 8 % 8
    return words[first : first + n]
