"""The spool: numbered records in a folder, appended by the reader, served on by the spool server.

Records lie in segments, files named after their first number. A record has a fixed length and lies where its
number says. One process appends and deletes (`Spool`), another reads and says what is acknowledged
(`read_after`, `set_acknowledged`).

- **Durable**: `Spool.sync` writes to the disk, as does `read_after` before it returns a record. So a record
  that anybody has seen survives a loss of power, and its number is never given to another. A process that is
  killed loses nothing that it appended.
- **Bounded**: acknowledged segments are deleted. Beyond ``most_bytes`` the oldest segment is deleted as well;
  who reads then finds a hole in the numbers.
"""

import fcntl
import os
import secrets
import threading
from itertools import pairwise
from pathlib import Path
from typing import Final

from qnode.errors import QnodeError
from qnode.testbed.sensors.record import RECORD_BYTES, DamagedRecord, Reason, Record, decode, encode

SEGMENT_RECORDS: Final = 6000
_HEADER: Final = b"qnode spool 1".ljust(15) + b"\n"
_SUFFIX: Final = ".spool"


class SpoolUnusable(QnodeError):
    """The folder of a spool cannot be used; the message says how to mend it."""


def segments(folder: Path) -> list[int]:
    """Return the first numbers of all segments, in order."""
    return sorted(int(path.stem) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdigit())


def _path(folder: Path, first: int) -> Path:
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
    """Return the number up to which all records are stored elsewhere; 0 if none is."""
    try:
        return int((folder / "acknowledged").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def set_acknowledged(folder: Path, number: int) -> None:
    """Remember durably that all records up to ``number`` are stored elsewhere."""
    _replace(folder / "acknowledged", f"{number}\n".encode())


def identity(folder: Path) -> str:
    """Return the random name of this spool; empty before its first start."""
    try:
        return (folder / "identity").read_text().strip()
    except FileNotFoundError:
        return ""


def last_record(folder: Path) -> Record | None:
    """Return the last whole record; None if there is none."""
    for first in reversed(segments(folder)):
        whole = _valid(_path(folder, first).read_bytes()[len(_HEADER) :], first)
        if whole:
            return whole[-1]
    return None


def read_after(folder: Path, after: int, limit: int) -> list[Record]:
    """Return up to ``limit`` records with numbers above ``after``, in order, once they are on the disk.

    Numbers that are missing are damaged or deleted: a later record shows that they will not come.
    """
    firsts = segments(folder)
    begin = max((n for n, first in enumerate(firsts) if first <= after + 1), default=0)
    found: list[Record] = []
    for first in firsts[begin:]:
        try:
            with _path(folder, first).open("rb") as file:
                place = max(0, after + 1 - first)
                file.seek(len(_HEADER) + place * RECORD_BYTES)
                raw = file.read((limit - len(found)) * RECORD_BYTES)
                records = _valid(raw, first + place)
                if records:
                    os.fdatasync(file.fileno())
        except FileNotFoundError:  # deleted since the folder was read
            continue
        found += records
        if len(found) >= limit:
            break
    return found


def _valid(raw: bytes, first: int) -> list[Record]:
    """Return the records in ``raw`` that are whole and lie in their own place."""
    records = []
    for n in range(len(raw) // RECORD_BYTES):
        try:
            record = decode(raw[n * RECORD_BYTES : (n + 1) * RECORD_BYTES])
        except DamagedRecord:
            continue
        if record.number == first + n:
            records.append(record)
    return records


def whole_records(folder: Path, first: int) -> int:
    """Return for how many records the segment that begins with number ``first`` has bytes."""
    return max(0, _path(folder, first).stat().st_size - len(_HEADER)) // RECORD_BYTES


class Spool:
    """The one writer of the spool in ``folder``.

    Raises:
        SpoolUnusable: another process writes it, or its files are of another version.
        OSError: the disk refuses.
    """

    def __init__(self, folder: Path, most_bytes: int, segment_records: int = SEGMENT_RECORDS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._segment_records = segment_records
        self._most_segments = max(2, most_bytes // (len(_HEADER) + segment_records * RECORD_BYTES))
        self._lock = (folder / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise SpoolUnusable(f"{folder}: another reader writes this spool; stop it first") from None
        self._guard = threading.Lock()
        self.last: Record | None = None
        try:
            if not identity(folder):
                _replace(folder / "identity", f"{secrets.token_hex(8)}\n".encode())
            self.identity = identity(folder)
            self._recover()
        except BaseException:
            self._lock.close()
            raise

    def _recover(self) -> None:
        """Find the last whole record, and cut off what follows it."""
        self._next, self._first = acknowledged(self._folder) + 1, 0
        for first in reversed(segments(self._folder)):
            with _path(self._folder, first).open("r+b") as file:
                header = file.read(len(_HEADER))
                if len(header) == len(_HEADER) and header != _HEADER:
                    raise SpoolUnusable(
                        f"{file.name}: not a segment of this version; move the folder away to begin a new one"
                    )
                whole = _valid(file.read(), first)
                if not self._first:
                    end = whole[-1].number + 1 - first if whole else 0
                    file.truncate(len(_HEADER) + end * RECORD_BYTES)
                    file.seek(0)
                    file.write(_HEADER)
                    self._first, self._next = first, max(self._next, first + end)
            if whole:
                self.last = whole[-1]
                break
        if not self._first or self._next > self._first + whole_records(self._folder, self._first):
            self._first = self._next
            _replace(_path(self._folder, self._first), _HEADER)
        self._file = _path(self._folder, self._first).open("ab", buffering=0)

    def _begin_segment(self) -> None:
        os.fdatasync(self._file.fileno())
        path = _path(self._folder, self._next)
        _replace(path, _HEADER)
        self._file.close()
        self._file, self._first = path.open("ab", buffering=0), self._next
        self._trim()

    def _trim(self) -> None:
        """Delete segments that are acknowledged, and the oldest ones beyond the bound.

        The one before the new segment stays: it has the last record, with the number of readings so far.
        """
        known = acknowledged(self._folder)
        firsts = segments(self._folder)
        for n, (first, after) in enumerate(pairwise(firsts[:-1])):
            if after <= known + 1 or len(firsts) - n > self._most_segments:
                _path(self._folder, first).unlink()

    def append(
        self, time_ms: int, values: tuple[float, ...] = (), reason: Reason | None = None, polls: int = 1
    ) -> Record:
        """Append a reading, or ``polls`` missed polls with their ``reason``.

        Raises:
            OSError: the disk refused; the spool is as before.
        """
        with self._guard:
            return self._append(time_ms, values, reason, polls)

    def _append(self, time_ms: int, values: tuple[float, ...], reason: Reason | None, polls: int) -> Record:
        if self._next >= self._first + self._segment_records:
            self._begin_segment()
        last = self.last
        record = Record(
            number=self._next,
            time_ms=time_ms,
            readings=(last.readings if last else 0) + (reason is None),
            missed=(last.missed if last else 0) + (0 if reason is None else polls),
            reason=reason,
            polls=polls,
            values=values,
        )
        end = len(_HEADER) + (self._next - self._first) * RECORD_BYTES
        try:
            written = self._file.write(encode(record))
            if written != RECORD_BYTES:
                raise OSError(f"wrote {written} of {RECORD_BYTES} bytes")
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise
        self.last, self._next = record, self._next + 1
        return record

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
