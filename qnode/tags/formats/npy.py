"""Times and channels as numpy keeps them: int64 picoseconds, and any integer as the number of the channel.

A falling edge may have a negative number, as with Swabian's time taggers.

``.npy``: an array with two integer fields, or with two columns, time and channel in this order. Two arrays:
``.npz`` with ``times_ps`` and ``channels``, or the file ``times_ps.npy`` with ``channels.npy`` beside it, as
in a recording of qnode. Nothing is read whole.
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from tokenize import TokenError
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from qnode.errors import ConfigError
from qnode.tags.formats.model import ReadBlocks, TagFile, TagFileBlock, TagFileSummary
from qnode.tags.formats.pieces import DecodePiece, RawBytes, fill, fixed_records

_MAGIC: Final = b"\x93NUMPY"
_ZIP_MAGIC: Final = b"PK\x03\x04"
_TIMES: Final = ("times_ps", "time_ps", "times", "time", "timestamps", "timestamp")
_CHANNELS: Final = ("channels", "channel")
_OTHER_UNIT: Final = re.compile(r"(?:^|[^a-zµ])(fs|ns|us|µs|ms|s|seconds)$")
_MOST_CHANNEL: Final = 32_767
_LONGEST_HEADER_BYTES: Final = 10_000
_SHOWN_CHARACTERS: Final = 200
# What the libraries raise at damaged bytes (a RuntimeError at an unknown compression).
_DAMAGES: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, TokenError)
_READ_HEADER: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

Integers = npt.NDArray[np.integer[Any]]


def looks_like_npy(head: bytes) -> bool:
    """Tell whether the bytes that a file begins with are those of a ``.npy`` or ``.npz`` file."""
    return head.startswith((_MAGIC, _ZIP_MAGIC))


def open_npy(path: Path) -> TagFile:
    """Return the reader of a ``.npy`` or ``.npz`` file."""
    if zipfile.is_zipfile(path):
        return _of_two_arrays(path, *_members(path))
    whole = _Column(path.name, partial(_open, path))
    header = whole.header(path)
    if len(header.shape) == 1 and header.dtype.names is None:
        return _of_two_arrays(path, whole, _beside(path))
    kind = _record_type(path, header)

    def new_decoder(summary: TagFileSummary) -> DecodePiece:
        def decode(raw: RawBytes) -> TagFileBlock:
            records = raw.view(kind)
            return _block(records["time"], records["channel"], summary)

        return decode

    return _tag_file(path, fixed_records(path, header.n_bytes, kind.itemsize, new_decoder, header.shape[0]))


def check_unit(path: Path, name: str) -> None:
    """Refuse a name of times that ends with another unit than picoseconds."""
    if _OTHER_UNIT.search(name.strip(" )]").lower()):
        raise ConfigError(f"{path}: {name!r} is in another unit; expected whole picoseconds (time_ps)")


def _tag_file(path: Path, read: ReadBlocks) -> TagFile:
    return TagFile(path, "npy", "", 1.0, read)


def _open(path: Path) -> BufferedIOBase:
    return path.open("rb")


@dataclass(frozen=True)
class _Header:
    """What an array says of itself; ``n_bytes``: the length of the header."""

    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    n_bytes: int


@dataclass(frozen=True)
class _Column:
    """An array in a file of its own, or in an archive."""

    name: str
    open: Callable[[], BufferedIOBase]

    def header(self, path: Path) -> _Header:
        """Return what the array says of itself.

        Raises:
            ConfigError: it cannot be read, or is no array of one or more rows of numbers.
        """
        try:
            with self.open() as file:
                version = np.lib.format.read_magic(file)
                read = _READ_HEADER.get(version)
                if read is None:
                    raise ValueError(f"of version {version}")
                shape, is_fortran, dtype = read(file, max_header_size=_LONGEST_HEADER_BYTES)
                n_bytes = file.tell()
        except (OSError, *_DAMAGES) as error:
            raise ConfigError(
                f"{path}: {self.name} cannot be read as an array of numpy: {_one_line(error)}"
            ) from None
        if not shape or (is_fortran and len(shape) > 1):
            raise ConfigError(
                f"{path}: {self.name}: expected rows, got the shape {shape} in order of columns"
            )
        return _Header(shape, dtype, n_bytes)

    def numbers(self, path: Path) -> "np.dtype[Any]":
        """Return the type of a single row of integers.

        Raises:
            ConfigError: it is something else.
        """
        header = self.header(path)
        if len(header.shape) != 1 or header.dtype.kind not in "iu":
            raise ConfigError(
                f"{path}: {self.name}: expected a row of integers, got {header.dtype}, shape {header.shape}"
            )
        return header.dtype


def _record_type(path: Path, header: _Header) -> "np.dtype[Any]":
    """Return the type of the records of one array: the fields ``time`` and ``channel`` in their places."""
    kind = header.dtype
    if kind.names is not None and len(header.shape) == 1 and len(kind.names) == 2:
        check_unit(path, kind.names[0])
        fields: Mapping[str, Any] = kind.fields or {}
        (time, time_at), (channel, channel_at) = (fields[name][:2] for name in kind.names)
    elif kind.names is None and len(header.shape) == 2 and header.shape[1] == 2:
        time, time_at, channel, channel_at = kind, 0, kind, kind.itemsize
        kind = np.dtype((np.void, 2 * kind.itemsize))
    else:
        time = channel = np.dtype(object)
    if time.kind not in "iu" or time.itemsize != 8 or channel.kind not in "iu":
        raise ConfigError(
            f"{path}: expected int64 picoseconds and integer channels, in two fields or two columns; "
            f"got {header.dtype}, shape {header.shape} (a float64 holds picoseconds for 2.5 hours only)"
        )
    return np.dtype(
        {
            "names": ["time", "channel"],
            "formats": [time, channel],
            "offsets": [time_at, channel_at],
            "itemsize": kind.itemsize,
        }
    )


def _members(path: Path) -> tuple[_Column, _Column]:
    """Return the two arrays of an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
    except _DAMAGES as error:
        raise ConfigError(f"{path}: cannot be read as an archive of numpy: {_one_line(error)}") from None
    found = [next((name for name in wanted if name in names), None) for wanted in (_TIMES, _CHANNELS)]
    if None in found:
        has = _one_line(", ".join(names))
        raise ConfigError(f"{path}: expected the arrays times_ps and channels; it has {has}")

    def open_member(name: str) -> BufferedIOBase:
        with zipfile.ZipFile(path) as archive:
            return cast(BufferedIOBase, archive.open(f"{name}.npy"))

    times, channels = (_Column(str(name), partial(open_member, str(name))) for name in found)
    return times, channels


