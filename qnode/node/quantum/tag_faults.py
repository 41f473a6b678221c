"""What is wrong with the tags of Bob's source: alarms that are taken back once all was well for a while."""

from collections import Counter
from typing import Final

from qnode.node.status.link_figures import LinkFigures
from qnode.operate.status.alarms import AlarmName
from qnode.tags.order import OrderStatistics

WELL_AGAIN_S: Final = 10.0


class _LastingAlarm:
    """An alarm with what was counted since it was raised; it ends when there was no fault for a while."""

    def __init__(self, figures: LinkFigures, name: AlarmName, text: str) -> None:
        self._figures = figures
        self._name = name
        self._text = text
        self._counts = Counter[str]()
        self._fault_at_s: float | None = None

    def fault(self, now_s: float, **counts: int) -> None:
        self._counts.update(counts)
        self._fault_at_s = now_s
        self._figures.alarms.raise_alarm(self._name, self._text.format(**self._counts))

    def well(self, now_s: float) -> None:
        if self._fault_at_s is not None and now_s - self._fault_at_s >= WELL_AGAIN_S:
            self._fault_at_s = None
            self._counts.clear()
            self._figures.alarms.clear_alarm(self._name)


class TagFaults:
    """The faults of one receiver's tags, over all openings of its source.

    Times ``now_s`` are of a clock that never jumps.
    """

    def __init__(self, figures: LinkFigures) -> None:
        self._figures = figures
        self._seen = OrderStatistics()
        self._malformed = _LastingAlarm(
            figures,
            AlarmName.TAGS_MALFORMED,
            "{late} tags later than the order window (link.receiver.order_window_ps), {ahead} far ahead of "
            "the clock, {unknown} on unknown channels, {lost} lost by the hardware",
        )
        self._overrun = _LastingAlarm(
            figures,
            AlarmName.TAGS_OVERRUN,
            "tags come faster than this node can process them: it dropped {dropped} of them",
        )

    def begin(self) -> None:
        """Take note that a source was opened: its order window counts from zero."""
        self._seen = OrderStatistics()

    def see(self, order: OrderStatistics, dropped: int, now_s: float) -> None:
        """Take note of what the order window counts after a block.

        ``dropped``: of the tags that it counts as lost before this block so many were dropped by this node.
        """
        before, self._seen = self._seen, order
        late = order.late - before.late
        ahead = order.ahead - before.ahead
        unknown = order.unknown_channel - before.unknown_channel
        lost = order.lost - before.lost - dropped
        self._figures.quantum.count(tags_lost=lost, tags_out_of_order=late)
        if late or ahead or unknown or lost:
            self._malformed.fault(now_s, late=late, ahead=ahead, unknown=unknown, lost=lost)
        else:
            self._malformed.well(now_s)

    def no_room(self, n_tags: int, now_s: float) -> None:
        """Take note that a block of ``n_tags`` had to be dropped."""
        self._figures.quantum.count(tag_overruns=1, tags_dropped=n_tags)
        self._overrun.fault(now_s, dropped=n_tags)

    def look_after(self, now_s: float) -> None:
        """Take back what has ended because no tags come any more; to be called now and then."""
        self._malformed.well(now_s)
        self._overrun.well(now_s)

    def room(self, now_s: float) -> None:
        """Take note that there was room for a block."""
        self._overrun.well(now_s)
