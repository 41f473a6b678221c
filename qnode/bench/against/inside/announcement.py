"""What an announced click costs with the code of a checkout: bits beside the entropy, and processor time.

    announcement.py CLICKS

Clicks are drawn independently for each slot, on the Turin link and on the fast link of `qnode bench`.
Processor time is the least of some runs.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from qnode.tags.types import OUTCOME_BOUNDARY, OUTCOME_CENTRAL, Clicks, Codes, Slots

RUNS = 9


class ClickLaw(NamedTuple):
    """Clicks a slot; the share of the X arm; the share of boundary clicks among those of the X arm."""

    click: float
    x_arm: float
    boundary: float

    def drawn(self, n: int) -> tuple[Slots, Codes]:
        """Return slots and outcomes of ``n`` clicks."""
        rng = np.random.default_rng(1)
        slots = np.cumsum(rng.geometric(self.click, n)).astype(np.int64)
        of_x = np.where(rng.random(n) < self.boundary, OUTCOME_BOUNDARY, OUTCOME_CENTRAL)
        return slots, np.where(rng.random(n) < self.x_arm, of_x, rng.integers(0, 2, n)).astype(np.uint8)

    @property
    def entropy_bits(self) -> float:
        """The entropy of a click."""
        gap = _entropy_bits(self.click) / self.click
        return gap + _entropy_bits(self.x_arm) + self.x_arm * _entropy_bits(self.boundary)


LINKS = {
    "Turin": ClickLaw(5.06e-5, 0.49, 0.5),
    "fast": ClickLaw(0.0467, 0.041, 0.5),
    "dense": ClickLaw(0.1, 0.05, 0.5),
}


def _entropy_bits(p: float) -> float:
    return float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def best_ns(work: Callable[[], object], n: int) -> float:
    """Return the processor time of one of ``n`` clicks."""
    times = []
    for _ in range(RUNS):
        began = time.thread_time_ns()
        work()
        times.append(time.thread_time_ns() - began)
    return min(times) / n


def codec() -> tuple[Any, Any]:
    """Return the functions of the checkout's latest protocol that encode and decode an announcement."""
    for module in ("qnode.node.dialogue.announcement", "qnode.distill.sifting.codec"):
        try:
            found: Any = import_module(module)
        except ImportError:
            continue
        if hasattr(found, "announcement_codec"):
            latest = found.announcement_codec(import_module("qnode.link.protocol").PROTOCOL)
            if find_spec("qnode.distill.sifting.announced") is not None:
                return partial(encoded, latest.encode), latest.decode
            return latest.encode, latest.decode
        return found.encode_announcement, found.decode_announcement
    earliest: Any = import_module("qnode.distill.sift_codec")  # 0.1.0
    return earliest.encode_announcement, earliest.decode_announcement


def encoded(encode: Callable[[Any, int], bytes], slots: Slots, outcomes: Codes, first_slot: int) -> bytes:
    """Encode clicks by a function that takes what is announced of them, as those since 0.2.0 do."""
    announced: Any = import_module("qnode.distill.sifting.announced")
    return encode(announced.Announced.of(Clicks(slots, outcomes)), first_slot)


def main() -> None:
    """Measure and print."""
    n = int(sys.argv[1])
    encode, decode = codec()
    result = {}
    for name in ("fast", "Turin"):
        law = LINKS[name]
        slots, outcomes = law.drawn(n)
        first, n_slots = int(slots[0]), int(slots[-1] - slots[0]) + 1
        data = encode(slots, outcomes, first)
        result[name] = {
            "over_entropy": 8 * len(data) / n / law.entropy_bits,
            "encoding_ns": best_ns(partial(encode, slots, outcomes, first), n),
            "decoding_ns": best_ns(partial(decode, data, first, n_slots), n),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
