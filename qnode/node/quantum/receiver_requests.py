"""What Bob's receiver asks of the present session."""

from dataclasses import dataclass

import trio

from qnode.tags.alignment import Alignment, AlignmentProbe
from qnode.tags.marks import NO_MARKS, Marks
from qnode.tags.types import Clicks, SlotRange


@dataclass(frozen=True)
class ClickAnnouncement:
    """Clicks of a run, and what else its tags show; both complete below ``reached_slot`` and not beyond.

    ``z_clicks``: how many of them are of the Z arm. ``numbering`` changes when slots are counted anew.
    ``cuts``: slots since the last announcement without lock; ``dropped``: so many clicks could not be
    announced. ``can_wait``: their source does, when no more is taken.
    """

    run_id: int
    numbering: int
    clicks: Clicks
    z_clicks: int
    reached_slot: int
    cuts: tuple[SlotRange, ...]
    dropped: int
    can_wait: bool = False
    marks: Marks = NO_MARKS

    @property
    def cut_slots(self) -> int:
        """How many slots since the last announcement had no lock."""
        return sum(cut.end - cut.first for cut in self.cuts)


@dataclass(frozen=True)
class AlignmentRequest:
    """Find where ``probe`` fits, among the given offsets; the answer goes to ``reply``."""

    run_id: int
    probe: AlignmentProbe
    offsets: range
    reply: trio.MemorySendChannel[Alignment | None]


ReceiverRequest = ClickAnnouncement | AlignmentRequest
