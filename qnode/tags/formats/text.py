"""Lines of text: time in whole picoseconds and channel, separated by a comma, semicolon, tab or spaces.

Lines that begin with ``#`` and empty ones mean nothing. A first line of names may say that the channel comes
first. A last line without its end may be cut: it is not read.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from qnode.kernels import inline_kernel, kernel
from qnode.tags.formats.model import FileChannels, TagFile, TagFileBlock, TagFileSummary
from qnode.tags.formats.npy import check_unit
from qnode.tags.formats.pieces import RawBytes, fill
from qnode.tags.types import Times

_TAG: Final = re.compile(rb"[ \t]*-?\d+[ \t]*[,;\t ][ \t]*-?\d+[ \t]*\r?\n")
_LINE: Final = re.compile(rb"[^\n]*\n")
_BUFFER_BYTES: Final = 1 << 20
_SHORTEST_LINE_BYTES: Final = 4
_SHOWN_BYTES: Final = 40
_MOST_CHANNEL: Final = 32_767
_TAB, _NEWLINE, _RETURN, _SPACE, _HASH, _COMMA, _MINUS, _SEMICOLON = b"\t\n\r #,-;"
_ZERO: Final = ord("0")
_ALL_READ, _FULL, _UNSOUND = range(3)


def looks_like_csv(head: bytes) -> bool:
    """Tell whether the bytes that a file begins with are lines of tags, after comments and names at most."""
    return bool(_TAG.match(head, _first_line(head)[1]))


def open_csv(path: Path) -> TagFile:
    """Return the reader of a text file."""
    with path.open("rb") as file:
        names, start = _first_line(file.read(_BUFFER_BYTES))
    is_swapped = bool(names) and names[0].lower().startswith(("ch", "input"))
    if names:
        check_unit(path, names[1 if is_swapped else 0])

    def read(most_records: int, summary: TagFileSummary) -> Iterator[TagFileBlock]:
        buffer, kept = np.empty(_BUFFER_BYTES, np.uint8), 0
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while True:
                n_bytes = kept + fill(file, buffer[kept:])
                at, state = 0, _FULL
                while state == _FULL:
                    size = min(most_records, (n_bytes - at) // _SHORTEST_LINE_BYTES + 1)
                    times, channels = np.empty(size, np.int64), np.empty(size, np.int16)
                    n, at, state = _decode(buffer[:n_bytes], at, is_swapped, times, channels)
                    summary.records += n
                    if n:
                        yield TagFileBlock(times[:n], channels[:n])
                rest = bytes(buffer[at : min(n_bytes, at + _SHOWN_BYTES)]).split(b"\n")[0]
                if state == _UNSOUND or (at == 0 and n_bytes == _BUFFER_BYTES):
                    summary.truncated = f"no time and channel after record {summary.records}: {rest!r}"
                    return
                if n_bytes < _BUFFER_BYTES:
                    if rest.strip():
                        summary.truncated = f"ends in mid-line after record {summary.records}: {rest!r}"
                    return
                kept = n_bytes - at
                buffer[:kept] = buffer[at:n_bytes].copy()

    return TagFile(path, "csv", "", 1.0, read)


def _first_line(head: bytes) -> tuple[list[str], int]:
    """Return the names of the columns, if a line of them comes first, and where what follows begins."""
    at = 0
    while line := _LINE.match(head, at):
        text = line.group().strip()
        if text and not text.startswith(b"#"):
            names = re.split(r"[,;\t]", text.decode("utf-8", "replace"))
            if len(names) == 2 and all(re.search(r"[^\W\d]", name) for name in names):
                return [name.strip(' "') for name in names], line.end()
            return [], at
        at = line.end()
    return [], at


def warm() -> None:
    """Compile the kernel."""
    _decode(np.zeros(1, np.uint8), 0, False, np.zeros(1, np.int64), np.zeros(1, np.int16))


@inline_kernel
def _is_blank(byte: np.uint8) -> bool:
    return bool(byte in (_SPACE, _TAB, _RETURN))


@inline_kernel
def _integer(text: RawBytes, at: int, end: int) -> tuple[np.int64, int, bool]:
    """Return the number from ``at`` on, where it and its blanks end, and whether it fits."""
    while at < end and _is_blank(text[at]):
        at += 1
    is_negative = at < end and text[at] == _MINUS
    if is_negative:
        at += 1
    first, value = at, np.uint64(0)
    while at < end and _ZERO <= text[at] < _ZERO + 10:
        value = value * np.uint64(10) + np.uint64(text[at] - _ZERO)
        at += 1
    n_digits = at - first
    while at < end and _is_blank(text[at]):
        at += 1
    fits = bool(0 < n_digits < 20 and value < np.uint64(1 << 63))
    return (-np.int64(value) if is_negative else np.int64(value)), at, fits


@kernel
def _decode(
    text: RawBytes, at: int, is_swapped: bool, times: Times, channels: FileChannels
) -> tuple[int, int, int]:
    """Decode lines from ``at`` on; return the number of tags, where the rest begins, and what ended it."""
    n_tags, size = 0, text.shape[0]
    while True:
        end = at
        while end < size and text[end] != _NEWLINE:
            end += 1
        if end == size:
            return n_tags, at, _ALL_READ
        first = at
        while first < end and _is_blank(text[first]):
            first += 1
        if first == end or text[first] == _HASH:
            at = end + 1
            continue
        if n_tags == times.shape[0]:
            return n_tags, at, _FULL
        left, place, is_left_sound = _integer(text, first, end)
        has_blank = _is_blank(text[place - 1])
        is_separated = has_blank
        if place < end and (text[place] == _COMMA or text[place] == _SEMICOLON):
            is_separated = True
            place += 1
        right, place, is_right_sound = _integer(text, place, end)
        time, channel = (right, left) if is_swapped else (left, right)
        are_sound = is_left_sound and is_right_sound and is_separated and place == end
        if not are_sound or channel < -_MOST_CHANNEL or channel > _MOST_CHANNEL:
            return n_tags, at, _UNSOUND
        times[n_tags], channels[n_tags] = time, np.int16(channel)
        n_tags += 1
        at = end + 1
