"""The records of PicoQuant's PicoHarp 300, decoded as those of later devices are (`ptu_records`).

T2: 4 bits channel, 28 time; channel 15 is special: a marker with its number in the low 4 bits of the time, or
an overflow if they are 0. T3: 4 bits channel, 12 dtime, 16 sync number; channel 15 is special: a marker with
its number as dtime, or an overflow if it is 0.
"""

from typing import Final

import numpy as np

from qnode.kernels import kernel
from qnode.tags.formats.model import FileChannels
from qnode.tags.formats.ptu_records import State, Words
from qnode.tags.formats.ticks import Dtimes
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
    state[0], state[1] = start, state[1] + np.int64(overflows)
    return int(n_tags), int(n_markers), int(i)


@kernel
def decode_picoharp_t3(
    words: Words, times: Times, dtimes: Dtimes, channels: FileChannels, state: State
) -> tuple[int, int, int]:
    """Decode T3: ``times`` in syncs, and ``dtimes`` beside them, 0 for markers."""
    u, n = np.uint64, np.uint64(words.shape[0])
    start, overflows, n_tags, n_markers, i = state[0], u(0), u(0), u(0), u(0)
    while i < n:
        word = u(words[i])
        kind, dtime, time = word >> u(28), (word >> u(16)) & u(0xFFF), start + np.int64(word & u(0xFFFF))
        if kind == u(15):
            if dtime == u(0):
                start += 1 << PICOHARP_T3_BITS
                overflows += u(1)
            elif dtime > u(15):
                break
            else:
                n_markers += u(1)
                times[n - n_markers] = time
                dtimes[n - n_markers] = np.uint16(0)
                channels[n - n_markers] = np.int16(dtime)
        elif kind > u(4) or kind == u(0):
            break
        else:
            times[n_tags] = time
            dtimes[n_tags] = np.uint16(dtime)
            channels[n_tags] = np.int16(kind)
            n_tags += u(1)
        i += u(1)
    state[0], state[1] = start, state[1] + np.int64(overflows)
    return int(n_tags), int(n_markers), int(i)
