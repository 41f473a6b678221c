"""What an agent counts."""

import bisect
from dataclasses import dataclass, field
from typing import Final

DIFFERED_BUCKETS_S: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass
class Figures:
    """Counters since the start; ``differed``: of the time for which the ends may use different keys.

    Only the initiator knows that time: from its order to the other end to the end of its own step.
    """

    changes: int = 0
    changes_failed: int = 0
    keys: int = 0
    transferred_bytes: int = 0
    last_change_s: float | None = None
    last_differed_s: float | None = None
    longest_differed_s: float = 0.0
    differed: list[int] = field(default_factory=lambda: [0] * (len(DIFFERED_BUCKETS_S) + 1))
    differed_sum_s: float = 0.0

    def note_differed(self, seconds: float) -> None:
        """The ends may have used different keys for so long."""
        self.last_differed_s = seconds
        self.longest_differed_s = max(self.longest_differed_s, seconds)
        self.differed_sum_s += seconds
        self.differed[bisect.bisect_left(DIFFERED_BUCKETS_S, seconds)] += 1
