"""Marks: other observations in Bob's tags, by slot, in addition to clicks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from qnode.tags.types import Slots

_NO_END: Final = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Marks:
    """Slots with an observation, each an ascending int64 array.

    ``out_of_gate``: a tag outside every gate, one entry per tag. ``double_clicks``: several clicks at one
    detector, one entry per slot. ``cross_clicks``: clicks at both detectors, one entry per slot, which is not
    a double click. ``too_close``: a tag within the declared dead time after another one, one entry per tag.
    """

    out_of_gate: Slots
    double_clicks: Slots
    cross_clicks: Slots
    too_close: Slots

    def __len__(self) -> int:
        return sum(slots.shape[0] for slots in self._all())

    def below(self, end: int) -> "Marks":
        """Return the marks in slots below ``end``."""
        return self.within(0, end)

    def since(self, first: int) -> "Marks":
        """Return the marks in slots from ``first`` on."""
        return self.within(first, _NO_END)

    def within(self, first: int, end: int) -> "Marks":
        """Return the marks in slots ``first <= slot < end``."""
        return Marks(
            _within(self.out_of_gate, first, end),
            _within(self.double_clicks, first, end),
            _within(self.cross_clicks, first, end),
            _within(self.too_close, first, end),
        )

    def _all(self) -> tuple[Slots, Slots, Slots, Slots]:
        return self.out_of_gate, self.double_clicks, self.cross_clicks, self.too_close


def _within(slots: Slots, first: int, end: int) -> Slots:
    if not slots.shape[0] or (slots[0] >= first and slots[-1] < end):
        return slots
    return slots[slots.searchsorted(first) : slots.searchsorted(end)]


_NONE: Final = np.empty(0, np.int64)
NO_MARKS: Final = Marks(_NONE, _NONE, _NONE, _NONE)


def joined(parts: Sequence[Marks]) -> Marks:
    """Return the marks of all ``parts``, in order."""
    filled = [part for part in parts if len(part)]
    if len(filled) < 2:
        return filled[0] if filled else NO_MARKS
    by_kind = zip(*(part._all() for part in filled), strict=True)
    return Marks(*(np.sort(np.concatenate(slots)) for slots in by_kind))
