"""Error correction, both sides, of blocks with a known share of errors."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec.structs
import numpy as np

from qnode.bench.results import BenchResult, Effort, Machine, rates, summary
from qnode.config import LinkParameters
from qnode.distill.bits import Bits
from qnode.distill.keylength import binary_entropy
from qnode.offline.distillation import correct

QBERS: Final = (0.005, 0.015, 0.03, 0.05, 0.08)
USUAL_QBER: Final = 0.015
LENGTHS: Final = (1 << 20, 1 << 21, 1 << 22)
# Each bit enters a parity in each of about three passes, on both sides.
_BITS_COUNTED_A_BIT: Final = 6


@dataclass(frozen=True, eq=False)
class Pair:
    """A block at both sites before correction."""

    alice: Bits
    bob: Bits
    errors: int

    @classmethod
    def drawn(cls, n_bits: int, qber: float, seed: int) -> "Pair":
        """Draw a block; a share of ``qber`` of its bits differs, at independent positions."""
        rng = np.random.default_rng([seed, n_bits, round(1e6 * qber)])
        ours = rng.integers(0, 2, n_bits, dtype=np.uint8)
        wrong = rng.random(n_bits) < qber
        return cls(Bits.pack(ours), Bits.pack(ours ^ wrong.astype(np.uint8)), int(wrong.sum()))


def correction(method: str, machine: Machine, effort: Effort, *, all_sizes: bool) -> Iterator[BenchResult]:
    """Measure one method at several error rates and block lengths."""
    settings = msgspec.structs.replace(LinkParameters().reconciliation, method=method)
    link = msgspec.structs.replace(LinkParameters(), reconciliation=settings)
    cases = [(LENGTHS[0], qber) for qber in QBERS]
    if all_sizes:
        cases += [(n_bits, USUAL_QBER) for n_bits in LENGTHS[1:]]
    for n_bits, qber in cases:
        pair = Pair.drawn(n_bits, qber, seed=1)
        spent: list[float] = []
        found = rates(partial(corrected, pair, link, qber, spent), effort)
        yield summary(
            method,
            found,
            "Mbit/s",
            n_bits=n_bits,
            qber=qber,
            f=statistics.mean(spent),
            limit=machine.popcount_bits_per_s / _BITS_COUNTED_A_BIT / 1e6,
        )


def corrected(pair: Pair, link: LinkParameters, qber: float, spent: list[float]) -> float:
    """Correct a block, note its f in ``spent`` and return its length in Mbit.

    Raises:
        AssertionError: the block was not corrected.
    """
    n_bits = len(pair.alice)
    done = correct(pair.alice, pair.bob, link, qber, np.random.default_rng(len(spent)).bytes)
    if not done.key.equals(pair.alice):
        raise AssertionError(f"a block of {n_bits} bits was not corrected")
    spent.append(done.disclosed.parities / (n_bits * binary_entropy(pair.errors / n_bits)))
    return n_bits / 1e6
