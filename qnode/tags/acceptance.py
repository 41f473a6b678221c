"""From tracked ticks to clicks: gates, one click a slot, and the check against a slip of half a slot."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.kernels import inline_kernel, kernel
from qnode.tags.conversion import as_float, nearest_integer
from qnode.tags.gates import Gates
from qnode.tags.tracking import Combs, Floats, Integers
from qnode.tags.types import (
    OUTCOME_BOUNDARY,
    OUTCOME_CENTRAL,
    OUTCOME_EARLY,
    OUTCOME_LATE,
    X_CHANNEL,
    Z_CHANNEL,
    Channels,
    Clicks,
    Codes,
    Slots,
    Times,
)

_SLIP_SIGMAS: Final = 5.0
_MOST_SLIP_CLICKS: Final = 1 << 22
_NO_OUTCOME: Final = 255
# The number of tags processed together: usually all of them are inside a gate.
_TOGETHER: Final = 64

# Clicks and sums of their positions in the gate, in fixed point, so the order of addition does not matter.
_EARLY_N, _LATE_N, _EARLY_SUM, _LATE_SUM, _SQUARES = range(5)
_FIXED: Final = 65536.0  # units in a picosecond, and in a picosecond squared


@dataclass(frozen=True, eq=False)
class GateTable:
    """The gates relative to the comb of ticks, whose even ticks lie half the skew after the early pulses.

    ``centres_ps`` and ``halves_ps``: float64, shape ``(4,)``, of the gates early, late, boundary and central:
    index 2 * (X arm) + (odd tick).
    """

    centres_ps: Floats
    halves_ps: Floats
    skew_ps: float

    @classmethod
    def of(cls, gates: Gates) -> "GateTable":
        """Convert the times of the gates from the slot to the comb."""
        half_skew = gates.skew_ps / 2.0
        ordered = (gates.early, gates.late, gates.boundary, gates.central)
        comb = (0.0, gates.period_ps / 2.0, 0.0, gates.period_ps / 2.0)
        centres = [gate.centre_ps - tick - half_skew for gate, tick in zip(ordered, comb, strict=True)]
        return cls(
            np.array(centres),
            np.array([gate.half_width_ps for gate in ordered]),
            gates.skew_ps,
        )

    @property
    def x_offset_ps(self) -> float:
        """Mean of X-arm light relative to the comb, modulo a tick; the mean of Z-arm light is zero."""
        return float(self.centres_ps[2])


@dataclass(frozen=True, eq=False)
class Accepted:
    """Tags inside gates as clicks (ascending, several per slot possible), and the slots of tags outside."""

    clicks: Clicks
    out_of_gate: Slots


@dataclass(frozen=True, eq=False)
class Singled:
    """Clicks, one per slot, and the slots that had several clicks at one detector, or clicks at both."""

    clicks: Clicks
    double_clicks: Slots
    cross_clicks: Slots


@dataclass
class SlipMonitor:
    """Detect an error of half a slot by the uneven spacing of the bins.

    With bins 800 ps apart in 1666.7 ps, late pulses taken as early ones are 33 ps from the centre of the
    gate. Early pulses taken as late ones are 33 ps away on the other side, so the two means differ by twice
    the skew. With an even spacing there is no such difference, and the monitor reports nothing.
    """

    skew_ps: float
    _sums: Integers = field(default_factory=lambda: np.zeros(5, np.int64))

    def reset(self) -> None:
        """Forget all clicks."""
        self._sums[:] = 0

    def slipped(self) -> bool:
        """Return whether the clicks so far prove a slip; start again after each decision."""
        n_early, n_late = int(self._sums[_EARLY_N]), int(self._sums[_LATE_N])
        if min(n_early, n_late) < 16:
            return False
        mean_early = int(self._sums[_EARLY_SUM]) / _FIXED / n_early
        mean_late = int(self._sums[_LATE_SUM]) / _FIXED / n_late
        n = n_early + n_late
        variance = int(self._sums[_SQUARES]) / _FIXED / n
        error = math.sqrt(variance * (1.0 / n_early + 1.0 / n_late))
        # Without a slip the difference is 0, with a slip -2 skew: measure from the middle towards the slip.
        towards = (mean_late - mean_early + self.skew_ps) * math.copysign(1.0, -self.skew_ps)
        if abs(towards) < _SLIP_SIGMAS * error:
            if n > _MOST_SLIP_CLICKS:
                self.reset()
            return False
        self.reset()
        return bool(towards > 0.0)


def accept(
    times_ps: Times, channels: Channels, combs: Combs, good: npt.NDArray[np.bool_], offset: int,
    first_slot: int, table: GateTable, monitor: SlipMonitor, held: Clicks,
) -> Accepted:  # fmt: skip
    """Assign slots and outcomes to tags, and drop tags outside every gate.

    Tick k is slot (k + offset) // 2. Only tags of ``good`` sub-intervals in slots from ``first_slot`` on
    are used. ``held``: clicks of earlier tags, which come first in the result.
    """
    n_held = len(held)
    room = n_held + (int(combs.ends[-1]) if combs.ends.size else 0)
    # Slots of tags outside fill the array from its other end, at the distance of the longest sub-interval.
    apart = int(np.diff(combs.ends, prepend=0).max(initial=0)) + 1
    slots, outcomes = np.empty(room + apart, np.int64), np.empty(room, np.uint8)
    slots[:n_held], outcomes[:n_held] = held.slots, held.outcomes
    n, n_outside = _accept(
        times_ps, channels, combs.anchors_ps, combs.phases_ps, combs.ticks, combs.periods_ps, combs.ends,
        good, offset, first_slot, table.centres_ps, table.halves_ps, n_held, slots, outcomes, monitor._sums,
    )  # fmt: skip
    # A correction of the clock between two sub-intervals may put them out of order by a slot.
    outside = np.sort(slots[slots.shape[0] - int(n_outside) :])
    return Accepted(Clicks(slots[:n], outcomes[:n]), outside)


def z_ticks(
    times_ps: Times, channels: Channels, combs: Combs, good: npt.NDArray[np.bool_], reach_ps: float
) -> Integers:
    """Return the ticks that have a tag of the Z arm within ``reach_ps``, in ``good`` sub-intervals."""
    ticks = np.empty(times_ps.shape, np.int64)
    n = _z_ticks(
        times_ps, channels, combs.anchors_ps, combs.phases_ps, combs.ticks, combs.periods_ps, combs.ends,
        good, reach_ps, ticks,
    )  # fmt: skip
    return ticks[:n]


def one_per_slot(clicks: Clicks, random_bytes: Callable[[int], bytes]) -> Singled:
    """Keep one click per slot (security reference, 6.2).

    Clicks at both detectors: arm and outcome at random. Different clicks at one detector: outcome at random.
    ``random_bytes(n)`` yields n uniform bytes.
    """
    repeats = int(_repeats(clicks.slots))
    if not repeats:
        return Singled(clicks, clicks.slots[:0], clicks.slots[:0])
    random = np.frombuffer(random_bytes(repeats), np.uint8)
    slots, outcomes = np.empty_like(clicks.slots), np.empty_like(clicks.outcomes)
    doubles, crosses = np.empty(repeats, np.int64), np.empty(repeats, np.int64)
    counts = np.zeros(3, np.int64)
    _one_per_slot(clicks.slots, clicks.outcomes, random, slots, outcomes, doubles, crosses, counts)
    n, n_doubles, n_crosses = (int(count) for count in counts)
    return Singled(Clicks(slots[:n], outcomes[:n]), doubles[:n_doubles], crosses[:n_crosses])


@kernel
def _accept(
    times: Times, channels: Channels, anchors: Integers, phases: Floats, ticks: Integers, periods: Floats,
    ends: Integers, good: npt.NDArray[np.bool_], offset: int, first_slot: int, centres: Floats,
    halves: Floats, n_held: int, slots: Slots, outcomes: Codes, sums: Integers,
) -> tuple[np.uint64, np.uint64]:  # fmt: skip
    """Append clicks to the first ``n_held``, and put other slots at the end; return both numbers."""
    one = np.uint64(1)
    n = np.uint64(n_held)
    together = np.uint64(_TOGETHER)
    last = np.uint64(slots.size - 1)
    n_outside = np.uint64(0)
    first = np.int64(0)
    for m in range(ends.size):
        start, first = first, ends[m]
        if not good[m]:
            continue
        n_tags = np.uint64(first - start)
        # Only a correction of the clock between two sub-intervals gives a slot before the last one.
        least_slot = max(np.int64(first_slot), slots[n - one]) if n else np.int64(first_slot)
        here = _place(
            times[start:first], channels[start:first], anchors[m], phases[m], ticks[m] + offset, periods[m],
            first_slot, least_slot, centres, halves, slots[n : n + n_tags], outcomes[n : n + n_tags], sums,
        )  # fmt: skip
        if here == 0 and (n_tags == 0 or slots[n] >= first_slot):
            n += n_tags  # all tags are inside a gate
            continue
        # Tags inside a gate move down over those outside; most groups have none outside.
        place, end = n, n + n_tags
        while place < end:
            n_group = min(together, end - place)
            seen = np.uint8(0)
            for i in range(n_group):
                seen |= outcomes[place + i]
            if seen < _NO_OUTCOME:
                if n == place:
                    n += n_group
                else:
                    for i in range(n_group):
                        slots[n + i] = slots[place + i]
                        outcomes[n + i] = outcomes[place + i]
                    n += n_group
            else:
                for i in range(n_group):
                    slot, outcome = slots[place + i], outcomes[place + i]
                    slots[n] = slot
                    outcomes[n] = outcome
                    slots[last - n_outside] = slot
                    inside = outcome != _NO_OUTCOME
                    n += np.uint64(inside)
                    n_outside += np.uint64((not inside) & (slot >= first_slot))
            place += n_group
    return n, n_outside


@inline_kernel
def _place(
    times: Times, channels: Channels, anchor: np.int64, phase: float, tick: np.int64, period: float,
    first_slot: int, least_slot: np.int64, centres: Floats, halves: Floats, slots: Slots, outcomes: Codes,
    sums: Integers,
) -> np.int64:  # fmt: skip
    """Assign a slot to every tag, and an outcome, or none outside the gates; return the number outside.

    There is no branch that depends on a tag, and no sum whose order matters, so eight tags are processed at
    once.
    """
    inverse = 1.0 / period
    centre_early, centre_late, centre_boundary, centre_central = centres
    half_early, half_late, half_boundary, half_central = halves
    outside = np.int64(0)
    early_n = np.int64(0)
    late_n = np.int64(0)
    early_sum = np.int64(0)
    late_sum = np.int64(0)
    squares = np.int64(0)
    for i in range(times.size):
        turns = (as_float(times[i] - anchor) - phase) * inverse
        nearest = np.rint(turns)
        k = tick + nearest_integer(nearest)
        slot = k >> 1
        is_late, is_x = (k & 1) != 0, channels[i] == X_CHANNEL
        if is_x:
            centre, half = (centre_central, half_central) if is_late else (centre_boundary, half_boundary)
            outcome = OUTCOME_CENTRAL if is_late else OUTCOME_BOUNDARY
        else:
            centre, half = (centre_late, half_late) if is_late else (centre_early, half_early)
            outcome = OUTCOME_LATE if is_late else OUTCOME_EARLY
        place = (turns - nearest) * period - centre
        inside = (place >= -half) & (place < half) & (slot >= least_slot)
        slots[i] = slot
        outcomes[i] = outcome if inside else _NO_OUTCOME
        outside += np.int64((slot >= first_slot) & (not inside))
        early, late = inside & (not is_x) & (not is_late), inside & (not is_x) & is_late
        early_n += np.int64(early)
        late_n += np.int64(late)
        early_sum += nearest_integer(place * _FIXED) if early else 0
        late_sum += nearest_integer(place * _FIXED) if late else 0
        squares += nearest_integer(place * place * _FIXED) if early | late else 0
    sums[_EARLY_N] += early_n
    sums[_LATE_N] += late_n
    sums[_EARLY_SUM] += early_sum
    sums[_LATE_SUM] += late_sum
    sums[_SQUARES] += squares
    return outside


@kernel
def _z_ticks(
    times: Times, channels: Channels, anchors: Integers, phases: Floats, ticks: Integers, periods: Floats,
    ends: Integers, good: npt.NDArray[np.bool_], reach: float, found: Integers,
) -> int:  # fmt: skip
    n = 0
    first = 0
    for m in range(ends.size):
        start, first = first, ends[m]
        if not good[m]:
            continue
        for i in range(start, ends[m]):
            turns = (np.float64(times[i] - anchors[m]) - phases[m]) * (1.0 / periods[m])
            nearest = np.rint(turns)
            found[n] = ticks[m] + np.int64(nearest)
            n += channels[i] == Z_CHANNEL and abs(turns - nearest) * periods[m] <= reach
    return n


@kernel
def _repeats(slots: Slots) -> int:
    """Count the clicks in the same slot as the click before."""
    n = 0
    for i in range(1, slots.size):
        n += slots[i] == slots[i - 1]
    return n


@kernel
def _one_per_slot(
    slots: Slots, outcomes: Codes, random: Codes, to_slots: Slots, to_outcomes: Codes, doubles: Slots,
    crosses: Slots, counts: Integers,
) -> None:  # fmt: skip
    size = np.uint64(slots.size)
    one = np.uint64(1)
    n = np.uint64(0)
    used = np.uint64(0)
    n_doubles = np.uint64(0)
    n_crosses = np.uint64(0)
    i = np.uint64(0)
    while i < size:
        slot, outcome = slots[i], outcomes[i]
        i += one
        if i < size and slots[i] == slot:
            seen = 1 << np.int64(outcome)
            while i < size and slots[i] == slot:
                seen |= 1 << np.int64(outcomes[i])
                i += one
            draw = np.int64(random[used])
            used += one
            z_seen = (seen & 3) != 0
            if z_seen and (seen & 12) != 0:
                crosses[n_crosses] = slot
                n_crosses += one
                outcome = np.uint8(draw & 3)
            else:
                doubles[n_doubles] = slot
                n_doubles += one
                if (seen & (seen - 1)) != 0:
                    outcome = np.uint8((0 if z_seen else 2) + (draw & 1))
        to_slots[n] = slot
        to_outcomes[n] = outcome
        n += one
    counts[0], counts[1], counts[2] = n, n_doubles, n_crosses
