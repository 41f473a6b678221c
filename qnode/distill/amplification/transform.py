"""The additive Fourier transform over GF(2^32) in Cantor's basis, transposed, and its inverse.

A polynomial in the basis of `basis` is split again and again: modulo s_i + f and s_i + f + 1 it is a + f b
and a + f b + b, where a and b are its lower and upper half, and the factor f of block n is
`field.combination` of 2 n, an element of GF(2^8) in the first eight levels, of GF(2^16) in the next eight.
The transpose of the inverse of such a step, b += f a, a += b, is the same with a and b exchanged: what is
called ``turned`` is the transform, what is not is the transpose of its inverse.

Levels between tiles work on whole vectors. Then a group of 64 tiles is transposed, so that the last six
levels do, too. Results stay in that order: they are multiplied place by place, and transposed back by the
inverse. Blocks are finished one by one, so that they stay in the cache.
"""

from typing import Final

from qnode.distill.amplification.steps import (
    TILE_WORDS,
    add_product,
    add_words,
    exchange_octets,
    exchange_words,
    forward_1,
    forward_2,
    forward_4,
    forward_lanes_2,
    forward_lanes_4,
    inverse_1,
    inverse_2,
    inverse_4,
    inverse_lanes_2,
    inverse_lanes_4,
)
from qnode.distill.bits.array import Words
from qnode.kernels import inner_kernel

GROUP_TILES: Final = 64


@inner_kernel
def _turn(work: Words, first: int) -> None:
    """Exchange, in a group of 64 tiles, the number of a tile with that of an element within a tile."""
    for plane in range(4):
        at = first + 8 * plane
        for i in range(8):
            exchange_words(work, at + i * TILE_WORDS, 8 * TILE_WORDS)
        for i in range(8):
            exchange_octets(work, at + 8 * i * TILE_WORDS, TILE_WORDS)


@inner_kernel
def _forward_lanes(
    work: Words, factors: Words, lanes: Words, first: int, group: int, depth: int, turned: int
) -> None:
    """Do the last six levels of a transposed group."""
    for level in (0, 2, 4):
        quarter = 16 >> level
        stride = quarter * TILE_WORDS
        start, step = (3 * stride, -stride) if turned else (0, stride)
        for part in range(1 << level):
            at = first + 4 * part * stride + start
            block = (group << (6 + level)) + part
            if depth + level < 15:
                forward_lanes_2(work, factors, lanes, at, step, 2 * quarter, block, turned, level)
            else:
                forward_lanes_4(work, factors, lanes, at, step, quarter, block, turned, level)


@inner_kernel
def _inverse_lanes(work: Words, factors: Words, lanes: Words, first: int, group: int, depth: int) -> None:
    """Undo ``_forward_lanes``."""
    for level in (4, 2, 0):
        quarter = 16 >> level
        stride = quarter * TILE_WORDS
        for part in range(1 << level):
            at = first + 4 * part * stride
            block = (group << (6 + level)) + part
            if depth + level < 15:
                inverse_lanes_2(work, factors, lanes, at, stride, 2 * quarter, block, 0, level)
            else:
                inverse_lanes_4(work, factors, lanes, at, stride, quarter, block, 0, level)


@inner_kernel
def _forward(
    work: Words, factors: Words, lanes: Words, first: int, tiles: int, block: int, depth: int, turned: int
) -> None:
    """Transform ``tiles`` tiles, a power of four, which are block ``block`` of those at ``depth``."""
    if tiles == 1:
        return
    quarter = tiles // 4
    stride = quarter * TILE_WORDS
    at, step = (first + 3 * stride, -stride) if turned else (first, stride)
    if depth < 7:
        forward_1(work, factors, lanes, at, step, 4 * quarter, block, turned, 0)
    elif depth < 15:
        forward_2(work, factors, lanes, at, step, 2 * quarter, block, turned, 0)
    else:
        forward_4(work, factors, lanes, at, step, quarter, block, turned, 0)
    for part in range(4):
        _forward(work, factors, lanes, first + part * stride, quarter, 4 * block + part, depth + 2, turned)
    if tiles == GROUP_TILES:
        _turn(work, first)
        _forward_lanes(work, factors, lanes, first, block, depth + 6, turned)


@inner_kernel
def _inverse(
    work: Words, factors: Words, lanes: Words, first: int, tiles: int, block: int, depth: int
) -> None:
    """Undo ``_forward``."""
    if tiles == 1:
        return
    if tiles == GROUP_TILES:
        _inverse_lanes(work, factors, lanes, first, block, depth + 6)
        _turn(work, first)
    quarter = tiles // 4
    stride = quarter * TILE_WORDS
    for part in range(4):
        _inverse(work, factors, lanes, first + part * stride, quarter, 4 * block + part, depth + 2)
    if depth < 7:
        inverse_1(work, factors, lanes, first, stride, 4 * quarter, block, 0, 0)
    elif depth < 15:
        inverse_2(work, factors, lanes, first, stride, 2 * quarter, block, 0, 0)
    else:
        inverse_4(work, factors, lanes, first, stride, quarter, block, 0, 0)


@inner_kernel
def _half(work: Words, factors: Words, a: int, b: int, words: int, block: int, inverse: bool) -> None:
    """Do one level of a block of halves ``a`` and ``b``: b += f a, a += b."""
    if inverse:
        add_words(work, a, b, words)
    if block:
        add_product(work, factors, b, a, words, 2 * block)
    if not inverse:
        add_words(work, a, b, words)


@inner_kernel
def forward(work: Words, factors: Words, lanes: Words, groups: int, turned: int) -> None:
    """Transform ``groups`` groups, a power of two or three times one."""
    parts = 3 if groups % 3 == 0 else 1
    words = groups // parts * GROUP_TILES * TILE_WORDS
    if parts == 3 and turned:
        add_words(work, 2 * words, 0, words)
        add_product(work, factors, 2 * words, words, words, 2)
        add_words(work, words, 0, words)
    elif parts == 3:
        add_product(work, factors, words, 2 * words, words, 2)
        add_words(work, 0, words, words)
        add_words(work, 0, 2 * words, words)
    depth = parts - 1
    for block in range(parts):
        first, tiles = block * words, groups // parts * GROUP_TILES
        if tiles & 0x5555555555555555:
            _forward(work, factors, lanes, first, tiles, block, depth, turned)
            continue
        middle = first + words // 2
        if turned:
            _half(work, factors, middle, first, words // 2, block, False)
        else:
            _half(work, factors, first, middle, words // 2, block, False)
        for child in range(2):
            at = first + child * (words // 2)
            _forward(work, factors, lanes, at, tiles // 2, 2 * block + child, depth + 1, turned)


@inner_kernel
def inverse(work: Words, factors: Words, lanes: Words, groups: int) -> None:
    """Undo ``forward``."""
    parts = 3 if groups % 3 == 0 else 1
    words = groups // parts * GROUP_TILES * TILE_WORDS
    depth = parts - 1
    for block in range(parts):
        first, tiles = block * words, groups // parts * GROUP_TILES
        if tiles & 0x5555555555555555:
            _inverse(work, factors, lanes, first, tiles, block, depth)
            continue
        for child in range(2):
            at = first + child * (words // 2)
            _inverse(work, factors, lanes, at, tiles // 2, 2 * block + child, depth + 1)
        _half(work, factors, first, first + words // 2, words // 2, block, True)
    if parts == 3:
        add_words(work, 0, 2 * words, words)
        add_words(work, 0, words, words)
        add_product(work, factors, words, 2 * words, words, 2)
