"""The choice of the correction method by the round trip."""

import math
from typing import Final

from qnode.choices import ReconciliationMethod

CASCADE_ROUNDS: Final = 70  # round trips of a block of 1e6 to 1e7 bits at 1.5 %
CASCADE_BYTES_PER_BIT: Final = 3  # Bob's memory while a block is in progress


def choose_method(
    rtt_s: float,
    *,
    block_bits: int,
    sifted_bits_per_s: float,
    max_blocks_in_flight: int = 16,
    max_memory_bytes: int = 1 << 30,
) -> ReconciliationMethod:
    """Return the method with the most key at this round trip.

    Cascade discloses 1.04 to 1.05 times the entropy of the errors, LDPC 1.12 to 1.2: at a QBER of 1.5 %
    that is 1 % of the sifted bits, 3 to 5 % of the secret ones. So Cascade is chosen wherever it is fast
    enough. Cascade needs CASCADE_ROUNDS round trips for a block. In this time ``sifted_bits_per_s`` fills
    further blocks, so 1 + rounds * rtt * rate / block_bits blocks are in progress at once. LDPC, with one to
    three round trips, is chosen if these are more than ``max_blocks_in_flight`` or need more than
    ``max_memory_bytes``. A slow link uses Cascade at any round trip: its blocks take longer to fill than to
    correct.
    """
    filled = CASCADE_ROUNDS * rtt_s * sifted_bits_per_s / block_bits
    n_in_flight = 1 + math.ceil(filled)
    fits = n_in_flight * block_bits * CASCADE_BYTES_PER_BIT <= max_memory_bytes
    return "cascade" if n_in_flight <= max_blocks_in_flight and fits else "ldpc"
