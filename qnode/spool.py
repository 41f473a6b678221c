"""A spool: numbered entries in a folder that one process appends, until somebody has stored them elsewhere.

An entry is any bytes. Entries lie one after the other in segments, files named after the first number that
they may hold; each has its number, its length and a checksum. One process appends and deletes (`Spool`), the
same or another one reads and says what is acknowledged (`read_after`, `set_acknowledged`).

- **Durable**: `Spool.sync` writes to the disk, as does `read_after` before it returns an entry. So an entry
  that anybody has seen survives a loss of power, and its number is never given to another. A process that is
  killed loses nothing that it appended.
- **Bounded**: acknowledged segments are deleted. Beyond ``most_bytes`` the oldest segment is deleted as well;
  who reads then finds a hole in the numbers.
"""

import fcntl
import os
import secrets
import struct
import threading
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from qnode.errors import QnodeError

SEGMENT_ENTRIES: Final = 2000
# A full spool loses one segment at a time, at most this part of its bound.
LEAST_SEGMENTS: Final = 4
MOST_ENTRY_BYTES: Final = 4 * 1024 * 1024
_HEADER: Final = b"qnode spool 2".ljust(15) + b"\n"
_SUFFIX: Final = ".spool"
_HEAD: Final = struct.Struct("<QI")  # number, length of the entry
_CHECKSUM: Final = struct.Struct("<I")  # of head and entry
HEAD_BYTES: Final = _HEAD.size + _CHECKSUM.size
HEADER_BYTES: Final = len(_HEADER)


class SpoolUnusable(QnodeError):
    """The folder of a spool cannot be used; the message says how to mend it."""


class Entry(NamedTuple):
    """One entry of a spool."""

    number: int
    content: bytes


def segments(folder: Path) -> list[int]:
    """Return the first numbers of all segments, in order."""
    return sorted(int(path.stem) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdigit())


