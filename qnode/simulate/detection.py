"""The compiled loops that find the clicks of the detectors.

Positions are ticks, 2^-28 of a slot, since the knot's first slot; rates and draws are compared as levels,
2^-48 of a mean detection per slot. Arithmetic accepts or rejects a candidate. Rare cases (noise, traps, a
partly blanked slot) are recognised before the look-up of the symbol, so few branches are mispredicted.
"""

import numpy as np
import numpy.typing as npt

from qnode.kernels import inline_kernel, inner_kernel
from qnode.simulate.light import MINUS
from qnode.simulate.randomness import GOLDEN, exponential, mixed, unit
from qnode.simulate.symbols import symbol_bits
from qnode.tags.types import X_PLUS

U = np.uint64
Integers = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]
Counters = npt.NDArray[np.uint64]

TICK_BITS = 28
TICKS_PER_SLOT = 1 << TICK_BITS
WITHIN_SLOT = TICKS_PER_SLOT - 1
LEVELS = 2.0**48
CHANCE_BITS = 20
DRAWS = 1 << 10  # candidates of a detector drawn at once
A_DRAW = U(2 * int(GOLDEN) % 2**64)  # the part of a counter used by one candidate

_TICK_LEVELS = TICKS_PER_SLOT * LEVELS
_LONGEST_GAP = 2.0**61
_NEVER = 1e-3  # a ceiling so low, in levels, that the next event lies beyond any run
_FILLS = 2.0  # added to the level of a candidate whose click would fill a trap
_EIGHT, _SIXTEEN = U(8), U(16)
_FIELD, _STATE, _PLUS = U(0xFFFFFF), U(3), U(X_PLUS)
_SHIFT_62, _SHIFT_63, _ONE = U(62), U(63), U(1)
_CHANCE_MASK = U((1 << CHANCE_BITS) - 1)


@inline_kernel
def _resent(code: np.uint64, eve: np.uint64, intercept_limit: np.uint64) -> np.uint64:
    """Return the symbol that Eve resends for ``code``; ``eve``: random bits for Eve's choices and results."""
    sent, found = code & _STATE, eve >> _SHIFT_63
    measures_x = (eve >> _SHIFT_62) & _ONE
    fits = (sent == _PLUS) == (measures_x == _ONE)
    result = sent if fits else found | (measures_x << _ONE)
    return (code & ~_STATE) | result if (eve & _FIELD) < intercept_limit else code


@inline_kernel
def _arriving(
    key: np.uint64, eve_key: np.uint64, position: int, z_limit: np.uint64, signal_limit: np.uint64,
    intercept_limit: np.uint64,
) -> np.uint64:  # fmt: skip
    """Return the symbol that arrives in the slot of ``position``, as limits are indexed (`set_limits`)."""
    slot = U(position >> TICK_BITS)
    bits = symbol_bits(key, slot, z_limit, signal_limit)
    if intercept_limit > U(0):
        code = bits & ~((bits >> _ONE) & _ONE)
        bits = _resent(code, mixed(slot * GOLDEN + eve_key), intercept_limit)
    return bits


@inner_kernel
def set_limits(light: Reals, minus: bool, limits: Integers, peaks: Integers) -> None:
    """Convert mean detections to running sums over the places, ``limits[d, 8 * place + code]`` in levels.

    Without Eve (``minus`` false) nobody sends |->, and its code means |+>, because `symbol_bits` may return
    it. ``peaks`` gets the sum of the brightest code.
    """
    for d in range(2):
        peaks[d] = 0
        for code in range(8):
            sent = code if minus or code & 3 != MINUS else code - 1
            total = 0.0
            for place in range(3):
                total += light[d, sent, place]
                limits[d, 8 * place + code] = int(total * LEVELS)
            peaks[d] = max(peaks[d], limits[d, 16 + code])


@inner_kernel
def draw(counter: np.uint64, trap_limit: int, gaps: Reals, levels: Reals) -> None:
    """Draw for candidates from ``counter`` on: the gap after each, and its level from 0 to 1.

    If a click would fill a trap, the level is raised by `_FILLS`, which is detected like noise.
    """
    for i in range(gaps.shape[0]):
        first = counter + U(i) * A_DRAW
        second = mixed(first + GOLDEN)
        gaps[i] = exponential(mixed(first))
        levels[i] = unit(second) + np.float64(np.int64(second & _CHANCE_MASK) < trap_limit) * _FILLS


@inline_kernel
def ceiling_of(peak: int, dark: float, release: float, filled: int, blinded: bool) -> float:
    """Return the rate of candidates in levels a slot; blinded detectors have no noise of their own."""
    noise = 0.0 if blinded else dark + np.float64(filled) * release
    return np.float64(peak) + max(noise * LEVELS, _NEVER)


