"""The closing check: parities of random subsets of the whole frame, all at once.

The subsets are the rows of one Toeplitz matrix made from a public stream, so that any given residue of
errors gives each pattern of parities with the same probability: a wrong frame passes with 2^-CHECK_BITS.
The verification hash of the block comes after that and does not rest on it.
"""

import numpy as np
import numpy.typing as npt

from qnode.distill.reconcile._plan import CHECK_BITS
from qnode.distill.reconcile._words import U, parity, stream_key, stream_word
from qnode.kernels import kernel

Words = npt.NDArray[np.uint64]


def check_parities(words: Words, seed: bytes, attempt: int) -> bytes:
    """Return the ``CHECK_BITS`` parities of check ``attempt`` over ``words``, packed."""
    parities = _toeplitz_parities(words, stream_key(seed, b"check", attempt), CHECK_BITS)
    return int(parities).to_bytes(8, "little")[: CHECK_BITS // 8]


@kernel
def _toeplitz_parities(words: Words, key: np.uint64, n_parities: int) -> np.uint64:
    """Row ``s`` of the matrix is the stream from bit ``s`` on."""
    stream = np.empty(words.size + 1, np.uint64)
    for i in range(stream.size):
        stream[i] = stream_word(key, U(i))
    result = U(0)
    for s in range(n_parities):
        shift = U(s)
        left = U(63 - s)
        folded = U(0)
        for i in range(words.size):
            folded ^= words[i] & ((stream[i] >> shift) | ((stream[i + 1] << U(1)) << left))
        result |= parity(folded) << shift
    return result
