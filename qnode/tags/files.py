"""Recorded time tags: the quTAG's binary file.

A 40-byte header, then records of 10 bytes, little-endian: int64 picoseconds, int16 channel. Tags are in the
order in which the device sent them, which is nearly the order of time.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from qnode.errors import DeviceError
from qnode.tags.types import TagBlock

_HEADER_BYTES: Final = 40
_RECORD: Final = np.dtype([("time_ps", "<i8"), ("channel", "<i2")])


def read_qutag(path: Path, *, channels: Mapping[int, int] | None = None) -> TagBlock:
    """Read a whole quTAG file as one block, tags in file order.

    ``channels`` maps the recorder's numbers to ours; tags on channels it does not name are left out. Without
    it the recorder's own numbers are kept.

    Raises:
        DeviceError: not a quTAG file: too short, cut within a record, or a channel that no quTAG has.
        OSError: the file cannot be read.
    """
    raw = path.read_bytes()
    if len(raw) < _HEADER_BYTES or (len(raw) - _HEADER_BYTES) % _RECORD.itemsize:
        raise DeviceError(
            f"{path}: not a quTAG file: expected {_HEADER_BYTES} bytes of header and whole records of "
            f"{_RECORD.itemsize} bytes, got {len(raw)} bytes"
        )
    records = np.frombuffer(raw, _RECORD, offset=_HEADER_BYTES)
    numbers = records["channel"]
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) <= 127:
        raise DeviceError(f"{path}: not a quTAG file: channels {numbers.min()} to {numbers.max()}")
    times = records["time_ps"].astype(np.int64)
    if channels is not None:
        ours = np.full(128, -1, np.int8)
        for theirs, our in channels.items():
            ours[theirs] = our
        mapped = ours[numbers]
        times, mapped = times[mapped >= 0], mapped[mapped >= 0]
    else:
        mapped = numbers.astype(np.int8)
    until = int(times.max()) + 1 if times.size else 0
    return TagBlock(times, mapped, until)


def tag_blocks(recording: TagBlock, span_ps: int) -> Iterator[TagBlock]:
    """Cut ``recording`` into blocks of about ``span_ps``, as a TDC would yield them.

    Tags keep the recording's order; each block's ``until_ps`` is the first time of the next.
    """
    times = recording.times_ps
    if not times.size:
        yield recording
        return
    # Cut where the running maximum passes a border, so that late tags stay in their block.
    progress = np.maximum.accumulate(times)
    borders = np.arange(int(progress[0]) + span_ps, recording.until_ps, span_ps, dtype=np.int64)
    first = 0
    for border, last in zip(borders, np.searchsorted(progress, borders), strict=True):
        yield TagBlock(times[first:last], recording.channels[first:last], int(border))
        first = int(last)
    yield TagBlock(times[first:], recording.channels[first:], recording.until_ps)
