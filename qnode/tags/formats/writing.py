"""Writes tag files of the open formats, block by block."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import numpy as np

from qnode.errors import ConfigError
from qnode.tags.formats.model import TagFileBlock
from qnode.tags.formats.ptu_writing import PtuWriter
from qnode.tags.formats.qutag import HEADER_BYTES, MARKERS, RECORD
from qnode.tags.formats.tdc1_words import MARKER, TICK_PS, TIME_SHIFT, WRAP_TICKS
from qnode.tags.types import Times

_A1_BITS: Final = 54
_INPUTS: Final = 4  # of S-Fifteen's devices


class _Writer(Protocol):
    def add(self, block: TagFileBlock) -> None: ...

    def close(self) -> None: ...


def write_tag_file(
    path: Path,
    blocks: Iterable[TagFileBlock],
    format: str | None = None,  # noqa: A002 - the word of the command line
    sync_period_ps: float | None = None,
) -> None:
    """Write a new file, for its owner only: who has it and hears the sites' announcements knows the keys.

    ``format``: one of `WRITABLE`; without it the extension names it. ``sync_period_ps``: writes T3 records of
    such a sync (ptu). Times are exact where the format's step is a picosecond (ptu with T2 records, qutag,
    npy, csv), else the nearest step.
    Nothing is left of a file that cannot be written to its end.

    Raises:
        ConfigError: the file is there already or cannot be written; a channel, marker or time that the format
            cannot hold.
    """
    name = path.suffix.removeprefix(".").lower() if format is None else format
    if name not in WRITABLE:
        raise ConfigError(f"{path}: cannot be written as {name!r}; possible are {', '.join(WRITABLE)}")
    if sync_period_ps is not None and name != "ptu":
        raise ConfigError(f"{path}: a sync period is written into ptu files only, not as {name!r}")
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with file:
            writer = PtuWriter(file, sync_period_ps) if name == "ptu" else _WRITERS[name](file)
            for block in blocks:
                writer.add(block)
            writer.close()
    except BaseException as error:
        with suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
        if isinstance(error, ConfigError):
            raise ConfigError(f"{path}: {error}") from None
        raise


class _Qutag:
    """Writes quTAG files; markers are in order of time with the tags of their block."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.write(bytes(HEADER_BYTES))

    def add(self, block: TagFileBlock) -> None:
        channels, markers = block.channels, block.marker_numbers
        _check(channels, 0, 99, "channel")
        if not np.isin(markers, MARKERS).all():
            raise ConfigError(f"markers {set(markers.tolist())}: a quTAG has {', '.join(map(str, MARKERS))}")
        records = np.empty(channels.shape[0] + markers.shape[0], RECORD)
        records["time_ps"] = np.concatenate([block.times_ps, block.marker_times_ps])
        records["channel"] = np.concatenate([channels, markers])
        if markers.shape[0]:
            records = records[np.argsort(records["time_ps"], kind="stable")]
        self._file.write(records.tobytes())

    def close(self) -> None:
        pass


class _A1:
    """Writes a1 words. A reader takes the first of them for one before the first wrap, at 19.5 hours."""

    def __init__(self, file: BinaryIO, is_swapped: bool = False) -> None:
        self._file = file
        self._is_swapped = is_swapped
        self._before: int | None = None

    def add(self, block: TagFileBlock) -> None:
        ticks = _ticks(block, 125, 32)
        if not ticks.shape[0]:
            return
        before = ticks[0] if self._before is None else self._before
        if np.abs(np.diff(ticks, prepend=before)).max() >= 1 << (_A1_BITS - 1):
            raise ConfigError("no tag for more than 9 hours: the wraps of the format would go unseen")
        self._before = int(ticks[-1])
        words = (ticks & ((1 << _A1_BITS) - 1)).astype(np.uint64) << np.uint64(10) | np.uint64(1) << (
            block.channels - 1
        ).astype(np.uint64)
        if self._is_swapped:
            words = words << np.uint64(32) | words >> np.uint64(32)
        self._file.write(words.astype("<u8").tobytes())

    def close(self) -> None:
        pass


