"""The quTAG's binary file: 40 bytes of header, then records of 10 bytes.

A record is int64 picoseconds and int16 channel, little-endian. Time counts from the start of the device, and
runs backwards in places. Channels 100 to 104 (rising edges, and the tick of a millisecond) and 200 to 203
(falling edges) are the maker's markers.
"""

from pathlib import Path
from typing import Final

import numpy as np

from qnode.tags.formats.model import FileChannels, TagFile, TagFileBlock, TagFileSummary
from qnode.tags.formats.pieces import DecodePiece, RawBytes, fixed_records

HEADER_BYTES: Final = 40
RECORD: Final = np.dtype([("time_ps", "<i8"), ("channel", "<i2")])
_MOST_CHANNELS: Final = 100
MARKERS: Final = (*range(100, 105), *range(200, 204))
# Within so many records of the start, time makes no greater steps: a day.
_LONGEST_STEP_PS: Final = 86_400 * 10**12


def looks_like_qutag(head: bytes) -> bool:
    """Tell whether the bytes that a file begins with may be those of a quTAG file."""
    n_records = (len(head) - HEADER_BYTES) // RECORD.itemsize
    if n_records < 1:
        return False
    records = np.frombuffer(head, RECORD, n_records, HEADER_BYTES)
    times = records["time_ps"].astype(np.int64)
    return bool(
        _is_sound(records["channel"].astype(np.int16)).all()
        and 0 <= times.min() <= times.max() != 0
        and np.all(np.abs(np.diff(times)) < _LONGEST_STEP_PS)
    )


def open_qutag(path: Path) -> TagFile:
    """Return the reader of a quTAG file."""
    read = fixed_records(path, HEADER_BYTES, RECORD.itemsize, _decoder)
    return TagFile(path, "qutag", "", 1.0, read)


def _decoder(summary: TagFileSummary) -> DecodePiece:
    def decode(raw: RawBytes) -> TagFileBlock:
        records = raw.view(RECORD)
        times, channels = records["time_ps"].astype(np.int64), records["channel"].astype(np.int16)
        if int(channels.view(np.uint16).max()) < _MOST_CHANNELS:
            return TagFileBlock(times, channels)
        is_sound = _is_sound(channels)
        if not is_sound.all():
            n = int(np.argmin(is_sound))
            summary.records -= channels.shape[0] - n
            summary.truncated = f"record {summary.records} has channel {channels[n]}, which no quTAG has"
            times, channels = times[:n], channels[:n]
        is_marker = channels >= _MOST_CHANNELS
        is_tag = ~is_marker
        return TagFileBlock(times[is_tag], channels[is_tag], times[is_marker], channels[is_marker])

    return decode


def _is_sound(channels: FileChannels) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    return ((channels >= 0) & (channels < _MOST_CHANNELS)) | np.isin(channels, MARKERS)
