"""Figures over the last hour, day and week: rings of records, each with its checksum; pure.

A record has the number of its step (Unix time over the length of the step), the mean of each figure, and a
CRC-32. Its place follows from the number of its step. So a record from an earlier turn of the ring, a torn
one, and one from a clock that was wrong are known as such, and are gaps.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from qnode.operate.trend.figures import FIGURES, UNKNOWN


class Resolution(NamedTuple):
    """A window of ``steps`` steps of ``step_s`` seconds."""

    window: str
    step_s: int
    steps: int


# Each step holds a whole number of steps of the first resolution, which reaches back over it.
RESOLUTIONS: Final = (
    Resolution("hour", 10, 360),
    Resolution("day", 60, 1440),
    Resolution("week", 600, 1008),
)
WINDOWS: Final = tuple(one.window for one in RESOLUTIONS)
_BODY: Final = struct.Struct(f"<q{len(FIGURES)}f")
_CHECKSUM: Final = struct.Struct("<I")
RECORD_BYTES: Final = _BODY.size + _CHECKSUM.size
SIZE_BYTES: Final = RECORD_BYTES * sum(one.steps for one in RESOLUTIONS)

Values = Sequence[float]


class Write(NamedTuple):
    """Bytes that belong at a place of the file."""

    offset: int
    record: bytes


class Trend:
    """The figures of one link; times are Unix seconds. ``content``: what `content` was before a restart."""

    def __init__(self, content: bytes = b"") -> None:
        # By place: the number of the step, and its values.
        self._rings: list[dict[int, tuple[int, Values]]] = [{} for _ in RESOLUTIONS]
        self._step: int | None = None
        self._samples: list[Values] = []
        for index, (resolution, start) in enumerate(zip(RESOLUTIONS, _starts(), strict=True)):
            for place in range(resolution.steps):
                offset = start + place * RECORD_BYTES
                read = _decode(content[offset : offset + RECORD_BYTES])
                if read is not None and read[0] % resolution.steps == place:
                    self._rings[index][place] = read

    def add(self, at_s: float, values: Values) -> list[Write]:
        """Take the figures at ``at_s``; return what to write, once a step is complete."""
        step = int(at_s // RESOLUTIONS[0].step_s)
        writes = self._complete() if self._step is not None and step != self._step else []
        self._step = step
        self._samples.append(values)
        return writes

    def series(self, window: str, at_s: float) -> list[Values | None]:
        """Return the records of a window that ends at ``at_s``, oldest first; None for a gap.

        Raises:
            KeyError: there is no such window.
        """
        if window not in WINDOWS:
            raise KeyError(window)
        index = WINDOWS.index(window)
        resolution = RESOLUTIONS[index]
        last = int(at_s // resolution.step_s)
        return [self._known(index, step) for step in range(last - resolution.steps + 1, last + 1)]

    def content(self) -> bytes:
        """Return the whole file."""
        whole = bytearray(SIZE_BYTES)
        for index, ring in enumerate(self._rings):
            for step, values in ring.values():
                offset, record = _place(index, step, values)
                whole[offset : offset + RECORD_BYTES] = record
        return bytes(whole)

    def _known(self, index: int, step: int) -> Values | None:
        kept, values = self._rings[index].get(step % RESOLUTIONS[index].steps, (None, None))
        return values if kept == step else None

    def _complete(self) -> list[Write]:
        """End the present step. Longer steps are made again from all short ones in them, complete or not."""
        assert self._step is not None
        step, first = self._step, RESOLUTIONS[0]
        writes = [self._keep(0, step, _mean(self._samples))]
        self._samples = []
        for index, resolution in enumerate(RESOLUTIONS[1:], 1):
            ratio = resolution.step_s // first.step_s
            longer = step // ratio
            parts = [self._known(0, one) for one in range(longer * ratio, (longer + 1) * ratio)]
            writes.append(self._keep(index, longer, _mean([part for part in parts if part is not None])))
        return writes

    def _keep(self, index: int, step: int, values: Values) -> Write:
        self._rings[index][step % RESOLUTIONS[index].steps] = (step, values)
        return _place(index, step, values)


def _starts() -> Iterator[int]:
    start = 0
    for resolution in RESOLUTIONS:
        yield start
        start += resolution.steps * RECORD_BYTES


def _place(index: int, step: int, values: Values) -> Write:
    start = list(_starts())[index]
    body = _BODY.pack(step, *values)
    record = body + _CHECKSUM.pack(zlib.crc32(body))
    return Write(start + step % RESOLUTIONS[index].steps * RECORD_BYTES, record)


def _decode(record: bytes) -> tuple[int, Values] | None:
    """Return step and values of a record; None for a torn or empty one."""
    if len(record) != RECORD_BYTES:
        return None
    body, checksum = record[: _BODY.size], record[_BODY.size :]
    # An empty place has the checksum of nothing, which fits no body: the CRC of zero bytes is not zero.
    if _CHECKSUM.unpack(checksum)[0] != zlib.crc32(body):
        return None
    step, *values = _BODY.unpack(body)
    return step, tuple(values)


def _mean(samples: Sequence[Values]) -> tuple[float, ...]:
    """Return the mean of the known values of each figure."""
    means = []
    for figure in zip(*samples, strict=True):
        known = [value for value in figure if math.isfinite(value)]
        means.append(math.fsum(known) / len(known) if known else UNKNOWN)
    return tuple(means)
