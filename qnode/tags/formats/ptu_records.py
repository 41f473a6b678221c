"""The records of PicoQuant's HydraHarp and of all later time taggers, decoded.

T2: 1 bit special, 6 channel, 25 time. T3: 1 special, 6 channel, 15 dtime, 10 sync number. Special: channel 63
is an overflow, 0 the sync (T2 only), 1 to 15 markers. From version 2 on, an overflow carries how many times
the counter wrapped, up to 2^25 - 1 (T2) and 2^10 - 1 (T3); 0 means once.

The kernels fill ``times`` and ``channels`` with tags from the front and with markers from the back, and
return how many there are and how many records were sound. ``state`` is kept between pieces: the time of the
latest wrap, in the unit of ``times``, and the number of overflow records.

Integers are unsigned: numba does not check such an index for being negative, and loops become vectors.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from qnode.kernels import inline_kernel, kernel
from qnode.tags.formats.model import FileChannels
from qnode.tags.formats.ticks import Dtimes
from qnode.tags.types import Times

Words = npt.NDArray[np.uint32]
State = npt.NDArray[np.int64]

T2_BITS: Final = 25
T3_BITS: Final = 10
_TOGETHER: Final = 8  # so many records are looked at together
_FIRST_SPECIAL: Final = 0x8000_0000
_FIRST_OVERFLOW: Final = 0xFE00_0000


@inline_kernel
def _look_ahead(words: Words, i: np.uint64) -> tuple[bool, bool]:
    """Tell of the next records whether all are tags, and whether all are tags or overflows."""
    if i + np.uint64(_TOGETHER) > np.uint64(words.shape[0]):
        return False, False
    found, others = np.uint32(0), np.uint32(0)
    for j in range(_TOGETHER):
        word = words[i + np.uint64(j)]
        found |= word
        others += np.uint32((word >= np.uint32(_FIRST_SPECIAL)) & (word < np.uint32(_FIRST_OVERFLOW)))
    return bool(found < np.uint32(_FIRST_SPECIAL)), bool(others == np.uint32(0))


@inline_kernel
def _end_of_tags(words: Words, i: np.uint64) -> np.uint64:
    """Return where the records from ``i`` on, looked at together, are no longer tags alone."""
    together = np.uint64(_TOGETHER)
    while i + together <= np.uint64(words.shape[0]):
        found = np.uint32(0)
        for j in range(_TOGETHER):
            found |= words[i + np.uint64(j)]
        if found >= np.uint32(_FIRST_SPECIAL):
            break
        i += together
    return i


@kernel
def decode_t2(
    words: Words,
    unit: np.uint64,
    wrap: np.uint64,
    is_counted: bool,
    times: Times,
    channels: FileChannels,
    state: State,
) -> tuple[int, int, int]:
    """Decode T2. ``unit``, below 2^32, and ``wrap``: picoseconds, or ticks."""
    u, s, size, one = np.uint64, np.int64, np.uint64(words.shape[0]), np.uint64(1)
    mask, together, sound = u(0x1FF_FFFF), u(_TOGETHER), u(words.shape[0])
    counted, unit = mask if is_counted else u(0), unit & u(0xFFFF_FFFF)  # so products are of half words
    start, overflows, n_tags, n_markers, i = state[0], u(0), u(0), u(0), u(0)
    while i < sound:
        are_tags, are_usual = _look_ahead(words, i)
        if are_tags:
            n_alike = _end_of_tags(words, i + together) - i
            for j in range(n_alike):
                times[n_tags + j] = start + s((u(words[i + j]) & mask) * unit)
            for j in range(n_alike):
                channels[n_tags + j] = np.int16((words[i + j] >> np.uint32(25)) + np.uint32(1))
            i, n_tags = i + n_alike, n_tags + n_alike
            continue
        if are_usual:
            before = n_tags
            for j in range(_TOGETHER):  # what an overflow writes, the next tag overwrites
                word = words[i + u(j)]
                ticks, all_if_overflow = u(word) & mask, s(np.int32(word)) >> 63
                times[n_tags] = start + s(ticks * unit)
                channels[n_tags] = np.int16((word >> np.uint32(25)) + np.uint32(1))
                start += all_if_overflow & s(max(ticks & counted, one) * wrap)
                n_tags += u(1 + all_if_overflow)
            i, overflows = i + together, overflows + together - (n_tags - before)
            continue
        end = min(i + together, size)
        while i < end:
            kind, ticks = words[i] >> np.uint32(25), u(words[i]) & mask
            time = start + s(ticks * unit)
            if kind <= np.uint32(64):
                times[n_tags] = time
                channels[n_tags] = np.int16(kind + np.uint32(1)) if kind < np.uint32(64) else np.int16(0)
                n_tags += one
            elif kind == np.uint32(127):
                start += s(max(ticks & counted, one) * wrap)
                overflows += one
            elif kind <= np.uint32(64 + 15):
                n_markers += one
                times[size - n_markers] = time
                channels[size - n_markers] = np.int16(kind - np.uint32(64))
            else:
                sound = i
                break
            i += one
    state[0], state[1] = start, state[1] + s(overflows)
    return int(n_tags), int(n_markers), int(sound)


@kernel
def decode_t3(
    words: Words, is_counted: bool, times: Times, dtimes: Dtimes, channels: FileChannels, state: State
) -> tuple[int, int, int]:
    """Decode T3: ``times`` in syncs, and ``dtimes`` beside them, 0 for markers."""
    u, s, size, one = np.uint64, np.int64, np.uint64(words.shape[0]), np.uint64(1)
    mask, dtime_mask, together, sound = u(0x3FF), np.uint32(0x7FFF), u(_TOGETHER), u(words.shape[0])
    counted = mask if is_counted else u(0)
    start, overflows, n_tags, n_markers, i = state[0], u(0), u(0), u(0), u(0)
    while i < sound:
        are_tags, are_usual = _look_ahead(words, i)
        if are_tags:
            n_alike = _end_of_tags(words, i + together) - i
            for j in range(n_alike):
                times[n_tags + j] = start + s(u(words[i + j]) & mask)
            for j in range(n_alike):
                dtimes[n_tags + j] = np.uint16((words[i + j] >> np.uint32(10)) & dtime_mask)
            for j in range(n_alike):
                channels[n_tags + j] = np.int16((words[i + j] >> np.uint32(25)) + np.uint32(1))
            i, n_tags = i + n_alike, n_tags + n_alike
            continue
        if are_usual:
            before = n_tags
            for j in range(_TOGETHER):  # what an overflow writes, the next tag overwrites
                word = words[i + u(j)]
                number, all_if_overflow = u(word) & mask, s(np.int32(word)) >> 63
                times[n_tags] = start + s(number)
                dtimes[n_tags] = np.uint16((word >> np.uint32(10)) & dtime_mask)
                channels[n_tags] = np.int16((word >> np.uint32(25)) + np.uint32(1))
                start += all_if_overflow & s(max(number & counted, one) << u(T3_BITS))
                n_tags += u(1 + all_if_overflow)
            i, overflows = i + together, overflows + together - (n_tags - before)
            continue
        end = min(i + together, size)
        while i < end:
            word = words[i]
            kind, number = word >> np.uint32(25), u(word) & mask
            if kind < np.uint32(64):
                times[n_tags] = start + s(number)
                dtimes[n_tags] = np.uint16((word >> np.uint32(10)) & dtime_mask)
                channels[n_tags] = np.int16(kind + np.uint32(1))
                n_tags += one
            elif kind == np.uint32(127):
                start += s(max(number & counted, one) << u(T3_BITS))
                overflows += one
            elif np.uint32(64) < kind <= np.uint32(64 + 15):
                n_markers += one
                times[size - n_markers] = start + s(number)
                dtimes[size - n_markers] = np.uint16(0)
                channels[size - n_markers] = np.int16(kind - np.uint32(64))
            else:
                sound = i
                break
            i += one
    state[0], state[1] = start, state[1] + s(overflows)
    return int(n_tags), int(n_markers), int(sound)
