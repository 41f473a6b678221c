"""The click kernel: from click to click, never over the empty slots between.

Each detector sees a Poisson process with a constant ceiling (brightest symbol plus noise). The kernel draws
the gap to the next event under that ceiling, looks up which symbol the slot carries, and keeps the event with
the right probability; after a click the next draw starts where the detector is live again, so that a
saturated detector costs no more than an idle one. Draws are memoryless, hence the state is small: a random
counter and, for each detector, where the next event lies, until when it is blanked and how many traps are
filled.

A detector clicks at most once in a slot. Clicks come in the order of their avalanches: jitter may put the
time tags of close clicks out of order.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qnode.kernels import inline_kernel, kernel
from qnode.simulate.jitter import CLIPPED_SIGMAS, TABLE_BITS, normal_quantiles
from qnode.simulate.light import fill_light
from qnode.simulate.randomness import GOLDEN, exponential_first_try, exponential_retry, mixed
from qnode.simulate.symbols import symbol_code
from qnode.tags.types import X_CHANNEL, X_PLUS, Z_CHANNEL, Channels, Times

U = np.uint64
Integers = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

_UNIT_32 = 2.0**-32
_LOW_32, _FIELD, _STATE = U(0xFFFFFFFF), U(0xFFFFFF), U(3)
_SHIFT_24, _SHIFT_32, _SHIFT_62, _SHIFT_63, _ONE = U(24), U(32), U(62), U(63), U(1)
_PLUS = U(X_PLUS)
_FRACTION_BITS = 13
_NORMAL_SHIFT, _FRACTION_MASK, _FRACTION_UNIT = (
    U(64 - TABLE_BITS),
    U((1 << _FRACTION_BITS) - 1),
    2.0**-_FRACTION_BITS,
)
_FRACTION_SHIFT, _TAIL_SHIFT, _CHANCE_MASK = U(40), U(20), U(0xFFFFF)
_NORMAL = normal_quantiles()
_NEVER = 1e-15  # a ceiling so low that the next event lies beyond any run
EARLIEST_SIGMAS = CLIPPED_SIGMAS


@dataclass(frozen=True, eq=False)
class ClickState:
    """All that the kernel remembers between calls; index 0 is the Z detector, 1 the X detector.

    ``random``: uint64 ``(1,)``. ``slots``, ``fractions``: next event, in slots since tag time zero.
    ``live_slots``, ``live_ps``: when the detector is live again. ``traps``: filled traps.
    ``place``: int64 ``(2,)``, the knot that is being worked on and whether it was entered.
    """

    random: npt.NDArray[np.uint64]
    slots: Integers
    fractions: Reals
    live_slots: Integers
    live_ps: Reals
    traps: Integers
    place: Integers

    @classmethod
    def seeded(cls, seed: int) -> "ClickState":
        """Return the state at tag time zero."""
        return cls(
            np.array([seed], np.uint64),
            np.zeros(2, np.int64),
            np.zeros(2),
            np.zeros(2, np.int64),
            np.zeros(2),
            np.zeros(2, np.int64),
            np.zeros(2, np.int64),
        )


@dataclass(frozen=True, eq=False)
class Knots:
    """Stretches of about 10 ms in which clocks and drifts are straight lines; one row a knot.

    ``first_slots`` has one entry more than the rest: the end of the last knot. Slot s of knot k is tagged at
    ``seconds_ps[k] + offsets_ps[k] + slopes[k] * (s - first_slots[k]) * period``. ``phases_rad`` and
    ``biases_rad``: where interferometer and modulator have drifted to.
    """

    first_slots: Integers
    seconds_ps: Integers
    offsets_ps: Reals
    slopes: Reals
    phases_rad: Reals
    biases_rad: Reals


@dataclass(frozen=True, eq=False)
class Receiver:
    """The detectors in units of slots; every array has one entry a detector."""

    period_ps: float
    spacing_ps: float
    dark: Reals  # dark counts a slot
    release: Reals  # chance a slot that a filled trap is released
    trap_limit: Integers  # chance of filling a trap, in units of 2^-20
    dead_slots: Integers
    dead_ps: Reals  # remainder of the dead time
    joint: bool
    sigma_ps: float
    tail_limit: int  # in units of 2^-20
    tail_ps: float


@dataclass(frozen=True, eq=False)
class Emission:
    """What is sent, and what Eve does. ``slot_offset``: the run's slot number at tag time zero.

    ``arriving``: see `fill_light`. ``contrasts``, ``wrong_bins``: one entry a knot.
    """

    arriving: Reals
    contrasts: Reals
    wrong_bins: Reals
    key: int
    slot_offset: int
    z_limit: int
    signal_limit: int
    eve_key: int
    intercept_limit: int  # in units of 2^-24
    damping: float
    blinded: bool


def fill(
    state: ClickState,
    knots: Knots,
    until: int,
    receiver: Receiver,
    emission: Emission,
    times_ps: Times,
    channels: Channels,
) -> int:
    """Write the clicks of the knots from ``state.place`` to ``until``, return how many; stop early when full.

    ``state.place[0] == until`` afterwards means that all of them were written.
    """
    return int(
        _fill(
            state.random, state.slots, state.fractions, state.live_slots, state.live_ps, state.traps,
            state.place,
            knots.first_slots, knots.seconds_ps, knots.offsets_ps, knots.slopes,
            until,
            receiver.period_ps, receiver.spacing_ps, receiver.dark, receiver.release, receiver.trap_limit,
            receiver.dead_slots, receiver.dead_ps, receiver.joint,
            receiver.sigma_ps, receiver.tail_limit, receiver.tail_ps,
            emission.arriving, emission.contrasts, emission.wrong_bins,
            U(emission.key), emission.slot_offset,
            U(emission.z_limit), U(emission.signal_limit),
            U(emission.eve_key), U(emission.intercept_limit), emission.damping, emission.blinded,
            times_ps, channels,
        )
    )  # fmt: skip


@inline_kernel
def _exponential(counter: np.uint64) -> tuple[float, np.uint64]:
    """Return an Exp(1) variable and the advanced counter."""
    counter += GOLDEN
    bits = mixed(counter)
    value = exponential_first_try(bits)
    if value < 0.0:
        value, counter = exponential_retry(bits, counter)
    return value, counter


@inline_kernel
def _resent(code: np.uint64, eve: np.uint64, intercept_limit: np.uint64) -> np.uint64:
    """Return what leaves Eve when ``code`` arrives; her choices and results are the random bits ``eve``."""
    sent, found = code & _STATE, eve >> _SHIFT_63
    measures_x = (eve >> _SHIFT_62) & _ONE
    fits = (sent == _PLUS) == (measures_x == _ONE)
    result = sent if fits else found | (measures_x << _ONE)
    return (code & ~_STATE) | result if (eve & _FIELD) < intercept_limit else code


@kernel
def _thresholds(light: Reals, thresholds: Reals, peaks: Reals) -> None:
    """Turn mean detections into running sums over the places; ``peaks`` gets the brightest code's total."""
    for d in range(2):
        peaks[d] = 0.0
        for code in range(8):
            total = 0.0
            for place in range(3):
                total += light[d, code, place]
                thresholds[d, code, place] = total
            peaks[d] = max(peaks[d], total)


