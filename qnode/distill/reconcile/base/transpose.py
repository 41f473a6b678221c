"""Transposition of 64 x 64 bit matrices, and rotation of words: the steps of the public permutations."""

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile.base.words import U
from qnode.kernels import inline_kernel, inner_kernel

Words = npt.NDArray[np.uint64]

LANES = 8  # squares transposed side by side, so that every step works on whole vectors


@inline_kernel
def _swapped(upper: np.uint64, lower: np.uint64, shift: np.uint64, mask: np.uint64) -> np.uint64:
    """Return what changes in ``lower`` when the bits of two rows are swapped across the diagonal."""
    return ((upper >> shift) ^ lower) & mask


@inline_kernel
def _three_steps(
    squares: Words,
    first: np.uint64,
    row: np.uint64,
    shift: np.uint64,
    far: np.uint64,
    middle: np.uint64,
    near: np.uint64,
) -> None:
    """Swap the quarters of squares of 8, then 4, then 2 rows, ``row`` words apart, that stay in registers.

    ``shift`` is the bits by which neighbouring rows' bits part; ``far``, ``middle``, ``near`` are those kept.
    """
    r0, r1, r2, r3 = (
        squares[first],
        squares[first + row],
        squares[first + U(2) * row],
        squares[first + U(3) * row],
    )
    r4, r5, r6, r7 = (
        squares[first + U(4) * row],
        squares[first + U(5) * row],
        squares[first + U(6) * row],
        squares[first + U(7) * row],
    )
    s4, s2, s1 = U(4) * shift, U(2) * shift, shift
    a, b = _swapped(r0, r4, s4, far), _swapped(r1, r5, s4, far)
    c, d = _swapped(r2, r6, s4, far), _swapped(r3, r7, s4, far)
    r0, r1, r2, r3 = r0 ^ (a << s4), r1 ^ (b << s4), r2 ^ (c << s4), r3 ^ (d << s4)
    r4, r5, r6, r7 = r4 ^ a, r5 ^ b, r6 ^ c, r7 ^ d
    a, b = _swapped(r0, r2, s2, middle), _swapped(r1, r3, s2, middle)
    c, d = _swapped(r4, r6, s2, middle), _swapped(r5, r7, s2, middle)
    r0, r1, r4, r5 = r0 ^ (a << s2), r1 ^ (b << s2), r4 ^ (c << s2), r5 ^ (d << s2)
    r2, r3, r6, r7 = r2 ^ a, r3 ^ b, r6 ^ c, r7 ^ d
    a, b = _swapped(r0, r1, s1, near), _swapped(r2, r3, s1, near)
    c, d = _swapped(r4, r5, s1, near), _swapped(r6, r7, s1, near)
    squares[first], squares[first + row] = r0 ^ (a << s1), r1 ^ a
    squares[first + U(2) * row], squares[first + U(3) * row] = r2 ^ (b << s1), r3 ^ b
    squares[first + U(4) * row], squares[first + U(5) * row] = r4 ^ (c << s1), r5 ^ c
    squares[first + U(6) * row], squares[first + U(7) * row] = r6 ^ (d << s1), r7 ^ d


@inner_kernel
def transpose(squares: Words) -> None:
    """Transpose 64 x 64 bit matrices in place; row ``r`` of matrix ``m`` is word ``LANES * r + m``."""
    for r in range(8):
        for lane in range(LANES):
            _three_steps(
                squares, U(LANES * r + lane), U(8 * LANES), U(8),
                U(0x00000000FFFFFFFF), U(0x0000FFFF0000FFFF), U(0x00FF00FF00FF00FF),
            )  # fmt: skip
    for r in range(8):
        for lane in range(LANES):
            _three_steps(
                squares, U(8 * LANES * r + lane), U(LANES), U(1),
                U(0x0F0F0F0F0F0F0F0F), U(0x3333333333333333), U(0x5555555555555555),
            )  # fmt: skip


@inline_kernel
def rotated(word: np.uint64, turn: np.uint64) -> np.uint64:
    """Rotate to the right."""
    return (word >> turn) | (word << ((U(64) - turn) & U(63)))
