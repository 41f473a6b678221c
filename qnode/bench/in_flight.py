"""Concurrent correction of blocks over a classical fibre, on a clock that only the measured work advances.

A slow link waits for round trips and can work on other blocks meanwhile. Here the real state machines of both
sites work on several blocks. Each step is measured in processor time and takes that long on its site's one
core. Each message takes half a round trip. So one machine measures a fibre of any length.
"""

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qnode.bench.correction import Pair
from qnode.distill.reconcile import SEED_BYTES, Corrector, Responder, corrector, responder


@dataclass(eq=False)
class _Block:
    """One block in progress: Alice makes the next step if a request waits, Bob if an answer waits."""

    alice: Responder
    bob: Corrector
    message: bytes | None
    for_alice: bool = True

    def step(self) -> bool:
        """Do the next step; return whether it was the last one."""
        assert self.message is not None
        self.message = self.alice.respond(self.message) if self.for_alice else self.bob.receive(self.message)
        self.for_alice = not self.for_alice
        return self.message is None


def seconds_for(pairs: Sequence[Pair], qber: float, round_trip_s: float, method: str = "cascade") -> float:
    """Return the time for the correction of all ``pairs``, started together, over such a fibre.

    Raises:
        AssertionError: a block was not corrected.
    """
    free_at = {True: 0.0, False: 0.0}  # Alice's core, Bob's core
    waiting: list[tuple[float, int]] = []
    blocks: list[_Block] = []
    for number, pair in enumerate(pairs):
        seed = np.random.default_rng(number).bytes(SEED_BYTES)
        began_s = time.thread_time()
        bob = corrector(method, pair.bob, seed=seed, qber_estimate=qber)
        between_s = time.thread_time()
        alice = responder(method, pair.alice, seed=seed, qber_estimate=qber)
        free_at[False] += between_s - began_s
        free_at[True] += time.thread_time() - between_s
        blocks.append(_Block(alice, bob, bob.start()))
        heapq.heappush(waiting, (free_at[False] + round_trip_s / 2, number))
    while waiting:
        arrived_s, number = heapq.heappop(waiting)
        block = blocks[number]
        site = block.for_alice
        began_s = time.thread_time()
        ended = block.step()
        free_at[site] = now_s = max(arrived_s, free_at[site]) + time.thread_time() - began_s
        if not ended:
            heapq.heappush(waiting, (now_s + round_trip_s / 2, number))
    for pair, block in zip(pairs, blocks, strict=True):
        if not block.bob.corrected.equals(pair.alice):
            raise AssertionError(f"a block of {len(pair.alice)} bits was not corrected")
    return max(free_at.values())
