"""Tag time: converts a 64-bit counter that wraps to small numbers, which the arithmetic represents exactly.

A TDC that counts picoseconds in 64 bits passes 2^63 after 107 days and continues at -2^63. So times are read
modulo 2^64, as the value nearest to the times before. Inside the synchroniser they are counted from an origin
that moves every 75 minutes. They stay far below 2^63, so sums and differences cannot overflow. Ticks stay
below 2^53, so a float64 still has a fraction.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from qnode.errors import TransientDeviceError
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S

_WRAP: Final = 1 << 64
_HALF: Final = 1 << 63
MOST_LOCAL_PS: Final = 1 << 52
# Beyond it, a jump ahead could not be distinguished from a jump back.
FURTHEST_JUMP_PS: Final = 1 << 61


def signed_64(number: int) -> int:
    """Return ``number`` modulo 2^64 as a signed 64-bit number."""
    return (number + _HALF) % _WRAP - _HALF


class TagTime:
    """The time of one opening of a TDC; ``origin_ps``: the tag time at local time zero, without wrapping."""

    def __init__(self) -> None:
        self._origin_ps: int | None = None

    @property
    def origin_ps(self) -> int:
        """Tag time at which local time is zero; 0 before the first tags."""
        return self._origin_ps or 0

    def take(self, block: TagBlock) -> int:
        """Note the next block; return the reduction (ps) of earlier local times.

        Raises:
            TransientDeviceError: its clock has jumped by weeks.
        """
        if self._origin_ps is None:
            self._origin_ps = block.until_ps
        until_ps = signed_64(block.until_ps - self._origin_ps)
        if abs(until_ps) > FURTHEST_JUMP_PS:
            days = until_ps / PS_PER_S / 86_400
            raise TransientDeviceError(f"its clock has jumped by {days:.0f} days")
        moved_ps = until_ps if until_ps > MOST_LOCAL_PS else 0
        self._origin_ps += moved_ps
        return moved_ps

    def local(self, block: TagBlock) -> TagBlock:
        """Return a block, after `take`, in local time."""
        times_ps = block.times_ps - np.int64(signed_64(self.origin_ps))  # wraps like the counter
        return replace(block, times_ps=times_ps, until_ps=signed_64(block.until_ps - self.origin_ps))
