"""Unit constants. Names elsewhere carry their unit as a suffix (_ps, _s, _hz, _db, _bits)."""

import math
from typing import Final

PS_PER_S: Final = 1_000_000_000_000
CHUNK_BITS: Final = 256
CHUNK_BYTES: Final = CHUNK_BITS // 8
BULK_BYTES: Final = 8 << 20
"""The longest binary value in a message of the link; so it bounds the bits of a mask or seed of a block."""


def transmission(attenuation_db: float) -> float:
    """Return the transmitted fraction of light behind ``attenuation_db`` decibels."""
    return float(10.0 ** (-attenuation_db / 10.0))


def decibels(ratio: float) -> float:
    """Return a ratio of powers, above 0, in decibels."""
    return 10.0 * math.log10(ratio)
