"""Public permutations of a frame's bits, fast enough to do several per frame.

Long frames are permuted in two half rounds: gather the words in a random order, rotate each by a random
amount, and read the W x 64 bit matrix out by columns (64 x 64 transpositions). Bit ``b`` of word ``w``
lands at ``((b - rotation[k]) % 64) * W + k`` with ``k`` the place where ``w`` was gathered: neighbours of one
word part for good, for any number of words. One half round leaves rows with the same columns dirty after
a burst; the second half round's rotations undo that. Short frames, which have too few words for this to mix,
are permuted bit by bit with a table.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile._plan import Plan
from qnode.distill.reconcile._words import U, leading_zeros, stream_key, stream_word
from qnode.kernels import inline_kernel, kernel

Words = npt.NDArray[np.uint64]
Table = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Shuffles:
    """Permutations of all passes: slot 0 shuffles the frame, slot p > 0 the bits of pass 0.

    ``gather``, ``inverse`` (shape ``(slots, 2, units)``): unit (word or bit) that comes to a place, and the
    place a unit comes to; ``rotation`` (same shape) of gathered words. Bitwise permutations use ``[:, 0]``
    and no rotation, and leave the padding of the last word where it is.
    """

    plan: Plan
    gather: Table
    inverse: Table
    rotation: Table

    @classmethod
    def of(cls, plan: Plan) -> "Shuffles":
        """Reserve the tables for ``plan``."""
        units = 64 * plan.n_words if plan.bitwise else plan.n_words
        shape = (plan.n_slots, 2, units)
        return cls(plan, np.empty(shape, np.uint32), np.empty(shape, np.uint32), np.empty(shape, np.uint32))

    def draw(self, seed: bytes, pass_index: int) -> None:
        """Draw the permutation of pass ``pass_index`` from the frame's seed into its slot."""
        slot = self.plan.slot(pass_index)
        for half in range(1 if self.plan.bitwise else 2):
            key = stream_key(seed, b"shuffle", 2 * pass_index + half)
            n_moved = self.plan.n_positions if self.plan.bitwise else self.plan.n_words
            _draw(key, n_moved, self.gather[slot, half], self.rotation[slot, half])

    def invert(self, slot: int) -> None:
        """Fill ``inverse`` of ``slot``: who moves single bits needs it."""
        for half in range(1 if self.plan.bitwise else 2):
            _invert(self.gather[slot, half], self.inverse[slot, half])

    def apply(self, slot: int, source: Words) -> Words:
        """Return the bits of ``source`` (``n_words`` words) in the order of ``slot``."""
        if self.plan.bitwise:
            shuffled = np.zeros_like(source)
            _permute_bits(source, self.gather[slot, 0], shuffled)
            return shuffled
        for half in range(2):
            shuffled = np.zeros_like(source)
            _half_round(source, self.gather[slot, half], self.rotation[slot, half], shuffled)
            source = shuffled
        return source


@inline_kernel
def place_in_slot(
    x: np.uint64, slot: np.uint64, inverse: Table, rotation: Table, n_words: np.uint64, bitwise: bool
) -> np.uint64:
    """Return where the permutation of ``slot`` puts bit ``x``."""
    if bitwise:
        x = U(inverse[slot, U(0), x])
    else:
        for half in range(2):
            k = U(inverse[slot, U(half), x >> U(6)])
            x = (((x & U(63)) - U(rotation[slot, U(half), k])) & U(63)) * n_words + k
    return x


@inline_kernel
def place_before_slot(
    x: np.uint64, slot: np.uint64, gather: Table, rotation: Table, n_words: np.uint64, bitwise: bool
) -> np.uint64:
    """Return which bit the permutation of ``slot`` puts at ``x``."""
    if bitwise:
        x = U(gather[slot, U(0), x])
    else:
        for undone in range(2):
            half = U(1 - undone)
            row = x // n_words
            k = x - row * n_words
            x = U(gather[slot, half, k]) * U(64) + ((row + U(rotation[slot, half, k])) & U(63))
    return x


@kernel
def move_differences(
    before: Words, after: Words, gather: Table, rotation: Table, bitwise: bool, target: Words
) -> None:
    """Flip in ``target`` (the frame's order) each bit in which ``before`` and ``after`` (pass 0's) differ."""
    for w in range(before.size):
        left = before[w] ^ after[w]
        while left != U(0):
            b = U(63) - leading_zeros(left)
            left ^= U(1) << b
            x = place_before_slot(U(w) * U(64) + b, U(0), gather, rotation, U(before.size), bitwise)
            target[x >> U(6)] ^= U(1) << (x & U(63))


@kernel
def _draw(key: np.uint64, n_moved: int, gather: Table, rotation: Table) -> None:
    """Permute the first ``n_moved`` units (Fisher and Yates); rotations come from the same random words."""
    for k in range(gather.size):
        gather[k] = k
    for k in range(n_moved):
        i = U(n_moved - 1 - k)
        random = stream_word(key, i)
        j = ((random >> U(32)) * (i + U(1))) >> U(32)
        gather[i], gather[j] = gather[j], gather[i]
        rotation[i] = random & U(63)


@kernel
def _invert(gather: Table, inverse: Table) -> None:
    for i in range(gather.size):
        inverse[gather[i]] = i


@kernel
def _permute_bits(source: Words, gather: Table, target: Words) -> None:
    for i in range(gather.size):
        x = U(gather[i])
        target[U(i) >> U(6)] |= ((source[x >> U(6)] >> (x & U(63))) & U(1)) << (U(i) & U(63))


@inline_kernel
def _swap_quarters(square: Words, half: int, mask: np.uint64) -> None:
    """Swap the off-diagonal quarters of each ``2 half`` x ``2 half`` square along the diagonal."""
    for top in range(0, 64, 2 * half):
        for k in range(top, top + half):
            swap = ((square[k] >> U(half)) ^ square[k + half]) & mask
            square[k] ^= swap << U(half)
            square[k + half] ^= swap


@inline_kernel
def _transpose(square: Words) -> None:
    """Transpose a 64 x 64 bit matrix in place; the constants are spelled out so that the loops vectorise."""
    _swap_quarters(square, 32, U(0x00000000FFFFFFFF))
    _swap_quarters(square, 16, U(0x0000FFFF0000FFFF))
    _swap_quarters(square, 8, U(0x00FF00FF00FF00FF))
    _swap_quarters(square, 4, U(0x0F0F0F0F0F0F0F0F))
    _swap_quarters(square, 2, U(0x3333333333333333))
    _swap_quarters(square, 1, U(0x5555555555555555))


@kernel
def _half_round(source: Words, gather: Table, rotation: Table, target: Words) -> None:
    """Gather, rotate, transpose; ``target`` must be zero."""
    n_words = source.size
    square = np.empty(64, np.uint64)
    for first in range(0, n_words, 64):
        for c in range(64):
            if first + c < n_words:
                word = source[gather[first + c]]
                turn = U(rotation[first + c])
                square[c] = (word >> turn) | ((word << U(1)) << (U(63) - turn))
            else:
                square[c] = U(0)
        _transpose(square)
        for r in range(64):
            # Rows are W bits long and begin anywhere in a word.
            place = U(r * n_words + first)
            word, shift = place >> U(6), place & U(63)
            target[word] |= square[r] << shift
            overflow = (square[r] >> U(1)) >> (U(63) - shift)
            if overflow:
                target[word + U(1)] |= overflow
