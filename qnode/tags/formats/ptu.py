"""PicoQuant's unified files (``.ptu``, also under other extensions): T2 and T3 of all their time taggers.

T2: each record is a tag, its time counted in ``MeasDesc_GlobalResolution``. T3: a tag's time is sync number
times sync period (``MeasDesc_GlobalResolution``) + dtime times ``MeasDesc_Resolution``, so that the sync is
the clock; the tags of one sync need not ascend. The period is what the device measured before it began:
where the sync is not known better, times are as right as this. Markers of T3 are at their sync.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np

from qnode.errors import ConfigError
from qnode.tags.formats.model import FileChannels, TagFile, TagFileBlock, TagFileSummary
from qnode.tags.formats.picoharp_records import decode_picoharp_t2, decode_picoharp_t3
from qnode.tags.formats.pieces import DecodePiece, RawBytes, fixed_records
from qnode.tags.formats.ptu_header import MAGIC, Facts, read_header
from qnode.tags.formats.ptu_records import (
    T2_BITS,
    State,
    Words,
    decode_t2,
    decode_t3,
)
from qnode.tags.formats.ticks import Unit, to_ps
from qnode.tags.types import Times

RECORD_BYTES: Final = 4
RECORD_TYPE: Final = "TTResultFormat_TTTRRecType"
RECORDS: Final = "TTResult_NumberOfRecords"
GLOBAL_RESOLUTION: Final = "MeasDesc_GlobalResolution"
RESOLUTION: Final = "MeasDesc_Resolution"
DEVICE: Final = "HW_Type"
GENERIC_T2: Final = 0x0001_0207
GENERIC_T3: Final = 0x0001_0307
_PICOHARP: Final = (0x0001_0203, 0x0001_0303)
_LONGEST_TICK_S: Final = 1e-3
_HYDRAHARP_1_WRAP: Final = 33_552_000
_PICOHARP_WRAP: Final = 210_698_240


@dataclass(frozen=True)
class _Kind:
    """A kind of records. ``wrap``: ticks, of T2; ``is_counted``: overflows carry a number of wraps."""

    is_t3: bool
    is_picoharp: bool = False
    wrap: int = 1 << T2_BITS
    is_counted: bool = True


_T2: Final = _Kind(is_t3=False)
_T3: Final = _Kind(is_t3=True)
_KINDS: Final = {
    _PICOHARP[0]: _Kind(is_t3=False, is_picoharp=True, wrap=_PICOHARP_WRAP),  # PicoHarp 300
    _PICOHARP[1]: _Kind(is_t3=True, is_picoharp=True),
    0x0001_0204: _Kind(is_t3=False, wrap=_HYDRAHARP_1_WRAP, is_counted=False),  # HydraHarp, version 1
    0x0001_0304: _Kind(is_t3=True, is_counted=False),
    0x0101_0204: _T2,  # HydraHarp, version 2
    0x0101_0304: _T3,
    0x0001_0205: _T2,  # TimeHarp 260 NANO
    0x0001_0305: _T3,
    0x0001_0206: _T2,  # TimeHarp 260 PICO
    0x0001_0306: _T3,
    GENERIC_T2: _T2,  # MultiHarp, PicoHarp 330, HydraHarp 500
    GENERIC_T3: _T3,
}


def looks_like_ptu(head: bytes) -> bool:
    """Tell whether the bytes that a file begins with are those of a PicoQuant file."""
    return head.startswith(MAGIC)


def open_ptu(path: Path) -> TagFile:
    """Return the reader of a PicoQuant file."""
    facts, header_bytes = read_header(path)
    record_type = facts.get(RECORD_TYPE)
    kind = _KINDS.get(record_type) if isinstance(record_type, int) else None
    if kind is None:
        shown = f"{record_type:#010x}" if isinstance(record_type, int) else "missing"
        raise ConfigError(f"{path}: {RECORD_TYPE} is {shown}; known are {', '.join(map(hex, _KINDS))}")
    tick = _unit(path, facts, GLOBAL_RESOLUTION)
    unit = _unit(path, facts, RESOLUTION) if kind.is_t3 else tick
    new_decoder = _decoder(kind, tick, unit)
    said = facts.get(RECORDS)
    read = fixed_records(path, header_bytes, RECORD_BYTES, new_decoder, said if isinstance(said, int) else 0)
    return TagFile(path, "ptu", str(facts.get(DEVICE, "")), float(unit.ps), read, facts)


def _unit(path: Path, facts: Facts, name: str) -> Unit:
    value = facts.get(name)
    if not isinstance(value, float) or not 0 < value <= _LONGEST_TICK_S:
        raise ConfigError(f"{path}: {name} is {value}; expected seconds above 0, up to {_LONGEST_TICK_S}")
    return Unit.of_seconds(value)


_Decode = Callable[[Words, Times, FileChannels, State], tuple[int, int, int]]


def _decoder(kind: _Kind, tick: Unit, unit: Unit) -> Callable[[TagFileSummary], DecodePiece]:
    decode = _t3(kind, tick, unit) if kind.is_t3 else _t2(kind, tick)

    def new_decoder(summary: TagFileSummary) -> DecodePiece:
        state = np.zeros(2, np.int64)

        def decode_piece(raw: RawBytes) -> TagFileBlock:
            words = raw.view("<u4")
            n = words.shape[0]
            times, channels = np.empty(n, np.int64), np.empty(n, np.int16)
            n_tags, n_markers, n_sound = decode(words, times, channels, state)
            summary.wraps = int(state[1])
            if n_sound < n:
                summary.records -= n - n_sound
                summary.truncated = (
                    f"record {summary.records} is of no known kind: {int(words[n_sound]):#010x}"
                )
            # Markers were filled from the back.
            marker_times, markers = (
                times[n - n_markers :][::-1].copy(),
                channels[n - n_markers :][::-1].copy(),
            )
            return TagFileBlock(times[:n_tags], channels[:n_tags], marker_times, markers)

        return decode_piece

    return new_decoder


def _t2(kind: _Kind, tick: Unit) -> _Decode:
    factor = int(tick.ps) if tick.is_whole else 1  # else ticks first, which are then rounded
    unit, wrap = np.uint64(factor), np.uint64(factor * kind.wrap)

    def decode(words: Words, times: Times, channels: FileChannels, state: State) -> tuple[int, int, int]:
        if kind.is_picoharp:
            counts = decode_picoharp_t2(words, unit, wrap, times, channels, state)
        else:
            counts = decode_t2(words, unit, wrap, kind.is_counted, times, channels, state)
        if not tick.is_whole:
            to_ps(times[: counts[0]], tick)
            to_ps(times[times.shape[0] - counts[1] :], tick)
        return counts

    return decode


def _t3(kind: _Kind, period: Unit, unit: Unit) -> _Decode:
    def decode(words: Words, times: Times, channels: FileChannels, state: State) -> tuple[int, int, int]:
        dtimes = np.empty(words.shape[0], np.uint16)
        if kind.is_picoharp:
            counts = decode_picoharp_t3(words, times, dtimes, channels, state)
        else:
            counts = decode_t3(words, kind.is_counted, times, dtimes, channels, state)
        for part in (slice(counts[0]), slice(words.shape[0] - counts[1], None)):  # tags, markers
            to_ps(times[part], period, dtimes[part], unit)
        return counts

    return decode


def warm() -> None:
    """Compile the kernels."""
    unit = Unit(Fraction(1, 3))
    for record_type in (GENERIC_T2, GENERIC_T3, *_PICOHARP):
        _decoder(_KINDS[record_type], unit, unit)(TagFileSummary())(np.zeros(RECORD_BYTES, np.uint8))
