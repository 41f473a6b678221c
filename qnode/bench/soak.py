"""Error correction of many synthetic blocks: their correctness and their cost."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qnode.distill.bits import Bits
from qnode.distill.reconcile import (
    LeakCount,
    ReconciliationFailed,
    ReconciliationStatistics,
    corrector,
    responder,
)


@dataclass(frozen=True)
class SoakedBlock:
    """One block: its errors, Bob's counts, CPU seconds per side, and whether the result is right.

    ``failed``: abandoned, as with too many errors. ``wrong``: counted as corrected, but different.
    """

    n_bits: int
    n_errors: int
    statistics: ReconciliationStatistics
    alice_s: float
    bob_s: float
    failed: bool
    wrong: bool


@dataclass(frozen=True)
class SoakResult:
    """The sum of blocks; rates and f are over the blocks that did not fail."""

    n_blocks: int
    n_bits: int
    failed_blocks: int
    wrong_blocks: int
    alice_s: float
    bob_s: float
    f_ec: float
    rounds_mean: float
    rounds_max: int
    wire_bits_per_bit: float

    @classmethod
    def of(cls, blocks: list[SoakedBlock]) -> "SoakResult":
        """Sum up ``blocks``.

        Raises:
            ValueError: all of them failed.
        """
        good = [block for block in blocks if not block.failed]
        if not good:
            raise ValueError(f"none of {len(blocks)} blocks was corrected")
        n_bits = sum(block.n_bits for block in good)
        statistics = [block.statistics for block in good]
        return cls(
            n_blocks=len(blocks),
            n_bits=n_bits,
            failed_blocks=len(blocks) - len(good),
            wrong_blocks=sum(block.wrong for block in good),
            alice_s=sum(block.alice_s for block in good),
            bob_s=sum(block.bob_s for block in good),
            f_ec=sum(one.disclosed_bits for one in statistics)
            / sum(_least_disclosed_bits(block) for block in good),
            rounds_mean=sum(one.rounds for one in statistics) / len(good),
            rounds_max=max(one.rounds for one in statistics),
            wire_bits_per_bit=8 * sum(one.request_bytes + one.response_bytes for one in statistics) / n_bits,
        )


def _least_disclosed_bits(block: SoakedBlock) -> float:
    """Return n h(e) with the real errors."""
    rate = min(max(block.n_errors, 1), block.n_bits - 1) / block.n_bits
    return -block.n_bits * (rate * math.log2(rate) + (1 - rate) * math.log2(1 - rate))


def soak(
    method: str,
    n_bits: int,
    qber: float,
    *,
    seed: int,
    qber_estimate: float | None = None,
    leak_count: LeakCount = "alice",
) -> Iterator[SoakedBlock]:
    """Reconcile random blocks of ``n_bits`` with independent errors one after the other, without end.

    ``seed`` makes keys, errors and public seeds repeatable; the estimate is ``qber`` if none is given.
    """
    rng = np.random.default_rng(seed)
    estimate = qber if qber_estimate is None else qber_estimate
    first, second = Bits.from_bytes(bytes(512), 4096), Bits.from_bytes(bytes(500) + b"\x81" * 12, 4096)
    _reconcile(method, first, second, 24, bytes(32), 0.01, leak_count)  # compiles the missing kernels
    while True:
        alice = Bits.from_bytes(rng.bytes((n_bits + 7) // 8), n_bits)
        errors = _independent_errors(n_bits, qber, rng)
        bob = Bits(alice.words ^ errors.words, n_bits)
        n_errors = int(np.bitwise_count(errors.words).sum())
        yield _reconcile(method, alice, bob, n_errors, rng.bytes(32), estimate, leak_count)


def _independent_errors(n_bits: int, qber: float, rng: np.random.Generator) -> Bits:
    bits = np.zeros(n_bits, np.uint8)
    if qber > 0.0:
        expected = n_bits * qber
        gaps = rng.geometric(qber, int(expected + 10 * math.sqrt(expected) + 10))
        places = np.cumsum(gaps) - 1
        bits[places[places < n_bits]] = 1
    return Bits.pack(bits)


def _reconcile(
    method: str,
    alice_key: Bits,
    bob_key: Bits,
    n_errors: int,
    seed: bytes,
    estimate: float,
    leak_count: LeakCount,
) -> SoakedBlock:
    times = [time.thread_time()]
    alice = responder(method, alice_key, seed=seed, qber_estimate=estimate, leak_count=leak_count)
    times.append(time.thread_time())
    bob = corrector(method, bob_key, seed=seed, qber_estimate=estimate, leak_count=leak_count)
    request: bytes | None = bob.start()
    times.append(time.thread_time())
    failed = False
    try:
        while request is not None:
            answer = alice.respond(request)
            times.append(time.thread_time())
            request = bob.receive(answer)
            times.append(time.thread_time())
    except ReconciliationFailed:
        times.append(time.thread_time())
        failed = True
    spent = np.diff(times)
    return SoakedBlock(
        n_bits=len(alice_key),
        n_errors=n_errors,
        statistics=bob.statistics,
        alice_s=float(spent[0::2].sum()),
        bob_s=float(spent[1::2].sum()),
        failed=failed,
        wrong=not failed
        and not (bob.corrected.equals(alice_key) and bob.statistics.disclosed_bits == alice.disclosed_bits),
    )
