"""Clicks of a block by part of its span (`SPAN_PARTS`) and arm: Bob sends them, Alice counts them as well."""

import numpy as np

from qnode.distill.bits.planes import ones_before
from qnode.distill.counts import SPAN_PARTS
from qnode.distill.sifting.announced import Announced


class PartCounts:
    """A running count over the span of ``n_slots`` slots from ``first_slot`` on.

    Slot s lies in part ``(s - first_slot) * SPAN_PARTS // n_slots``.
    """

    def __init__(self, first_slot: int, n_slots: int) -> None:
        # Part k begins at the least s of which this holds: (s - first) * parts >= k * n. The last is the end.
        self.edges = [first_slot + -(-k * n_slots // SPAN_PARTS) for k in range(SPAN_PARTS + 1)]
        self._z = [0] * SPAN_PARTS
        self._x = [0] * SPAN_PARTS

    def add(self, announced: Announced) -> None:
        """Count clicks within the span."""
        bounds = np.searchsorted(announced.slots, self.edges).tolist()
        x_before = ones_before(announced.x_arm, bounds)
        for part in range(SPAN_PARTS):
            n_x = x_before[part + 1] - x_before[part]
            self._z[part] += bounds[part + 1] - bounds[part] - n_x
            self._x[part] += n_x

    @property
    def slots(self) -> tuple[int, ...]:
        """How many slots each part has."""
        return tuple(end - first for first, end in zip(self.edges, self.edges[1:], strict=False))

    @property
    def z_clicks(self) -> tuple[int, ...]:
        """Clicks of the Z arm in each part."""
        return tuple(self._z)

    @property
    def x_clicks(self) -> tuple[int, ...]:
        """Clicks of the X arm in each part."""
        return tuple(self._x)
