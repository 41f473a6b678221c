"""What a synchroniser counts and measures."""

from dataclasses import dataclass

import numpy as np

from qnode.tags.tracking import BinClock, Tracked


@dataclass(frozen=True)
class SyncStatistics:
    """Figures of the moment, and counts since the start.

    ``vector_strength`` and ``phase_residual_ps`` (root mean square of measured less predicted phase) are
    those of the last sub-intervals; ``clock_offset_ppm``: how much longer Alice's slot is in Bob's time than
    its nominal period. Tags: ``used`` became clicks (before those of one slot are made one), ``out_of_gate``,
    ``cut`` in bad stretches while locked, ``unlocked`` while not locked (given up for alignment included).
    ``double_clicks``, ``cross_clicks``: slots with several clicks at one detector, at both.
    """

    vector_strength: float = 0.0
    phase_residual_ps: float = 0.0
    clock_offset_ppm: float = 0.0
    used: int = 0
    out_of_gate: int = 0
    cut: int = 0
    unlocked: int = 0
    double_clicks: int = 0
    cross_clicks: int = 0
    probes: int = 0
    locks: int = 0
    losses: int = 0
    jumps: int = 0
    slips: int = 0


@dataclass
class SyncCounts:
    """The mutable side of `SyncStatistics`."""

    vector_strength: float = 0.0
    phase_residual_ps: float = 0.0
    used: int = 0
    out_of_gate: int = 0
    cut: int = 0
    unlocked: int = 0
    double_clicks: int = 0
    cross_clicks: int = 0
    probes: int = 0
    locks: int = 0
    losses: int = 0
    jumps: int = 0
    slips: int = 0
    clock_offset_ppm: float = 0.0

    def measured(self, tracked: Tracked) -> None:
        """Take figures of the moment from further sub-intervals."""
        self.vector_strength = float(np.mean(tracked.strengths))
        good = tracked.innovations_ps[tracked.good]
        if good.size:
            self.phase_residual_ps = float(np.sqrt(np.mean(good**2)))

    def frozen(self, clock: BinClock | None) -> SyncStatistics:
        """Return them as they are now."""
        if clock is not None:
            self.clock_offset_ppm = clock.offset_ppm
        return SyncStatistics(**vars(self))
