"""Writes PicoQuant files of T2 records (1 ps) and T3 records, in the form of MultiHarp and PicoHarp 330."""

import math
import struct
from typing import BinaryIO, Final

import numpy as np

from qnode.errors import ConfigError
from qnode.tags.formats.model import TagFileBlock
from qnode.tags.formats.ptu import (
    DEVICE,
    GENERIC_T2,
    GENERIC_T3,
    GLOBAL_RESOLUTION,
    RECORD_TYPE,
    RECORDS,
    RESOLUTION,
)
from qnode.tags.formats.ptu_header import EMPTY, END, FLOAT, INTEGER, MAGIC, TAG, TEXT
from qnode.tags.formats.ptu_records import T2_BITS, T3_BITS
from qnode.tags.formats.ticks import Unit, to_ps
from qnode.tags.types import Times

_MOST_INPUTS: Final = 64
_MOST_MARKERS: Final = 15
_SPECIAL: Final = 1 << 31
_OVERFLOW: Final = _SPECIAL | 63 << T2_BITS
_DTIMES: Final = 1 << 15
_MOST_PERIOD_PS: Final = 10**9


class PtuWriter:
    """Writes a file; with ``sync_period_ps`` T3 records, whose times are exact to half a step of dtime.

    Tags of a block are written in order of time. (A record holds the time since a wrap, so the file cannot go
    back beyond one.)
    """

    def __init__(self, file: BinaryIO, sync_period_ps: float | None = None) -> None:
        self._file = file
        self._tick_s, self._step_ps = 1e-12, 1
        self._is_t3 = sync_period_ps is not None
        if sync_period_ps is not None:
            if not 1 <= sync_period_ps <= _MOST_PERIOD_PS:
                raise ConfigError(f"sync period: expected 1 to {_MOST_PERIOD_PS} ps, got {sync_period_ps}")
            self._tick_s = sync_period_ps * 1e-12
            self._step_ps = math.ceil(sync_period_ps / (_DTIMES - 1))
        self._period = Unit.of_seconds(self._tick_s)
        self._wraps = 0
        self._n_records = 0
        self._write_header()

    def add(self, block: TagFileBlock) -> None:
        """Write the tags and markers of a block.

        Raises:
            ConfigError: a channel, marker or time that the format cannot hold.
        """
        times, kinds = _merged(block)
        words, wraps = self._t3(times, kinds) if self._is_t3 else self._t2(times, kinds)
        if words.shape[0]:
            self._append(words, wraps)

    def close(self) -> None:
        """Write the number of records into the header."""
        self._file.seek(0)
        self._write_header()

    def _t2(self, times: Times, kinds: Times) -> tuple[Times, Times]:
        return kinds << T2_BITS | times & ((1 << T2_BITS) - 1), times >> T2_BITS

    def _t3(self, times: Times, kinds: Times) -> tuple[Times, Times]:
        if (kinds == _SPECIAL >> T2_BITS).any():
            raise ConfigError("channel 0: T3 records hold no sync; leave it out, or write T2")
        # The remainder mends a quotient that a float64 rounds to the next whole number.
        syncs = np.floor(times / float(self._period.ps)).astype(np.int64)
        since = times - _at(syncs, self._period)
        syncs += np.where(since < 0, -1, np.where(since >= float(self._period.ps), 1, 0))
        dtimes = np.rint((times - _at(syncs, self._period)) / self._step_ps).astype(np.int64)
        dtimes = np.where(kinds >= _SPECIAL >> T2_BITS, 0, np.clip(dtimes, 0, _DTIMES - 1))
        return kinds << T2_BITS | dtimes << T3_BITS | syncs & ((1 << T3_BITS) - 1), syncs >> T3_BITS

    def _append(self, words: Times, wraps: Times) -> None:
        """Write words, and before each what overflows of the counter came since the one before."""
        apart = np.diff(wraps, prepend=self._wraps)
        if apart.min() < 0:
            raise ConfigError("a tag of a wrap that has passed: the format holds tags in order of time only")
        most = (1 << (T3_BITS if self._is_t3 else T2_BITS)) - 1
        n_overflows = -(-apart // most)
        places = np.arange(words.shape[0]) + np.cumsum(n_overflows)
        everything = np.full(int(places[-1]) + 1, _OVERFLOW | most, np.uint32)
        everything[places] = words
        last = places[apart > 0] - 1  # the last overflow before a word carries the rest
        everything[last] = _OVERFLOW | (apart - (n_overflows - 1) * most)[apart > 0]
        self._file.write(everything.astype("<u4").tobytes())
        self._n_records += everything.shape[0]
        self._wraps = int(wraps[-1])

    def _write_header(self) -> None:
        self._file.write(MAGIC.ljust(8, b"\0") + b"1.0.00".ljust(8, b"\0"))
        for name, value in (
            ("CreatorSW_Name", "qnode"),
            ("Measurement_Mode", 3 if self._is_t3 else 2),
            ("Measurement_SubMode", 0),
            (DEVICE, "qnode"),
            ("TTResultFormat_BitsPerRecord", 32),
            (RECORD_TYPE, GENERIC_T3 if self._is_t3 else GENERIC_T2),
            (GLOBAL_RESOLUTION, self._tick_s),
            (RESOLUTION, self._step_ps * 1e-12),
            ("TTResult_SyncRate", round(1 / self._tick_s) if self._is_t3 else 0),
            (RECORDS, self._n_records),
        ):
            self._file.write(_value(name, value))
        self._file.write(TAG.pack(END.encode(), -1, EMPTY, 0))


def _value(name: str, value: str | float) -> bytes:
    if isinstance(value, str):
        text = value.encode() + bytes(8 - len(value.encode()) % 8)
        return TAG.pack(name.encode(), -1, TEXT, len(text)) + text
    if isinstance(value, int):
        return TAG.pack(name.encode(), -1, INTEGER, value)
    return TAG.pack(name.encode(), -1, FLOAT, struct.unpack("<q", struct.pack("<d", value))[0])


def _at(syncs: Times, period: Unit) -> Times:
    """Return the times of syncs, as a reader computes them."""
    times = syncs.copy()
    to_ps(times, period)
    return times


def _merged(block: TagFileBlock) -> tuple[Times, Times]:
    """Return tags and markers in order of time, and what the upper bits of their records are."""
    channels, markers = block.channels.astype(np.int64), block.marker_numbers.astype(np.int64)
    for numbers, least, most, what in (
        (channels, 0, _MOST_INPUTS, "channel"),
        (markers, 1, _MOST_MARKERS, "marker"),
    ):
        if numbers.size and not least <= numbers.min() <= numbers.max() <= most:
            raise ConfigError(f"{what} {numbers.min()} or {numbers.max()}: .ptu has {least} to {most} only")
    special = _SPECIAL >> T2_BITS
    kinds = np.concatenate([np.where(channels == 0, special, channels - 1), special + markers])
    times = np.concatenate([block.times_ps, block.marker_times_ps])
    if times.size and times.min() < 0:
        raise ConfigError(f"{times.min()} ps: .ptu has times from 0 on")
    order = np.argsort(times, kind="stable")
    return times[order], kinds[order]
