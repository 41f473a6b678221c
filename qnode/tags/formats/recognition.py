"""Which format a tag file has: by its content, then by its extension."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qnode.errors import ConfigError
from qnode.tags.formats import ptu, sfifteen, text
from qnode.tags.formats.model import TagFile
from qnode.tags.formats.npy import looks_like_npy, open_npy
from qnode.tags.formats.ptu import looks_like_ptu, open_ptu
from qnode.tags.formats.qutag import looks_like_qutag, open_qutag
from qnode.tags.formats.sfifteen import (
    looks_like_a0,
    looks_like_a1,
    looks_like_a2,
    looks_like_swapped_a1,
    looks_like_tdc1,
    open_a0,
    open_a1,
    open_a2,
    open_swapped_a1,
    open_tdc1,
)
from qnode.tags.formats.text import looks_like_csv, open_csv
from qnode.tags.formats.ttbin import open_ttbin

_HEAD_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class _Format:
    """A format. ``open`` raises ConfigError if the file cannot have it."""

    open: Callable[[Path], TagFile]
    looks_like: Callable[[bytes], bool] | None
    extensions: tuple[str, ...]


# In the order in which they are tried: the surest signs first.
_FORMATS: Final = {
    "ptu": _Format(open_ptu, looks_like_ptu, (".ptu", ".timeres")),
    "npy": _Format(open_npy, looks_like_npy, (".npy", ".npz")),
    "a0": _Format(open_a0, looks_like_a0, ()),
    "a2": _Format(open_a2, looks_like_a2, ()),
    "csv": _Format(open_csv, looks_like_csv, (".csv", ".txt")),
    "ttbin": _Format(open_ttbin, None, (".ttbin",)),
    "qutag": _Format(open_qutag, looks_like_qutag, (".qutag",)),
    "tdc1": _Format(open_tdc1, looks_like_tdc1, (".tdc1",)),
    "a1": _Format(open_a1, looks_like_a1, (".a1",)),
    "a1-swapped": _Format(open_swapped_a1, looks_like_swapped_a1, ()),
}
FORMATS: Final = tuple(sorted(_FORMATS))
"""The names of all formats that can be read."""


def open_tag_file(path: Path, format: str | None = None) -> TagFile:  # noqa: A002 - the word of the command line
    """Return the reader of a tag file; ``format`` says what a file is that does not show it.

    Raises:
        ConfigError: there is no such file, it is empty, it has none of the formats, or not the one named.
    """
    if format is not None and format not in _FORMATS:
        raise ConfigError(f"{path}: {format!r} is no format of tag files; known are {', '.join(FORMATS)}")
    head = _head(path)
    name = format or _recognised(path, head)
    if name is None:
        raise ConfigError(
            f"{path}: is no tag file of a known format: it begins with {_shown(head)}; "
            f"known are {', '.join(FORMATS)}; name the format if it is one of them"
        )
    try:
        return _FORMATS[name].open(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None


def _recognised(path: Path, head: bytes) -> str | None:
    for name, one in _FORMATS.items():
        if one.looks_like is not None and one.looks_like(head):
            return name
    for name, one in _FORMATS.items():
        if path.suffix.lower() in one.extensions:
            return name
    return None


def _head(path: Path) -> bytes:
    try:
        is_stream = path.exists() and not (path.is_file() or path.is_dir())
        if is_stream:  # opening a pipe would wait for a writer
            raise ConfigError(f"{path}: is a pipe or a device, and is read more than once: save it as a file")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise ConfigError(f"{path}: is empty")
    return head


def _shown(head: bytes) -> str:
    """Return the first bytes as text, or in hexadecimal."""
    first = head[:16]
    return repr(first.decode()) if first.isascii() and first.decode().isprintable() else first.hex(" ")


def warm() -> None:
    """Compile the kernels of all formats."""
    for module in (ptu, sfifteen, text):
        module.warm()
