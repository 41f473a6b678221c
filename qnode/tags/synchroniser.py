"""The synchroniser converts Bob's tags to clicks with Alice's slot numbers, without I/O or an own clock.

``searching``: it recovers the bin clock from a stretch of tags. ``aligning``: it follows the clock, collects
Z-arm clicks for a probe, reveals them, and waits for Alice's answer. ``locked``: it follows the clock and
converts tags to clicks. A lost lock leads back to ``searching``. A jump of phase, after which ticks may have
been miscounted, leads back to ``aligning``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.choices import LockState
from qnode.config import ReceiverParameters, SourceParameters
from qnode.tags.acceptance import GateTable, SlipMonitor, accept, one_per_slot, z_ticks
from qnode.tags.alignment import LONGEST_PROBE_TICKS, MOST_PROBE_CLICKS, Alignment, AlignmentProbe
from qnode.tags.clock import recover_clock
from qnode.tags.dead_time import DeadTimeWatch, slots_of
from qnode.tags.folding import MOST_FOLDED, Counts, folded
from qnode.tags.gates import gates
from qnode.tags.marks import NO_MARKS, Marks, joined
from qnode.tags.order import OrderStatistics, OrderWindow, Stretch
from qnode.tags.output import Output
from qnode.tags.sync_statistics import SyncCounts, SyncStatistics
from qnode.tags.tag_time import TagTime
from qnode.tags.tracking import GOES_ON, LOST, BinClock, Integers, Tracked
from qnode.tags.types import NO_CLICKS, NO_TAGS, OUTCOME_LATE, X_CHANNEL, Clicks, SlotRange, Slots, TagBlock
from qnode.units import PS_PER_S

SEARCH_TAGS: Final = 2048
SEARCH_SPAN_PS: Final = PS_PER_S // 20
ACQUISITION_SIGNIFICANCE: Final = 9.0
PROBE_CLICKS: Final = 512
FEWEST_PROBE_CLICKS: Final = 64
# Alice's record reaches back about a second; the duration of the probe and its transfer must fit.
LONGEST_PROBE_PS: Final = 2 * PS_PER_S // 5
FAILURES_BEFORE_SEARCH: Final = 5
EARLIER_PS: Final = -(1 << 60)  # than any tag
_NONE: Final = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class SyncResult:
    """The result of one feed.

    ``clicks``: ascending, one per slot; empty unless locked. ``marks``: other observations in the same slots.
    ``cuts``: slots without lock, with lost tags or under adjustment, removed before announcement; they
    contain no click, now or later. ``reached``: every slot below is complete (it stays constant without
    lock). Each slot is reported once, by the result that reaches beyond it. ``probe``: to be sent to Alice
    now. ``stretches``: the stretches that the order window marked. ``until_ps``: tag time up to which tags
    have arrived. Times are those of the TDC, without the wrap of its counter. ``folded``: see
    `qnode.tags.folding`; None while searching.
    """

    state: LockState
    clicks: Clicks
    marks: Marks
    cuts: tuple[SlotRange, ...]
    reached: int
    probe: AlignmentProbe | None
    stretches: tuple[Stretch, ...]
    statistics: SyncStatistics
    order: OrderStatistics
    until_ps: int
    folded: Counts | None = None

    @cached_property
    def z_clicks(self) -> int:
        """The number of clicks of the Z arm."""
        return int(np.count_nonzero(self.clicks.outcomes <= OUTCOME_LATE))


@dataclass(frozen=True)
class _LastLock:
    """Alice's numbering at the last lock: at ``time_ps``, twice the slot coordinate was ``offset + tick``."""

    time_ps: int
    offset: int
    tick: float
    period_ps: float

    def offset_at(self, time_ps: int) -> int:
        return self.offset + round(self.tick + (time_ps - self.time_ps) / self.period_ps)


