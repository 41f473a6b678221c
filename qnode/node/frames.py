"""How a block is cut into frames, the unit of reconciliation."""

import numpy as np

from qnode.distill.bits import Bits

_WORD_BITS = 64


def frame_bounds(n_bits: int, frame_bits: int) -> list[range]:
    """Cut ``n_bits`` into the fewest frames of at most ``frame_bits``, about equal, at word borders."""
    if n_bits == 0:
        return []
    count = -(-n_bits // frame_bits)
    size = -(-n_bits // count // _WORD_BITS) * _WORD_BITS
    return [range(start, min(start + size, n_bits)) for start in range(0, n_bits, size)]


def frame_of(key: Bits, bounds: range) -> Bits:
    """Return the part of ``key`` within ``bounds`` (which begin at a word border)."""
    return Bits(key.words[bounds.start // _WORD_BITS : -(-bounds.stop // _WORD_BITS)].copy(), len(bounds))


def sample_of(key: Bits, n_bits: int) -> Bits:
    """Return whole words spread evenly over ``key``, ``n_bits`` in all or the whole of a shorter key."""
    n_words = n_bits // _WORD_BITS
    if len(key) // _WORD_BITS <= n_words:
        return key
    chosen = np.arange(n_words) * (len(key) // _WORD_BITS) // n_words
    return Bits(key.words[chosen], n_words * _WORD_BITS)


def join_frames(frames: list[Bits]) -> Bits:
    """Put frames together again; all but the last are whole words."""
    words = np.concatenate([frame.words for frame in frames]) if frames else np.zeros(0, np.uint64)
    return Bits(words, sum(len(frame) for frame in frames))
