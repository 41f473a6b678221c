"""What Alice sends and Bob detects in the world: a function of seed and slot number.

The world enters at the block seam, so there are no photons and no time tags here: symbols at Alice's, clicks
with plausible statistics at Bob's, more densely packed than any fibre lets through, so that a block of some
thousand sifted bits takes twenty thousand slots.
"""

import numpy as np
import numpy.typing as npt

from qnode.tags.marks import Marks
from qnode.tags.types import (
    DECOY,
    OUTCOME_BOUNDARY,
    OUTCOME_CENTRAL,
    X_PLUS,
    Z_LATE,
    Clicks,
    Codes,
    Slots,
)

MU = (0.5, 0.2)
P = (0.7, 0.3)
P_Z_ALICE = 0.9
P_Z_BOB = 0.7
VISIBILITY = 0.98
SIFTED_PER_SLOT = 0.21
"""About so many sifted bits a slot."""
_NONE = np.empty(0, np.int64)

Words = npt.NDArray[np.uint64]
Fractions = npt.NDArray[np.float64]


class Light:
    """The light of one run of a world."""

    def __init__(self, seed: int) -> None:
        self._seed = np.uint64(seed & 0xFFFF_FFFF)

    def _words(self, run_id: int, what: int, slots: Slots) -> Words:
        """Return 64 random bits for each slot (splitmix64)."""
        with np.errstate(over="ignore"):
            salt = (self._seed << np.uint64(24)) ^ np.uint64(run_id * 8 + what)
            x = slots.astype(np.uint64) + salt * np.uint64(0xD1B54A32D192ED03)
            x = x * np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            return x ^ (x >> np.uint64(31))

    def symbols(self, run_id: int, slots: Slots) -> Codes:
        """Return what Alice sent in ``slots``."""
        words = self._words(run_id, 0, slots)
        state = np.where(_part(words, 0) < P_Z_ALICE, (words >> np.uint64(63)).astype(np.uint8), X_PLUS)
        symbols: Codes = (state + DECOY * (_part(words, 1) >= P[0])).astype(np.uint8)
        return symbols

    def clicks(self, run_id: int, first_slot: int, end_slot: int, error_rate: float) -> tuple[Clicks, Marks]:
        """Return Bob's clicks in ``first_slot <= slot < end_slot``, and the other marks of Bob's tags."""
        symbols = self.symbols(run_id, np.arange(first_slot - 1, end_slot, dtype=np.int64))
        slots = np.arange(first_slot, end_slot, dtype=np.int64)
        own, before = symbols[1:], symbols[:-1]
        energy = np.where(symbols & DECOY, MU[1], MU[0])
        state, state_before = own & 3, before & 3
        plus = state == X_PLUS
        early = energy[1:] * np.where(plus, 0.5, state == 0)
        late_before = energy[:-1] * np.where(state_before == X_PLUS, 0.5, state_before == Z_LATE)
        p_x = (1.0 - P_Z_BOB) / 4.0
        words, more = self._words(run_id, 1, slots), self._words(run_id, 2, slots)
        in_z = _part(words, 0) < 1.0 - np.exp(-P_Z_BOB * energy[1:])
        in_c = _part(words, 1) < 1.0 - np.exp(-p_x * energy[1:] * np.where(plus, 1.0 - VISIBILITY, 1.0))
        in_e = _part(words, 2) < 1.0 - np.exp(-p_x * (early + late_before))
        late = np.where(plus, _part(more, 0) < 0.5, state == Z_LATE)
        late ^= _part(more, 1) < error_rate
        outcomes = np.where(in_z, late, np.where(in_c, OUTCOME_CENTRAL, OUTCOME_BOUNDARY)).astype(np.uint8)
        clicked = in_z | in_c | in_e
        crossed = slots[in_z & (in_c | in_e)]
        return Clicks(slots[clicked], outcomes[clicked]), Marks(_NONE, _NONE, crossed, _NONE)


def _part(words: Words, number: int) -> Fractions:
    """Return 20 of each word's bits as a number in [0, 1)."""
    part = (words >> np.uint64(20 * number)) & np.uint64(0xFFFFF)
    result: Fractions = part.astype(np.float64) * 2.0**-20
    return result
