"""Decided blocks as CSV: a header line, then one line per block; unknown values are empty.

`open_block_table` continues a file across restarts of the writer and of the node.
"""

import csv
import fcntl
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from qnode.distill.check_table import CHECKS
from qnode.errors import QnodeError
from qnode.operate.blocks.row import DecidedBlock

_PLAIN: Final = tuple(name for name in DecidedBlock.__struct_fields__ if name != "checks")
_CHECKS: Final = tuple(check.name for check in CHECKS)
COLUMNS: Final = (
    *_PLAIN,
    *(f"check_{name}{part}" for name in _CHECKS for part in ("", "_least", "_most")),
)
HEADER: Final = (",".join(COLUMNS) + "\n").encode()
# Longer than any line; the last line is found within it.
_TAIL_BYTES = 1 << 16


class TableRefused(QnodeError):
    """A file is not a table of blocks that can be continued; it was not changed."""


def csv_lines(blocks: Iterable[DecidedBlock]) -> str:
    """Return a line for each block, each with its end."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for block in blocks:
        writer.writerow(_cells(block))
    return text.getvalue()


def _cells(block: DecidedBlock) -> Iterator[object]:
    yield from (getattr(block, name) for name in _PLAIN)
    found = {finding.check: finding for finding in block.checks}
    for name in _CHECKS:
        finding = found.get(name)
        yield from (None,) * 3 if finding is None else (finding.value, finding.least, finding.most)


class BlockTable:
    """A growing file of blocks; ``last_block_id`` is that of its last line, None without lines."""

    def __init__(self, file: io.FileIO, last_block_id: int | None) -> None:
        self._file = file
        self.last_block_id = last_block_id

    def append(self, blocks: list[DecidedBlock]) -> None:
        """Append ``blocks``, all or none.

        Raises:
            OSError: the file cannot be written, as on a full disk.
        """
        if blocks:
            _append(self._file, csv_lines(blocks).encode())
            self.last_block_id = blocks[-1].block_id


@contextmanager
def open_block_table(path: Path) -> Iterator[BlockTable]:
    """Open ``path`` to append to it: a new file gets its header, an incomplete last line is removed.

    Raises:
        TableRefused: it has another header, its last line is not a block, or another process writes it.
        OSError: it cannot be opened or written.
    """
    with io.FileIO(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TableRefused(f"{path}: another process writes this table") from None
        yield BlockTable(file, _continue(path, file))


def _continue(path: Path, file: io.FileIO) -> int | None:
    """Return the block of the last line, after removing the rest of a killed writer."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = _read(file, len(HEADER))
    if size < len(HEADER) and HEADER.startswith(head):  # empty, or an incomplete header
        file.truncate(0)
        _append(file, HEADER)
        return None
    if head != HEADER:
        raise TableRefused(
            f"{path}: its first line is not the header of this table ({_difference(head)}); "
            "name a new file, or move this one away"
        )
    start = file.seek(max(len(HEADER), size - _TAIL_BYTES))
    tail = _read(file, size - start)
    whole = tail[: tail.rfind(b"\n") + 1]
    last = whole.splitlines()[-1:]
    if tail and not last and start > len(HEADER):
        raise TableRefused(f"{path}: its last line is no block of this table; mend it, or name a new file")
    block_id = _block_id(path, last[0]) if last else None
    if len(whole) < len(tail):
        file.truncate(start + len(whole))
    return block_id


def _block_id(path: Path, line: bytes) -> int:
    try:
        (row,) = csv.reader([line.decode()])
        if len(row) == len(COLUMNS):
            return int(row[0])
    except ValueError:
        pass
    raise TableRefused(f"{path}: its last line is no block of this table; mend it, or name a new file")


def _difference(head: bytes) -> str:
    """Describe the first difference of a header."""
    names = head.split(b"\n", 1)[0].decode(errors="replace").split(",")
    for column, (found, expected) in enumerate(zip(names, COLUMNS, strict=False), 1):
        if found != expected:
            return f"column {column} is {found[:40]!r}, expected {expected!r}"
    return f"it has {len(names)} columns, expected {len(COLUMNS)}"


def _read(file: io.FileIO, n_bytes: int) -> bytes:
    read = bytearray()
    while len(read) < n_bytes and (part := file.read(n_bytes - len(read))):
        read += part
    return bytes(read)


def _append(file: io.FileIO, data: bytes) -> None:
    """Append all of ``data``, or remove the part that was written."""
    size = file.seek(0, os.SEEK_END)
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(size)
        raise
