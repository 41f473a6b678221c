"""Privacy amplification by modified Toeplitz hashing, exact and bit-identical on every processor.

The hash of a key of n bits to m bits is y = key[0:m] + T key[m:n] with T an m x (n - m) Toeplitz matrix, i.e.
the matrix [ I | T ]. Two different keys collide for at most 2^-m of the seeds, as with a full Toeplitz
matrix, so the leftover-hash bound is the same; the seed has n - 1 bits only (security reference 7.3).
"""

import numpy as np

from qnode.distill.amplification.toeplitz import toeplitz_product
from qnode.distill.bits import Bits
from qnode.distill.bits.array import Words


def seed_length_bytes(n_bits: int) -> int:
    """Return how many seed bytes a key of ``n_bits`` bits needs: ceil((n_bits - 1) / 8) for every length."""
    return (max(n_bits, 1) + 6) // 8


def amplify(key: Bits, seed: bytes, length: int) -> Bits:
    """Return the first m = ``length`` bits of key plus the Toeplitz product of the rest.

    Bit i is key_i + sum_j seed_(n - m - 1 + i - j) key_(m + j), j < n - m, modulo 2.

    ``seed`` is uniform, drawn after verification and used once; bits beyond n - 1 are ignored. Works in at
    most (7 n + 4 m) / 8 bytes and 1 MB beside its arguments; runs without the GIL.

    Raises:
        ValueError: ``length`` is negative or exceeds the key, or the seed has another length.
    """
    n = key.n_bits
    if not 0 <= length <= n:
        raise ValueError(f"cannot take {length} bits from a key of {n} bits")
    if len(seed) != seed_length_bytes(n):
        raise ValueError(f"a key of {n} bits needs a seed of {seed_length_bytes(n)} bytes, got {len(seed)}")
    if length == 0:
        return Bits(np.zeros(0, np.uint64), 0)
    head = _cut(key.words, 0, length)
    columns = n - length
    if columns == 0:
        return Bits(head, length)
    tail = _cut(key.words, length, columns)
    coefficients = Bits.from_bytes(seed, n - 1).words
    product = toeplitz_product(coefficients, tail, length, columns)
    product ^= head
    return Bits(product, length)


def _cut(words: Words, start_bit: int, n_bits: int) -> Words:
    """Return ``n_bits`` bits of ``words`` from ``start_bit`` on, packed with a zero tail."""
    first, shift = divmod(start_bit, 64)
    n_words = (n_bits + 63) // 64
    cut = words[first : first + n_words] >> np.uint64(shift)
    if shift:
        above = words[first + 1 : first + 1 + n_words]
        cut[: above.shape[0]] |= above << np.uint64(64 - shift)
    if n_bits % 64:
        cut[-1] &= np.uint64((1 << (n_bits % 64)) - 1)
    return cut
