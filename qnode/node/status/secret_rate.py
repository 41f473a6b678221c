"""The secret key rate of one link over the blocks of the last hour."""

from collections import deque
from typing import Final, NamedTuple

WINDOW_S: Final = 3600.0


class _Decided(NamedTuple):
    """A block: when it was decided, its tag time, its secret bits (0 if it was discarded)."""

    at_s: float
    span_s: float
    secret_bits: int


class SecretRate:
    """Secret bits per second of tag time, accepted and discarded blocks together; at least the last block."""

    def __init__(self) -> None:
        self._blocks: deque[_Decided] = deque()
        self._span_s = 0.0
        self._secret_bits = 0

    def add(self, at_s: float, span_s: float, secret_bits: int) -> None:
        """Add a block that was decided at ``at_s``."""
        self._blocks.append(_Decided(at_s, span_s, secret_bits))
        self._secret_bits += secret_bits
        while len(self._blocks) > 1 and at_s - self._blocks[0].at_s > WINDOW_S:
            self._secret_bits -= self._blocks.popleft().secret_bits
        # Summed again, so that no rounding error can grow.
        self._span_s = sum(block.span_s for block in self._blocks)

    def bits_per_s(self) -> float | None:
        """Return the rate; None before the first block."""
        return self._secret_bits / self._span_s if self._span_s > 0.0 else None
