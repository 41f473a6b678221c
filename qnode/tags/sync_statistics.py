"""Counts and measurements of a synchroniser."""

from dataclasses import dataclass

import numpy as np

from qnode.tags.tracking import BinClock, Tracked


@dataclass(frozen=True)
class SyncStatistics:
    """Present figures, and counts since the start.

    ``vector_strength`` and ``phase_residual_ps`` (root mean square of measured less predicted phase) are
    those of the last sub-intervals; ``clock_offset_ppm``: the excess of Alice's slot in Bob's time over its
    nominal period. Tags: ``used`` became clicks (before only one per slot is kept), ``out_of_gate``, ``cut``
    in bad stretches while locked, ``unlocked`` while not locked (including those revealed for alignment).
    ``double_clicks``, ``cross_clicks``: slots with several clicks at one detector, or with clicks at both.
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
        """Update the present figures from further sub-intervals."""
        self.vector_strength = float(np.mean(tracked.strengths))
        good = tracked.innovations_ps[tracked.good]
        if good.size:
            self.phase_residual_ps = float(np.sqrt(np.mean(good**2)))

    def frozen(self, clock: BinClock | None) -> SyncStatistics:
        """Return the present statistics."""
        if clock is not None:
            self.clock_offset_ppm = clock.offset_ppm
        return SyncStatistics(**vars(self))
