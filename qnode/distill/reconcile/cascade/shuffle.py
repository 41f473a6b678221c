"""Public permutations of the bits of a segment, fast enough to do several per block.

All segments share them: a pass permutes each segment alike. The key's words are dealt to the segments in
turn, so that a burst of errors falls on all segments alike; pass 0's permutation then scatters it in each.

A segment is permuted in two half rounds: gather its W words in a random order, rotate each by a random
amount, and read the W x 64 bit matrix out by columns (64 x 64 transpositions). Bit ``b`` of word ``w`` lands
at ``((b - rotation[k]) % 64) * W + k`` with ``k`` the place where ``w`` was gathered: neighbours of one word
part for good. One half round leaves rows with the same columns dirty after a burst; the second half round's
rotations undo that. Short blocks, which have too few words for this to mix, are permuted bit by bit with a
table.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile._words import U, stream_key, stream_word
from qnode.distill.reconcile.cascade.plan import Plan
from qnode.kernels import inline_kernel, kernel

Words = npt.NDArray[np.uint64]
Table = npt.NDArray[np.uint32]

_LANES = 8  # squares transposed side by side, so that every step works on whole vectors
_RECIPROCAL_BITS = U(40)


@dataclass(frozen=True)
class Shuffles:
    """Permutations of all passes: slot 0 shuffles the dealt key, slot p > 0 the bits of pass 0.

    ``forward`` (shape ``(slots, halves, units)``): for each place the word that comes to it, times 64, plus
    its rotation; ``inverse``: for each word its place, times 64, plus the same rotation. Bitwise permutations
    hold plain bit numbers and leave the padding of the last word where it is.
    """

    plan: Plan
    forward: Table
    inverse: Table

    @classmethod
    def of(cls, plan: Plan) -> "Shuffles":
        """Reserve the tables for ``plan``."""
        shape = (
            (plan.n_slots, 1, 64 * plan.segment_words)
            if plan.bitwise
            else (plan.n_slots, 2, plan.segment_words)
        )
        return cls(plan, np.empty(shape, np.uint32), np.empty(shape, np.uint32))

    def draw(self, seed: bytes, pass_index: int) -> None:
        """Draw the permutation of pass ``pass_index`` from the block's seed into its slot."""
        plan = self.plan
        slot = plan.slot(pass_index)
        for half in range(self.forward.shape[1]):
            key = stream_key(seed, b"shuffle", 2 * pass_index + half)
            n_moved = plan.n_positions if plan.bitwise else plan.segment_words
            _draw(key, n_moved, plan.bitwise, self.forward[slot, half], self.inverse[slot, half])


@inline_kernel
def place_in_slot(
    x: np.uint64, slot: np.uint64, inverse: Table, n_words: np.uint64, bitwise: bool
) -> np.uint64:
    """Return where the permutation of ``slot`` puts bit ``x``."""
    if bitwise:
        return U(inverse[slot, U(0), x])
    for half in range(2):
        entry = U(inverse[slot, U(half), x >> U(6)])
        x = ((x - entry) & U(63)) * n_words + (entry >> U(6))
    return x


@inline_kernel
def place_before_slot(
    x: np.uint64, slot: np.uint64, forward: Table, n_words: np.uint64, bitwise: bool
) -> np.uint64:
    """Return which bit the permutation of ``slot`` puts at ``x``."""
    if bitwise:
        return U(forward[slot, U(0), x])
    # Exact, since x < 2^20 and n_words < 2^14.
    reciprocal = (U(1) << _RECIPROCAL_BITS) // n_words + U(1)
    for undone in range(2):
        row = (x * reciprocal) >> _RECIPROCAL_BITS
        entry = U(forward[slot, U(1 - undone), x - row * n_words])
        x = (entry & ~U(63)) + ((row + entry) & U(63))
    return x


@kernel
def _draw(key: np.uint64, n_moved: int, bitwise: bool, forward: Table, inverse: Table) -> None:
    """Permute the first ``n_moved`` units (Fisher and Yates); rotations come from the same random words."""
    for k in range(forward.size):
        forward[k] = k
    shift = U(0) if bitwise else U(6)
    turns = U(0) if bitwise else U(63)
    for k in range(n_moved):
        i = U(n_moved - 1 - k)
        random = stream_word(key, i)
        j = ((random >> U(32)) * (i + U(1))) >> U(32)
        chosen = U(forward[j])
        forward[j] = forward[i]
        forward[i] = (chosen << shift) | (random & turns)
    for k in range(forward.size):
        entry = U(forward[U(k)])
        inverse[entry >> shift] = (U(k) << shift) | (entry & turns)


