"""What Bob's tags show in the slots of one block, gathered as its clicks come."""

from collections.abc import Iterable

import numpy as np

from qnode.distill.counts import SPAN_PARTS, TagCounts
from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.span_parts import PartCounts
from qnode.tags.marks import Marks
from qnode.tags.types import SlotRange, Slots


class SpanCounts:
    """Counts of the slots ``first_slot`` to ``first_slot + n_slots - 1``; what lies outside is left out."""

    def __init__(self, first_slot: int, n_slots: int) -> None:
        self._first, self._end = first_slot, first_slot + n_slots
        self._clicks = PartCounts(first_slot, n_slots)
        self._marks = [0, 0, 0, 0]
        self._cuts: list[tuple[int, int]] = []

    def add_clicks(self, announced: Announced) -> None:
        """Take clicks that are announced, one a slot, each click once."""
        self._clicks.add(announced)

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
        return TagCounts(
            cross_clicks=cross,
            double_clicks=double,
            out_of_gate=out_of_gate,
            too_close=too_close,
            live_slots=tuple((np.diff(self._clicks.edges) - self._cut_slots()).tolist()),
            z_clicks=self._clicks.z_clicks,
            x_clicks=self._clicks.x_clicks,
        )

    def _cut_slots(self) -> Slots:
        """Return how many slots of each part were cut, shape ``(SPAN_PARTS,)``."""
        if not self._cuts:
            return np.zeros(SPAN_PARTS, np.int64)
        firsts, ends = np.array(sorted(self._cuts), np.int64).T
        covered = np.maximum.accumulate(ends)
        firsts = np.maximum(firsts, np.concatenate(([self._first], covered[:-1])))
        # What of every cut, without the slots of those before it, lies below each border.
        below: Slots = np.array(
            [np.maximum(np.minimum(ends, border) - firsts, 0).sum() for border in self._clicks.edges],
            np.int64,
        )
        return below[1:] - below[:-1]
