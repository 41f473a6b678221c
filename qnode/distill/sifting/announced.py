"""What Bob announces of some clicks: their slots, their arm, and the class of those of the X arm.

Never the bin of a Z click: there is no place for it.
"""

from dataclasses import dataclass

import numpy as np

from qnode.distill.bits import Bits
from qnode.distill.bits.planes import chosen, plane
from qnode.tags.types import OUTCOME_BOUNDARY, OUTCOME_CENTRAL, Clicks, Slots

_BOUNDARY_BIT = OUTCOME_BOUNDARY & ~OUTCOME_CENTRAL


@dataclass(frozen=True, eq=False)
class Announced:
    """Announced clicks.

    ``slots``: int64, strictly ascending. ``x_arm``: one bit for each click: it is of the X arm. ``boundary``:
    one bit for each click of the X arm: it lies in a boundary slot, otherwise in a central one.
    """

    slots: Slots
    x_arm: Bits
    boundary: Bits

    @classmethod
    def of(cls, clicks: Clicks) -> "Announced":
        """Return what is announced of ``clicks``; early and late ones give the same."""
        x_arm = plane(clicks.outcomes, OUTCOME_CENTRAL)
        return cls(clicks.slots, x_arm, chosen(plane(clicks.outcomes, _BOUNDARY_BIT), x_arm))

    def __len__(self) -> int:
        return int(self.slots.shape[0])

    def equals(self, other: "Announced") -> bool:
        """Compare slots, arms and classes."""
        same_slots = bool(np.array_equal(self.slots, other.slots))
        return same_slots and self.x_arm.equals(other.x_arm) and self.boundary.equals(other.boundary)

    @property
    def n_boundary(self) -> int:
        """The number of boundary clicks."""
        return int(np.bitwise_count(self.boundary.words).sum())
