"""The order window: tags come slightly out of order, within a block and across blocks.

Tags are held back until every tag that may still precede them has come. A tag that comes later than that
cannot be placed any more: it is counted and dropped, and the stretch is marked. Tags that the hardware lost
leave a stretch of unknown content, which is dropped as a whole.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from qnode.kernels import kernel
from qnode.tags.tag_time import signed_64
from qnode.tags.types import NO_TAGS, X_CHANNEL, Z_CHANNEL, Channels, TagBlock, Times
from qnode.units import PS_PER_S

# A tag this far ahead of its block's end is a broken record; holding it would never end.
FURTHEST_AHEAD_PS: Final = 10 * PS_PER_S
_ANY_TIME_PS: Final = -(2**63)
# Moves per tag beyond which a block is not "nearly in order" and a general sort is cheaper.
_MOVES_PER_TAG: Final = 32
# So many tags are looked at together: mostly they are in order.
_TOGETHER: Final = 64


@dataclass(frozen=True)
class OrderStatistics:
    """Counts since the start: tags in and out, and why tags were dropped.

    ``late``: came when tags later than the window were already passed on. ``ahead``: impossibly far in the
    future. ``unknown_channel``: on a channel nobody mapped. ``lost``: reported lost by the hardware.
    ``in_gaps``: recorded but inside a stretch with losses. ``displaced``: came out of order and were mended.
    """

    received: int = 0
    ordered: int = 0
    displaced: int = 0
    late: int = 0
    ahead: int = 0
    unknown_channel: int = 0
    lost: int = 0
    in_gaps: int = 0


@dataclass(frozen=True)
class Stretch:
    """Tag times ``first_ps <= t < end_ps`` that something happened to.

    ``lost``: tags are missing, the stretch was dropped. ``adjusted``: a setting of the receiver changed.
    ``late`` or ``unknown_channel``: single tags were dropped, the others stand.
    """

    first_ps: int
    end_ps: int
    reason: Literal["lost", "adjusted", "late", "unknown_channel"]

    def moved(self, by_ps: int) -> "Stretch":
        """Return the stretch with times larger by ``by_ps``."""
        return replace(self, first_ps=self.first_ps + by_ps, end_ps=self.end_ps + by_ps)


@dataclass(frozen=True, eq=False)
class OrderedTags:
    """Tags in time order, complete before ``tags.until_ps``, and the stretches that were marked."""

    tags: TagBlock
    stretches: tuple[Stretch, ...] = ()


class OrderWindow:
    """Sort a stream of nearly ordered tag blocks; ``window_ps`` is the farthest a tag may come too late."""

    def __init__(self, window_ps: int) -> None:
        if window_ps < 0:
            raise ValueError(f"order window: expected at least 0 ps, got {window_ps}")
        self._window_ps = window_ps
        self._statistics = OrderStatistics()
        self._times: Times = np.empty(0, np.int64)
        self._channels: Channels = np.empty(0, np.int8)
        self._horizon_ps: int | None = None
        self._until_ps: int | None = None
        self._gaps: list[Stretch] = []

    @property
    def statistics(self) -> OrderStatistics:
        """The counts so far."""
        return self._statistics

    def move(self, by_ps: int) -> None:
        """Count times from a moment ``by_ps`` later: all that are held become so much smaller."""
        self._times = self._times - by_ps
        if self._horizon_ps is not None and self._until_ps is not None:
            self._horizon_ps, self._until_ps = self._horizon_ps - by_ps, self._until_ps - by_ps
        self._gaps = [gap.moved(-by_ps) for gap in self._gaps]

    def feed(self, block: TagBlock, unused: TagBlock = NO_TAGS, origin_ps: int = 0) -> OrderedTags:
        """Take the next block; return all tags that no later tag can precede any more.

        ``unused``: the last tags of the result before, which the caller has no use for yet: they come again.
        ``origin_ps``: times are counted from this time of the block, modulo 2^64.
        """
        before = self._statistics
        until = signed_64(block.until_ps - origin_ps)
        if self._until_ps is not None:
            until = max(self._until_ps, until)
        horizon = until - self._window_ps
        if self._horizon_ps is not None:
            horizon = max(horizon, self._horizon_ps)

        earliest = self._horizon_ps if self._horizon_ps is not None else _ANY_TIME_PS
        latest = until + FURTHEST_AHEAD_PS
        n_late = n_ahead = n_unknown = 0
        stretches: list[Stretch] = []
        n_before = unused.times_ps.shape[0] + self._times.shape[0]
        n_all = n_before + block.times_ps.shape[0]
        all_times, all_channels = np.empty(n_all, np.int64), np.empty(n_all, np.int8)
        np.concatenate((unused.times_ps, self._times), out=all_times[:n_before])
        np.concatenate((unused.channels, self._channels), out=all_channels[:n_before])
        times, channels = all_times[n_before:], all_channels[n_before:]
        origin = np.int64(signed_64(origin_ps))
        if not _counted_from(block.times_ps, block.channels, origin, earliest, latest, times, channels):
            known = (channels == Z_CHANNEL) | (channels == X_CHANNEL)
            late, ahead = times < earliest, times > latest
            n_late, n_ahead, n_unknown = (int(np.count_nonzero(wrong)) for wrong in (late, ahead, ~known))
            marked_from = self._horizon_ps if self._horizon_ps is not None else horizon
            if n_late:
                stretches.append(Stretch(marked_from, horizon, "late"))
            if n_unknown:
                stretches.append(Stretch(marked_from, horizon, "unknown_channel"))
            right = known & ~late & ~ahead
            times, channels = times[right], channels[right]
            all_times = np.concatenate((all_times[:n_before], times))
            all_channels = np.concatenate((all_channels[:n_before], channels))
        if block.lost and self._until_ps is not None:
            resumed = max(int(times.min()), self._until_ps) if times.size else until
            # Both ends lie within the window of disorder about what was seen.
            self._gaps.append(Stretch(self._until_ps - self._window_ps, resumed + self._window_ps, "lost"))
        times, channels = all_times, all_channels
        displaced = _sort_nearly_sorted(times, channels, _MOVES_PER_TAG * times.size + 1024)
        if displaced < 0:
            order = np.argsort(times, kind="stable")
            times, channels = times[order], channels[order]
            displaced = int(np.count_nonzero(order != np.arange(order.size)))
        ready = int(np.searchsorted(times, horizon))
        self._times, self._channels = times[ready:].copy(), channels[ready:].copy()
        times, channels = times[:ready], channels[:ready]

        in_gaps = 0
        for gap in [gap for gap in self._gaps if gap.first_ps < horizon]:
            inside = (times >= gap.first_ps) & (times < gap.end_ps)
            in_gaps += int(np.count_nonzero(inside))
            times, channels = times[~inside], channels[~inside]
            stretches.append(replace(gap, end_ps=min(gap.end_ps, horizon)))
        self._gaps = [
            replace(gap, first_ps=max(gap.first_ps, horizon)) for gap in self._gaps if gap.end_ps > horizon
        ]
        self._horizon_ps, self._until_ps = horizon, until
        self._statistics = OrderStatistics(
            received=before.received + block.times_ps.size,
            ordered=before.ordered + times.size - unused.times_ps.size,
            displaced=before.displaced + displaced,
            late=before.late + n_late,
            ahead=before.ahead + n_ahead,
            unknown_channel=before.unknown_channel + n_unknown,
            lost=before.lost + block.lost,
            in_gaps=before.in_gaps + in_gaps,
        )
        return OrderedTags(TagBlock(times, channels, horizon, block.lost), tuple(stretches))


@kernel
def _counted_from(
    times: Times, channels: Channels, origin: np.int64, earliest_ps: int, latest_ps: int, to_times: Times,
    to_channels: Channels,
) -> bool:  # fmt: skip
    """Copy tags; return whether all are on known channels and within the allowed times."""
    wrong = False
    for i in range(times.size):
        time, channel = times[i] - origin, channels[i]  # wraps like the counter
        wrong |= (time < earliest_ps) | (time > latest_ps)
        wrong |= (channel != Z_CHANNEL) & (channel != X_CHANNEL)
        to_times[i] = time
        to_channels[i] = channel
    return not wrong


@kernel
def _sort_nearly_sorted(times: Times, channels: Channels, most_moves: int) -> int:
    """Insertion sort in place; return how many tags had to move, or -1 when it would take too long."""
    moves = 0
    displaced = 0
    for part in range((times.size + _TOGETHER - 1) // _TOGETHER):
        first = part * _TOGETHER
        if first + _TOGETHER < times.size:
            falls = False
            for i in range(_TOGETHER):  # a fixed number of steps becomes vector instructions
                falls |= times[first + i + 1] < times[first + i]
            if not falls:
                continue
        for i in range(first + 1, min(first + _TOGETHER + 1, times.size)):
            t = times[i]
            if times[i - 1] <= t:
                continue
            displaced += 1
            c = channels[i]
            j = i
            while j > 0 and times[j - 1] > t:
                times[j] = times[j - 1]
                channels[j] = channels[j - 1]
                j -= 1
                moves += 1
            times[j] = t
            channels[j] = c
            if moves > most_moves:
                return -1
    return displaced