def _beside(path: Path) -> _Column:
    """Return the channels that belong to a file of times."""
    for times in _TIMES:
        for channels in _CHANNELS:
            other = path.with_name(path.name.replace(times, channels))
            if other != path and other.exists():
                return _Column(other.name, partial(_open, other))
    raise ConfigError(
        f"{path}: holds times only; expected their channels in a file channels.npy beside times_ps.npy"
    )


def _of_two_arrays(path: Path, times: _Column, channels: _Column) -> TagFile:
    kinds = times.numbers(path), channels.numbers(path)
    if kinds[0].itemsize != 8:
        raise ConfigError(f"{path}: {times.name}: expected int64 picoseconds, got {kinds[0]}")

    def read(most_records: int, summary: TagFileSummary) -> Iterator[TagFileBlock]:
        columns = (times, channels)
        said = [column.header(path) for column in columns]
        buffers = [np.empty(most_records * kind.itemsize, np.uint8) for kind in kinds]
        with times.open() as times_file, channels.open() as channels_file:
            files = (times_file, channels_file)
            for file, header in zip(files, said, strict=True):
                file.seek(header.n_bytes)
            n = most_records
            while n == most_records and not summary.truncated:
                try:
                    n = min(
                        fill(file, buffer) // kind.itemsize
                        for file, buffer, kind in zip(files, buffers, kinds, strict=True)
                    )
                except _DAMAGES as error:
                    summary.truncated = (
                        f"the archive is damaged, nothing of it can be relied on: {_one_line(error)}"
                    )
                    return
                if n:
                    summary.records += n
                    rows = [buffer.view(kind)[:n] for buffer, kind in zip(buffers, kinds, strict=True)]
                    yield _block(rows[0], rows[1], summary)
        if not summary.truncated and {summary.records} != {header.shape[0] for header in said}:
            counts = " and ".join(
                f"{header.shape[0]} {column.name}" for header, column in zip(said, columns, strict=True)
            )
            summary.truncated = f"the headers say {counts}, there are {summary.records} whole records"

    return _tag_file(path, read)


def _one_line(found: object) -> str:
    """Return the text of an error or of names from a file, which may be of any form."""
    return "".join(filter(str.isprintable, " ".join(str(found).split())))[:_SHOWN_CHARACTERS]


def _block(times: Integers, channels: Integers, summary: TagFileSummary) -> TagFileBlock:
    """Return a block of the records, up to the first channel that is none."""
    n = channels.shape[0]
    if int(channels.min()) < -_MOST_CHANNEL or int(channels.max()) > _MOST_CHANNEL:
        n = int(np.argmax((channels < -_MOST_CHANNEL) | (channels > _MOST_CHANNEL)))
        summary.records -= channels.shape[0] - n
        summary.truncated = (
            f"record {summary.records} has channel {channels[n]}; "
            f"expected -{_MOST_CHANNEL} to {_MOST_CHANNEL}"
        )
    return TagFileBlock(times[:n].astype(np.int64), channels[:n].astype(np.int16))
