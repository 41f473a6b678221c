"""What every reader of a tag file gives: blocks of tags and markers, and a summary of what was read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qnode.errors import ConfigError
from qnode.tags.types import Times

FileChannels = npt.NDArray[np.int16]
MarkerNumbers = npt.NDArray[np.int16]

NO_TIMES = np.empty(0, np.int64)
NO_NUMBERS = np.empty(0, np.int16)


@dataclass(frozen=True, eq=False)
class TagFileBlock:
    """Tags and markers of a stretch of a file, each in the order of the file.

    ``times_ps`` int64 and ``channels`` int16, shape ``(n,)``: detector channels, sync 0, input n = n.
    ``marker_times_ps`` int64 and ``marker_numbers`` int16, shape ``(m,)``: the numbers as in the file.
    Times are modulo 2^64 (`qnode.tags.tag_time`).
    """

    times_ps: Times
    channels: FileChannels
    marker_times_ps: Times = field(default_factory=lambda: NO_TIMES)
    marker_numbers: MarkerNumbers = field(default_factory=lambda: NO_NUMBERS)


@dataclass
class TagFileSummary:
    """What was read of a file so far.

    ``records``: whole records of any kind. ``wraps``: how often the file says that the device's counter began
    again; an overflow record of PicoQuant's is one, whatever count it carries. ``markers``: counts by number.
    ``lost``: tags that the device lost, as the file says. ``truncated``: why the file is not read to its end,
    or why its end is not the end of the measurement; "" for a file in order.
    """

    records: int = 0
    wraps: int = 0
    markers: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    truncated: str = ""

    def count_markers(self, numbers: MarkerNumbers) -> None:
        """Count further markers."""
        for number, count in zip(*np.unique(numbers, return_counts=True), strict=True):
            self.markers[int(number)] = self.markers.get(int(number), 0) + int(count)


ReadBlocks = Callable[[int, TagFileSummary], Iterator[TagFileBlock]]
"""Reads a file once from its start: blocks of at most so many records. It keeps the summary up to date."""


@dataclass
class TagFile:
    """A tag file, to be read in constant memory.

    ``format``: one of `qnode.tags.formats.FORMATS`. ``device``: as the file says, or "". ``unit_ps``: of the
    file's own clock ticks. ``facts``: of the header, by the names in the file. ``summary``: of the latest
    reading, complete once its blocks have been read to the end.
    """

    path: Path
    format: str
    device: str
    unit_ps: float
    read: ReadBlocks = field(repr=False)
    facts: Mapping[str, int | float | str] = field(default_factory=dict)
    summary: TagFileSummary = field(default_factory=TagFileSummary)

    def blocks(self, most_records: int = 1 << 18) -> Iterator[TagFileBlock]:
        """Read the file from its start, ``most_records`` records at a time.

        Times are whole picoseconds. Where ``unit_ps`` is no whole number, each time is the exact time of its
        tick count, rounded, so that nothing adds up.

        Raises:
            ConfigError: the file can no longer be read.
        """
        self.summary = TagFileSummary()
        try:
            for block in self.read(most_records, self.summary):
                if block.marker_numbers.shape[0]:
                    self.summary.count_markers(block.marker_numbers)
                yield block
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror or error}") from None
