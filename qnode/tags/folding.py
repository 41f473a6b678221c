"""Folded histograms: where the tags lie in the slot, for the person at the bench.

The Z arm is folded at half a slot, so that early and late lie on top of each other: which of them a click was
is part of the key. The X arm is folded at the whole slot; Bob announces whether a click was central.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.tags.tracking import BinClock
from qnode.tags.types import X_CHANNEL, Z_CHANNEL, TagBlock

BINS: Final = 48
# So many tags at the end of a block are enough, and near enough to the present clock.
MOST_FOLDED: Final = 4096

Counts = npt.NDArray[np.int64]


def folded(tags: TagBlock, clock: BinClock, offset: int) -> Counts:
    """Count tags by arm and place, shape ``(2, BINS)``, the Z arm first.

    ``offset``: of ticks from slots, as far as known. A tick of the clock lies in the middle of the Z arm's
    span. In the X arm's span the boundary lies at a quarter, the centre at three quarters, about.
    """
    tick = clock.tick
    places = (tags.times_ps - clock.time_of(tick)) / clock.period_ps + 0.5  # in ticks since that of `tick`
    in_z = places[tags.channels == Z_CHANNEL]
    in_x = (places[tags.channels == X_CHANNEL] + (tick + offset) % 2) / 2.0
    bins = [((part - np.floor(part)) * BINS).astype(np.int64) for part in (in_z, in_x)]
    return np.stack([np.bincount(np.minimum(of_arm, BINS - 1), minlength=BINS) for of_arm in bins])
