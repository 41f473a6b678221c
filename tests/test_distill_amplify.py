"""Privacy amplification: exact on every path, universal, bounded in memory."""

import tracemalloc
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.distill.amplification.amplify import amplify, seed_length_bytes
from qnode.distill.amplification.field import BASIS, evaluation, inverse, multiply
from qnode.distill.bits import Bits


def direct(key: npt.NDArray[np.uint8], seed: bytes, length: int) -> npt.NDArray[np.uint8]:
    """Return [ I | T ] key by the definition: T[i, j] = seed[n - m - 1 + i - j]."""
    n = key.shape[0]
    columns = n - length
    t = np.unpackbits(np.frombuffer(seed, np.uint8), bitorder="little").astype(np.int64)
    out = key[:length].astype(np.int64)
    for i in range(length):
        out[i] += t[i : i + columns][::-1] @ key[length:]
    return (out & 1).astype(np.uint8)


def random_case(n: int, seed: int) -> tuple[npt.NDArray[np.uint8], bytes]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, n, dtype=np.uint8), rng.bytes(seed_length_bytes(n))


@pytest.mark.parametrize(
    ("n", "length"),
    [
        (1, 1),
        (2, 1),
        (63, 62),
        (64, 1),
        (65, 64),
        (129, 65),
        (1000, 300),
        (1025, 1024),
        (4096, 2048),
        (5003, 1),
        (5003, 5002),
        (9001, 4001),
        (20011, 3999),
    ],
)
def test_amplification_is_the_direct_matrix_product(n: int, length: int) -> None:
    key, seed = random_case(n, n)
    assert np.array_equal(amplify(Bits.pack(key), seed, length).unpack(), direct(key, seed, length))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 3000), share=st.floats(0, 1), draw=st.integers(0, 2**32))
def test_any_length_from_any_key_is_the_direct_product(n: int, share: float, draw: int) -> None:
    length = round(n * share)
    key, seed = random_case(n, draw)
    hashed = amplify(Bits.pack(key), seed, length)
    assert len(hashed) == length
    assert np.array_equal(hashed.unpack(), direct(key, seed, length))


def by_fourier_transform(key: npt.NDArray[np.uint8], seed: bytes, length: int) -> npt.NDArray[np.uint8]:
    """Return the same by another route: a convolution of integers, whose sums stay far below 2^53."""
    n = key.shape[0]
    coefficients = np.unpackbits(np.frombuffer(seed, np.uint8), count=n - 1, bitorder="little")
    size = 1 << (n - 1).bit_length()  # what wraps around is not needed: y begins n - m - 1 rows down
    spectrum = np.fft.rfft(coefficients, size) * np.fft.rfft(key[length:], size)
    sums = np.fft.irfft(spectrum, size)[n - length - 1 : n - 1]
    rounded = np.rint(sums)
    assert np.abs(sums - rounded).max() < 0.1
    return (rounded.astype(np.int64) & 1).astype(np.uint8) ^ key[:length]


@pytest.mark.parametrize(
    ("n", "length"), [(400_003, 90_001), (399_999, 350_000), (1_000_003, 300_001), (4_400_003, 1_300_001)]
)
def test_large_blocks_are_the_convolution(n: int, length: int) -> None:
    key, seed = random_case(n, 7)
    expected = Bits.pack(by_fourier_transform(key, seed, length))
    assert amplify(Bits.pack(key), seed, length).equals(expected)


def test_different_keys_collide_for_at_most_two_to_the_minus_length_of_all_seeds() -> None:
    n, length = 7, 3
    for difference in range(1, 2**n):
        bits = Bits.pack(np.array([difference >> i & 1 for i in range(n)], np.uint8))
        collisions = sum(
            not amplify(bits, bytes([seed]), length).unpack().any() for seed in range(2 ** (n - 1))
        )
        assert collisions <= 2 ** (n - 1 - length)


def test_hash_is_linear_and_ignores_spare_seed_bits() -> None:
    (a, seed), (b, _) = random_case(777, 1), random_case(777, 2)
    hashed = [amplify(Bits.pack(key), seed, 200).unpack() for key in (a, b, a ^ b)]
    assert np.array_equal(hashed[0] ^ hashed[1], hashed[2])
    short = random_case(10, 3)[0]
    assert amplify(Bits.pack(short), b"\x55\x01", 4).equals(amplify(Bits.pack(short), b"\x55\xff", 4))


def test_nothing_and_everything_may_be_taken() -> None:
    key, seed = random_case(100, 4)
    assert len(amplify(Bits.pack(key), seed, 0)) == 0
    assert np.array_equal(amplify(Bits.pack(key), seed, 100).unpack(), key)
    assert len(amplify(Bits(np.zeros(0, np.uint64), 0), b"", 0)) == 0


def test_wrong_seed_or_length_is_refused() -> None:
    key = Bits.pack(random_case(100, 5)[0])
    for seed, length in ((bytes(12), 10), (bytes(14), 10), (bytes(13), 101), (bytes(13), -1)):
        with pytest.raises(ValueError, match="bits"):
            amplify(key, seed, length)


def test_memory_stays_within_the_promised_bound() -> None:
    n = 1_000_000
    key = Bits.pack(random_case(n, 6)[0])
    seed = random_case(n, 6)[1]
    amplify(key, seed, 1000)
    for length in (1000, 200_000, 500_000, 900_000):
        tracemalloc.start()
        amplify(key, seed, length)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= (7 * n + 4 * length) / 8 + 1_000_000


def test_the_basis_is_cantors_and_its_beginnings_are_the_subfields() -> None:
    assert all(multiply(b, b) ^ b == a for a, b in pairwise((0, *BASIS)))
    for bits in (8, 16, 32):
        assert max(BASIS[:bits]) < 1 << bits


def test_values_at_the_points_determine_a_polynomial() -> None:
    matrix = evaluation().astype(np.int64)
    product = matrix @ inverse(evaluation()).astype(np.int64) & 1
    assert np.array_equal(product, np.eye(128, dtype=np.int64))