def segment_path(folder: Path, first: int) -> Path:
    """Return the file of the segment that begins with number ``first``."""
    return folder / f"{first:020d}{_SUFFIX}"


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole, and durably: after a crash it is the old one or the new one."""
    new = path.with_suffix(path.suffix + ".new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def acknowledged(folder: Path) -> int:
    """Return the number up to which all entries are stored elsewhere; 0 if none is."""
    try:
        return int((folder / "acknowledged").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def set_acknowledged(folder: Path, number: int) -> None:
    """Remember durably that all entries up to ``number`` are stored elsewhere."""
    _replace(folder / "acknowledged", f"{number}\n".encode())


def identity(folder: Path) -> str:
    """Return the random name of this spool; empty before its first start."""
    try:
        return (folder / "identity").read_text().strip()
    except FileNotFoundError:
        return ""


def last_entry(folder: Path) -> Entry | None:
    """Return the last whole entry; None if there is none."""
    for first in reversed(segments(folder)):
        whole = _valid(segment_path(folder, first).read_bytes(), first)
        if whole:
            return whole[-1][0]
    return None


def read_after(folder: Path, after: int, limit: int) -> list[Entry]:
    """Return up to ``limit`` entries with numbers above ``after``, in order, once they are on the disk.

    Numbers that are missing are damaged or deleted: a later entry shows that they will not come.
    """
    firsts = segments(folder)
    begin = max((n for n, first in enumerate(firsts) if first <= after + 1), default=0)
    found: list[Entry] = []
    for first in firsts[begin:]:
        try:
            with segment_path(folder, first).open("rb") as file:
                entries = [entry for entry, _ in _valid(file.read(), first) if entry.number > after]
                if entries:
                    os.fdatasync(file.fileno())
        except FileNotFoundError:  # deleted since the folder was read
            continue
        found += entries[: limit - len(found)]
        if len(found) >= limit:
            break
    return found


def _packed(entry: Entry) -> bytes:
    head = _HEAD.pack(entry.number, len(entry.content))
    return head + _CHECKSUM.pack(zlib.crc32(entry.content, zlib.crc32(head))) + entry.content


def _valid(raw: bytes, first: int) -> list[tuple[Entry, int]]:
    """Return the whole entries of a segment, each with the place of its end; damage is passed over."""
    found: list[tuple[Entry, int]] = []
    place, least = HEADER_BYTES, first
    while place + HEAD_BYTES <= len(raw):
        number, length = _HEAD.unpack_from(raw, place)
        end = place + HEAD_BYTES + length
        # Numbers rise from the segment's own: what lies between two entries is seldom taken for one.
        if least <= number < first + SEGMENT_ENTRIES and length <= MOST_ENTRY_BYTES and end <= len(raw):
            content = raw[place + HEAD_BYTES : end]
            (checksum,) = _CHECKSUM.unpack_from(raw, place + _HEAD.size)
            if zlib.crc32(content, zlib.crc32(raw[place : place + _HEAD.size])) == checksum:
                found.append((Entry(number, content), end))
                place, least = end, number + 1
                continue
        place += 1
    return found


class Spool:
    """The one writer of the spool in ``folder``; at most ``most_bytes`` lie there.

    Raises:
        SpoolUnusable: another process writes it, or its files are of another version.
        OSError: the disk refuses.
    """

    def __init__(self, folder: Path, most_bytes: int, segment_entries: int = SEGMENT_ENTRIES) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        self.folder = folder
        self._segment_entries = min(segment_entries, SEGMENT_ENTRIES)
        self._most_bytes = most_bytes
        self._lock = (folder / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise SpoolUnusable(f"{folder}: another process writes this spool; stop it first") from None
        self._guard = threading.Lock()
        self.last: Entry | None = None
        try:
            if not identity(folder):
                _replace(folder / "identity", f"{secrets.token_hex(8)}\n".encode())
            self.identity = identity(folder)
            self._recover()
        except BaseException:
            self._lock.close()
            raise

    def _recover(self) -> None:
        """Find the last whole entry, and cut off what follows it."""
        firsts = segments(self.folder)
        self._bytes = sum(segment_path(self.folder, first).stat().st_size for first in firsts)
        newest = firsts[-1] if firsts else 0
        for first in reversed(firsts):
            with segment_path(self.folder, first).open("r+b") as file:
                raw = file.read()
                if len(raw) >= HEADER_BYTES and not raw.startswith(_HEADER):
                    raise SpoolUnusable(
                        f"{file.name}: not a segment of this version; move the folder away to begin a new one"
                    )
                whole = _valid(raw, first)
                if first == newest:
                    end = whole[-1][1] if whole else HEADER_BYTES
                    file.truncate(end)
                    file.seek(0)
                    file.write(_HEADER)
                    self._size, self._bytes = end, self._bytes - len(raw) + end
            if whole:
                self.last = whole[-1][0]
                break
        self._next = max(acknowledged(self.folder), self.last.number if self.last else 0, newest - 1) + 1
        self._first = newest
        if not newest or self._next >= newest + self._segment_entries:
            self._first, self._size = self._next, HEADER_BYTES
            self._bytes += HEADER_BYTES
            _replace(segment_path(self.folder, self._first), _HEADER)
        self._file = segment_path(self.folder, self._first).open("ab", buffering=0)

    def _begin_segment(self) -> None:
        os.fdatasync(self._file.fileno())
        path = segment_path(self.folder, self._next)
        _replace(path, _HEADER)
        self._file.close()
        self._file, self._first, self._size = path.open("ab", buffering=0), self._next, HEADER_BYTES
        self._bytes += HEADER_BYTES

    def _trim(self, coming_bytes: int) -> None:
        """Delete segments that are acknowledged, and the oldest ones while ``coming_bytes`` have no room.

        The one before the last stays: after a crash the last may be empty, and it then has the last entry.
        """
        known = acknowledged(self.folder)
        for first, after in pairwise(segments(self.folder)[:-1]):
            if after <= known + 1 or self._bytes + coming_bytes > self._most_bytes:
                path = segment_path(self.folder, first)
                size = path.stat().st_size
                path.unlink()
                self._bytes -= size

    def append(self, content: bytes) -> Entry:
        """Append an entry.

        Raises:
            ValueError: it is longer than `MOST_ENTRY_BYTES`, or than a segment.
            OSError: the disk refused; the spool is as before.
        """
        return self._append(lambda _: content)

    def _append(self, make: Callable[[int], bytes]) -> Entry:
        """Append what ``make`` returns for the number of the entry."""
        with self._guard:
            entry = Entry(self._next, make(self._next))
            raw = _packed(entry)
            segment_bytes = self._most_bytes // LEAST_SEGMENTS
            if len(entry.content) > MOST_ENTRY_BYTES or HEADER_BYTES + len(raw) > segment_bytes:
                most = min(MOST_ENTRY_BYTES, segment_bytes - HEADER_BYTES - HEAD_BYTES)
                raise ValueError(f"an entry of {len(entry.content)} bytes; the most is {most}")
            if self._next >= self._first + self._segment_entries or self._size + len(raw) > segment_bytes:
                self._begin_segment()
                self._trim(len(raw))
            elif self._bytes + len(raw) > self._most_bytes:
                self._trim(len(raw))
            try:
                written = self._file.write(raw)
                if written != len(raw):
                    raise OSError(f"wrote {written} of {len(raw)} bytes")
            except OSError:
                os.ftruncate(self._file.fileno(), self._size)
                raise
            self._size, self._bytes = self._size + len(raw), self._bytes + len(raw)
            self.last, self._next = entry, self._next + 1
            return entry

    def sync(self) -> None:
        """Write everything appended to the disk; may be called in a thread of its own."""
        with self._guard:
            if not self._file.closed:
                os.fdatasync(self._file.fileno())

    def close(self) -> None:
        """Sync, and let another process write."""
        with self._guard:
            os.fdatasync(self._file.fileno())
            self._file.close()
            self._lock.close()