@inline_kernel
def wait_of(ceiling: float) -> float:
    """Return the mean wait for a candidate in ticks."""
    return _TICK_LEVELS / ceiling


@inline_kernel
def whole_ticks(waiting: float) -> int:
    """Return a time to wait in whole ticks."""
    return int(min(waiting, _LONGEST_GAP))


@inline_kernel
def is_saturated(peak: int, dead: int) -> bool:
    """Return whether a click usually blanks the next candidate."""
    return bool(np.float64(peak) * np.float64(dead) > _TICK_LEVELS)


@inline_kernel
def _slot(position: int) -> int:
    """Return the start of the slot of ``position``."""
    return position & ~WITHIN_SLOT


@inline_kernel
def _chosen(condition: int, value: int, otherwise: int) -> int:
    """Return ``value`` if ``condition`` is 1, ``otherwise`` if it is 0, without a branch."""
    return otherwise ^ ((otherwise ^ value) & -condition)


@inline_kernel
def _judged(
    drawn: float, ceiling: float, early: int, middle: int, late: int, peak: int, dark: float, burst: float,
    filled: int, blinded: bool, position: int, live: int, spacing: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Return the position of a candidate's avalanche, whether it clicks, and the number of filled traps.

    ``early``, ``middle``, ``late``: the limits of its symbol; a symbol dimmer than the ceiling may not click.
    ``dark``: noise per slot, including ``burst``, Eve's pulses between the gates. ``live``: the time at which
    the detector is live again.
    """
    level = int(drawn * ceiling)
    avalanche = _slot(position) + (int(level >= early) + int(level >= middle)) * spacing
    clicks = int(level < late)
    if level >= peak or position < _slot(live + WITHIN_SLOT):
        fills = int(drawn >= _FILLS)
        level = int((drawn - _FILLS * np.float64(fills)) * ceiling)
        is_noise = level >= peak
        avalanche = position
        if not is_noise:
            avalanche = _slot(position) + (int(level >= early) + int(level >= middle)) * spacing
        elif np.float64(level - peak) < burst * LEVELS:
            avalanche = _slot(position) + (spacing + TICKS_PER_SLOT) // 2
        clicks = int((is_noise or level < late) and avalanche >= live)
        if clicks and not blinded:
            filled += fills - int(is_noise and np.float64(level - peak) >= dark * LEVELS and filled > 0)
    return avalanche, clicks, filled


@inline_kernel
def detect(
    d: int, end: int,
    positions: Integers, lives: Integers, traps: Integers, used: Integers, counters: Counters,
    gaps: Reals, levels: Reals,
    limits: Integers, peak: int, dark: float, burst: float, release: float, trap_limit: int,
    dead: int, spacing: int,
    key: np.uint64, z_limit: np.uint64, signal_limit: np.uint64, eve_key: np.uint64,
    intercept_limit: np.uint64, blinded: bool,
    avalanches: Integers, ends: Integers,
) -> None:  # fmt: skip
    """Advance detector ``d`` alone to the tick ``end``: best for a detector that is mostly live.

    The next candidate is drawn from the last one on, without waiting for its outcome. If it is blanked,
    another one is drawn from the time at which the detector is live again. This is exact, because waits have
    no memory.
    """
    position, live, filled = int(positions[d]), int(lives[d]), int(traps[d])
    at, n = U(used[d]), U(ends[d])
    ceiling = ceiling_of(peak, dark, release, filled, blinded)
    wait = wait_of(ceiling)
    reach = max(_slot(dead), TICKS_PER_SLOT)
    start = 0
    while position < end:
        if at >= U(DRAWS - 1):
            counters[d] += at * A_DRAW
            draw(counters[d], trap_limit, gaps[d], levels[d])
            at = U(0)
        code = _arriving(key, eve_key, position, z_limit, signal_limit, intercept_limit)
        avalanche, clicks, filled_then = _judged(
            levels[d, at], ceiling, limits[d, code], limits[d, code + _EIGHT], limits[d, code + _SIXTEEN],
            peak, dark, burst, filled, blinded, position, live, spacing,
        )  # fmt: skip
        if filled_then != filled:
            filled = filled_then
            ceiling = ceiling_of(peak, dark, release, filled, blinded)
            wait = wait_of(ceiling)
        avalanches[d, n] = avalanche
        n += U(clicks)
        live = _chosen(clicks, max(avalanche + dead, _slot(position) + TICKS_PER_SLOT), live)
        start = _chosen(clicks, _slot(position) + reach, start)
        position += whole_ticks(gaps[d, at] * wait)
        at += _ONE
        if position < start:
            position = start + whole_ticks(gaps[d, at] * wait)
            at += _ONE
    positions[d], lives[d], traps[d], used[d], ends[d] = position, live, filled, int(at), int(n)


@inline_kernel
def _advanced(
    drawn: float, gap: float, ceiling: float, wait: float, early: int, middle: int, late: int, peak: int,
    dark: float, burst: float, release: float, filled: int, blinded: bool, position: int, live: int,
    dead: int, spacing: int,
) -> tuple[int, int, int, int, int, float, float]:  # fmt: skip
    """Decide a candidate and advance to the next: after the dead time if it clicked, else after itself.

    Returns its avalanche, whether it clicked, and the new position, live, filled, ceiling and wait.
    """
    avalanche, clicks, filled_then = _judged(
        drawn, ceiling, early, middle, late, peak, dark, burst, filled, blinded, position, live, spacing
    )
    if filled_then != filled:
        filled = filled_then
        ceiling = ceiling_of(peak, dark, release, filled, blinded)
        wait = wait_of(ceiling)
    live = _chosen(clicks, max(avalanche + dead, _slot(position) + TICKS_PER_SLOT), live)
    start = _chosen(clicks, _slot(position) + max(_slot(dead), TICKS_PER_SLOT), position)
    return avalanche, clicks, start + whole_ticks(gap * wait), live, filled, ceiling, wait


@inline_kernel
def detect_saturated(
    end: int,
    positions: Integers, lives: Integers, traps: Integers, used: Integers, counters: Counters,
    gaps: Reals, levels: Reals,
    limits: Integers, peaks: Integers, dark: Reals, bursts: Reals, release: Reals, trap_limits: Integers,
    dead: Integers, spacing: int,
    key: np.uint64, z_limit: np.uint64, signal_limit: np.uint64, eve_key: np.uint64,
    intercept_limit: np.uint64, blinded: bool,
    avalanches: Integers, ends: Integers,
) -> None:  # fmt: skip
    """Advance both detectors until one is at the tick ``end``: best if both are mostly blanked.

    The position of the next candidate depends on the outcome of the last one, a long chain of operations. The
    chains of both detectors run side by side.
    """
    z, z_live, z_filled = int(positions[0]), int(lives[0]), int(traps[0])
    x, x_live, x_filled = int(positions[1]), int(lives[1]), int(traps[1])
    z_at, z_n, x_at, x_n = U(used[0]), U(ends[0]), U(used[1]), U(ends[1])
    z_peak, z_dark, z_burst, z_release, z_dead = int(peaks[0]), dark[0], bursts[0], release[0], int(dead[0])
    x_peak, x_dark, x_burst, x_release, x_dead = int(peaks[1]), dark[1], bursts[1], release[1], int(dead[1])
    z_ceiling = ceiling_of(z_peak, z_dark, z_release, z_filled, blinded)
    x_ceiling = ceiling_of(x_peak, x_dark, x_release, x_filled, blinded)
    z_wait, x_wait = wait_of(z_ceiling), wait_of(x_ceiling)
    while z < end and x < end:
        if z_at >= U(DRAWS):
            counters[0] += z_at * A_DRAW
            draw(counters[0], trap_limits[0], gaps[0], levels[0])
            z_at = U(0)
        if x_at >= U(DRAWS):
            counters[1] += x_at * A_DRAW
            draw(counters[1], trap_limits[1], gaps[1], levels[1])
            x_at = U(0)
        z_code = _arriving(key, eve_key, z, z_limit, signal_limit, intercept_limit)
        x_code = _arriving(key, eve_key, x, z_limit, signal_limit, intercept_limit)
        avalanche, clicks, z, z_live, z_filled, z_ceiling, z_wait = _advanced(
            levels[0, z_at], gaps[0, z_at], z_ceiling, z_wait,
            limits[0, z_code], limits[0, z_code + _EIGHT], limits[0, z_code + _SIXTEEN], z_peak,
            z_dark, z_burst, z_release, z_filled, blinded, z, z_live, z_dead, spacing,
        )  # fmt: skip
        avalanches[0, z_n] = avalanche
        z_n += U(clicks)
        z_at += _ONE
        avalanche, clicks, x, x_live, x_filled, x_ceiling, x_wait = _advanced(
            levels[1, x_at], gaps[1, x_at], x_ceiling, x_wait,
            limits[1, x_code], limits[1, x_code + _EIGHT], limits[1, x_code + _SIXTEEN], x_peak,
            x_dark, x_burst, x_release, x_filled, blinded, x, x_live, x_dead, spacing,
        )  # fmt: skip
        avalanches[1, x_n] = avalanche
        x_n += U(clicks)
        x_at += _ONE
    positions[0], lives[0], traps[0], used[0], ends[0] = z, z_live, z_filled, int(z_at), int(z_n)
    positions[1], lives[1], traps[1], used[1], ends[1] = x, x_live, x_filled, int(x_at), int(x_n)


@inline_kernel
def detect_one_saturated(
    d: int, end: int,
    positions: Integers, lives: Integers, traps: Integers, used: Integers, counters: Counters,
    gaps: Reals, levels: Reals,
    limits: Integers, peak: int, dark: float, burst: float, release: float, trap_limit: int,
    dead: int, spacing: int,
    key: np.uint64, z_limit: np.uint64, signal_limit: np.uint64, eve_key: np.uint64,
    intercept_limit: np.uint64, blinded: bool,
    avalanches: Integers, ends: Integers,
) -> None:  # fmt: skip
    """Advance detector ``d`` alone to the tick ``end``, like `detect_saturated`."""
    position, live, filled = int(positions[d]), int(lives[d]), int(traps[d])
    at, n = U(used[d]), U(ends[d])
    ceiling = ceiling_of(peak, dark, release, filled, blinded)
    wait = wait_of(ceiling)
    while position < end:
        if at >= U(DRAWS):
            counters[d] += at * A_DRAW
            draw(counters[d], trap_limit, gaps[d], levels[d])
            at = U(0)
        code = _arriving(key, eve_key, position, z_limit, signal_limit, intercept_limit)
        avalanche, clicks, position, live, filled, ceiling, wait = _advanced(
            levels[d, at], gaps[d, at], ceiling, wait,
            limits[d, code], limits[d, code + _EIGHT], limits[d, code + _SIXTEEN], peak,
            dark, burst, release, filled, blinded, position, live, dead, spacing,
        )  # fmt: skip
        avalanches[d, n] = avalanche
        n += U(clicks)
        at += _ONE
    positions[d], lives[d], traps[d], used[d], ends[d] = position, live, filled, int(at), int(n)


@inline_kernel
def detect_jointly(
    end: int,
    positions: Integers, lives: Integers, traps: Integers, used: Integers, counters: Counters,
    gaps: Reals, levels: Reals,
    limits: Integers, peaks: Integers, dark: Reals, bursts: Reals, release: Reals, trap_limits: Integers,
    dead: Integers, spacing: int,
    key: np.uint64, z_limit: np.uint64, signal_limit: np.uint64, eve_key: np.uint64,
    intercept_limit: np.uint64, blinded: bool,
    ceilings: Reals, avalanches: Integers, ends: Integers,
) -> None:  # fmt: skip
    """Advance both detectors to the tick ``end`` if a click blanks both: the earlier one first."""
    for d in range(2):
        ceilings[d] = ceiling_of(peaks[d], dark[d], release[d], traps[d], blinded)
    while True:
        d = int(positions[1] >> TICK_BITS < positions[0] >> TICK_BITS)
        other = 1 - d
        position = int(positions[d])
        if position >= end:
            break
        for i in range(2):
            if used[i] >= DRAWS - 1:
                counters[i] += U(used[i]) * A_DRAW
                draw(counters[i], trap_limits[i], gaps[i], levels[i])
                used[i] = 0
        at = used[d]
        code = _arriving(key, eve_key, position, z_limit, signal_limit, intercept_limit)
        avalanche, clicks, filled = _judged(
            levels[d, at], ceilings[d],
            limits[d, code], limits[d, code + _EIGHT], limits[d, code + _SIXTEEN],
            peaks[d], dark[d], bursts[d], traps[d], blinded, position, lives[d], spacing,
        )  # fmt: skip
        if filled != traps[d]:
            traps[d] = filled
            ceilings[d] = ceiling_of(peaks[d], dark[d], release[d], filled, blinded)
        avalanches[d, ends[d]] = avalanche
        ends[d] += clicks
        lives[d] = _chosen(clicks, max(avalanche + dead[d], _slot(position) + TICKS_PER_SLOT), lives[d])
        start = _chosen(clicks, _slot(position) + max(_slot(dead[d]), TICKS_PER_SLOT), position)
        positions[d] = start + whole_ticks(gaps[d, at] * wait_of(ceilings[d]))
        used[d] += 1
        if clicks:
            lives[other] = avalanche + dead[other]
            if positions[other] < _slot(lives[other]):
                gap = gaps[other, used[other]]
                positions[other] = _slot(lives[other]) + whole_ticks(gap * wait_of(ceilings[other]))
                used[other] += 1
