"""The disclosed sample: the first error estimate, and the error rate of a block that cannot be corrected."""

import numpy as np

from qnode.distill.bits import Bits

# Disclosed, and counted in lambda_EC, if Bob has no error estimate; also for a block that cannot be
# corrected, so that operators see its error rate.
SAMPLE_BITS = 1 << 12
_WORD_BITS = 64


def sample_of(key: Bits, n_bits: int = SAMPLE_BITS) -> Bits:
    """Return whole words spread evenly over ``key``: ``n_bits`` in all, or the whole of a shorter key."""
    n_words = n_bits // _WORD_BITS
    if len(key) // _WORD_BITS <= n_words:
        return key
    chosen = np.arange(n_words) * (len(key) // _WORD_BITS) // n_words
    return Bits(key.words[chosen], n_words * _WORD_BITS)
