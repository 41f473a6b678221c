"""Remembers since when a key is in use, so that a restart of the agent does not make the key younger.

The file has a key_ID and a time, no part of a key. It lies in the agent's folder in memory, like the sockets.
"""

from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct


class _Remembered(Struct, frozen=True):
    key_id: str
    since: float


class KeyAge:
    """The file at ``path``; None: nothing is remembered. A file that cannot be used is as good as none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def remember(self, key_id: str, since: float) -> None:
        """``key_id`` is in use since then (Unix time)."""
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        with suppress(OSError):
            new.write_bytes(msgspec.json.encode(_Remembered(key_id, since)))
            new.replace(self._path)

    def forget(self) -> None:
        """No key is in use."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def since(self) -> float | None:
        """Return since when the key of an earlier run is in use; None: unknown."""
        if self._path is None:
            return None
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Remembered).since
        except (OSError, msgspec.DecodeError):
            return None