@kernel
def permute_segment(
    source: Words,
    stride: np.uint64,
    offset: np.uint64,
    forward: Table,
    bitwise: bool,
    spare: Words,
    target: Words,
) -> None:
    """Write one segment in the order of a slot to ``target`` (as many words as a segment has).

    ``source[k * stride + offset]`` is word ``k`` of the segment, zero behind the end. ``forward`` (shape
    ``(halves, units)``) is the slot's table, ``spare`` has the shape of ``target``.
    """
    if bitwise:
        target[:] = U(0)
        for i in range(forward.shape[1]):
            x = U(forward[U(0), U(i)])
            bit = (source[(x >> U(6)) * stride + offset] >> (x & U(63))) & U(1)
            target[U(i) >> U(6)] |= bit << (U(i) & U(63))
        return
    _half_round(source, stride, offset, forward[0], spare)
    _half_round(spare, U(1), U(0), forward[1], target)


@kernel
def restore_segment(
    permuted: Words,
    forward: Table,
    bitwise: bool,
    spare: Words,
    target: Words,
    stride: np.uint64,
    offset: np.uint64,
) -> None:
    """Undo ``permute_segment``: word ``k`` goes to ``target[k * stride + offset]`` unless behind the end.

    ``permuted`` is overwritten.
    """
    if bitwise:
        target[:] = U(0)
        for i in range(forward.shape[1]):
            x = U(forward[U(0), U(i)])
            bit = (permuted[U(i) >> U(6)] >> (U(i) & U(63))) & U(1)
            target[x >> U(6)] |= bit << (x & U(63))
        return
    _half_round_back(permuted, forward[1], spare, U(1), U(0))
    _half_round_back(spare, forward[0], target, stride, offset)


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


@kernel
def _transpose(squares: Words) -> None:
    """Transpose 64 x 64 bit matrices in place; row ``r`` of matrix ``m`` is word ``_LANES * r + m``."""
    for r in range(8):
        for lane in range(_LANES):
            _three_steps(
                squares, U(_LANES * r + lane), U(8 * _LANES), U(8),
                U(0x00000000FFFFFFFF), U(0x0000FFFF0000FFFF), U(0x00FF00FF00FF00FF),
            )  # fmt: skip
    for r in range(8):
        for lane in range(_LANES):
            _three_steps(
                squares, U(8 * _LANES * r + lane), U(_LANES), U(1),
                U(0x0F0F0F0F0F0F0F0F), U(0x3333333333333333), U(0x5555555555555555),
            )  # fmt: skip


@inline_kernel
def _rotated(word: np.uint64, turn: np.uint64) -> np.uint64:
    """Rotate to the right."""
    return (word >> turn) | (word << ((U(64) - turn) & U(63)))


@kernel
def _half_round(source: Words, stride: np.uint64, offset: np.uint64, forward: Table, target: Words) -> None:
    """Gather, rotate, transpose."""
    row_words = target.size >> 6
    squares = np.empty(64 * _LANES, np.uint64)
    for first in range(0, row_words, _LANES):
        n_lanes = min(_LANES, row_words - first)
        for lane in range(n_lanes):
            for c in range(64):
                entry = U(forward[U(64 * (first + lane) + c)])
                place = (entry >> U(6)) * stride + offset
                word = source[place] if place < U(source.size) else U(0)
                squares[U(_LANES * c + lane)] = _rotated(word, entry & U(63))
        _transpose(squares)
        for r in range(64):
            for lane in range(n_lanes):
                target[U(r * row_words + first + lane)] = squares[U(_LANES * r + lane)]


@kernel
def _half_round_back(
    source: Words, forward: Table, target: Words, stride: np.uint64, offset: np.uint64
) -> None:
    """Transpose, rotate back, scatter."""
    row_words = source.size >> 6
    squares = np.empty(64 * _LANES, np.uint64)
    for first in range(0, row_words, _LANES):
        n_lanes = min(_LANES, row_words - first)
        for r in range(64):
            for lane in range(n_lanes):
                squares[U(_LANES * r + lane)] = source[U(r * row_words + first + lane)]
        _transpose(squares)
        for lane in range(n_lanes):
            for c in range(64):
                entry = U(forward[U(64 * (first + lane) + c)])
                place = (entry >> U(6)) * stride + offset
                if place < U(target.size):
                    turn = (U(64) - (entry & U(63))) & U(63)
                    target[place] = _rotated(squares[U(_LANES * c + lane)], turn)
