"""The register of pre-shared keys that a site has loaded: none of them is loaded twice.

A pre-shared key holds one-time pads, so a new store must not use one whose pads the earlier store has used.
The register is a separate file beside the anchor, so that it survives the removal of database and anchor. It
has a fingerprint of each key, which discloses nothing about the key.
An entry is written before the key is loaded, and marked as loaded after it. If a start is interrupted in
between, the key may be loaded again, because no part of it was used.
"""

import hmac
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from qnode.errors import StoreError, StoreUnusable
from qnode.keys._anchor import fsync_folder

HEAD_BYTES = 64
_FINGERPRINT_BYTES = 16


def preshared_fingerprint(head: bytes) -> str:
    """Return the fingerprint of the pre-shared key that begins with `head`: session root and hash keys."""
    return hmac.digest(head, b"qnode pre-shared key", "sha256")[:_FINGERPRINT_BYTES].hex()


class _Entry(Struct, frozen=True, forbid_unknown_fields=True):
    fingerprint: str
    loaded: bool


def loaded_in(content: bytes) -> set[str]:
    """Return the fingerprints of the pre-shared keys that a register names as loaded."""
    entries = msgspec.json.decode(content, type=list[_Entry])
    return {entry.fingerprint for entry in entries if entry.loaded}


class PresharedRegister:
    """The register at `path`, read at each access: it is used once per start."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def replace(self, content: bytes) -> None:
        """Write the register of a backup. Raises StoreUnusable."""
        self._write(msgspec.json.decode(content, type=list[_Entry]))

    def content(self) -> bytes:
        """Return what a backup keeps of the register. Raises StoreUnusable if it cannot be read."""
        return msgspec.json.encode(self._read())

    def begin(self, key: str) -> None:
        """Enter a key that is about to be loaded. Raises StoreError if it was loaded before."""
        entries = self._read()
        if any(entry.loaded and entry.fingerprint == key for entry in entries):
            raise StoreError(
                f"this pre-shared key was loaded at this site before ({self._path}), so its one-time pads "
                "may be used; make a new one for both sites"
            )
        if not any(entry.fingerprint == key for entry in entries):
            self._write([*entries, _Entry(key, loaded=False)])

    def finish(self, key: str) -> None:
        """Enter a key as loaded; repetition is allowed."""
        entries = self._read()
        if _Entry(key, loaded=True) not in entries:
            others = [entry for entry in entries if entry.fingerprint != key]
            self._write([*others, _Entry(key, loaded=True)])

    def _read(self) -> list[_Entry]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[_Entry])
        except FileNotFoundError:
            return []
        except msgspec.DecodeError as error:
            raise StoreUnusable(
                f"{self._path}: the register of pre-shared keys cannot be read ({error}); restore it from a "
                "backup, or remove it and run qnodectl restore with a new pre-shared key at both sites"
            ) from None

    def _write(self, entries: list[_Entry]) -> None:
        """Replace the file, durably before returning. Raises StoreUnusable."""
        try:
            self._replace(msgspec.json.encode(entries))
        except OSError as error:
            raise StoreUnusable(
                f"{self._path}: the register of pre-shared keys cannot be written ({error}); mend its disk"
            ) from error

    def _replace(self, content: bytes) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_name(self._path.name + ".new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.replace(self._path)
        fsync_folder(self._path.parent)
