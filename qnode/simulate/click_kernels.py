"""The compiled loops of the click generator: knot after knot, detect, merge, tag.

The clicks of each detector are found separately, because only a joint hold-off connects the two. Then both
streams are merged, and each click gets its jitter.
"""

import numpy as np

from qnode.kernels import inner_kernel, kernel
from qnode.simulate.detection import (
    A_DRAW,
    CHANCE_BITS,
    DRAWS,
    TICK_BITS,
    TICKS_PER_SLOT,
    WITHIN_SLOT,
    Counters,
    Integers,
    Reals,
    ceiling_of,
    detect,
    detect_jointly,
    detect_one_saturated,
    detect_saturated,
    draw,
    is_saturated,
    set_limits,
    wait_of,
    whole_ticks,
)
from qnode.simulate.jitter import TABLE_BITS, normal_quantiles
from qnode.simulate.light import BLINDED, CAREFUL, fill_light
from qnode.simulate.randomness import GOLDEN, exponential, mixed
from qnode.tags.types import X_CHANNEL, Z_CHANNEL, Channels, Times

U = np.uint64

_FOREVER = 1 << 62
_FRACTION_BITS = 13
_NORMAL = normal_quantiles()
_NORMAL_SHIFT = U(64 - TABLE_BITS)
_FRACTION_SHIFT, _FRACTION_MASK, _FRACTION_UNIT = U(40), U((1 << _FRACTION_BITS) - 1), 2.0**-_FRACTION_BITS
QUARTER_SLOT = TICKS_PER_SLOT >> 2
# Bits of Eve's choices that `detection` does not use.
_SIDE_SHIFT, _LATE_SHIFT, _LATE_MASK, _ONE = U(61), U(32), U(0xFFFFFF), U(1)
_CHANCE_MASK = U((1 << CHANCE_BITS) - 1)


