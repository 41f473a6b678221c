"""Detects jumps of the clock of Bob's tag source, back or far ahead; then the source must be opened again.

After such a jump every tag is too late for the order window, or impossibly early. Hardware does not always
report a jump. (After a small jump ahead the tags are good, and `qnode.tags.offset_search` finds their slots.)
"""

from typing import Final

from qnode.errors import TransientDeviceError
from qnode.tags.order import OrderStatistics

LONGEST_MISPLACED_S: Final = 1.0


class ClockWatch:
    """Watches one opening of a tag source."""

    def __init__(self) -> None:
        self._misplaced = 0
        self._since_s: float | None = None

    def see_tags(self, n_tags: int, order: OrderStatistics, now_s: float) -> None:
        """Note ``n_tags`` tags, with the counts ``order`` after them; ``now_s``: of a monotonic clock.

        Raises:
            TransientDeviceError: for a second no tag had a plausible time.
        """
        before, self._misplaced = self._misplaced, order.late + order.ahead
        if not n_tags:
            return
        if self._misplaced - before < n_tags:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        elif now_s - self._since_s >= LONGEST_MISPLACED_S:
            raise TransientDeviceError(
                f"its clock has jumped: all tags of the last {LONGEST_MISPLACED_S:g} s are earlier than "
                "those before, or far later"
            )
