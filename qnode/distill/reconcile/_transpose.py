"""Transposition of 64 x 64 bit matrices, and rotation of words: the steps of the public permutations."""

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile._words import U
from qnode.kernels import inline_kernel

Words = npt.NDArray[np.uint64]

LANES = 8  # squares transposed side by side, so that every step works on whole vectors


@inline_kernel
def _swap_quarters(squares: Words, half: int, mask: np.uint64) -> None:
    """Swap the off-diagonal quarters of each ``2 half`` x ``2 half`` square along the diagonal."""
    for top in range(0, 64, 2 * half):
        for k in range(LANES * top, LANES * (top + half)):
            swap = ((squares[U(k)] >> U(half)) ^ squares[U(k + LANES * half)]) & mask
            squares[U(k)] ^= swap << U(half)
            squares[U(k + LANES * half)] ^= swap


@inline_kernel
def transpose(squares: Words) -> None:
    """Transpose 64 x 64 bit matrices in place; row ``r`` of matrix ``m`` is word ``LANES * r + m``.

    The constants are spelled out so that the loops vectorise.
    """
    _swap_quarters(squares, 32, U(0x00000000FFFFFFFF))
    _swap_quarters(squares, 16, U(0x0000FFFF0000FFFF))
    _swap_quarters(squares, 8, U(0x00FF00FF00FF00FF))
    _swap_quarters(squares, 4, U(0x0F0F0F0F0F0F0F0F))
    _swap_quarters(squares, 2, U(0x3333333333333333))
    _swap_quarters(squares, 1, U(0x5555555555555555))


@inline_kernel
def rotated(word: np.uint64, turn: np.uint64) -> np.uint64:
    """Rotate to the right."""
    return (word >> turn) | (word << ((U(64) - turn) & U(63)))
