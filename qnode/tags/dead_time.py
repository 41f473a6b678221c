"""The declared dead time held against the tags: which came sooner than the hardware can click again."""

from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.config import ReceiverParameters
from qnode.kernels import kernel
from qnode.tags.tracking import Combs, Integers
from qnode.tags.types import X_CHANNEL, Channels, Slots, Times
from qnode.units import PS_PER_S

# Honest hardware: its timer may be so much too short, and jitter and rounding move two tags by so much.
_TIMER_TOLERANCE: Final = 1e-3
_TOLERANCE_PS: Final = 10_000
# Light at both detectors within this time is one event; a joint hold-off takes that long to reach the other.
_TOGETHER_PS: Final = 10_000
_NEVER_PS: Final = -(2**62)


class DeadTimeWatch:
    """Remember each detector's last tag, and find tags that came too soon after it.

    After lost tags the last one that is known may be older than the true one: that accuses nobody. Where no
    dead time is declared nothing is found.
    """

    def __init__(self, receiver: ReceiverParameters) -> None:
        least_ps = receiver.dead_time_s * PS_PER_S * (1.0 - _TIMER_TOLERANCE) - _TOLERANCE_PS
        self._least_ps = max(0, round(least_ps))
        self._joint = receiver.dead_time == "joint"
        self._last_ps = np.full(2, _NEVER_PS, np.int64)

    def move(self, by_ps: int) -> None:
        """Count times from a moment ``by_ps`` later."""
        self._last_ps = np.maximum(self._last_ps - by_ps, _NEVER_PS)

    def see(self, times_ps: Times, channels: Channels) -> Integers:
        """Take the next ordered tags; return the indices of those that came too soon (int64, ascending).

        With independent hold-off that is sooner than the least time between clicks after a tag of the same
        detector, with joint hold-off after a tag of either. There, tags of both detectors within 10 ns are
        one event, the same light at both.
        """
        if not self._least_ps:
            return np.empty(0, np.int64)
        found = np.empty(times_ps.shape[0] + 1, np.int64)
        n = _too_soon(times_ps, channels, self._least_ps, self._joint, self._last_ps, found)
        return found[:n].copy()


def slots_of(
    indices: Integers, times_ps: Times, combs: Combs, good: npt.NDArray[np.bool_], offset: int
) -> Slots:
    """Return the slots of the tags ``indices``, without those that do not lie in ``good`` sub-intervals.

    Tick k is slot (k + offset) // 2, as it is for clicks.
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
    """Write the indices of tags that came too soon; there is no branch on what a tag is."""
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
