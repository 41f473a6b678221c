"""Faults in the tags of Bob's source: alarms that end after a while without faults."""

from collections import Counter
from typing import Final

from qnode.node.status.link_figures import LinkFigures
from qnode.operate.status.alarms import AlarmName
from qnode.tags.order import OrderStatistics

WELL_AGAIN_S: Final = 10.0


class _LastingAlarm:
    """An alarm with the counts since it was raised; it ends after a while without faults."""

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
    """The faults in one receiver's tags, across all openings of its source.

    Times ``now_s`` are of a monotonic clock.
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
        """Note that a source was opened: its order window counts from zero."""
        self._seen = OrderStatistics()

    def see(self, order: OrderStatistics, dropped: int, now_s: float) -> None:
        """Note the counts of the order window after a block.

        ``dropped``: the number of tags, among those counted as lost before this block, that this node
        dropped.
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
        """Note that a block of ``n_tags`` had to be dropped."""
        self._figures.quantum.count(tag_overruns=1, tags_dropped=n_tags)
        self._overrun.fault(now_s, dropped=n_tags)

    def left_over(self, n_tags: int, lost: int) -> None:
        """Note tags that could not be processed for another reason, and those lost before them."""
        self._figures.quantum.count(tags_dropped=n_tags, tags_lost=lost)

    def look_after(self, now_s: float) -> None:
        """End alarms if no tags come any more; called from time to time."""
        self._malformed.well(now_s)
        self._overrun.well(now_s)

    def room(self, now_s: float) -> None:
        """Note that there was room for a block."""
        self._overrun.well(now_s)