class Synchroniser:
    """Follow Alice's clock through Bob's tags.

    ``random_bytes(n)`` returns n uniform bytes, which decide between clicks in one slot.
    ``clock_walk_per_root_s`` is the expected random walk of the relative clock rate over one second;
    ``range_ppm`` is the largest difference of the two clocks.
    """

    def __init__(
        self, source: SourceParameters, receiver: ReceiverParameters, random_bytes: Callable[[int], bytes], *,
        clock_walk_per_root_s: float = 2e-9, range_ppm: float = 100.0,
    ) -> None:  # fmt: skip
        self._tick_ps = source.period_ps / 2.0
        self._longest_probe = min(int(LONGEST_PROBE_PS / self._tick_ps), LONGEST_PROBE_TICKS)
        self._table = GateTable.of(gates(source, receiver))
        self._random_bytes = random_bytes
        self._walk = clock_walk_per_root_s
        self._range_ppm = range_ppm
        self._time = TagTime()
        self._order = OrderWindow(receiver.order_window_ps)
        self._monitor = SlipMonitor(self._table.skew_ps)
        self._receiver = receiver
        self._tags = NO_TAGS
        self._counts = SyncCounts()
        self._until_ps: int | None = None
        self._cut_ps: list[Stretch] = []
        self._forget_run()

    def _forget_run(self) -> None:
        self._state = LockState.SEARCHING
        self._clock: BinClock | None = None
        self._search_from_ps: int | None = None
        self._cut_ps = [cut for cut in self._cut_ps if cut.reason == "adjusted"]  # it may still settle
        self._offset: int | None = None
        self._last_lock: _LastLock | None = None
        self._lock_floor: int | None = None
        self._was_good = False
        self._reached = 0
        self._held, self._held_marks = NO_CLICKS, NO_MARKS
        self._dead_time = DeadTimeWatch(self._receiver)
        self._probe_clicks = PROBE_CLICKS
        self._failures = 0
        self._begin_probe()

    def _begin_probe(self) -> None:
        self._collected: list[npt.NDArray[np.int64]] = []
        self._awaited: AlignmentProbe | None = None
        self._awaited_first_tick = 0

    @property
    def state(self) -> LockState:
        """The state of synchronisation."""
        return self._state

    @property
    def clock(self) -> BinClock | None:
        """The tracked clock, None while searching."""
        return self._clock

    def feed(self, block: TagBlock, settling_ps: int | None = None) -> SyncResult:
        """Process the next tags, in the order in which the TDC yielded them.

        ``settling_ps``: a setting of the receiver changed since the last block; the tags since then are cut,
        and those of this time after the block.

        Raises:
            TransientDeviceError: the TDC's clock has jumped by weeks.
        """
        moved_ps = self._time.take(block)
        if moved_ps:
            self._move(moved_ps)
        last_tags = self._time.local(block.last(MOST_FOLDED))
        if settling_ps is not None:
            first_ps = EARLIER_PS if self._until_ps is None else self._until_ps
            self._cut_ps.append(Stretch(first_ps, last_tags.until_ps + settling_ps + 1, "adjusted"))
        self._until_ps = last_tags.until_ps
        ordered = self._order.feed(block, self._tags, self._time.origin_ps)
        self._tags = ordered.tags
        until = ordered.tags.until_ps
        self._cut_ps += [stretch for stretch in ordered.stretches if stretch.reason == "lost"]
        output = Output()
        while self._search(until) if self._clock is None else self._follow(self._clock, until, output):
            pass
        return SyncResult(
            state=self._state,
            clicks=output.clicks(),
            marks=output.marks(),
            cuts=tuple(output.cuts),
            reached=self._reached,
            probe=output.probe,
            stretches=tuple(stretch.moved(self._time.origin_ps) for stretch in ordered.stretches),
            statistics=self._counts.frozen(self._clock),
            order=self._order.statistics,
            until_ps=self._time.origin_ps + last_tags.until_ps,
            folded=None if self._clock is None else folded(last_tags, self._clock, self._offset or 0),
        )

    def _move(self, by_ps: int) -> None:
        """Count times from an origin ``by_ps`` later, and ticks from the present one."""
        self._order.move(by_ps)
        self._dead_time.move(by_ps)
        self._tags = self._tags.earlier(by_ps)
        self._cut_ps = [cut.moved(-by_ps) for cut in self._cut_ps]
        if self._search_from_ps is not None:
            self._search_from_ps -= by_ps
        if self._until_ps is not None:
            self._until_ps -= by_ps
        if self._last_lock is not None:
            self._last_lock = replace(self._last_lock, time_ps=self._last_lock.time_ps - by_ps)
        if self._clock is None:
            return
        ticks = self._clock.move(by_ps)
        self._collected = [collected - ticks for collected in self._collected]
        self._awaited_first_tick -= ticks
        if self._offset is not None:
            self._offset += ticks

    def aligned(self, alignment: Alignment) -> None:
        """Accept Alice's answer; answers to earlier probes are ignored."""
        if self._awaited is None or alignment.probe_number != self._awaited.number:
            return
        self._offset = alignment.offset - self._awaited_first_tick
        self._lock_floor = max(alignment.last_slot + 1, self._reached)
        self._state = LockState.LOCKED
        self._failures = 0
        self._probe_clicks = PROBE_CLICKS
        self._counts.locks += 1
        self._monitor.reset()
        self._begin_probe()

    def alignment_failed(self, probe_number: int) -> None:
        """Handle a search without a result: try a longer probe, finally with a newly recovered clock."""
        if self._awaited is None or probe_number != self._awaited.number:
            return
        self._failures += 1
        self._probe_clicks = min(2 * self._probe_clicks, MOST_PROBE_CLICKS)
        self._begin_probe()
        if self._failures >= FAILURES_BEFORE_SEARCH:
            self._failures = 0
            self._probe_clicks = PROBE_CLICKS
            self._lose()

    def restart(self) -> None:
        """Handle a new emission run: slots count from 0 again. Tags so far belong to the old run."""
        until = self._clock.from_ps if self._clock is not None else self._search_from_ps
        if self._tags.times_ps.size:
            until = int(self._tags.times_ps[-1]) + 1
        self._tags = NO_TAGS
        self._forget_run()
        self._search_from_ps = until

    def _search(self, until: int) -> bool:
        """Try the next stretch; return whether anything was consumed."""
        times = self._tags.times_ps
        if self._search_from_ps is None:
            if not times.size:
                return False
            self._search_from_ps = int(times[0])
        if not times.size:
            self._search_from_ps = max(self._search_from_ps, until)
            return False
        self._cut_ps = [cut for cut in self._cut_ps if cut.end_ps > self._search_from_ps]
        end = self._search_from_ps + SEARCH_SPAN_PS
        n = int(np.searchsorted(times, end))
        if n >= SEARCH_TAGS:
            n = SEARCH_TAGS
            end = int(times[n - 1]) + 1
        elif until < end:
            return False
        shift = np.where(self._tags.channels[:n] == X_CHANNEL, round(self._table.x_offset_ps), 0)
        found = recover_clock(times[:n] - shift, self._tick_ps, range_ppm=self._range_ppm)
        self._counts.unlocked += n
        self._tags = self._tags.after(n)
        self._search_from_ps = end
        if found is not None and found.significance >= ACQUISITION_SIGNIFICANCE:
            self._clock = BinClock(
                found, end, nominal_period_ps=self._tick_ps, x_offset_ps=self._table.x_offset_ps,
                walk_per_root_s=self._walk,
            )  # fmt: skip
            self._state = LockState.ALIGNING
            self._begin_probe()
        return True

    def _follow(self, clock: BinClock, until: int, output: Output) -> bool:
        """Track all complete sub-intervals; return whether anything was consumed."""
        tags = self._tags
        tracked = clock.track(tags.times_ps, tags.channels, until)
        if not tracked.good.size:
            return False
        self._tags = tags.after(tracked.n_tags)
        good = tracked.good & ~self._to_cut(tracked)
        self._counts.measured(tracked)
        n = tracked.n_tags
        too_close = self._dead_time.see(tags.times_ps[:n], tags.channels[:n])
        if self._state is LockState.LOCKED:
            self._emit(tags, tracked, good, too_close, output)
            self._last_lock = self._lock_at(tracked)
        else:
            self._counts.unlocked += n
            self._collect(clock, tags, tracked, good, output)
        if tracked.verdict != GOES_ON:
            if tracked.verdict == LOST:
                self._counts.losses += 1
                self._lose()
            else:
                self._counts.jumps += 1
                self._realign()
            output.probe = None  # the tick numbers before and after this point no longer fit together
        return True

    def _lose(self) -> None:
        assert self._clock is not None
        self._search_from_ps = self._clock.from_ps
        self._clock = None
        self._realign()
        self._state = LockState.SEARCHING

    def _realign(self) -> None:
        self._state = LockState.ALIGNING
        self._offset = None
        self._held, self._held_marks = NO_CLICKS, NO_MARKS
        self._begin_probe()

    def _to_cut(self, tracked: Tracked) -> npt.NDArray[np.bool_]:
        """Return which sub-intervals overlap a stretch with lost tags or under adjustment."""
        hit = np.zeros(tracked.good.shape, np.bool_)
        for cut in self._cut_ps:
            hit |= (tracked.starts_ps < cut.end_ps) & (tracked.ends_ps > cut.first_ps)
        last = int(tracked.ends_ps[-1])
        self._cut_ps = [cut for cut in self._cut_ps if cut.end_ps > last]
        return hit

    def _lock_at(self, tracked: Tracked) -> "_LastLock | None":
        good = np.flatnonzero(tracked.good)
        if self._offset is None or self._clock is None or not good.size:
            return self._last_lock
        i = int(good[-1])
        tick = float(tracked.end_ticks[i])
        return _LastLock(int(tracked.ends_ps[i]), self._offset, tick, self._clock.period_ps)

    def _collect(
        self, clock: BinClock, tags: TagBlock, tracked: Tracked, good: npt.NDArray[np.bool_],
        output: Output,
    ) -> None:  # fmt: skip
        """Collect Z-arm clicks near ticks; output the probe when there are enough."""
        if self._awaited is not None:
            return
        reach = self._table.halves_ps[0] + abs(self._table.skew_ps) / 2.0
        self._collected.append(z_ticks(tags.times_ps, tags.channels, tracked.combs, good, reach))
        # A tick may have several clicks; a block of a fast link has more than needed, so use the last ones.
        ticks = np.unique(np.concatenate(self._collected)[-4 * self._probe_clicks :])
        span = int(ticks[-1] - ticks[0]) if ticks.size else 0
        if ticks.size < self._probe_clicks and span < self._longest_probe:
            return
        # The first clicks of a long block of tags are too old.
        ticks = ticks[ticks >= ticks[-1] - self._longest_probe][-self._probe_clicks :]
        if ticks.size < FEWEST_PROBE_CLICKS:
            self._collected = []
            return
        first = int(ticks[0])
        start_ps = clock.time_of(first)
        self._counts.probes += 1
        expected = self._last_lock.offset_at(start_ps) if self._last_lock is not None else None
        start_ps += self._time.origin_ps
        self._awaited = AlignmentProbe(self._counts.probes, start_ps, ticks - first, expected)
        self._awaited_first_tick = first
        self._collected = []
        output.probe = self._awaited

    def _emit(
        self, tags: TagBlock, tracked: Tracked, good: npt.NDArray[np.bool_], too_close: Integers,
        output: Output,
    ) -> None:  # fmt: skip
        """Convert good sub-intervals to clicks and marks, and bad ones to cuts."""
        assert self._offset is not None
        starts = self._slots_at(tracked.start_ticks, self._offset)
        ends = self._slots_at(tracked.end_ticks, self._offset)
        if self._lock_floor is not None:
            first = max(self._lock_floor, int(starts[0]) + 1)
            output.cut(self._reached, first)
            self._reached, self._lock_floor, self._was_good = first, None, False
        accepted = accept(
            tags.times_ps, tags.channels, tracked.combs, good, self._offset, self._reached, self._table,
            self._monitor, self._held,
        )  # fmt: skip
        self._counts.used += len(accepted.clicks) - len(self._held)
        self._counts.out_of_gate += accepted.out_of_gate.size
        close = slots_of(too_close, tags.times_ps, tracked.combs, good, self._offset)
        seen = Marks(accepted.out_of_gate, _NONE, _NONE, np.sort(close[close >= self._reached]))
        marks = joined((self._held_marks, seen))
        for i in np.flatnonzero(~good).tolist():
            before = bool(good[i - 1]) if i else self._was_good
            self._counts.cut += tracked.combs.n_tags(i)
            # The first slot of a bad stretch may have a click from before it, the last slot one from after
            # it.
            output.cut(int(starts[i]) + int(before), int(ends[i]), self._reached)
        self._was_good = bool(good[-1])
        self._reached = max(self._reached, int(ends[-1]))
        complete = int(np.searchsorted(accepted.clicks.slots, self._reached))
        self._held = accepted.clicks.after(complete)
        singled = one_per_slot(accepted.clicks.first(complete), self._random_bytes)
        self._counts.double_clicks += singled.double_clicks.size
        self._counts.cross_clicks += singled.cross_clicks.size
        self._held_marks = marks.since(self._reached)
        told = marks.below(self._reached)
        output.add(
            singled.clicks,
            replace(told, double_clicks=singled.double_clicks, cross_clicks=singled.cross_clicks),
        )
        if self._monitor.slipped():
            self._counts.slips += 1
            self._realign()

    @staticmethod
    def _slots_at(ticks: npt.NDArray[np.float64], offset: int) -> Slots:
        """Return the slot of a click at these tick coordinates; slots below are complete."""
        return (np.floor(ticks + 0.5).astype(np.int64) + offset) // 2
