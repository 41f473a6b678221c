"""From tracked ticks to clicks: gates, one click a slot, and the check against a slip of half a slot."""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.kernels import kernel
from qnode.tags.gates import Gates
from qnode.tags.types import (
    OUTCOME_BOUNDARY,
    OUTCOME_CENTRAL,
    OUTCOME_EARLY,
    OUTCOME_LATE,
    X_CHANNEL,
    Channels,
    Clicks,
    Codes,
    Slots,
)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_SLIP_SIGMAS: Final = 5.0
_MOST_SLIP_CLICKS: Final = 1 << 22
_ACCEPTED, _OUTSIDE, _EARLY_N, _LATE_N = range(4)
_EARLY_SUM, _LATE_SUM, _SQUARES = range(3)


@dataclass(frozen=True, eq=False)
class GateTable:
    """The gates relative to the comb of ticks, whose even ticks lie half the skew after the early pulses.

    Index 2 * (X arm) + (odd tick): ``centres_ps`` and ``halves_ps`` float64, ``outcomes`` uint8, shape
    ``(4,)``.
    """

    centres_ps: Floats
    halves_ps: Floats
    outcomes: Codes
    skew_ps: float

    @classmethod
    def of(cls, gates: Gates) -> "GateTable":
        """Take the gates' times from the slot to the comb."""
        half_skew = gates.skew_ps / 2.0
        ordered = (gates.early, gates.late, gates.boundary, gates.central)
        comb = (0.0, gates.period_ps / 2.0, 0.0, gates.period_ps / 2.0)
        centres = [gate.centre_ps - tick - half_skew for gate, tick in zip(ordered, comb, strict=True)]
        return cls(
            np.array(centres),
            np.array([gate.half_width_ps for gate in ordered]),
            np.array([OUTCOME_EARLY, OUTCOME_LATE, OUTCOME_BOUNDARY, OUTCOME_CENTRAL], np.uint8),
            gates.skew_ps,
        )

    @property
    def x_offset_ps(self) -> float:
        """Mean of X-arm light relative to the comb, modulo a tick; that of Z-arm light is zero."""
        return float(self.centres_ps[2])


@dataclass(frozen=True, eq=False)
class Accepted:
    """Tags inside gates: slots (ascending, several a slot possible), outcomes, how many were outside."""

    slots: Slots
    outcomes: Codes
    out_of_gate: int


@dataclass(frozen=True, eq=False)
class Singled:
    """Clicks, one a slot, and how many slots had two clicks at one detector, or clicks at both."""

    clicks: Clicks
    double_clicks: int
    cross_clicks: int


@dataclass
class SlipMonitor:
    """Tell a comb that is half a slot off by the bins' uneven spacing.

    With bins 800 ps apart in 1666.7 ps, late pulses seen as early ones sit 33 ps from the gate's centre, on
    the other side than early ones seen as late: the two means differ by twice the skew. An even spacing has
    no such mark, and nothing is ever reported.
    """

    skew_ps: float
    _counts: Integers = field(default_factory=lambda: np.zeros(4, np.int64))
    _sums: Floats = field(default_factory=lambda: np.zeros(3))

    def reset(self) -> None:
        """Forget all clicks."""
        self._counts[:] = 0
        self._sums[:] = 0.0

    def slipped(self) -> bool:
        """Judge the clicks so far; begin anew once they tell either way."""
        n_early, n_late = int(self._counts[_EARLY_N]), int(self._counts[_LATE_N])
        if min(n_early, n_late) < 16:
            return False
        mean_early, mean_late = self._sums[_EARLY_SUM] / n_early, self._sums[_LATE_SUM] / n_late
        n = n_early + n_late
        variance = self._sums[_SQUARES] / n
        error = math.sqrt(variance * (1.0 / n_early + 1.0 / n_late))
        # In step the difference is 0, a half slot off it is -2 skew: measure from the middle, towards the
        # slip.
        towards = (mean_late - mean_early + self.skew_ps) * math.copysign(1.0, -self.skew_ps)
        if abs(towards) < _SLIP_SIGMAS * error:
            if n > _MOST_SLIP_CLICKS:
                self.reset()
            return False
        self.reset()
        return bool(towards > 0.0)


