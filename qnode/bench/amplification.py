"""Verification and privacy amplification of one site."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from qnode.bench.results import BenchResult, Effort, Machine, rates, summary
from qnode.choices import TagBits
from qnode.distill.amplification.amplify import amplify, seed_length_bytes
from qnode.distill.bits import Bits
from qnode.distill.verify import verification_tag

LENGTHS: Final = (10**6, 10**7, 10**8)
RATIO: Final = 0.3
_TAG_BITS: Final[TagBits] = 128


def random_bits(n_bits: int) -> Bits:
    """Return a random block."""
    return Bits.from_bytes(np.random.default_rng(n_bits).bytes(-(-n_bits // 8)), n_bits)


def amplification(_machine: Machine, effort: Effort, *, all_sizes: bool) -> Iterator[BenchResult]:
    """Measure the hash of n bits to 0.3 n."""
    for n_bits in LENGTHS if all_sizes else LENGTHS[:2]:
        yield amplification_of(n_bits, effort)


def amplification_of(n_bits: int, effort: Effort) -> BenchResult:
    """Measure one block length."""
    key, length = random_bits(n_bits), round(RATIO * n_bits)
    seed = np.random.default_rng(1).bytes(seed_length_bytes(n_bits))

    def work() -> float:
        amplify(key, seed, length)
        return n_bits / 1e6

    return summary("amplify", rates(work, effort), "Mbit/s", n_bits=n_bits)


def verification(machine: Machine, effort: Effort) -> Iterator[BenchResult]:
    """Measure the verification tag of a block of 10^7 bits."""
    yield verification_of(LENGTHS[1], machine, effort)


def verification_of(n_bits: int, machine: Machine, effort: Effort) -> BenchResult:
    """Measure one block length; at least three products are needed for 128 bits."""
    key, seed = random_bits(n_bits), bytes(range(_TAG_BITS // 8))

    def work() -> float:
        verification_tag(key, seed, _TAG_BITS)
        return n_bits / 1e6

    products = 3 * n_bits / _TAG_BITS
    limit = n_bits / 1e6 * machine.clmul_per_s / products if machine.clmul_per_s is not None else None
    return summary("verify", rates(work, effort), "Mbit/s", n_bits=n_bits, limit=limit)
