"""Types of time tags, symbols and clicks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]
Channels = npt.NDArray[np.int8]
Slots = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]
SymbolLookup = Callable[[Slots], Codes]
"""Returns the symbols that Alice sent in the given slots; `UNKNOWN_SYMBOL` outside the record."""

# Channels of the TDC: a driver maps its own numbering to these.
Z_CHANNEL: Final = 0
X_CHANNEL: Final = 1

# Symbols that Alice sent in a slot. Bit 0: late bin; bit 1: |+> (then bit 0 is zero); bit 2: decoy.
Z_EARLY: Final = 0
Z_LATE: Final = 1
X_PLUS: Final = 2
DECOY: Final = 4
UNKNOWN_SYMBOL: Final = 255  # outside the transmitter's record

# Outcomes of Bob's clicks. Bob announces only the arm, and the slot class for the X arm.
OUTCOME_EARLY: Final = 0
OUTCOME_LATE: Final = 1
OUTCOME_CENTRAL: Final = 2
OUTCOME_BOUNDARY: Final = 3


@dataclass(frozen=True, eq=False)
class TagBlock:
    """Time tags as a TDC yields them, nearly in time order.

    ``times_ps``: int64 picoseconds since the TDC started, shape ``(n,)``. ``channels``: int8, shape ``(n,)``.
    ``until_ps``: every tag before this time has been yielded (so the absence of tags is known). All are read
    modulo 2^64 (`qnode.tags.tag_time`): after 2^63 - 1, which comes after 107 days, a TDC continues at -2^63.
    ``lost``: tags that the hardware lost to overflow just before this block.
    """

    times_ps: Times
    channels: Channels
    until_ps: int
    lost: int = 0

    def after(self, n: int) -> "TagBlock":
        """Return the block without its first ``n`` tags."""
        return TagBlock(self.times_ps[n:], self.channels[n:], self.until_ps, self.lost)

    def last(self, n: int) -> "TagBlock":
        """Return the block with at most its last ``n`` tags."""
        first = max(0, self.times_ps.shape[0] - n)
        return TagBlock(self.times_ps[first:], self.channels[first:], self.until_ps, self.lost)

    def earlier(self, by_ps: int) -> "TagBlock":
        """Return the block with times smaller by ``by_ps``."""
        return TagBlock(self.times_ps - by_ps, self.channels, self.until_ps - by_ps, self.lost)


NO_TAGS: Final = TagBlock(np.empty(0, np.int64), np.empty(0, np.int8), 0)


@dataclass(frozen=True, eq=False)
class Clicks:
    """Accepted clicks: ``slots`` int64 ascending (Alice's slot numbers), ``outcomes`` uint8, same shape.

    The boundary slot E_i between qubits i-1 and i carries the number i.
    """

    slots: Slots
    outcomes: Codes

    def __len__(self) -> int:
        return int(self.slots.shape[0])

    def __repr__(self) -> str:
        return f"Clicks({len(self)} clicks)"  # outcomes are key material

    def first(self, n: int) -> "Clicks":
        """Return the first ``n`` clicks."""
        return Clicks(self.slots[:n], self.outcomes[:n])

    def after(self, n: int) -> "Clicks":
        """Return the clicks without the first ``n``."""
        return Clicks(self.slots[n:], self.outcomes[n:])


NO_CLICKS: Final = Clicks(np.empty(0, np.int64), np.empty(0, np.uint8))


@dataclass(frozen=True)
class SlotRange:
    """Slots ``first <= slot < end``."""

    first: int
    end: int