def accept(
    ticks: Integers, residuals_ps: Floats, channels: Channels, ends: Integers, good: npt.NDArray[np.bool_],
    offset: int, first_slot: int, table: GateTable, monitor: SlipMonitor,
) -> Accepted:  # fmt: skip
    """Turn ticks into slots and outcomes, dropping what is outside every gate.

    Tick k is slot (k + offset) // 2. ``ends``: index after the last tag of each sub-interval; only those that
    are ``good`` are looked at, and of them slots from ``first_slot`` on.
    """
    n = ticks.shape[0]
    slots, outcomes = np.empty(n, np.int64), np.empty(n, np.uint8)
    counts, sums = np.zeros(4, np.int64), np.zeros(3)
    _accept(
        ticks, residuals_ps, channels, ends, good, offset, first_slot, table.centres_ps, table.halves_ps,
        table.outcomes, slots, outcomes, counts, sums,
    )  # fmt: skip
    monitor._counts += counts
    monitor._sums += sums
    kept = int(counts[_ACCEPTED])
    return Accepted(slots[:kept], outcomes[:kept], int(counts[_OUTSIDE]))


def one_per_slot(slots: Slots, outcomes: Codes, random: npt.NDArray[np.uint8]) -> Singled:
    """Leave one click in each slot (docs: security model, 6.2).

    Clicks at both detectors: arm and outcome at random. Different clicks at one detector: outcome at random.
    ``random``: uniform bytes, at least as many as `repeats` counts.
    """
    if not repeats(slots):
        return Singled(Clicks(slots, outcomes), 0, 0)
    kept_slots, kept_outcomes, counts = slots.copy(), outcomes.copy(), np.zeros(3, np.int64)
    _one_per_slot(slots, outcomes, random, kept_slots, kept_outcomes, counts)
    n = int(counts[0])
    return Singled(Clicks(kept_slots[:n], kept_outcomes[:n]), int(counts[1]), int(counts[2]))


def repeats(slots: Slots) -> int:
    """Count the clicks that share their slot with the one before."""
    return int(np.count_nonzero(slots[1:] == slots[:-1]))


@kernel
def _accept(
    ticks: Integers, residuals: Floats, channels: Channels, ends: Integers, good: npt.NDArray[np.bool_],
    offset: int, first_slot: int, centres: Floats, halves: Floats, kinds: Codes, slots: Slots,
    outcomes: Codes, counts: Integers, sums: Floats,
) -> None:  # fmt: skip
    n = np.int64(0)
    outside = np.int64(0)
    early_n = np.int64(0)
    late_n = np.int64(0)
    early_sum = 0.0
    late_sum = 0.0
    squares = 0.0
    last = np.int64(first_slot)
    first = 0
    for m in range(ends.size):
        start, first = first, ends[m]
        if not good[m]:
            continue
        # No branch on what a tag is: that is random, and a wrong guess costs more than the work saved.
        for i in range(start, ends[m]):
            k = ticks[i] + offset
            odd = k & 1
            slot = k >> 1
            is_x = np.int64(channels[i] == X_CHANNEL)
            gate = 2 * is_x + odd
            place = residuals[i] - centres[gate]
            half = halves[gate]
            wanted = np.int64(slot >= first_slot)
            # A slot before the last can only come from a correction of the clock between two sub-intervals.
            inside = wanted & np.int64(place >= -half) & np.int64(place < half) & np.int64(slot >= last)
            last = max(last, slot * inside)
            slots[n] = slot
            outcomes[n] = kinds[gate]
            n += inside
            outside += wanted - inside
            late = inside & (1 - is_x) & odd
            early = inside & (1 - is_x) & (1 - odd)
            early_n += early
            late_n += late
            early_sum += place * np.float64(early)
            late_sum += place * np.float64(late)
            squares += place * place * np.float64(early + late)
    counts[_ACCEPTED] = n
    counts[_OUTSIDE] = outside
    counts[_EARLY_N] = early_n
    counts[_LATE_N] = late_n
    sums[_EARLY_SUM] = early_sum
    sums[_LATE_SUM] = late_sum
    sums[_SQUARES] = squares


@kernel
def _one_per_slot(
    slots: Slots, outcomes: Codes, random: Codes, kept_slots: Slots, kept_outcomes: Codes, counts: Integers
) -> None:
    n = 0
    doubles = 0
    crosses = 0
    used = 0
    i = 0
    while i < slots.size:
        seen = np.int64(0)
        j = i
        while j < slots.size and slots[j] == slots[i]:
            seen |= 1 << np.int64(outcomes[j])
            j += 1
        outcome = outcomes[i]
        if j - i > 1:
            draw = np.int64(random[used])
            used += 1
            z_seen = (seen & 3) != 0
            x_seen = (seen & 12) != 0
            if z_seen and x_seen:
                crosses += 1
                outcome = np.uint8(draw & 3)
            else:
                doubles += 1
                if (seen & (seen - 1)) != 0:
                    outcome = np.uint8((0 if z_seen else 2) + (draw & 1))
        kept_slots[n] = slots[i]
        kept_outcomes[n] = outcome
        n += 1
        i = j
    counts[0] = n
    counts[1] = doubles
    counts[2] = crosses
