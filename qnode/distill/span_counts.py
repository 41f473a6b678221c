"""What Bob's tags show in the slots of one block, gathered as its clicks come."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from qnode.distill.counts import SPAN_PARTS, TagCounts
from qnode.kernels import kernel
from qnode.tags.marks import Marks
from qnode.tags.types import OUTCOME_LATE, Clicks, Codes, SlotRange, Slots


class SpanCounts:
    """Counts of the slots ``first_slot`` to ``first_slot + n_slots - 1``; what lies outside is left out."""

    def __init__(self, first_slot: int, n_slots: int) -> None:
        self._first, self._end = first_slot, first_slot + n_slots
        # The slots where a part begins, and the span's end: the inverse of `_part_of`.
        self._borders = np.array(
            [first_slot - (-part * n_slots // SPAN_PARTS) for part in range(SPAN_PARTS + 1)]
        )
        self._clicks = np.zeros((2, SPAN_PARTS), np.int64)  # of the Z arm, of the X arm
        self._marks = [0, 0, 0, 0]
        self._cuts: list[tuple[int, int]] = []

    def add_clicks(self, clicks: Clicks) -> None:
        """Take clicks that are announced, one a slot, each click once."""
        if not len(clicks):
            return
        first, last = (self._part_of(int(clicks.slots[place])) for place in (0, -1))
        places = clicks.slots.searchsorted(self._borders[first : last + 2])
        for part, (begin, end) in enumerate(pairwise(places.tolist()), first):
            outcomes = clicks.outcomes[begin:end]
            n_z = int(_count_z(outcomes))
            self._clicks[:, part] += (n_z, outcomes.shape[0] - n_z)

    def add_marks(self, marks: Marks) -> None:
        """Take marks, each once."""
        kinds = (marks.cross_clicks, marks.double_clicks, marks.out_of_gate, marks.too_close)
        for kind, slots in enumerate(kinds):
            if slots.shape[0]:
                first, end = slots.searchsorted((self._first, self._end)).tolist()
                self._marks[kind] += end - first

    def add_cuts(self, cuts: Iterable[SlotRange]) -> None:
        """Take slots that were cut; a slot that is told again is the same slot."""
        for cut in cuts:
            first, end = max(cut.first, self._first), min(cut.end, self._end)
            if first < end:
                self._cuts.append((first, end))

    def tag_counts(self) -> TagCounts:
        """Return the counts so far; slots that were not told to be cut count as live."""
        cross, double, out_of_gate, too_close = self._marks
        z_clicks, x_clicks = self._clicks.tolist()
        return TagCounts(
            cross_clicks=cross,
            double_clicks=double,
            out_of_gate=out_of_gate,
            too_close=too_close,
            live_slots=tuple((np.diff(self._borders) - self._cut_slots()).tolist()),
            z_clicks=tuple(z_clicks),
            x_clicks=tuple(x_clicks),
        )

    def _part_of(self, slot: int) -> int:
        """Return the part of ``slot``, or the nearest when that is outside."""
        part = (slot - self._first) * SPAN_PARTS // (self._end - self._first)
        return min(max(part, 0), SPAN_PARTS - 1)

    def _cut_slots(self) -> Slots:
        """Return how many slots of each part were cut, shape ``(SPAN_PARTS,)``."""
        if not self._cuts:
            return np.zeros(SPAN_PARTS, np.int64)
        firsts, ends = np.array(sorted(self._cuts), np.int64).T
        covered = np.maximum.accumulate(ends)
        firsts = np.maximum(firsts, np.concatenate(([self._first], covered[:-1])))
        # What of every cut, without the slots of those before it, lies below each border.
        below: Slots = np.array(
            [np.maximum(np.minimum(ends, border) - firsts, 0).sum() for border in self._borders], np.int64
        )
        return below[1:] - below[:-1]


@kernel
def _count_z(outcomes: Codes) -> int:
    """Count the clicks of the Z arm, without an array between."""
    n = 0
    for i in range(outcomes.size):
        n += outcomes[i] <= OUTCOME_LATE
    return n
