"""The header of PicoQuant's unified files: ``PQTTTR``, a version, then named values up to ``Header_End``."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from qnode.errors import ConfigError

MAGIC: Final = b"PQTTTR"
TAG: Final = struct.Struct(
    "<32siIq"
)  # name, index (-1: there is one only), type, value or length of what follows
EMPTY: Final = 0xFFFF_0008
BOOLEAN: Final = 0x0000_0008
INTEGER: Final = 0x1000_0008
FLOAT: Final = 0x2000_0008
DATE: Final = 0x2100_0008
TEXT: Final = 0x4001_FFFF
_INTEGERS: Final = (INTEGER, 0x1100_0008, 0x1200_0008)  # the others: bits, a colour
_FLOATS: Final = (FLOAT, DATE)
_WIDE_TEXT: Final = 0x4002_FFFF
_LONG: Final = (TEXT, _WIDE_TEXT, 0x2001_FFFF, 0xFFFF_FFFF)  # the others: array of floats, anything
END: Final = "Header_End"
_MOST_TAGS: Final = 100_000
_LONGEST_TEXT_BYTES: Final = 4096

Facts = dict[str, int | float | str]


def read_header(path: Path) -> tuple[Facts, int]:
    """Return the values of a header by name, ``NAME.INDEX`` where there are several, and its length in bytes.

    Raises:
        ConfigError: it is not whole, or no such header.
    """
    with path.open("rb") as file:
        if file.read(16)[:6] != MAGIC:
            raise ConfigError(f"{path}: is no PicoQuant file: it does not begin with {MAGIC.decode()}")
        facts = dict(_values(path, file))
        return facts, file.tell()


def _values(path: Path, file: BinaryIO) -> Iterator[tuple[str, int | float | str]]:
    n_bytes = path.stat().st_size
    for _ in range(_MOST_TAGS):
        at = file.tell()
        tag = file.read(TAG.size)
        if len(tag) < TAG.size:
            raise ConfigError(f"{path}: ends within its header, without {END}")
        name_bytes, index, kind, value = TAG.unpack(tag)
        name = name_bytes.split(b"\0")[0].decode("ascii", "replace")
        if name == END:
            return
        name = name if index < 0 else f"{name}.{index}"
        if kind in _LONG:
            if not 0 <= value <= n_bytes - file.tell():
                raise ConfigError(f"{path}: its header is damaged: {name} has {value} bytes, byte {at}")
            if kind in (TEXT, _WIDE_TEXT):
                text = file.read(min(value, _LONGEST_TEXT_BYTES))
                yield name, _text(text, kind)
                value -= len(text)
            file.seek(value, 1)
        elif kind in _INTEGERS or kind == BOOLEAN:
            yield name, int(value)
        elif kind in _FLOATS:
            yield name, float(struct.unpack("<d", struct.pack("<q", value))[0])
        elif kind != EMPTY:
            raise ConfigError(f"{path}: its header is damaged: {name!r} has the type {kind:#010x}, byte {at}")
    raise ConfigError(f"{path}: its header is damaged: more than {_MOST_TAGS} values")


def _text(value: bytes, kind: int) -> str:
    text = value.decode("utf-16-le" if kind == _WIDE_TEXT else "latin-1", "replace")
    return text.split("\0")[0].strip()
