"""The continuous health tests of a random number generator, NIST SP 800-90B section 4.4.

Both tests see every sample in order. Their cutoffs follow from the stated min-entropy H of a sample and from
the probability alpha = 2^-exponent of a false alarm. They detect a generator that is stuck or far from its
stated min-entropy. They do not detect one that computes its output, or that repeats a longer pattern.
"""

import math
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from qnode.distill.check_table import Finding
from qnode.monitors.table import MONITOR_BY_NAME

SampleBits = Literal[1, 8]
Samples = NDArray[np.uint8]

WINDOWS: Final[dict[SampleBits, int]] = {1: 1024, 8: 512}
"""The samples of a window of the adaptive proportion test, by the size of a sample (section 4.4.2)."""
START_UP_SAMPLES: Final = 4096
"""The samples that the start-up test sees and discards; section 4.3 asks for 1024 or more."""


class HealthTestNeverFires(ValueError):
    """A health test whose cutoff lies beyond its window: whatever the generator does, it would never fail."""


def repetition_count_cutoff(min_entropy_bits: float, exponent: int) -> int:
    """Return how many equal samples in a row fail: 1 + ceil(exponent / H)."""
    return 1 + math.ceil(exponent / min_entropy_bits)


def adaptive_proportion_cutoff(min_entropy_bits: float, exponent: int, window: int) -> int:
    """Return how often the first sample of a window of ``window`` samples must occur in it to fail.

    It is 1 + k with the least k for which more than k of ``window`` samples take a value of probability 2^-H
    with probability 2^-exponent or less. The tail is summed from its far end, term by term.

    Raises:
        HealthTestNeverFires: the cutoff lies beyond the window.
    """
    p = 2.0**-min_entropy_bits
    k, tail = window, _probability(window, window, p)
    while tail <= 2.0**-exponent:  # until k or more are too likely; more than k are not
        k -= 1
        tail += _probability(k, window, p)
    if k + 1 > window:
        raise HealthTestNeverFires(
            f"with {min_entropy_bits:g} bits of min-entropy and a false alarm of 2^-{exponent}, the adaptive "
            f"proportion test would fail at {k + 1} of {window} samples, that is never: state a larger "
            "min-entropy, or allow more false alarms"
        )
    return k + 1


def _probability(k: int, n: int, p: float) -> float:
    """Return the binomial probability of ``k`` of ``n``; relative error about 1e-12."""
    if p >= 1.0:
        return float(k == n)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))


class RepetitionCount:
    """The repetition count test, section 4.4.1."""

    def __init__(self, min_entropy_bits: float, exponent: int) -> None:
        self.cutoff = repetition_count_cutoff(min_entropy_bits, exponent)
        self._last = -1
        self._run = 0

    def feed(self, samples: Samples) -> int:
        """Take the next ``samples``; return the longest run of equal samples that they end or extend."""
        if not samples.size:
            return self._run
        changes = np.flatnonzero(samples[1:] != samples[:-1]) + 1
        edges = np.concatenate(([0], changes, [samples.size]))
        runs = np.diff(edges)
        if int(samples[0]) == self._last:
            runs[0] += self._run
        self._last, self._run = int(samples[-1]), int(runs[-1])
        return int(runs.max())


class AdaptiveProportion:
    """The adaptive proportion test, section 4.4.2.

    Raises:
        HealthTestNeverFires: its cutoff lies beyond ``window``.
    """

    def __init__(self, min_entropy_bits: float, exponent: int, window: int) -> None:
        self.window = window
        self.cutoff = adaptive_proportion_cutoff(min_entropy_bits, exponent, window)
        self._first = self._seen = self._equal = 0

    def feed(self, samples: Samples) -> int:
        """Take the next ``samples``; return the greatest count of a window that they begin or extend."""
        greatest = 0
        if self._seen:
            rest = samples[: self.window - self._seen]
            samples = samples[rest.size :]
            self._equal += int(np.count_nonzero(rest == self._first))
            self._seen += rest.size
            greatest = self._equal
            if self._seen < self.window:
                return greatest
            self._seen = 0
        whole = samples.size // self.window
        windows = samples[: whole * self.window].reshape(whole, self.window)
        if whole:
            greatest = max(greatest, int((windows == windows[:, :1]).sum(axis=1).max()))
        rest = samples[whole * self.window :]
        if rest.size:
            self._first, self._seen = int(rest[0]), rest.size
            self._equal = int(np.count_nonzero(rest == rest[0]))
            greatest = max(greatest, self._equal)
        return greatest


class RandomHealth:
    """Both tests over a stream of bytes. A generator that failed stays failed: ``failed`` says how.

    ``sample_bits``: 8, or 1 (the most significant bit of a byte is the earliest sample).

    Raises:
        HealthTestNeverFires: the stated min-entropy is too low for the window.
    """

    def __init__(self, min_entropy_bits: float, exponent: int, sample_bits: SampleBits = 8) -> None:
        self._sample_bits = sample_bits
        self._repetition = RepetitionCount(min_entropy_bits, exponent)
        self._proportion = AdaptiveProportion(min_entropy_bits, exponent, WINDOWS[sample_bits])
        self.failed: Finding | None = None

    @property
    def start_up_bytes(self) -> int:
        """The bytes of a start-up test: they are tested like all others, and must be discarded."""
        return START_UP_SAMPLES * self._sample_bits // 8

    def feed(self, data: bytes) -> Finding | None:
        """Test the next bytes; return the failure, also a previous one, or None."""
        samples = np.frombuffer(data, np.uint8)
        if self._sample_bits == 1:
            samples = np.unpackbits(samples)
        for name, value, cutoff in (
            ("repetition_count", self._repetition.feed(samples), self._repetition.cutoff),
            ("adaptive_proportion", self._proportion.feed(samples), self._proportion.cutoff),
        ):
            if value >= cutoff and self.failed is None:
                self.failed = Finding(name, value, None, cutoff - 1, MONITOR_BY_NAME[name].high)
        return self.failed
