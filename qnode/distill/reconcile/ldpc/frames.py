"""The division of a block into frames: interleaved, then distributed to frames of nearly equal length."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from qnode.distill.bits import Bits
from qnode.distill.reconcile.base.words import stream_key
from qnode.distill.reconcile.ldpc.code import LIFTINGS, MAX_COLUMNS
from qnode.distill.reconcile.ldpc.syndrome import Words
from qnode.distill.verify import verification_tag
from qnode.errors import FieldError

MIN_BLOCK_BITS: Final = 64
MAX_BLOCK_BITS: Final = 1 << 27
CHECK_OCTETS: Final = 5


@dataclass(frozen=True)
class Cut:
    """The cut of one block, the same on both sides.

    The words of the interleaved block are dealt to ``n_frames`` stretches that differ by one word at most.
    A frame is ``n_columns`` columns of ``lifting`` bits; what its stretch does not fill is known to be
    zero.
    """

    n_bits: int
    n_words: int
    n_frames: int
    n_columns: int
    lifting: int

    @property
    def column_words(self) -> int:
        """Words of a column."""
        return self.lifting // 64

    def stretch(self, frame: int) -> slice:
        """Return which words of the interleaved block belong to ``frame``."""
        return slice(frame * self.n_words // self.n_frames, (frame + 1) * self.n_words // self.n_frames)

    def n_known(self, frame: int) -> int:
        """Return how many bits at the end of ``frame`` are known to be zero: at most one column."""
        stretch = self.stretch(frame)
        return self.n_columns * self.lifting - 64 * int(stretch.stop - stretch.start)

    def split(self, block: Words) -> Words:
        """Return the frames of the interleaved ``block``, shape ``(n_frames, words of a frame)``."""
        frames = np.zeros((self.n_frames, self.n_columns * self.column_words), np.uint64)
        for frame in range(self.n_frames):
            words = block[self.stretch(frame)]
            frames[frame, : words.size] = words
        return frames

    def join(self, frames: Words) -> Words:
        """Return the interleaved block of which ``frames`` are the frames."""
        block = np.empty(self.n_words, np.uint64)
        for frame in range(self.n_frames):
            words = block[self.stretch(frame)]
            words[:] = frames[frame, : words.size]
        return block


def make_cut(n_bits: int) -> Cut:
    """Cut a block of ``n_bits`` into as few frames as possible.

    Raises:
        FieldError: the block is too short or too long.
    """
    if not MIN_BLOCK_BITS <= n_bits <= MAX_BLOCK_BITS:
        raise FieldError("key", f"{n_bits} bits; from {MIN_BLOCK_BITS} to {MAX_BLOCK_BITS} are possible")
    n_words = -(-n_bits // 64)
    lifting = next((lifting for lifting in LIFTINGS if 64 * n_words <= MAX_COLUMNS * lifting), LIFTINGS[-1])
    column_words = lifting // 64
    n_frames = -(-n_words // (MAX_COLUMNS * column_words))
    longest_words = -(-n_words // n_frames)
    return Cut(n_bits, n_words, n_frames, -(-longest_words // column_words), lifting)


def frame_check(words: Words, seed: bytes, frame: int) -> bytes:
    """Return the check of one frame: the head of a verification tag at a point that follows from the seed.

    Errors of the channel cannot depend on the point; a wrong frame of n bits passes with ceil(n / 64) 2^-40.
    The verification of the block follows and does not depend on it.
    """
    point = int(stream_key(seed, b"frame", frame)).to_bytes(8, "little")
    return verification_tag(Bits(words, 64 * words.size), point, 64)[:CHECK_OCTETS]
