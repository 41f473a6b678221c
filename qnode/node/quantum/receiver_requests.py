"""The requests of Bob's receiver to the present session."""

import math
from dataclasses import dataclass

import trio

from qnode.tags.alignment import Alignment, AlignmentProbe
from qnode.tags.marks import NO_MARKS, Marks
from qnode.tags.types import Clicks, SlotRange


@dataclass(frozen=True)
class ClickAnnouncement:
    """Clicks and marks of a run; both are complete below ``reached_slot``.

    ``z_clicks``: the number of clicks of the Z arm. ``numbering`` changes when slots are numbered again.
    ``cuts``: slots since the last announcement without lock; ``dropped``: the number of clicks that could
    not be announced. ``can_wait``: the source waits if the node is busy. ``arrived_s``: when their tags
    arrived, by trio's clock.
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
    arrived_s: float = math.inf

    @property
    def cut_slots(self) -> int:
        """The number of slots without lock since the last announcement."""
        return sum(cut.end - cut.first for cut in self.cuts)


@dataclass(frozen=True)
class AlignmentRequest:
    """Align ``probe`` among the given offsets; the answer goes to ``reply``."""

    run_id: int
    probe: AlignmentProbe
    offsets: range
    reply: trio.MemorySendChannel[Alignment | None]


ReceiverRequest = ClickAnnouncement | AlignmentRequest
