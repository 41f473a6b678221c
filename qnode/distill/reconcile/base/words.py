"""Arithmetic on 64-bit words inside kernels, and the public streams that both sides derive from a seed.

The streams are not secret. They must be the same on both sides, for all versions of the libraries, and well
mixed. Hence an own generator (splitmix64: Steele, Lea and Flood, OOPSLA 2014) and no
library's.
"""

import hashlib

import numpy as np

from qnode.distill.bits.words import leading_zeros as leading_zeros
from qnode.distill.bits.words import popcount
from qnode.kernels import inline_kernel

U = np.uint64


@inline_kernel
def parity(word: np.uint64) -> np.uint64:
    """Return the parity of the 64 bits of ``word``."""
    return popcount(word) & U(1)


@inline_kernel
def stream_word(key: np.uint64, index: np.uint64) -> np.uint64:
    """Return word ``index`` of the pseudo-random stream ``key``."""
    x = key + index * U(0x9E3779B97F4A7C15)
    x = (x ^ (x >> U(30))) * U(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U(27))) * U(0x94D049BB133111EB)
    return x ^ (x >> U(31))


def stream_key(seed: bytes, purpose: bytes, index: int) -> np.uint64:
    """Derive the key of one stream from the block's public seed."""
    digest = hashlib.sha256(seed + purpose + index.to_bytes(4, "little")).digest()
    return U(int.from_bytes(digest[:8], "little"))
