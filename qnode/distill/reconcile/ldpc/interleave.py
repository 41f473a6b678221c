"""A public permutation of the whole block, so that a burst of errors is spread over all frames.

Words are gathered in a random order, each is turned by a random amount, squares of 64 words are transposed,
and the words are dealt out in another random order: the 64 bits of a word land in 64 words, each anywhere.
Blocks of less than one square are permuted bit by bit.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile.base.transpose import LANES, rotated, transpose
from qnode.distill.reconcile.base.words import U, stream_key, stream_word
from qnode.kernels import inline_kernel, kernel

Words = npt.NDArray[np.uint64]
Table = npt.NDArray[np.uint32]

_SQUARE = 64


@dataclass(frozen=True, eq=False)
class Interleaver:
    """The permutation of one block: tables of words, or ``gather`` of bits where there is no ``deal``."""

    gather: Table
    deal: Table

    @classmethod
    def draw(cls, seed: bytes, n_words: int) -> "Interleaver":
        """Draw the permutation of ``n_words`` words from the block's public seed."""
        is_bitwise = n_words < _SQUARE
        gather = np.empty(_SQUARE * n_words if is_bitwise else n_words, np.uint32)
        deal = np.empty(0 if is_bitwise else n_words, np.uint32)
        _draw(stream_key(seed, b"interleave", 0), gather)
        _draw(stream_key(seed, b"interleave", 1), deal)
        return cls(gather, deal)

    def apply(self, words: Words) -> Words:
        """Return the block in the order in which it is cut into frames."""
        target = np.zeros_like(words)
        if self.deal.size:
            _mix(words, self.gather, self.deal, target)
        else:
            _move_bits(words, self.gather, target, False)
        return target

    def undo(self, words: Words) -> Words:
        """Return the block in its own order again."""
        target = np.zeros_like(words)
        if self.deal.size:
            _unmix(words, self.gather, self.deal, target)
        else:
            _move_bits(words, self.gather, target, True)
        return target


@kernel
def _draw(key: np.uint64, table: Table) -> None:
    """Permute (Fisher and Yates)."""
    for i in range(table.size):
        table[i] = i
    for k in range(table.size):
        last = U(table.size - 1 - k)
        chosen = ((stream_word(key, last) >> U(32)) * (last + U(1))) >> U(32)
        table[last], table[chosen] = table[chosen], table[last]


@kernel
def _move_bits(source: Words, gather: Table, target: Words, undo: bool) -> None:
    for i in range(gather.size):
        come, go = U(gather[i]), U(i)
        if undo:
            come, go = go, come
        target[go >> U(6)] |= ((source[come >> U(6)] >> (come & U(63))) & U(1)) << (go & U(63))


@inline_kernel
def _turn_of(gathered: np.uint64) -> np.uint64:
    """Return by how much a word is turned: a hash of its place."""
    return (gathered * U(0x9E3779B97F4A7C15)) >> U(58)


@inline_kernel
def _transpose_at(words: Words, begin: int, n_lanes: int, squares: Words) -> None:
    """Transpose ``n_lanes`` squares that follow one another from ``begin`` on."""
    for lane in range(n_lanes):
        for c in range(64):
            squares[LANES * c + lane] = words[begin + 64 * lane + c]
    transpose(squares)
    for lane in range(n_lanes):
        for r in range(64):
            words[begin + 64 * lane + r] = squares[LANES * r + lane]


@kernel
def _mix(source: Words, gather: Table, deal: Table, target: Words) -> None:
    n_words = source.size
    mixed = np.empty(n_words, np.uint64)
    squares = np.empty(64 * LANES, np.uint64)
    for i in range(n_words):
        mixed[i] = rotated(source[gather[i]], _turn_of(U(i)))
    n_squares = n_words // 64
    for first in range(0, n_squares, LANES):
        _transpose_at(mixed, 64 * first, min(LANES, n_squares - first), squares)
    if n_words % 64:  # one more over the last words, which overlaps the one before
        _transpose_at(mixed, n_words - 64, 1, squares)
    for i in range(n_words):
        target[deal[i]] = mixed[i]


@kernel
def _unmix(source: Words, gather: Table, deal: Table, target: Words) -> None:
    n_words = source.size
    mixed = np.empty(n_words, np.uint64)
    squares = np.empty(64 * LANES, np.uint64)
    for i in range(n_words):
        mixed[i] = source[deal[i]]
    if n_words % 64:
        _transpose_at(mixed, n_words - 64, 1, squares)
    n_squares = n_words // 64
    for first in range(0, n_squares, LANES):
        _transpose_at(mixed, 64 * first, min(LANES, n_squares - first), squares)
    for i in range(n_words):
        target[gather[i]] = rotated(mixed[i], (U(64) - _turn_of(U(i))) & U(63))
