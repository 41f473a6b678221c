"""Print what an announced click costs in both protocols: bits beside the entropy, and processor time.

    python tests/measure_announcement.py [--clicks 300000]

Clicks are drawn independently for each slot: on the Turin link, on the fast link of `qnode bench`, and at one
click in ten slots. Times are nanoseconds of one core for a click, the best of nine runs.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from qnode.node.dialogue.announcement import announcement_codec
from qnode.tags.types import OUTCOME_BOUNDARY, OUTCOME_CENTRAL, Codes, Slots

# Name; clicks a slot; share of the X arm; share of boundary clicks among those of the X arm.
LINKS = (("turin", 5.06e-5, 0.49, 0.5), ("fast", 0.0467, 0.041, 0.5), ("dense", 0.1, 0.05, 0.5))
RUNS = 9


def drawn(n: int, click: float, x_arm: float, boundary: float) -> tuple[Slots, Codes]:
    """Return slots and outcomes of ``n`` clicks."""
    rng = np.random.default_rng(1)
    slots = np.cumsum(rng.geometric(click, n)).astype(np.int64)
    of_x = np.where(rng.random(n) < boundary, OUTCOME_BOUNDARY, OUTCOME_CENTRAL)
    return slots, np.where(rng.random(n) < x_arm, of_x, rng.integers(0, 2, n)).astype(np.uint8)


def entropy_bits(p: float) -> float:
    """Return the entropy of a choice with probability ``p``."""
    return float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def best_ns(work: Callable[[], object], n: int) -> float:
    """Return the processor time of one of ``n`` clicks."""
    times = []
    for _ in range(RUNS):
        began = time.thread_time_ns()
        work()
        times.append(time.thread_time_ns() - began)
    return min(times) / n


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clicks", type=int, default=300_000, help="clicks of a batch")
    n = parser.parse_args().clicks
    for name, click, x_arm, boundary in LINKS:
        slots, outcomes = drawn(n, click, x_arm, boundary)
        first, n_slots = int(slots[0]), int(slots[-1] - slots[0]) + 1
        entropy = entropy_bits(click) / click + entropy_bits(x_arm) + x_arm * entropy_bits(boundary)
        for protocol in (1, 2):
            codec = announcement_codec(protocol)
            data = codec.encode(slots, outcomes, first)
            bits = 8 * len(data) / n
            encoding_ns = best_ns(partial(codec.encode, slots, outcomes, first), n)
            decoding_ns = best_ns(partial(codec.decode, data, first, n_slots), n)
            print(
                f"{name:6} protocol {protocol}: {bits:6.2f} bits a click, entropy {entropy:.2f}, ratio"
                f" {bits / entropy:.3f}; encoding {encoding_ns:.1f} ns, decoding {decoding_ns:.1f} ns"
            )


if __name__ == "__main__":
    main()