@inner_kernel
def _merge(avalanches: Integers, ends: Integers, merged: Integers, channels: Channels) -> None:
    """Bring the clicks ``avalanches[d, 1 : ends[d]]`` in order, the Z detector's first where they are equal.

    The merge runs from both ends towards the middle, so that two chains of comparisons run side by side.
    """
    avalanches[:, 0] = -_FOREVER
    for d in range(2):
        avalanches[d, ends[d]] = _FOREVER
    z, x, z_last, x_last = 1, 1, int(ends[0]) - 1, int(ends[1]) - 1
    count = merged.shape[0]
    for k in range((count + 1) // 2):
        in_z, in_x = avalanches[0, U(z)], avalanches[1, U(x)]
        is_x = int(in_x < in_z)
        last_in_z, last_in_x = avalanches[0, U(z_last)], avalanches[1, U(x_last)]
        last_is_x = int(last_in_x >= last_in_z)
        merged[count - 1 - k] = max(last_in_z, last_in_x)
        channels[count - 1 - k] = Z_CHANNEL + last_is_x * (X_CHANNEL - Z_CHANNEL)
        merged[k] = min(in_z, in_x)
        channels[k] = Z_CHANNEL + is_x * (X_CHANNEL - Z_CHANNEL)
        x += is_x
        z += 1 - is_x
        x_last -= last_is_x
        z_last -= 1 - last_is_x


@inner_kernel
def _one_a_slot(merged: Integers, channels: Channels) -> int:
    """Drop a click if the one before is in the same slot at the other arm; return how many remain.

    Bob's slots begin a quarter before the early pulse. A dropped click has still made its detector dead. This
    has little effect if few slots have two clicks.
    """
    kept, last, last_channel = 0, -_FOREVER, channels.dtype.type(-1)
    for i in range(merged.shape[0]):
        slot = (merged[i] + QUARTER_SLOT) >> TICK_BITS
        if slot == last and channels[i] != last_channel:
            continue
        merged[kept], channels[kept] = merged[i], channels[i]
        last, last_channel = slot, channels[i]
        kept += 1
    return kept


@inner_kernel
def _move(eve_key: np.uint64, shift: int, late_limit: np.uint64, merged: Integers) -> None:
    """Apply Eve's time shifts: each slot early or late by ``shift``, some of them later by a quarter slot."""
    for i in range(merged.shape[0]):
        eve = mixed(U(merged[i] >> TICK_BITS) * GOLDEN + eve_key)
        side = np.int64((eve >> _SIDE_SHIFT) & _ONE) * 2 - 1
        late = np.int64(((eve >> _LATE_SHIFT) & _LATE_MASK) < late_limit)
        merged[i] += side * shift + late * QUARTER_SLOT


@inner_kernel
def _tag(
    counter: np.uint64, seconds: int, offset: float, ps_per_tick: float, sigma: float, tail_limit: int,
    tail: float, times_ps: Times,
) -> None:  # fmt: skip
    """Convert ticks to time tags in place: the straight line of the clock, and the jitter of each click."""
    for i in range(times_ps.shape[0]):
        first = counter + U(i) * A_DRAW
        bits = mixed(first)
        cell = np.int64(bits >> _NORMAL_SHIFT)
        part = np.float64(np.int64((bits >> _FRACTION_SHIFT) & _FRACTION_MASK)) * _FRACTION_UNIT
        late = sigma * (_NORMAL[cell] + part * (_NORMAL[cell + 1] - _NORMAL[cell]))
        delayed = np.float64(np.int64(np.int64(bits & _CHANCE_MASK) < tail_limit))
        late += delayed * tail * exponential(mixed(first + GOLDEN))
        times_ps[i] = seconds + np.int64(
            np.floor(offset + ps_per_tick * np.float64(times_ps[i]) + late + 0.5)
        )


@kernel
def fill_knots(
    counters: Counters, positions: Integers, lives: Integers, traps: Integers, place: Integers,
    first_slots: Integers, seconds_ps: Integers, offsets_ps: Reals, slopes: Reals, until: int,
    period: float, dark: Reals, bursts: Reals, release: Reals, trap_limits: Integers, dead: Integers,
    joint: bool, spacing: int, sigma: float, tail_limit: int, tail: float,
    segment_slots: int, segment_clicks: int,
    arriving: Reals, contrasts: Reals, wrong_bins: Reals, key: np.uint64, slot_offset: int,
    z_limit: np.uint64, signal_limit: np.uint64, eve_key: np.uint64, intercept_limit: np.uint64,
    damping: float, maker: int, shift: int, late_limit: np.uint64,
    times_ps: Times, channels: Channels,
) -> int:  # fmt: skip
    """Implement `qnode.simulate.clicks.fill`."""
    light, limits, peaks = np.zeros((2, 8, 3)), np.zeros((2, 24), np.int64), np.zeros(2, np.int64)
    gaps, levels = np.empty((2, DRAWS)), np.empty((2, DRAWS))
    for d in range(2):
        draw(counters[d], trap_limits[d], gaps[d], levels[d])
    used, ends, ceilings = np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(2)
    avalanches = np.empty((2, segment_clicks + 2), np.int64)
    contrast = wrong_bin = np.nan
    blinded = maker == BLINDED
    moved = shift > 0 or late_limit > U(0)
    n = 0
    while place[0] < until:
        knot = place[0]
        first = U(first_slots[knot] + slot_offset) * GOLDEN
        length = first_slots[knot + 1] - first_slots[knot]
        if contrasts[knot] != contrast or wrong_bins[knot] != wrong_bin:
            contrast, wrong_bin = contrasts[knot], wrong_bins[knot]
            fill_light(arriving, contrast, wrong_bin, damping, maker, light)
            set_limits(light, bool(intercept_limit > U(0)), limits, peaks)
        if place[1] == 0:
            place[1], place[2] = 1, 0
            for d in range(2):
                if used[d] == DRAWS:
                    counters[d] += U(DRAWS) * A_DRAW
                    draw(counters[d], trap_limits[d], gaps[d], levels[d])
                    used[d] = 0
                ceiling = ceiling_of(peaks[d], dark[d], release[d], traps[d], blinded)
                positions[d] = (lives[d] & ~WITHIN_SLOT) + whole_ticks(gaps[d, used[d]] * wait_of(ceiling))
                used[d] += 1
        saturated = is_saturated(peaks[0], dead[0]) and is_saturated(peaks[1], dead[1])
        while place[2] < length and n + 2 * segment_clicks <= times_ps.shape[0]:
            place[2] = min(length, place[2] + segment_slots)
            end = place[2] << TICK_BITS
            ends[:] = 1
            if joint:
                detect_jointly(
                    end,
                    positions, lives, traps, used, counters, gaps, levels,
                    limits, peaks, dark, bursts, release, trap_limits, dead, spacing,
                    key + first, z_limit, signal_limit, eve_key + first, intercept_limit, blinded,
                    ceilings, avalanches, ends,
                )  # fmt: skip
            elif saturated:
                detect_saturated(
                    end,
                    positions, lives, traps, used, counters, gaps, levels,
                    limits, peaks, dark, bursts, release, trap_limits, dead, spacing,
                    key + first, z_limit, signal_limit, eve_key + first, intercept_limit, blinded,
                    avalanches, ends,
                )  # fmt: skip
                for d in range(2):
                    detect_one_saturated(
                        d, end,
                        positions, lives, traps, used, counters, gaps, levels,
                        limits, peaks[d], dark[d], bursts[d], release[d], trap_limits[d], dead[d], spacing,
                        key + first, z_limit, signal_limit, eve_key + first, intercept_limit, blinded,
                        avalanches, ends,
                    )  # fmt: skip
            else:
                for d in range(2):
                    detect(
                        d, end,
                        positions, lives, traps, used, counters, gaps, levels,
                        limits, peaks[d], dark[d], bursts[d], release[d], trap_limits[d], dead[d], spacing,
                        key + first, z_limit, signal_limit, eve_key + first, intercept_limit, blinded,
                        avalanches, ends,
                    )  # fmt: skip
            m = ends[0] + ends[1] - 2
            _merge(avalanches, ends, times_ps[n : n + m], channels[n : n + m])
            if maker == CAREFUL:
                m = _one_a_slot(times_ps[n : n + m], channels[n : n + m])
            if moved:
                _move(eve_key + first, shift, late_limit, times_ps[n : n + m])
            _tag(
                counters[2], seconds_ps[knot], offsets_ps[knot], slopes[knot] * period / TICKS_PER_SLOT,
                sigma, tail_limit, tail, times_ps[n : n + m],
            )  # fmt: skip
            counters[2] += U(m) * A_DRAW
            n += m
        if place[2] < length:
            break
        for d in range(2):
            lives[d] = max(0, int(lives[d]) - (length << TICK_BITS))
        place[0] += 1
        place[1] = 0
    for d in range(2):
        counters[d] += U(used[d]) * A_DRAW
    return n
