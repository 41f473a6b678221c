"""The audit in the database of a store that no node uses: a stopped one, or a backup. It needs no secret."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct

from qnode.audit import ledger
from qnode.audit.entries import Chain, Head, Row
from qnode.audit.verify import AuditUnreadable

_SECTOR_BYTES = 4096


class _Sector(Struct, frozen=True):
    """What the audit reads of a sector of an anchor; its MAC needs the key of the store."""

    positions: dict[str, object]
    audit: Head | None = None


class FileSource:
    """The audit in the database at ``path``, compared with the anchor at ``anchor`` if that is given."""

    def __init__(self, path: Path, anchor: Path | None) -> None:
        self.name = str(path)
        self.anchored = None if anchor is None else anchored_head(anchor)
        if not path.is_file():
            raise AuditUnreadable(f"{path}: there is no such file")
        log = path.with_name(path.name + "-wal")
        # A database without a log is complete: nothing is written beside it, also on a read-only disk.
        options = "mode=ro" if log.exists() else "mode=ro&immutable=1"
        uri = f"{path.resolve().as_uri()}?{options}"
        try:
            self._connection = sqlite3.connect(uri, uri=True, timeout=0, check_same_thread=False)
            self._connection.execute("PRAGMA trusted_schema = OFF")
            self._connection.execute("PRAGMA cell_size_check = ON")
            self._connection.execute("BEGIN")
            self._chains = ledger.chains(self._connection)
        except sqlite3.Error as error:
            raise AuditUnreadable(_told(path, error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def chains(self) -> list[Chain]:
        """Return the chains, the live one last."""
        return self._chains

    def rows(self, chain: Chain) -> Iterator[Row]:
        """Yield the entries of a chain in order."""
        try:
            with closing(self._connection.cursor()):
                yield from ledger.rows(self._connection, chain.chain, chain.pruned_number)
        except sqlite3.Error as error:
            raise AuditUnreadable(f"the database is damaged here ({error})") from None


def anchored_head(path: Path) -> Head | None:
    """Return the head of the audit in an anchor; None if it has none, of an earlier version.

    Raises AuditUnreadable.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AuditUnreadable(f"{path}: {error.strerror}") from None
    found: list[tuple[int, Head | None]] = []
    for start in range(0, len(data), _SECTOR_BYTES):
        text = data[start : start + _SECTOR_BYTES].rstrip(b" \n").partition(b" ")[2]
        try:
            sector = msgspec.json.decode(text, type=_Sector)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue  # torn: the other one has the step before
        generation = sector.positions.get("generation")
        found.append((generation if isinstance(generation, int) else 0, sector.audit))
    if not found:
        raise AuditUnreadable(f"{path}: this is not an anchor, or it is damaged")
    return max(found, key=lambda one: one[0])[1]


def _told(path: Path, error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{path}: a node has this store open; ask the node instead, without --from"
    if "not a database" in str(error):
        return f"{path}: this is not a database, nor an export of JSON lines"
    if "no such table" in str(error):
        return f"{path}: this store has no audit: it is of an earlier version, or not a key store"
    return f"{path}: {error}"
