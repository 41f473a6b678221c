"""Does the clock of Bob's tag source still run as it did? When it has jumped, only opening it anew helps.

A jump back makes every tag too late for the order window; one ahead makes the sites' times of day useless
for finding the alignment. Neither passes by itself, and hardware that has jumped does not always say so.

Opening it anew has a price: where Alice's count of slots was is forgotten, and from the times of day alone it
is not found again once her clock has strayed from them by more than their uncertainty, in hours. So after a
lock, alignments that fail (for Eve, or for a transmitter that is away) do not ask for it unless the clock was
seen to run ahead of ours.
"""

import math
from typing import Final

from qnode.errors import TransientDeviceError
from qnode.tags.order import OrderStatistics

LONGEST_MISPLACED_S: Final = 1.0
LONGEST_UNALIGNED_S: Final = 30.0
SMALLEST_JUMP_S: Final = 0.5  # ahead of every block before: none comes earlier than it can
LARGEST_DRIFT: Final = 2e-4  # of the source's clock against ours
LONGEST_WITHOUT_ANSWER_S: Final = 10.0  # after more, a failure is the first: nobody asked meanwhile


class ClockWatch:
    """Watches one opening of a tag source. ``now_s``: seconds of a clock that never jumps.

    ``paced``: its tag time runs as ours does; of any other no jump ahead can be seen, so each is possible.
    """

    def __init__(self, *, paced: bool = True) -> None:
        self._paced = paced
        self._arrived_s = 0.0
        self._least_lag_s = math.inf
        self._may_have_jumped = True  # until there is a lock that could be forgotten
        self._misplaced = 0
        self._misplaced_since_s: float | None = None
        self._unaligned_since_s: float | None = None
        self._answered_s = -math.inf

    def see_arrival(self, until_s: float, now_s: float) -> None:
        """Take note that the tags up to ``until_s`` of tag time have come."""
        lag_s = now_s - until_s
        if lag_s < self._least_lag_s - SMALLEST_JUMP_S and self._least_lag_s < math.inf:
            self._may_have_jumped = True
        drifted_s = LARGEST_DRIFT * (now_s - self._arrived_s)
        self._least_lag_s, self._arrived_s = min(lag_s, self._least_lag_s + drifted_s), now_s

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
            TransientDeviceError: for half a minute she has found no alignment, and the clock is to blame or
                was never right.
        """
        before_s, self._answered_s = self._answered_s, now_s
        if now_s - before_s > LONGEST_WITHOUT_ANSWER_S:
            self._unaligned_since_s = None
        if found:
            self._unaligned_since_s = None
            self._may_have_jumped = not self._paced
        elif self._unaligned_since_s is None:
            self._unaligned_since_s = now_s
        elif self._may_have_jumped and now_s - self._unaligned_since_s >= LONGEST_UNALIGNED_S:
            raise TransientDeviceError(
                f"no alignment for {LONGEST_UNALIGNED_S:g} s: its clock has jumped, or the sites' times of "
                "day differ by more than node.start_uncertainty_s"
            )
