"""The results that a synchroniser collects during one feed."""

import numpy as np

from qnode.tags.alignment import AlignmentProbe
from qnode.tags.marks import Marks, joined
from qnode.tags.types import Clicks, SlotRange


class Output:
    """The results of one feed."""

    def __init__(self) -> None:
        self._parts: list[Clicks] = []
        self._marks: list[Marks] = []
        self.cuts: list[SlotRange] = []
        self.probe: AlignmentProbe | None = None

    def add(self, clicks: Clicks, marks: Marks) -> None:
        """Add clicks and marks, all later than those before."""
        if len(clicks):
            self._parts.append(clicks)
        self._marks.append(marks)

    def cut(self, first: int, end: int, floor: int = 0) -> None:
        """Add a cut of slots from ``floor`` on; adjacent cuts become one."""
        first = max(first, floor)
        if first >= end:
            return
        if self.cuts and self.cuts[-1].end >= first:
            first = min(first, self.cuts.pop().first)
        self.cuts.append(SlotRange(first, end))

    def marks(self) -> Marks:
        """Return all marks."""
        return joined(self._marks)

    def clicks(self) -> Clicks:
        """Return all clicks."""
        if len(self._parts) == 1:
            return self._parts[0]
        slots = [part.slots for part in self._parts] or [np.empty(0, np.int64)]
        outcomes = [part.outcomes for part in self._parts] or [np.empty(0, np.uint8)]
        return Clicks(np.concatenate(slots), np.concatenate(outcomes))
