"""Files of records of a fixed length, read in pieces. (A mapped file that another process cuts is fatal.)"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qnode.errors import ConfigError
from qnode.tags.formats.model import ReadBlocks, TagFileBlock, TagFileSummary

RawBytes = npt.NDArray[np.uint8]
DecodePiece = Callable[[RawBytes], TagFileBlock]
"""Decodes the next piece of whole records into new arrays: the piece is overwritten afterwards."""


def fixed_records(
    path: Path,
    header_bytes: int,
    record_bytes: int,
    new_decoder: Callable[[TagFileSummary], DecodePiece],
    said: int | None = None,
) -> ReadBlocks:
    """Return what reads the records after a header, with a decoder of its own for each reading.

    A decoder that meets an unsound record says so in ``truncated`` of the summary; the reading ends there.
    ``said``: how many records the header says there are; it is said if they are others.

    Raises:
        ConfigError: the file ends within its header.
    """
    n_bytes = path.stat().st_size
    if n_bytes < header_bytes:
        raise ConfigError(f"{path}: ends within its header: {n_bytes} bytes of {header_bytes}")

    def read(most_records: int, summary: TagFileSummary) -> Iterator[TagFileBlock]:
        decode = new_decoder(summary)
        buffer = np.empty(most_records * record_bytes, np.uint8)
        with path.open("rb", buffering=0) as file:
            file.seek(header_bytes)
            while not summary.truncated:
                n_bytes = fill(file, buffer)
                n_records, rest = divmod(n_bytes, record_bytes)
                if n_records:
                    summary.records += n_records
                    yield decode(buffer[: n_records * record_bytes])
                if n_bytes < buffer.shape[0] and not summary.truncated:
                    cut = f"ends in mid-record: {rest} of {record_bytes} bytes after record {summary.records}"
                    other = f"the header says {said} records, the file has {summary.records}"
                    is_other = said is not None and said != summary.records
                    summary.truncated = "; ".join([cut] * bool(rest) + [other] * is_other)
                    return

    return read


class CanReadInto(Protocol):
    """A binary file."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Read some bytes and return their number; 0 at the end."""


def fill(file: CanReadInto, buffer: RawBytes) -> int:
    """Read until the buffer is full or the file ends; return the number of bytes."""
    view, n_bytes = buffer.data, 0
    while n_bytes < len(view):
        n_read = file.readinto(view[n_bytes:])
        if not n_read:
            break
        n_bytes += n_read
    return n_bytes
