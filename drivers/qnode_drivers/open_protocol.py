"""Messages of the open device protocol, as the node sends and reads them (docs/device-protocol.md)."""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from qnode.errors import DeviceError
from qnode.tags.open_protocol import SYNC
from qnode.tags.types import UNKNOWN_SYMBOL, Codes, Slots

VERSIONS: Final = (1, 1)  # the least and the most that this driver speaks
MOST_SLOTS_ASKED: Final = 252  # in one request by list
MOST_SLOTS_READ: Final = 1 << 16  # in one request by range


class Kind(IntEnum):
    """Kinds of frames."""

    HELLO = 0x01
    SAFE = 0x02
    GET = 0x03
    SET = 0x04
    START = 0x05
    STOP = 0x06
    NOW = 0x07
    HEALTH = 0x08
    LOOK_UP = 0x09
    READ = 0x0A
    TAGS = 0x40
    EVENT = 0x41
    ERROR = 0xFF


ANSWER: Final = 0x80
SYMBOL_ANSWERS: Final = (Kind.LOOK_UP | ANSWER, Kind.READ | ANSWER)


class DeviceKind(IntEnum):
    """The number in the identity."""

    TRANSMITTER = 1
    TDC = 2


class EventCode(IntEnum):
    """Reasons of an event; from 128 on they are for the log only."""

    BEGAN_AGAIN = 1
    STOPPED = 2
    POWERED_UP = 3


FIRST_HARMLESS_EVENT: Final = 128


class Parameter(IntEnum):
    """Names of settings."""

    QUBIT_RATE_MILLIHERTZ = 1
    BIN_SPACING_FS = 2
    P_Z = 3
    PROBABILITY = 4
    LEVEL = 5
    LASER = 6
    INTERLOCK = 7
    RING_SLOTS = 8
    BIAS_MICROVOLT = 9
    POWER_FEMTOWATT = 10
    TICK_NUMERATOR = 16
    TICK_DENOMINATOR = 17
    CHANNELS = 18
    THRESHOLD_MICROVOLT = 19
    CLOCK_SOURCE = 20
    PHASE_MICRORADIAN = 21


FRACTION_ONE: Final = 1 << 32  # P_Z, PROBABILITY and LEVEL are in parts of this

_HEALTH: Final = {
    1: ("temperature_{}_celsius", 1e-3),
    2: ("voltage_{}_v", 1e-6),
    3: ("buffer_fill_fraction", 1e-6),
    4: ("clock_locked", 1.0),
    5: ("tags_lost_in_device_count", 1.0),
    6: ("uptime_s", 1.0),
}


class Entry(NamedTuple):
    """One setting or reading; ``number`` counts several of a kind from 0."""

    name: int
    number: int
    value: int


def frame(kind: int, request: int = 0, payload: bytes = b"") -> bytes:
    """Return the bytes of one frame."""
    body = struct.pack("<BBHH", kind, request, len(payload), len(payload) ^ 0xFFFF) + payload
    return SYNC + body + struct.pack("<I", zlib.crc32(body))


def hello() -> bytes:
    """Return the payload that offers our versions."""
    return bytes(VERSIONS)


@dataclass(frozen=True)
class Hello:
    """The answer to HELLO; ``window``: how many requests for symbols may be unanswered at a time."""

    version: int
    versions: tuple[int, int]
    kind: int
    simulated: bool
    window: int
    model: str
    serial: str
    firmware: str


def read_hello(payload: bytes) -> Hello:
    """Decode the identity.

    Raises:
        DeviceError: it is cut or no text, or no version is common.
    """
    if len(payload) < 8:
        raise DeviceError(f"HELLO was answered with {len(payload)} bytes, expected 8 and three texts")
    version, least, most, kind, flags, window = payload[:6]
    if not VERSIONS[0] <= version <= VERSIONS[1]:
        raise DeviceError(
            f"the device speaks versions {least} to {most} of the open protocol, this driver "
            f"{VERSIONS[0]} to {VERSIONS[1]}: update the older of the two"
        )
    texts, at = [], 8
    for _ in range(3):
        length = payload[at] if at < len(payload) else 0
        text = payload[at + 1 : at + 1 + length]
        if not length or len(text) != length or not (text.isascii() and text.decode("latin-1").isprintable()):
            raise DeviceError("HELLO: model, serial number and firmware are not three printable texts")
        texts.append(text.decode())
        at += 1 + length
    return Hello(version, (least, most), kind, bool(flags & 1), max(1, window), *texts)


