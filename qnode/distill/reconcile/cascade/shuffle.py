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

from qnode.distill.reconcile.base.transpose import LANES, rotated, transpose
from qnode.distill.reconcile.base.words import U, stream_key, stream_word
from qnode.distill.reconcile.cascade.plan import Plan
from qnode.kernels import inline_kernel, kernel

Words = npt.NDArray[np.uint64]
Table = npt.NDArray[np.uint32]

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


@kernel
def _half_round(source: Words, stride: np.uint64, offset: np.uint64, forward: Table, target: Words) -> None:
    """Gather, rotate, transpose."""
    row_words = target.size >> 6
    squares = np.empty(64 * LANES, np.uint64)
    for first in range(0, row_words, LANES):
        n_lanes = min(LANES, row_words - first)
        for lane in range(n_lanes):
            for c in range(64):
                entry = U(forward[U(64 * (first + lane) + c)])
                place = (entry >> U(6)) * stride + offset
                word = source[place] if place < U(source.size) else U(0)
                squares[U(LANES * c + lane)] = rotated(word, entry & U(63))
        transpose(squares)
        for r in range(64):
            for lane in range(n_lanes):
                target[U(r * row_words + first + lane)] = squares[U(LANES * r + lane)]


@kernel
def _half_round_back(
    source: Words, forward: Table, target: Words, stride: np.uint64, offset: np.uint64
) -> None:
    """Transpose, rotate back, scatter."""
    row_words = source.size >> 6
    squares = np.empty(64 * LANES, np.uint64)
    for first in range(0, row_words, LANES):
        n_lanes = min(LANES, row_words - first)
        for r in range(64):
            for lane in range(n_lanes):
                squares[U(LANES * r + lane)] = source[U(r * row_words + first + lane)]
        transpose(squares)
        for lane in range(n_lanes):
            for c in range(64):
                entry = U(forward[U(64 * (first + lane) + c)])
                place = (entry >> U(6)) * stride + offset
                if place < U(target.size):
                    turn = (U(64) - (entry & U(63))) & U(63)
                    target[place] = rotated(squares[U(LANES * c + lane)], turn)
