"""The file of a trend: a head that names its figures, then the rings; its size never changes."""

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from qnode.operate.trend.figures import FIGURES
from qnode.operate.trend.ring import RESOLUTIONS, SIZE_BYTES, Trend, Write

_HEAD_BYTES: Final = 512

log = structlog.get_logger()


def _head() -> bytes:
    """Return the head: one line for people, padded, with a CRC-32."""
    told = msgspec.json.encode({"figures": FIGURES, "resolutions": RESOLUTIONS})
    line = b"qnode trend 1 " + told + b"\n"
    body = line.ljust(_HEAD_BYTES - 4, b"\0")
    return body + zlib.crc32(body).to_bytes(4, "little")


class TrendFile:
    """A trend on disk. A disk that fails is told once; the trend then continues in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed = False
        self.trend = Trend()

    def open(self) -> None:
        """Read the file, or make it; a file with other contents is set aside."""
        try:
            content = self._path.read_bytes()
            if content[:_HEAD_BYTES] == _head() and len(content) == _HEAD_BYTES + SIZE_BYTES:
                self.trend = Trend(content[_HEAD_BYTES:])
                return
            aside = self._path.with_name(self._path.name + ".set-aside")
            self._path.replace(aside)
            log.warning("trend.set_aside", path=str(aside), reason="not a trend of this version, or damaged")
        except FileNotFoundError:
            pass
        except OSError as error:
            self._fail(error)
            return
        try:
            partial = self._path.with_name(self._path.name + ".partial")
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(_head() + self.trend.content())
            partial.replace(self._path)
        except OSError as error:
            self._fail(error)

    def write(self, writes: Iterable[Write]) -> None:
        """Put records in their places; may block on the disk."""
        if self._failed:
            return
        try:
            file = os.open(self._path, os.O_WRONLY)
            try:
                for offset, record in writes:
                    os.pwrite(file, record, _HEAD_BYTES + offset)
            finally:
                os.close(file)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._failed = True
        log.warning(
            "trend.failed", path=str(self._path), reason=f"{error.strerror or error}: kept in memory only"
        )
