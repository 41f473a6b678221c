"""The records of PicoQuant's PicoHarp 300, decoded as those of later devices are (`ptu_records`).

T2: 4 bits channel, 28 time; channel 15 is special: a marker with its number in the low 4 bits of the time, or
an overflow if they are 0. T3: 4 bits channel, 12 dtime, 16 sync number; channel 15 is special: a marker with
its number as dtime, or an overflow if it is 0.
"""

from typing import Final

import numpy as np

from qnode.kernels import kernel
from qnode.tags.formats.model import FileChannels
from qnode.tags.formats.ptu_records import FRACTION_BITS, State, Words
from qnode.tags.types import Times

PICOHARP_T3_BITS: Final = 16


@kernel
def decode_picoharp_t2(
    words: Words, unit: np.uint64, wrap: np.uint64, times: Times, channels: FileChannels, state: State
) -> tuple[int, int, int]:
    """Decode T2. ``unit`` and ``wrap``: picoseconds, or ticks."""
    u, n = np.uint64, np.uint64(words.shape[0])
    start, overflows, n_tags, n_markers, i = state[0], u(0), u(0), u(0), u(0)
    while i < n:
        word = u(words[i])
        kind, ticks = word >> u(28), word & u(0xFFF_FFFF)
        if kind == u(15):
            number = ticks & u(15)
            if number == u(0):
                start += np.int64(wrap)
                overflows += u(1)
            else:
                n_markers += u(1)
                times[n - n_markers] = start + np.int64((ticks - number) * unit)
                channels[n - n_markers] = np.int16(number)
        elif kind > u(4):
            break
        else:
            times[n_tags] = start + np.int64(ticks * unit)
            channels[n_tags] = np.int16(kind)
            n_tags += u(1)
        i += u(1)
    state[0], state[2] = start, state[2] + np.int64(overflows)
    return int(n_tags), int(n_markers), int(i)


@kernel
def decode_picoharp_t3(
    words: Words,
    period: np.int64,
    period_fraction: np.uint64,
    wrap: np.int64,
    wrap_fraction: np.uint64,
    unit: np.int64,
    unit_fraction: np.uint64,
    times: Times,
    channels: FileChannels,
    state: State,
) -> tuple[int, int, int]:
    """Decode T3. ``period`` of the sync, ``wrap`` of its number, ``unit`` of dtime: picoseconds."""
    u, s, n = np.uint64, np.int64, np.uint64(words.shape[0])
    bits, mask = u(FRACTION_BITS), u((1 << FRACTION_BITS) - 1)
    start, fraction = state[0], u(state[1])
    overflows, n_tags, n_markers, i = u(0), u(0), u(0), u(0)
    while i < n:
        word = u(words[i])
        kind, dtime, number = word >> u(28), (word >> u(16)) & u(0xFFF), word & u(0xFFFF)
        at_sync, parts = start + s(number) * period, fraction + number * period_fraction
        if kind == u(15):
            if dtime == u(0):
                fraction += wrap_fraction
                start += wrap + s(fraction >> bits)
                fraction &= mask
                overflows += u(1)
            elif dtime > u(15):
                break
            else:
                n_markers += u(1)
                times[n - n_markers] = at_sync + s(parts >> bits)
                channels[n - n_markers] = np.int16(dtime)
        elif kind > u(4) or kind == u(0):
            break
        else:
            times[n_tags] = at_sync + s(dtime) * unit + s((parts + dtime * unit_fraction) >> bits)
            channels[n_tags] = np.int16(kind)
            n_tags += u(1)
        i += u(1)
    state[0], state[1], state[2] = start, s(fraction), state[2] + s(overflows)
    return int(n_tags), int(n_markers), int(i)