@kernel
def _fill(
    random: npt.NDArray[np.uint64], slots: Integers, fractions: Reals, live_slots: Integers, live_ps: Reals,
    traps: Integers, place: Integers,
    first_slots: Integers, seconds_ps: Integers, offsets_ps: Reals, slopes: Reals, until: int,
    period: float, spacing: float, dark: Reals, release: Reals, trap_limit: Integers, dead_slots: Integers,
    dead_ps: Reals, joint: bool, sigma: float, tail_limit: int, tail: float,
    arriving: Reals, contrasts: Reals, wrong_bins: Reals, key: np.uint64, slot_offset: int,
    z_limit: np.uint64, signal_limit: np.uint64, eve_key: np.uint64, intercept_limit: np.uint64,
    damping: float, blinded: bool,
    times_ps: Times, channels: Channels,
) -> int:  # fmt: skip
    light = np.zeros((2, 8, 3))
    thresholds = np.zeros((2, 8, 3))
    peaks, totals, scales = np.zeros(2), np.zeros(2), np.zeros(2)
    counter = random[0]  # in a register: helpers take and return scalars, as an array argument costs dearly
    n = np.int64(0)
    while place[0] < until:
        knot = place[0]
        first, end = first_slots[knot], first_slots[knot + 1]
        fill_light(arriving, contrasts[knot], wrong_bins[knot], damping, blinded, light)
        _thresholds(light, thresholds, peaks)
        for i in range(2):
            noise = 0.0 if blinded else dark[i] + np.float64(traps[i]) * release[i]
            totals[i] = max(peaks[i] + noise, _NEVER)
            scales[i] = 1.0 / totals[i]
        if place[1] == 0:
            place[1] = 1
            for i in range(2):
                gap, counter = _exponential(counter)
                reach = gap * scales[i]
                slots[i] = max(first, live_slots[i]) + np.int64(reach)
                fractions[i] = reach - np.floor(reach)
        seconds, offset, slope = seconds_ps[knot], offsets_ps[knot], slopes[knot]
        while True:
            # The detector that is behind goes on until it has overtaken the other; its state in registers.
            d = np.int64(slots[1] < slots[0])
            other = 1 - d
            bound = min(end, slots[other] + other)
            slot, fraction = slots[d], fractions[d]
            if slot >= end:
                break
            live_slot, live_from = live_slots[d], live_ps[d]
            peak, total, scale = peaks[d], totals[d], scales[d]
            while slot < bound:
                if n == times_ps.shape[0]:
                    slots[d], fractions[d], live_slots[d], live_ps[d] = slot, fraction, live_slot, live_from
                    random[0] = counter
                    return int(n)
                counter += GOLDEN
                bits = mixed(counter)
                level = np.float64(np.int64(bits >> _SHIFT_32)) * _UNIT_32 * total
                is_noise = level >= peak
                if is_noise:
                    time = fraction * period
                else:
                    code = symbol_code(key, slot + slot_offset, z_limit, signal_limit)
                    if intercept_limit > U(0):
                        code = _resent(code, mixed(U(slot + slot_offset) * GOLDEN + eve_key), intercept_limit)
                    row = np.int64(code)
                    index = (
                        np.int64(level >= thresholds[d, row, 0])
                        + np.int64(level >= thresholds[d, row, 1])
                        + np.int64(level >= thresholds[d, row, 2])
                    )
                    time = np.float64(index) * spacing if index < 3 else -1.0
                if time < (live_from if slot == live_slot else 0.0):
                    # A dimmer symbol than the ceiling, or the detector was still blanked.
                    gap, counter = _exponential(counter)
                    reach = fraction + gap * scale
                    whole = np.int64(reach)
                    slot += whole
                    fraction = reach - np.float64(whole)
                    continue

                counter += GOLDEN
                bits = mixed(counter)
                cell = np.int64(bits >> _NORMAL_SHIFT)
                part = np.float64(np.int64((bits >> _FRACTION_SHIFT) & _FRACTION_MASK)) * _FRACTION_UNIT
                late = sigma * (_NORMAL[cell] + part * (_NORMAL[cell + 1] - _NORMAL[cell]))
                if np.int64((bits >> _TAIL_SHIFT) & _CHANCE_MASK) < tail_limit:
                    delay, counter = _exponential(counter)
                    late += tail * delay
                since = offset + slope * (np.float64(slot - first) * period + time) + late
                times_ps[n] = seconds + np.int64(np.floor(since + 0.5))
                channels[n] = X_CHANNEL if d == 1 else Z_CHANNEL
                n += 1

                released = np.int64(is_noise and level - peak >= dark[d] and traps[d] > 0)
                filled = np.int64(np.int64(bits & _CHANCE_MASK) < trap_limit[d])
                if released != filled and not blinded:
                    traps[d] += filled - released
                    total = max(peak + dark[d] + np.float64(traps[d]) * release[d], _NEVER)
                    scale = 1.0 / total
                    totals[d], scales[d] = total, scale
                over = time + dead_ps[d]
                carry = np.int64(over >= period)
                clicked = slot
                live_slot, live_from = slot + dead_slots[d] + carry, over - np.float64(carry) * period
                if live_slot == clicked:  # at most one click a slot
                    live_slot, live_from = clicked + 1, 0.0
                gap, counter = _exponential(counter)
                reach = gap * scale
                whole = np.int64(reach)
                slot, fraction = live_slot + whole, reach - np.float64(whole)
                if joint:
                    over = time + dead_ps[other]
                    carry = np.int64(over >= period)
                    live_slots[other] = clicked + dead_slots[other] + carry
                    live_ps[other] = over - np.float64(carry) * period
                    gap, counter = _exponential(counter)
                    reach = gap * scales[other]
                    whole = np.int64(reach)
                    slots[other] = live_slots[other] + whole
                    fractions[other] = reach - np.float64(whole)
                    break
            slots[d], fractions[d], live_slots[d], live_ps[d] = slot, fraction, live_slot, live_from
        place[0] += 1
        place[1] = 0
    random[0] = counter
    return int(n)
