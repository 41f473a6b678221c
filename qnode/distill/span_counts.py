"""What Bob's tags show in the slots of one block, gathered as its clicks come."""

from collections.abc import Iterable

import numpy as np

from qnode.distill.counts import SPAN_PARTS, TagCounts
from qnode.tags.marks import Marks
from qnode.tags.types import OUTCOME_LATE, Clicks, SlotRange


class SpanCounts:
    """Counts of the slots ``first_slot`` to ``first_slot + n_slots - 1``; what lies outside is left out."""

    def __init__(self, first_slot: int, n_slots: int) -> None:
        self._first, self._end = first_slot, first_slot + n_slots
        # Slot s lies in part (s - first) * SPAN_PARTS // n.
        self._borders = np.array(
            [first_slot - (-part * n_slots // SPAN_PARTS) for part in range(SPAN_PARTS + 1)]
        )
        self._clicks = np.zeros((2, SPAN_PARTS), np.int64)  # of the Z arm, of the X arm
        self._marks = np.zeros(4, np.int64)
        self._cuts: list[tuple[int, int]] = []

    def add_clicks(self, clicks: Clicks) -> None:
        """Take clicks that are announced, one a slot, each click once."""
        if not len(clicks):
            return
        places = np.searchsorted(clicks.slots, self._borders)
        for part in np.flatnonzero(np.diff(places)).tolist():
            outcomes = clicks.outcomes[places[part] : places[part + 1]]
            n_z = int(np.count_nonzero(outcomes <= OUTCOME_LATE))
            self._clicks[:, part] += (n_z, outcomes.shape[0] - n_z)

    def add_marks(self, marks: Marks) -> None:
        """Take marks, each once."""
        if not len(marks):
            return
        own = marks.within(self._first, self._end)
        kinds = (own.cross_clicks, own.double_clicks, own.out_of_gate, own.too_close)
        self._marks += [slots.shape[0] for slots in kinds]

    def add_cuts(self, cuts: Iterable[SlotRange]) -> None:
        """Take slots that were cut; a slot that is told again is the same slot."""
        for cut in cuts:
            first, end = max(cut.first, self._first), min(cut.end, self._end)
            if first < end:
                self._cuts.append((first, end))

    def tag_counts(self) -> TagCounts:
        """Return the counts so far; slots that were not told to be cut count as live."""
        cross, double, out_of_gate, too_close = self._marks.tolist()
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

    def _cut_slots(self) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Return how many slots of each part were cut."""
        firsts, ends = np.array(sorted(self._cuts), np.int64).reshape(-1, 2).T
        covered = np.maximum.accumulate(ends)
        firsts = np.maximum(firsts, np.concatenate(([self._first], covered[:-1]))[: firsts.shape[0]])
        # Up to each border: what of every cut lies below it.
        below = np.array([np.maximum(np.minimum(ends, border) - firsts, 0).sum() for border in self._borders])
        return np.diff(below)
