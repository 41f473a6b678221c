"""The folded histogram and the visibility at present, for the person at the bench.

A detector with little jitter could still tell early from late in a single tag of the folded Z arm. So a
histogram is shown only once it has many tags, and then a new one is begun.
"""

import math

import numpy as np

from qnode.choices import LockState
from qnode.operate.status.model import FoldedStatus
from qnode.tags.folding import BINS
from qnode.tags.synchroniser import SyncResult
from qnode.tags.types import OUTCOME_BOUNDARY, OUTCOME_CENTRAL
from qnode.units import PS_PER_S

# Of a histogram that is shown.
FEWEST_TAGS = 2000
SHORTEST_S = 0.5
# For the visibility, older clicks of the X arm count less and less: by a factor of e after this tag time.
MEMORY_S = 2.0
FEWEST_X_CLICKS = 1000.0


class FoldWatch:
    """Sums of the latest tags. ``p_x``: Alice's probability of |+>."""

    def __init__(self, p_x: float) -> None:
        self._p_x = p_x
        self.forget()

    def forget(self) -> None:
        """Begin anew: the clock was lost, or slots count from another origin."""
        self._state: LockState | None = None
        self._central = self._boundary = 0.0
        self._until_ps: int | None = None
        self._shown: FoldedStatus | None = None
        self._begin()

    def _begin(self) -> None:
        self._bins = np.zeros((2, BINS), np.int64)
        self._inside = self._outside = 0
        self._lasting_s = 0.0

    def see(self, result: SyncResult) -> None:
        """Take the result of one feed of tags."""
        if result.folded is None or result.state is not self._state:
            self.forget()
        self._state = result.state
        if result.folded is None:
            return
        before_ps, self._until_ps = self._until_ps, result.until_ps
        elapsed_s = 0.0 if before_ps is None else max(0.0, (result.until_ps - before_ps) / PS_PER_S)
        kept = math.exp(-elapsed_s / MEMORY_S)
        outcomes = result.clicks.outcomes
        self._central = kept * self._central + float(np.count_nonzero(outcomes == OUTCOME_CENTRAL))
        self._boundary = kept * self._boundary + float(np.count_nonzero(outcomes == OUTCOME_BOUNDARY))
        self._bins += result.folded
        self._inside += len(result.clicks)
        self._outside += result.marks.out_of_gate.shape[0]
        self._lasting_s += elapsed_s
        if self._lasting_s >= SHORTEST_S and self._bins[0].sum() >= FEWEST_TAGS:
            self._shown = self._status()
            self._begin()

    def status(self) -> FoldedStatus | None:
        """Return the latest complete histogram; None without one since the clock was found."""
        return self._shown

    def _status(self) -> FoldedStatus:
        tags, x_clicks = self._inside + self._outside, self._central + self._boundary
        visible = x_clicks >= FEWEST_X_CLICKS and self._boundary > 0.0
        return FoldedStatus(
            z_bins=self._bins[0].tolist(),
            x_bins=self._bins[1].tolist(),
            out_of_gate=self._outside / tags if tags else None,
            visibility=(1.0 - self._central / self._boundary) / self._p_x if visible else None,
        )
