"""Exact product of a Toeplitz matrix over GF(2) with a bit vector, by transposed Karatsuba splitting.

In words of 64 bits: with S the words of the seed and x those of the vector, row r of the product of
polynomials is the 128-bit sum over j of S[r - j] x[j], and word r of the result is the low half of row r
plus the high half of row r - 1. All rows are made first, by square tiles, and folded into words at the end.

A block [[B, A], [C, B]] halves into three half-size blocks instead of four (Winograd's identity for Toeplitz
matrices, the transpose of Karatsuba's multiplication):

    y0 = B (x0 + x1) + (A + B) x1,   y1 = B (x0 + x1) + (B + C) x0.

Three such steps at once make 27 blocks of an eighth of a tile. As many of them as a vector has lanes are
interleaved and go down to the leaves side by side.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.distill.amplification.toeplitz_leaf import (
    LEAF_SIZES,
    WIDTH,
    add_pairs,
    add_to_both,
    add_words,
    copy_pairs,
    leaf_portable,
    leaf_vector,
)
from qnode.distill.amplification.toeplitz_plan import plan_product
from qnode.distill.bits.array import Words
from qnode.distill.bits.clmul import PORTABLE
from qnode.kernels import inline_kernel, inner_kernel, kernel

_LARGEST_LEAF: Final = LEAF_SIZES[-1]
_SPREAD_LIMIT: Final = 12288  # words; larger tiles are halved first, so that the 27 blocks stay in the cache
_SPREAD_WORDS: Final = 29  # per word of such a tile
_SPLIT_WORDS: Final = 6  # per word of a halved block: 3 at the first level, half of that at the next, ...


@kernel
def multiply_tiles(
    work: Words, tiles: npt.NDArray[np.int64], origin: int, x: int, y: int, scratch: int, width: int
) -> None:
    """Add every tile's product to the rows at ``work[y]`` (two words each).

    ``work[origin + r - j]`` is the seed word of row r and column j, ``work[x + j]`` the vector. ``width`` is
    WIDTH or PORTABLE.
    """
    for index in range(tiles.shape[0]):
        row, column, size = tiles[index, 0], tiles[index, 1], tiles[index, 2]
        window = origin + row - column - size
        _tile(work, window, x + column, scratch, scratch + 2 * size, size, width)
        target = y + 2 * row
        add_words(work, target, target, scratch, 2 * size)


@inline_kernel
def _add_inputs(work: Words, s: int, x: int, differences: int, folded: int, half: int) -> None:
    """Set what the half-size blocks need: A + B and B + C in one run of words, and x0 + x1."""
    add_words(work, differences, s, s + half, 3 * half)
    add_words(work, folded, x, x + half, half)


@inner_kernel
def _tile(work: Words, s: int, x: int, y: int, scratch: int, n: int, width: int) -> None:
    """Set the n rows at y to the Toeplitz block with window s .. s + 2 n times the n words at x."""
    if n <= _SPREAD_LIMIT:
        _spread_tile(work, s, x, y, scratch, n, width)
        return
    half = n // 2
    differences, folded = scratch, scratch + 3 * half
    shared = folded + half
    deeper = shared + n
    _add_inputs(work, s, x, differences, folded, half)
    _tile(work, s + half, folded, shared, deeper, half, width)
    _tile(work, differences, x + half, y, deeper, half, width)
    _tile(work, differences + half, x, y + n, deeper, half, width)
    add_to_both(work, y, shared, n)


@inner_kernel
def _lanes(work: Words, s: int, x: int, y: int, scratch: int, n: int, size: int, width: int) -> None:
    """Do what ``_tile`` does for a block of n words in each lane; ``size`` is n times the number of lanes."""
    if n <= _LARGEST_LEAF:
        if width == PORTABLE:
            leaf_portable(work, s, x, y, n)
        else:
            leaf_vector(work, s, x, y, n)
        return
    half = size // 2
    differences, folded = scratch, scratch + 3 * half
    shared = folded + half
    deeper = shared + size
    _add_inputs(work, s, x, differences, folded, half)
    _lanes(work, s + half, folded, shared, deeper, n // 2, half, width)
    _lanes(work, differences, x + half, y, deeper, n // 2, half, width)
    _lanes(work, differences + half, x, y + size, deeper, n // 2, half, width)
    add_to_both(work, y, shared, size)


@inner_kernel
def _spread_tile(work: Words, s: int, x: int, y: int, scratch: int, n: int, width: int) -> None:
    """Do what ``_tile`` does by 27 blocks of an eighth, a different block in each lane of a vector."""
    lanes = max(1, width // 2)
    eighth = n // 8
    batches = -(-27 // lanes)
    s1 = scratch
    x1 = s1 + 3 * n
    s2 = x1 + 3 * (n // 2)
    x2 = s2 + 9 * (n // 2)
    s3 = x2 + 9 * (n // 4)
    x3 = s3 + batches * lanes * 2 * eighth
    y3 = x3 + batches * lanes * eighth
    _spread(work, s, x, s1, x1, 1, n)
    _spread(work, s1, x1, s2, x2, 3, n // 2)
    _spread_to_lanes(work, s2, x2, s3, x3, eighth, lanes)
    size = lanes * eighth
    for batch in range(batches):
        _lanes(work, s3 + 2 * batch * size, x3 + batch * size, y3 + 2 * batch * size, s1, eighth, size, width)
    y2 = s1
    y1 = y2 + 9 * (n // 2)
    _gather_from_lanes(work, y3, y2, eighth, lanes)
    _gather(work, y2, y1, 3, n // 2)
    _gather(work, y1, y, 1, n)


@inner_kernel
def _spread(work: Words, s: int, x: int, s_out: int, x_out: int, count: int, n: int) -> None:
    """Write the inputs of the three halves of each of ``count`` blocks of n words: top, shared, bottom."""
    half = n // 2
    for block in range(count):
        a = s + block * 2 * n
        to = s_out + block * 3 * n
        add_words(work, to, a, a + half, n)
        copy_pairs(work, to + n, a + half, half, 2, 2)
        add_words(work, to + 2 * n, a + half, a + n, n)
        x0 = x + block * n
        to = x_out + block * 3 * half
        copy_pairs(work, to, x0 + half, half // 2, 2, 2)
        add_words(work, to + half, x0, x0 + half, half)
        copy_pairs(work, to + 2 * half, x0, half // 2, 2, 2)


@inner_kernel
def _spread_to_lanes(work: Words, s: int, x: int, s_out: int, x_out: int, n: int, lanes: int) -> None:
    """Do what ``_spread`` does for nine blocks of 2 n words, and interleave the 27 results of n words."""
    step = 2 * lanes
    for block in range(9):
        a, x0 = s + block * 4 * n, x + block * 2 * n
        b, c, x1 = a + n, a + 2 * n, x0 + n
        top, x_top = _lane(s_out, x_out, 3 * block, n, lanes)
        shared, x_shared = _lane(s_out, x_out, 3 * block + 1, n, lanes)
        bottom, x_bottom = _lane(s_out, x_out, 3 * block + 2, n, lanes)
        add_pairs(work, top, a, b, n, step, 2)
        copy_pairs(work, shared, b, n, step, 2)
        add_pairs(work, bottom, b, c, n, step, 2)
        copy_pairs(work, x_top, x1, n // 2, step, 2)
        add_pairs(work, x_shared, x0, x1, n // 2, step, 2)
        copy_pairs(work, x_bottom, x0, n // 2, step, 2)


@inner_kernel
def _gather_from_lanes(work: Words, y: int, y_out: int, n: int, lanes: int) -> None:
    """Sum the rows of 27 interleaved blocks of n words into those of nine blocks of 2 n words."""
    step = 2 * lanes
    for block in range(9):
        top = _lane(y, y, 3 * block, n, lanes)[0]
        shared = _lane(y, y, 3 * block + 1, n, lanes)[0]
        bottom = _lane(y, y, 3 * block + 2, n, lanes)[0]
        to = y_out + block * 4 * n
        add_pairs(work, to, top, shared, n, 2, step)
        add_pairs(work, to + 2 * n, bottom, shared, n, 2, step)


@inline_kernel
def _lane(s: int, x: int, place: int, n: int, lanes: int) -> tuple[int, int]:
    """Return where block ``place`` begins among the interleaved: 2 n words each from s on, n from x on."""
    batch, lane = place // lanes, place % lanes
    return s + batch * 2 * n * lanes + 2 * lane, x + batch * n * lanes + 2 * lane


@inner_kernel
def _gather(work: Words, y: int, y_out: int, count: int, n: int) -> None:
    """Sum the rows of three halves of each of ``count`` blocks of n words."""
    for block in range(count):
        top = y + block * 3 * n
        to = y_out + block * 2 * n
        add_words(work, to, top, top + n, n)
        add_words(work, to + n, top + n, top + 2 * n, n)


def toeplitz_product(seed: Words, x: Words, row_bits: int, column_bits: int, width: int = WIDTH) -> Words:
    """Return y with y_i = sum_j seed_(column_bits - 1 + i - j) x_j, i < row_bits, packed in uint64 words.

    ``seed`` holds ``row_bits + column_bits - 1`` bits and ``x`` ``column_bits``, both packed with a zero
    tail; both numbers of bits are at least one. ``width`` chooses the multiplier, one of
    ``clmul.leaf_widths()``.
    """
    result_words, columns = -(-row_bits // 64), -(-column_bits // 64)
    # One row more than the result has words: its high halves are what reaches into the first word from below.
    plan = plan_product(result_words + 1, columns)
    origin = plan.columns
    x_at = origin + plan.rows
    y_at = x_at + plan.columns
    scratch = y_at + 2 * plan.rows
    spread = _SPREAD_WORDS * min(plan.largest, _SPREAD_LIMIT)
    work = _aligned_zeros(scratch + (2 + _SPLIT_WORDS) * plan.largest + spread)
    # Coefficient column_bits - 1 of the product, which is y_0, becomes the first bit of row 1.
    _place_bits(work[:x_at], seed, (origin + 1) * 64 - (column_bits - 1))
    work[x_at : x_at + columns] = x
    multiply_tiles(work, plan.tiles, origin, x_at, y_at, scratch, width)
    rows = work[y_at : y_at + 2 * (result_words + 1)].reshape(-1, 2)
    y: Words = rows[1:, 0] ^ rows[:-1, 1]
    if row_bits % 64:
        y[-1] &= np.uint64((1 << (row_bits % 64)) - 1)
    return y


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
