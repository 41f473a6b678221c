"""The check of the declared dead time: finds tags that come earlier than the hardware can click again."""

from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.config import ReceiverParameters
from qnode.kernels import kernel
from qnode.tags.tracking import Combs, Integers
from qnode.tags.types import X_CHANNEL, Channels, Slots, Times
from qnode.units import PS_PER_S

# Tolerances for honest hardware: error of its timer, then jitter and rounding of two tags.
_TIMER_TOLERANCE: Final = 1e-3
_TOLERANCE_PS: Final = 10_000
# Light at both detectors within this time is one event; a joint hold-off needs this time to reach the other.
_TOGETHER_PS: Final = 10_000
_NEVER_PS: Final = -(2**62)


class DeadTimeWatch:
    """Remember the last tag of each detector, and find tags that come too early after it.

    After lost tags the last known one may be older than the true last one; this gives no false findings.
    Without a declared dead time the watch finds nothing.
    """

    def __init__(self, receiver: ReceiverParameters) -> None:
        least_ps = receiver.dead_time_s * PS_PER_S * (1.0 - _TIMER_TOLERANCE) - _TOLERANCE_PS
        self._least_ps = max(0, round(least_ps))
        self._joint = receiver.dead_time == "joint"
        self._last_ps = np.full(2, _NEVER_PS, np.int64)

    def move(self, by_ps: int) -> None:
        """Count times from an origin ``by_ps`` later."""
        self._last_ps = np.maximum(self._last_ps - by_ps, _NEVER_PS)

    def see(self, times_ps: Times, channels: Channels) -> Integers:
        """Process the next ordered tags; return the indices of those that came too early (int64, ascending).

        With an independent hold-off a tag is too early within the least time between clicks after a tag of
        the same detector, with a joint hold-off after a tag of either detector. With a joint hold-off, tags
        of both detectors within 10 ns are one event from the same light.
        """
        if not self._least_ps:
            return np.empty(0, np.int64)
        found = np.empty(times_ps.shape[0] + 1, np.int64)
        n = _too_soon(times_ps, channels, self._least_ps, self._joint, self._last_ps, found)
        return found[:n].copy()


def slots_of(
    indices: Integers, times_ps: Times, combs: Combs, good: npt.NDArray[np.bool_], offset: int
) -> Slots:
    """Return the slots of the tags ``indices`` in ``good`` sub-intervals.

    Tick k is slot (k + offset) // 2, as for clicks.
    """
    if not indices.shape[0]:
        return indices
    m = np.searchsorted(combs.ends, indices, side="right")
    indices, m = indices[good[m]], m[good[m]]
    turns = ((times_ps[indices] - combs.anchors_ps[m]).astype(np.float64) - combs.phases_ps[m]) * (
        1.0 / combs.periods_ps[m]
    )
    ticks: Slots = combs.ticks[m] + offset + np.rint(turns).astype(np.int64)
    return ticks >> 1


@kernel
def _too_soon(
    times: Times, channels: Channels, least_ps: int, joint: bool, last: Integers, found: Integers
) -> int:
    """Write the indices of tags that came too early; no branch depends on a tag."""
    n = np.uint64(0)
    last_z, last_x = last[0], last[1]
    for i in range(times.size):
        time, is_x = times[i], channels[i] == X_CHANNEL
        own = time - (last_x if is_x else last_z)
        other = time - (last_z if is_x else last_x)
        found[n] = i
        n += np.uint64((own < least_ps) | (joint & (other < least_ps) & (other > _TOGETHER_PS)))
        last_z, last_x = (last_z if is_x else time), (time if is_x else last_x)
    last[0], last[1] = last_z, last_x
    return int(n)
