"""Verification hash: the field, the bound, both paths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.choices import TagBits
from qnode.distill.bits import Bits
from qnode.distill.bits.clmul import has_clmul64
from qnode.distill.verify import collision_bound, tag_bits_for, verification_tag

TAILS = {64: 0b11011, 128: 0b10000111}
PATHS = [True, False] if has_clmul64() else [False]
SIZES: tuple[TagBits, TagBits] = (64, 128)


def times(a: int, b: int, t: int) -> int:
    """Multiply in GF(2^t) bit by bit."""
    product = 0
    for _ in range(t):
        if b & 1:
            product ^= a
        b >>= 1
        a <<= 1
        if a >> t:
            a ^= (1 << t) | TAILS[t]
    return product


def evaluated(bits: Bits, point: int, t: int) -> bytes:
    """Return n + m_1 r^L + ... + m_L r with Python's integers."""
    value, message = 0, int.from_bytes(bits.to_bytes(), "little")
    for word in range(-(-bits.n_bits // t)):
        value = times(value ^ (message >> (t * word) & ((1 << t) - 1)), point, t)
    return (value ^ bits.n_bits).to_bytes(t // 8, "little")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.binary(max_size=80), spare=st.integers(0, 7), seed=st.binary(min_size=16, max_size=16))
def test_tag_is_the_polynomial_on_every_path(data: bytes, spare: int, seed: bytes) -> None:
    bits = Bits.from_bytes(data, max(0, 8 * len(data) - spare))
    for t in SIZES:
        point = seed[: t // 8]
        for fast in PATHS:
            expected = evaluated(bits, int.from_bytes(point, "little"), t)
            assert verification_tag(bits, point, t, fast=fast) == expected


@pytest.mark.parametrize("t", SIZES)
def test_modulus_is_irreducible(t: int) -> None:
    # Rabin's test: z^(2^t) = z, and for t = 2^k only the half t / 2 can betray a factor.
    def frobenius(times_squared: int) -> int:
        value = 2
        for _ in range(times_squared):
            value = times(value, value, t)
        return value

    def gcd(a: int, b: int) -> int:
        while b:
            while a.bit_length() >= b.bit_length():
                a ^= b << (a.bit_length() - b.bit_length())
            a, b = b, a
        return a

    assert frobenius(t) == 2
    assert gcd((1 << t) | TAILS[t], frobenius(t // 2) ^ 2) == 1


@pytest.mark.parametrize("t", SIZES)
def test_strings_that_differ_collide_exactly_at_the_roots_of_their_difference(t: TagBits) -> None:
    # A difference of L words with L roots, r times the product of (r + root): the worst case of the bound.
    rng = np.random.default_rng(t)
    roots = [int.from_bytes(rng.bytes(t // 8), "little") for _ in range(4)]
    coefficients = [1]
    for root in roots:
        shifted, scaled = [*coefficients, 0], [0, *(times(root, c, t) for c in coefficients)]
        coefficients = [a ^ b for a, b in zip(shifted, scaled, strict=True)]
    length = len(coefficients) * t
    message = int.from_bytes(rng.bytes(length // 8), "little")
    difference = sum(c << (t * place) for place, c in enumerate(coefficients))
    a, b = (
        Bits.from_bytes(value.to_bytes(length // 8, "little"), length)
        for value in (message, message ^ difference)
    )
    for point in [0, *roots]:
        seed = point.to_bytes(t // 8, "little")
        assert verification_tag(a, seed, t) == verification_tag(b, seed, t)
    for _ in range(200):
        seed = rng.bytes(t // 8)
        assert verification_tag(a, seed, t) != verification_tag(b, seed, t)
    assert collision_bound(length, t) == (len(roots) + 1) * 2.0**-t


def test_length_is_part_of_the_tag() -> None:
    seed = bytes(range(1, 17))
    for t in SIZES:
        tags = {
            verification_tag(Bits.pack(np.zeros(n, np.uint8)), seed[: t // 8], t)
            for n in (0, 1, 64, 65, 1000)
        }
        assert len(tags) == 5


def test_tag_length_follows_the_bound() -> None:
    assert collision_bound(1_000_000, 64) == 15625 * 2.0**-64
    assert tag_bits_for(1_000_000, 1e-15) == 64
    assert tag_bits_for(2_000_000, 1e-15) == 128
    with pytest.raises(ValueError, match="no tag"):
        tag_bits_for(2_000_000, 1e-36)


def test_wrong_seed_is_refused() -> None:
    bits = Bits.pack(np.ones(10, np.uint8))
    with pytest.raises(ValueError, match="seed"):
        verification_tag(bits, bytes(16), 64)
    with pytest.raises(ValueError, match="64 or 128"):
        verification_tag(bits, bytes(4), 32)  # type: ignore[arg-type]
