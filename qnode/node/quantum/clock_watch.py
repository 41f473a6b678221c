"""Has the clock of Bob's tag source jumped back, or far ahead? Then only opening the source anew helps.

Every tag is then too late for the order window, or impossibly early; hardware that has jumped does not always
say so. (After a small jump ahead the tags are good, and `qnode.tags.offset_search` finds their slots.)
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
        """Take note of ``n_tags`` tags, after which ``order`` counts; ``now_s``: of a clock that never jumps.

        Raises:
            TransientDeviceError: for a second no tag has been where the clock should be.
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