class _Tdc1:
    """Writes words of a TDC1, of a block in order of time, and a rollover event in each empty half turn."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._before = 0

    def add(self, block: TagFileBlock) -> None:
        ticks = _ticks(block, TICK_PS, 1)
        order = np.argsort(ticks, kind="stable")
        ticks, inputs = ticks[order], block.channels[order].astype(np.int64) - 1
        if not ticks.shape[0]:
            return
        half = WRAP_TICKS // 2
        turns = ticks // half
        apart = np.diff(turns, prepend=self._before // half)
        if ticks[0] < self._before:
            raise ConfigError(
                "a tag before one of an earlier block: the format holds tags in order of time only"
            )
        n_between = np.maximum(apart - 1, 0)
        places = np.arange(ticks.shape[0]) + np.cumsum(n_between)
        words = np.empty(int(places[-1]) + 1, np.uint32)
        is_tag = np.zeros(words.shape[0], bool)
        is_tag[places] = True
        words[places] = (ticks % WRAP_TICKS) << TIME_SHIFT | 1 << inputs
        empty_turns = np.repeat(turns, n_between) - _countdown(n_between)
        words[~is_tag] = (empty_turns * half % WRAP_TICKS) << TIME_SHIFT | MARKER
        self._file.write(words.astype("<u4").tobytes())
        self._before = int(ticks[-1])

    def close(self) -> None:
        pass


class _Npy:
    """Writes an array with the fields ``time_ps`` and ``channel``."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._count = 0
        self._write_header()

    def add(self, block: TagFileBlock) -> None:
        _refuse_markers(block)
        records = np.empty(block.channels.shape[0], RECORD)
        records["time_ps"], records["channel"] = block.times_ps, block.channels
        self._file.write(records.tobytes())
        self._count += records.shape[0]

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(RECORD),
            "fortran_order": False,
            "shape": (self._count,),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


class _Csv:
    """Writes lines of time and channel under their names."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.write(b"time_ps,channel\n")

    def add(self, block: TagFileBlock) -> None:
        _refuse_markers(block)
        tags = zip(block.times_ps.tolist(), block.channels.tolist(), strict=True)
        self._file.write("".join(f"{time},{channel}\n" for time, channel in tags).encode())

    def close(self) -> None:
        pass


_WRITERS: Final[dict[str, Callable[[BinaryIO], _Writer]]] = {
    "qutag": _Qutag,
    "a1": _A1,
    "a1-swapped": lambda file: _A1(file, is_swapped=True),
    "tdc1": _Tdc1,
    "npy": _Npy,
    "csv": _Csv,
}
WRITABLE: Final = ("ptu", *_WRITERS)
"""The names of the formats that can be written."""


def _check(numbers: "np.ndarray[tuple[int], np.dtype[np.int16]]", least: int, most: int, what: str) -> None:
    if numbers.size and not least <= numbers.min() <= numbers.max() <= most:
        raise ConfigError(f"{what}s {numbers.min()} to {numbers.max()}: the format has {least} to {most}")


def _refuse_markers(block: TagFileBlock) -> None:
    if block.marker_numbers.shape[0]:
        raise ConfigError("the format has no markers; leave them out")


def _ticks(block: TagFileBlock, numerator: int, denominator: int) -> Times:
    """Return the nearest ticks, of ``numerator`` / ``denominator`` picoseconds; check channels and times."""
    _refuse_markers(block)
    _check(block.channels, 1, _INPUTS, "channel")
    times = block.times_ps
    if times.size and times.min() < 0:
        raise ConfigError(f"{times.min()} ps: the format has times from 0 on")
    whole, rest = np.divmod(times, numerator)  # in parts: the product of a long time would not fit
    ticks: Times = whole * denominator + (2 * rest * denominator + numerator) // (2 * numerator)
    return ticks


def _countdown(counts: Times) -> Times:
    """Return ``n, ..., 1`` for each count ``n``."""
    ends = np.repeat(np.cumsum(counts), counts)
    return ends - np.arange(ends.shape[0])
