"""Tag time: from a counter of 64 bits that wraps to small numbers that the node's arithmetic holds exactly.

A TDC that counts picoseconds in 64 bits passes 2^63 after 107 days and goes on at -2^63. So times are read
modulo 2^64: each is the one nearest to those before. Inside the synchroniser they are counted from an origin
that moves on every 75 minutes; so they stay far below 2^63, where sums and differences have room, and ticks
stay below 2^53, where a float64 still has a fraction.
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
# Beyond it, whether a clock went ahead or back could no longer be told for sure.
FURTHEST_JUMP_PS: Final = 1 << 61


def signed_64(number: int) -> int:
    """Return ``number`` as a counter of 64 bits shows it, read as signed."""
    return (number + _HALF) % _WRAP - _HALF


class TagTime:
    """The time of one opening of a TDC; ``origin_ps``: where local time is zero, counted on without end."""

    def __init__(self) -> None:
        self._origin_ps: int | None = None

    @property
    def origin_ps(self) -> int:
        """Tag time at which local time is zero; 0 before the first tags."""
        return self._origin_ps or 0

    def take(self, block: TagBlock) -> tuple[TagBlock, int]:
        """Return the block in local time, and by how much (ps) local times before it have become smaller.

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
        times_ps = block.times_ps - np.int64(signed_64(self._origin_ps))  # wraps, as the counter does
        return replace(block, times_ps=times_ps, until_ps=until_ps - moved_ps), moved_ps
