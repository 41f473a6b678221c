"""The disclosed sample: the first error estimate of a link, and the error rate of a block beyond repair."""

import numpy as np

from qnode.distill.bits import Bits

# Disclosed, and charged to lambda_EC, when Bob has no error estimate to begin with; also of a block that
# cannot be corrected, so that operators see its error rate.
SAMPLE_BITS = 1 << 12
_WORD_BITS = 64


def sample_of(key: Bits, n_bits: int = SAMPLE_BITS) -> Bits:
    """Return whole words spread evenly over ``key``, ``n_bits`` in all or the whole of a shorter key."""
    n_words = n_bits // _WORD_BITS
    if len(key) // _WORD_BITS <= n_words:
        return key
    chosen = np.arange(n_words) * (len(key) // _WORD_BITS) // n_words
    return Bits(key.words[chosen], n_words * _WORD_BITS)
