"""Exact product of a Toeplitz matrix over GF(2) with a bit vector, by transposed Karatsuba splitting.

In words of 64 bits: with S the words of the seed and x those of the vector, row r of the product of
polynomials is the 128-bit sum over j of S[r - j] x[j], and word r of the result is the low half of row r
plus the high half of row r - 1. All rows are made first, by square blocks, and folded into words at the end.
A block halves into three half-size blocks instead of four (Winograd's identity for Toeplitz matrices, the
transpose of Karatsuba's multiplication).
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.distill.bits import Words
from qnode.distill.clmul import (
    LEAF_SIZES,
    add_words,
    leaf_128,
    leaf_256,
    leaf_portable,
    leaf_widths,
)
from qnode.kernels import kernel

LEAF_WIDTH: Final = leaf_widths()[0]

_TILE_UNIT: Final = 8
_LARGEST_LEAF: Final = LEAF_SIZES[-1]
_LEAF_COST: Final = {8: 31.0, 12: 56.0, 16: 84.0}
_SCRATCH_PER_BLOCK: Final = 6  # words: 3 at the first level, half of that at the next, ...


@dataclass(frozen=True)
class Plan:
    """How a matrix of words is covered by square tiles, each word by one tile.

    ``tiles`` (int64, shape ``(number, 3)``) holds first row, first column and size of each; a size is 8 or 24
    times a power of two. ``rows`` and ``columns`` are where the tiles end: they may reach past the matrix,
    where the seed or the vector is zero. ``largest`` is the size of the largest tile.
    """

    rows: int
    columns: int
    largest: int
    tiles: npt.NDArray[np.int64]


@lru_cache(maxsize=64)
def plan_product(rows: int, columns: int) -> Plan:
    """Return the cheapest cover of ``rows`` x ``columns`` words that begins with tiles of one size.

    What the first tiles leave is covered by the largest that fit. Rows and columns are first rounded up to a
    multiple of eight, so that inside the matrix everything fits.
    """
    height, width = -(-rows // _TILE_UNIT) * _TILE_UNIT, -(-columns // _TILE_UNIT) * _TILE_UNIT
    smallest_side = min(height, width)
    sizes = _sizes(2 * smallest_side)
    below = [size for size in sizes if size <= smallest_side]
    # One size above the side as well, and the whole rounded up: padding may cost less than strips.
    covers = (
        _cover(padded[0], padded[1], size)
        for size in (*below[-3:], *sizes[len(below) : len(below) + 1])
        for padded in ((height, width), (-(-height // size) * size, -(-width // size) * size))
    )
    cover = min(covers, key=lambda tiles: sum(_tile_cost(size) for _, _, size in tiles))
    return Plan(
        rows=max(row + size for row, _, size in cover),
        columns=max(column + size for _, column, size in cover),
        largest=max(size for _, _, size in cover),
        tiles=np.array(cover, np.int64),
    )


def _cover(height: int, width: int, first_size: int) -> list[tuple[int, int, int]]:
    """Return row, column and size of tiles that begin with ``first_size``, which alone may exceed a side."""
    tiles: list[tuple[int, int, int]] = []
    pending = [(0, 0, height, width, first_size)]
    while pending:
        row, column, height, width, size = pending.pop()
        down, along = max(1, height // size), max(1, width // size)
        tiles.extend((row + i * size, column + j * size, size) for i in range(down) for j in range(along))
        used_height, used_width = min(height, down * size), min(width, along * size)
        for rest in (
            (row + used_height, column, height - used_height, width),
            (row, column + used_width, used_height, width - used_width),
        ):
            side = min(rest[2:])
            if side > 0:
                pending.append((*rest, max(size for size in _sizes(side) if size <= side)))
    return tiles


@cache
def _sizes(limit: int) -> tuple[int, ...]:
    """Return all sizes of tiles up to ``limit``, smallest first."""
    powers = range(max(1, limit).bit_length())
    return tuple(sorted(base << power for power in powers for base in (8, 24) if base << power <= limit))


@cache
def _tile_cost(size: int) -> float:
    """Return about how many word products a tile is worth, its additions included."""
    if size in _LEAF_COST:
        return _LEAF_COST[size]
    return 3.0 * _tile_cost(size // 2) + size


@kernel
def multiply_tiles(
    work: Words, tiles: npt.NDArray[np.int64], origin: int, x: int, y: int, scratch: int, width: int
) -> None:
    """Add every tile's product to the rows at ``work[y]`` (two words each).

    ``work[origin + r - j]`` is the seed word of row r and column j, ``work[x + j]`` the vector. ``width`` is
    one of ``clmul.leaf_widths()``.
    """
    for index in range(tiles.shape[0]):
        row, column, size = tiles[index, 0], tiles[index, 1], tiles[index, 2]
        window = origin + row - column - size
        _square(work, window, x + column, scratch, scratch + 2 * size, size, width)
        target = y + 2 * row
        add_words(work, target, target, scratch, 2 * size)


@kernel
def _square(work: Words, s: int, x: int, y: int, scratch: int, n: int, width: int) -> None:
    """Set the n rows at y to the Toeplitz block with window s .. s + 2 n times the n words at x."""
    if n <= _LARGEST_LEAF:
        if width == 4:
            leaf_256(work, s, x, y, n)
        elif width == 2:
            leaf_128(work, s, x, y, n)
        else:
            leaf_portable(work, s, x, y, n)
        return
    half = n // 2
    # The block is [[B, A], [C, B]] with A, B, C the windows at s, s + half, s + n:
    # y0 = B (x0 + x1) + (A + B) x1,   y1 = B (x0 + x1) + (B + C) x0.
    differences = scratch
    folded = differences + 3 * half
    shared = folded + half
    deeper = shared + n
    add_words(work, differences, s, s + half, 3 * half)
    add_words(work, folded, x, x + half, half)
    _square(work, s + half, folded, shared, deeper, half, width)
    _square(work, differences, x + half, y, deeper, half, width)
    _square(work, differences + half, x, y + n, deeper, half, width)
    add_words(work, y, y, shared, n)
    add_words(work, y + n, y + n, shared, n)


def toeplitz_product(
    seed: Words, x: Words, row_bits: int, column_bits: int, width: int = LEAF_WIDTH
) -> Words:
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
    work = np.zeros(scratch + (2 + _SCRATCH_PER_BLOCK) * plan.largest, np.uint64)
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