def encode_names(names: list[tuple[int, int]]) -> bytes:
    """Return the payload of GET: names and numbers."""
    return b"".join(struct.pack("<HH", *name) for name in names)


def encode_entries(entries: list[Entry]) -> bytes:
    """Return the payload of SET."""
    return b"".join(struct.pack("<HHq", *entry) for entry in entries)


def read_entries(payload: bytes) -> list[Entry]:
    """Decode settings or readings; an incomplete last one is no entry."""
    whole = len(payload) // 12 * 12
    return [Entry(*values) for values in struct.iter_unpack("<HHq", payload[:whole])]


def start(epoch: int) -> bytes:
    """Return the payload of START."""
    return struct.pack("<I", epoch)


class Position(NamedTuple):
    """The answer to START and NOW. ``position``: slots sent, or ticks of the TDC."""

    epoch: int
    running: bool
    position: int


def read_position(payload: bytes) -> Position:
    """Decode the answer to START or NOW.

    Raises:
        DeviceError: it is cut.
    """
    if len(payload) < 16:
        raise DeviceError(f"START or NOW was answered with {len(payload)} bytes, expected 16")
    epoch, flags, position = struct.unpack_from("<IIQ", payload)
    return Position(epoch, bool(flags & 1), position)


class Event(NamedTuple):
    """What a device tells unasked."""

    code: int
    epoch: int
    position: int
    text: str


def read_event(payload: bytes) -> Event | None:
    """Decode an event; None if it is cut."""
    if len(payload) < 16:
        return None
    code, _, epoch, position = struct.unpack_from("<HHIQ", payload)
    return Event(code, epoch, position, _plain(payload[16:]))


def read_error(payload: bytes) -> str:
    """Return the text of an ERROR for a message."""
    code = int.from_bytes(payload[:2], "little")
    return f"error {code}{': ' if len(payload) > 2 else ''}{_plain(payload[2:])}"


def _plain(text: bytes) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:200].decode("ascii", "replace"))


def look_up(epoch: int, slots: Slots) -> bytes:
    """Return the payload that asks for ascending ``slots``, at most 252, neighbours less than 2^32 apart."""
    steps = np.diff(slots, prepend=slots[:1]).astype("<u4")
    return struct.pack("<IHHQ", epoch, slots.size, 0, int(slots[0])) + steps.tobytes()


def read_range(epoch: int, first: int, count: int) -> bytes:
    """Return the payload that asks for ``count`` slots from ``first`` on, at most 65,536."""
    return struct.pack("<IIQ", epoch, count, first)


class Symbols(NamedTuple):
    """The answer to a request for symbols: ``codes`` from ``first`` on, or of the asked list."""

    epoch: int
    first: int
    codes: Codes


def read_symbols(payload: npt.NDArray[np.uint8]) -> Symbols | None:
    """Decode an answer to LOOK_UP or READ; None if it is cut or has a symbol that no qnode knows."""
    if payload.size < 16:
        return None
    epoch, count, _, first = struct.unpack("<IHHQ", payload[:16].tobytes())
    packed = payload[16 : 16 + (count + 1) // 2]
    if packed.size != (count + 1) // 2:
        return None
    codes = np.empty(2 * packed.size, np.uint8)
    codes[0::2], codes[1::2] = packed & 15, packed >> 4
    codes = _CODES[codes[:count]]
    return None if (codes == _NO_CODE).any() else Symbols(epoch, first, codes)


# On the wire: bits 0 and 1 the state (early, late, plus), bits 2 and 3 the intensity, 15 unknown.
_NO_CODE: Final = 254
_CODES: Final = np.full(16, _NO_CODE, np.uint8)
_CODES[[0, 1, 2, 4, 5, 6]] = [0, 1, 2, 4, 5, 6]
_CODES[15] = UNKNOWN_SYMBOL


def readings_of(entries: list[Entry]) -> dict[str, float]:
    """Return the readings of HEALTH by name; those of unknown names are skipped."""
    known = [(_HEALTH[entry.name], entry) for entry in entries if entry.name in _HEALTH]
    return {name.format(entry.number): entry.value * unit for (name, unit), entry in known}
