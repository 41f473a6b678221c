"""Verification: one almost-universal hash of the corrected block, a polynomial over GF(2^64) or GF(2^128).

With the bits cut in L = ceil(n/t) words m_1 .. m_L of t bits and a uniform point r, the tag is
n + m_1 r^L + m_2 r^(L-1) + ... + m_L r. Two different strings of equal length differ by a polynomial of
degree L at most, which has at most L roots, so their tags agree for at most L of the 2^t points; strings of
different length differ in the constant term and have a degree not above the longer one's L. The fields are
GF(2)[z]/(z^64 + z^4 + z^3 + z + 1) and GF(2)[z]/(z^128 + z^7 + z^2 + z + 1).
"""

import math

import numpy as np

from qnode.choices import TagBits
from qnode.distill.bits import Bits
from qnode.distill.bits.array import Words
from qnode.distill.bits.clmul import clmul64, clmul64_portable, has_clmul64
from qnode.kernels import inner_kernel, kernel

_FAST = has_clmul64()


def collision_bound(n_bits: int, tag_bits: TagBits = 64) -> float:
    """Return the exact bound ceil(n/t) 2^-t on the probability that two different strings pass."""
    return math.ldexp(-(-n_bits // tag_bits), -tag_bits)


def tag_bits_for(n_bits: int, eps_cor: float) -> TagBits:
    """Return the shorter tag whose collision bound is at most ``eps_cor``.

    Raises:
        ValueError: even 128 bits do not suffice.
    """
    if collision_bound(n_bits, 64) <= eps_cor:
        return 64
    if collision_bound(n_bits, 128) <= eps_cor:
        return 128
    raise ValueError(f"no tag verifies {n_bits} bits to {eps_cor:g}")


def verification_tag(bits: Bits, seed: bytes, tag_bits: TagBits = 64, *, fast: bool = _FAST) -> bytes:
    """Return the tag of ``bits`` as ``tag_bits / 8`` little-endian bytes.

    ``seed`` is the point r: ``tag_bits / 8`` uniform bytes, drawn after correction is finished. ``fast``
    uses the processor's carry-less multiplication; both ways give the same tag. Runs without the GIL.

    Raises:
        ValueError: the seed has another length, or ``tag_bits`` is neither 64 nor 128.
    """
    if tag_bits not in (64, 128):
        raise ValueError(f"a tag has 64 or 128 bits, not {tag_bits}")
    if len(seed) * 8 != tag_bits:
        raise ValueError(f"a {tag_bits}-bit tag needs a seed of {tag_bits // 8} bytes, got {len(seed)}")
    if fast and not _FAST:
        raise ValueError("this processor has no carry-less multiplication")
    point = np.frombuffer(seed, "<u8").astype(np.uint64)
    tag = np.zeros(tag_bits // 64, np.uint64)
    if tag_bits == 64:
        (_evaluate_64_fast if fast else _evaluate_64_portable)(bits.words, point, tag)
    else:
        (_evaluate_128_fast if fast else _evaluate_128_portable)(bits.words, point, tag)
    tag[0] ^= np.uint64(bits.n_bits)
    return tag.astype("<u8").tobytes()


@inner_kernel
def _fold_64(low: np.uint64, high: np.uint64) -> np.uint64:
    """Reduce a 128-bit product: z^64 = z^4 + z^3 + z + 1; what leaves at the top is folded first."""
    top = high ^ (high >> np.uint64(63)) ^ (high >> np.uint64(61)) ^ (high >> np.uint64(60))
    return low ^ top ^ (top << np.uint64(1)) ^ (top << np.uint64(3)) ^ (top << np.uint64(4))


@inner_kernel
def _fold_128(w0: np.uint64, w1: np.uint64, w2: np.uint64, w3: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Reduce a 256-bit product: z^128 = z^7 + z^2 + z + 1."""
    w2 = w2 ^ (w3 >> np.uint64(63)) ^ (w3 >> np.uint64(62)) ^ (w3 >> np.uint64(57))
    w1 = w1 ^ w3 ^ (w3 << np.uint64(1)) ^ (w3 << np.uint64(2)) ^ (w3 << np.uint64(7))
    w1 = w1 ^ (w2 >> np.uint64(63)) ^ (w2 >> np.uint64(62)) ^ (w2 >> np.uint64(57))
    return w0 ^ w2 ^ (w2 << np.uint64(1)) ^ (w2 << np.uint64(2)) ^ (w2 << np.uint64(7)), w1


@kernel
def _evaluate_64_fast(words: Words, point: Words, tag: Words) -> None:
    """Four words a step, so that only one product and one reduction in four wait for the one before."""
    r1 = point[0]
    square = clmul64(r1, r1)
    r2 = _fold_64(square[0], square[1])
    cube = clmul64(r2, r1)
    r3 = _fold_64(cube[0], cube[1])
    fourth = clmul64(r2, r2)
    r4 = _fold_64(fourth[0], fourth[1])
    value = np.uint64(0)
    whole = words.shape[0] // 4 * 4
    for i in range(0, whole, 4):
        a, b = clmul64(value ^ words[i], r4), clmul64(words[i + 1], r3)
        c, d = clmul64(words[i + 2], r2), clmul64(words[i + 3], r1)
        value = _fold_64(a[0] ^ b[0] ^ c[0] ^ d[0], a[1] ^ b[1] ^ c[1] ^ d[1])
    for i in range(whole, words.shape[0]):
        product = clmul64(value ^ words[i], r1)
        value = _fold_64(product[0], product[1])
    tag[0] = value


@kernel
def _evaluate_64_portable(words: Words, point: Words, tag: Words) -> None:
    value = np.uint64(0)
    for i in range(words.shape[0]):
        product = clmul64_portable(value ^ words[i], point[0])
        value = _fold_64(product[0], product[1])
    tag[0] = value


@kernel
def _evaluate_128_fast(words: Words, point: Words, tag: Words) -> None:
    v0, v1 = np.uint64(0), np.uint64(0)
    for i in range(0, words.shape[0], 2):
        v0 ^= words[i]
        if i + 1 < words.shape[0]:
            v1 ^= words[i + 1]
        low = clmul64(v0, point[0])
        high = clmul64(v1, point[1])
        middle = clmul64(v0 ^ v1, point[0] ^ point[1])
        m0 = middle[0] ^ low[0] ^ high[0]
        m1 = middle[1] ^ low[1] ^ high[1]
        v0, v1 = _fold_128(low[0], low[1] ^ m0, high[0] ^ m1, high[1])
    tag[0], tag[1] = v0, v1


@kernel
def _evaluate_128_portable(words: Words, point: Words, tag: Words) -> None:
    v0, v1 = np.uint64(0), np.uint64(0)
    for i in range(0, words.shape[0], 2):
        v0 ^= words[i]
        if i + 1 < words.shape[0]:
            v1 ^= words[i + 1]
        low = clmul64_portable(v0, point[0])
        high = clmul64_portable(v1, point[1])
        middle = clmul64_portable(v0 ^ v1, point[0] ^ point[1])
        m0 = middle[0] ^ low[0] ^ high[0]
        m1 = middle[1] ^ low[1] ^ high[1]
        v0, v1 = _fold_128(low[0], low[1] ^ m0, high[0] ^ m1, high[1])
    tag[0], tag[1] = v0, v1
