"""The clicks of the receiver, generated from click to click without visiting empty slots.

Each detector sees a Poisson process with a constant ceiling (brightest symbol plus noise). The kernel draws
the gap to the next candidate under that ceiling, looks up which symbol the slot carries, and keeps the
candidate with the right probability; after a click the next draw starts where the detector is live again, so
a saturated detector costs no more than an idle one. Draws are memoryless, so the state is small: a
counter of draws and, for each detector, the position of the next candidate, the end of the blanking and the
number of filled traps.

A detector clicks at most once in a slot. Clicks come in the order of their avalanches: jitter may put the
time tags of close clicks out of order.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qnode.simulate.click_kernels import fill_knots
from qnode.simulate.detection import Integers, Reals
from qnode.tags.types import Channels, Times

U = np.uint64


@dataclass(frozen=True, eq=False)
class ClickState:
    """The state of the kernel between calls; index 0 is the Z detector, 1 the X detector.

    ``counters``: uint64 ``(3,)``, the draws of the detectors and those of the clicks' jitter. ``positions``:
    next candidate, in ticks since the present knot began. ``lives``: tick from which the detector is live.
    ``traps``: filled traps. ``place``: int64 ``(3,)``, the present knot, whether it was
    entered, and its slot up to which all clicks were written.
    """

    counters: npt.NDArray[np.uint64]
    positions: Integers
    lives: Integers
    traps: Integers
    place: Integers

    @classmethod
    def seeded(cls, seed: int) -> "ClickState":
        """Return the state at tag time zero."""
        counters = np.random.SeedSequence(seed).generate_state(3, np.uint64).astype(np.uint64)
        positions, lives, traps = (np.zeros(2, np.int64) for _ in range(3))
        return cls(counters, positions, lives, traps, np.zeros(3, np.int64))


@dataclass(frozen=True, eq=False)
class Knots:
    """Stretches of about 10 ms in which clocks and drifts are straight lines; one row a knot.

    ``first_slots`` has one entry more than the rest: the end of the last knot. Slot s of knot k is tagged at
    ``seconds_ps[k] + offsets_ps[k] + slopes[k] * (s - first_slots[k]) * period``. ``phases_rad`` and
    ``biases_rad``: the drifts of interferometer and modulator.
    """

    first_slots: Integers
    seconds_ps: Integers
    offsets_ps: Reals
    slopes: Reals
    phases_rad: Reals
    biases_rad: Reals


@dataclass(frozen=True, eq=False)
class Receiver:
    """The detectors in units of slots and ticks; every array has one entry a detector.

    ``segment_slots``: the number of slots processed at once. ``segment_clicks``: the largest number of clicks
    of a detector in them.
    """

    period_ps: float
    dark: Reals  # dark counts a slot
    release: Reals  # chance a slot that a filled trap is released
    trap_limits: Integers  # chance of filling a trap, in units of 2^-20
    dead_ticks: Integers
    joint: bool
    spacing_ticks: int
    sigma_ps: float
    tail_limit: int  # in units of 2^-20
    tail_ps: float
    segment_slots: int
    segment_clicks: int


@dataclass(frozen=True, eq=False)
class Emission:
    """The emission, and Eve's actions. ``slot_offset``: the slot number of the run at tag time zero.

    ``arriving``, ``maker``: see `fill_light`. ``contrasts``, ``wrong_bins``: one entry a knot. ``bursts``:
    pulses a slot, an entry a detector.
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
    maker: int
    bursts: Reals
    shift_ticks: int
    late_limit: int  # in units of 2^-24


def fill(
    state: ClickState,
    knots: Knots,
    until: int,
    receiver: Receiver,
    emission: Emission,
    times_ps: Times,
    channels: Channels,
) -> int:
    """Write the clicks of the knots from ``state.place`` to ``until``; return their number; stop when full.

    ``times_ps``, ``channels``: shape ``(m,)``, m at least twice ``receiver.segment_clicks``, or nothing fits.
    Afterwards ``state.place[0] == until`` if all clicks were written.
    """
    return int(
        fill_knots(
            state.counters, state.positions, state.lives, state.traps, state.place,
            knots.first_slots, knots.seconds_ps, knots.offsets_ps, knots.slopes,
            until,
            receiver.period_ps, receiver.dark + emission.bursts, emission.bursts, receiver.release,
            receiver.trap_limits, receiver.dead_ticks, receiver.joint, receiver.spacing_ticks,
            receiver.sigma_ps, receiver.tail_limit, receiver.tail_ps,
            receiver.segment_slots, receiver.segment_clicks,
            emission.arriving, emission.contrasts, emission.wrong_bins,
            U(emission.key), emission.slot_offset,
            U(emission.z_limit), U(emission.signal_limit),
            U(emission.eve_key), U(emission.intercept_limit), emission.damping, emission.maker,
            emission.shift_ticks, U(emission.late_limit),
            times_ps, channels,
        )
    )  # fmt: skip
