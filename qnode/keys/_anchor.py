"""The anchor: a small file outside the database's folder that records the progress of the store.

The file has two sectors of a page each, each a JSON line with a MAC, padded with blanks. It is created
completely (temporary file, fsync, rename, fsync of the folder). After that every advance overwrites the
*older* sector in place and calls fdatasync once. A torn write damages only the sector being written, and the
other one has the step before, as after a crash just before the write. In comparison with a rename per step
this is one flush instead of a file-system journal commit (measured 0.12 ms against 2.1 ms), and a full disk
cannot prevent it.
"""

import hmac
import os
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct

from qnode.audit.entries import Head
from qnode.errors import StoreUnusable
from qnode.keys._model import Positions

_SECTOR_BYTES = 4096
_N_SECTORS = 2


class _Sector(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    store_id: bytes
    positions: Positions
    lineage: bytes = b""
    audit: Head | None = None


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Anchor:
    """An open anchor file, ready to advance. Not thread-safe: the store's writer lock guards it."""

    def __init__(self, path: Path, descriptor: int, mac_key: bytes, newest: _Sector) -> None:
        self._path = path
        self._descriptor = descriptor
        self._mac_key = mac_key
        self._store_id = newest.store_id
        self._target = 0
        self.positions = newest.positions
        self.lineage = newest.lineage
        """The lineage: the copies of the store among which its generation counts."""
        self.audit = newest.audit
        """The head of the audit; None in an anchor of a version that had none."""

    @classmethod
    def create(
        cls,
        path: Path,
        store_key: bytes,
        store_id: bytes,
        positions: Positions,
        lineage: bytes,
        audit: Head | None = None,
    ) -> Self:
        """Write a new anchor, durably, replacing any existing file, and open it."""
        mac_key = _mac_key(store_key)
        sector = _Sector(store_id, positions, lineage, audit)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, _encode(mac_key, sector) * _N_SECTORS, 0)
            os.fsync(descriptor)
            draft.replace(path)
            fsync_folder(path.parent)
        except OSError:
            os.close(descriptor)
            raise
        return cls(path, descriptor, mac_key, sector)

    @classmethod
    def open(cls, path: Path, store_key: bytes, store_id: bytes) -> Self | None:
        """Open the anchor at `path`; None if there is none or neither sector can be read.

        Raises StoreUnusable if it is intact but belongs to another store.
        """
        mac_key = _mac_key(store_key)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        sectors = [
            _decode(mac_key, os.pread(descriptor, _SECTOR_BYTES, i * _SECTOR_BYTES))
            for i in range(_N_SECTORS)
        ]
        known = [sector for sector in sectors if sector is not None]
        if not known:
            os.close(descriptor)
            return None
        if any(sector.store_id != store_id for sector in known):
            os.close(descriptor)
            raise StoreUnusable(f"{path}: this anchor belongs to another store; correct the paths")
        newest = max(known, key=lambda sector: sector.positions.generation)
        anchor = cls(path, descriptor, mac_key, newest)
        anchor._target = 1 - sectors.index(newest)
        return anchor

    def advance(self, positions: Positions, lineage: bytes, audit: Head | None = None) -> None:
        """Record `positions` durably before returning. Raises OSError; the file is then in doubt."""
        sector = _encode(self._mac_key, _Sector(self._store_id, positions, lineage, audit))
        written = os.pwrite(self._descriptor, sector, self._target * _SECTOR_BYTES)
        if written != _SECTOR_BYTES:
            raise OSError(f"{self._path}: wrote {written} of {_SECTOR_BYTES} bytes")
        os.fdatasync(self._descriptor)
        self._target = 1 - self._target
        self.positions = positions
        self.lineage = lineage
        self.audit = audit

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _mac_key(store_key: bytes) -> bytes:
    return hmac.digest(store_key, b"qnode anchor", "sha256")


def _encode(mac_key: bytes, sector: _Sector) -> bytes:
    text = msgspec.json.encode(sector)
    line = hmac.digest(mac_key, text, "sha256").hex().encode() + b" " + text
    return line.ljust(_SECTOR_BYTES - 1) + b"\n"


def _decode(mac_key: bytes, sector: bytes) -> _Sector | None:
    mac, _, text = sector.rstrip(b" \n").partition(b" ")
    if not hmac.compare_digest(hmac.digest(mac_key, text, "sha256").hex().encode(), mac):
        return None
    return msgspec.json.decode(text, type=_Sector)
