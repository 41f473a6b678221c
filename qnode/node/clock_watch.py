"""Does the clock of Bob's tag source still run as it did? When it has jumped, only opening it anew helps.

A jump back makes every tag too late for the order window; one ahead makes the sites' times of day useless
for finding the alignment. Neither passes by itself, and hardware that has jumped does not always say so.
"""

import math
from typing import Final

from qnode.errors import TransientDeviceError
from qnode.tags.order import OrderStatistics

LONGEST_MISPLACED_S: Final = 1.0
LONGEST_UNALIGNED_S: Final = 30.0
LONGEST_WITHOUT_ANSWER_S: Final = 10.0  # after more, a failure is the first: nobody asked meanwhile


class ClockWatch:
    """Watches one opening of a tag source. ``now_s``: seconds of a clock that never jumps."""

    def __init__(self) -> None:
        self._misplaced = 0
        self._misplaced_since_s: float | None = None
        self._unaligned_since_s: float | None = None
        self._answered_s = -math.inf

    def see_tags(self, n_tags: int, order: OrderStatistics, now_s: float) -> None:
        """Take note of a block of ``n_tags`` tags, after which ``order`` was counted.

        Raises:
            TransientDeviceError: for a second no tag has been where the clock should be.
        """
        before, self._misplaced = self._misplaced, order.late + order.ahead
        if not n_tags:
            return
        if self._misplaced - before < n_tags:
            self._misplaced_since_s = None
        elif self._misplaced_since_s is None:
            self._misplaced_since_s = now_s
        elif now_s - self._misplaced_since_s >= LONGEST_MISPLACED_S:
            raise TransientDeviceError(
                f"its clock has jumped: all tags of the last {LONGEST_MISPLACED_S:g} s are earlier than "
                "those before, or far later"
            )

    def see_answer(self, now_s: float, *, found: bool) -> None:
        """Take note of Alice's answer to a probe.

        Raises:
            TransientDeviceError: for half a minute she has found no alignment.
        """
        before_s, self._answered_s = self._answered_s, now_s
        if now_s - before_s > LONGEST_WITHOUT_ANSWER_S:
            self._unaligned_since_s = None
        if found:
            self._unaligned_since_s = None
        elif self._unaligned_since_s is None:
            self._unaligned_since_s = now_s
        elif now_s - self._unaligned_since_s >= LONGEST_UNALIGNED_S:
            raise TransientDeviceError(
                f"no alignment for {LONGEST_UNALIGNED_S:g} s: its clock has jumped, or the sites' times of "
                "day differ by more than node.start_uncertainty_s"
            )
