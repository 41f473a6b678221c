"""One record of the spool: a reading of the meter, or polls that were missed; its bytes with a checksum."""

import struct
import zlib
from typing import Final, Literal, get_args

from msgspec import Struct

from qnode.testbed.sensors.power_meter import NAMES

Reason = Literal[
    "timeout",  # no answer within the time allowed
    "disconnected",  # no connection, or the meter closed it
    "exception",  # the meter answered with a Modbus exception
    "wrong_answer",  # the answer had another length, or no sense
    "not_polled",  # the reader was too late, or its disk was
    "not_running",  # the reader was not running
    "not_sent",  # the OPC UA server left it out
]
_REASONS: Final = get_args(Reason)
# Number, time, readings so far, missed polls so far, reason, polls, values; the checksum follows.
_BODY: Final = struct.Struct(f"<QqQQB3xI{len(NAMES)}f")
_CHECKSUM: Final = struct.Struct("<I")
RECORD_BYTES: Final = _BODY.size + _CHECKSUM.size
MOST_POLLS: Final = 2**32 - 1
_NO_VALUES: Final = (0.0,) * len(NAMES)


class Record(Struct, frozen=True, kw_only=True):
    """A reading, or a gap if ``reason`` is not None.

    ``time_ms``: Unix time in milliseconds at which the poll was due, of the first one in a gap. ``polls``:
    how many polls it stands for. ``values``: in the order of `NAMES`, empty in a gap. ``readings`` and
    ``missed``: readings and missed polls of this spool up to and with this record.
    """

    number: int
    time_ms: int
    readings: int
    missed: int
    reason: Reason | None = None
    polls: int = 1
    values: tuple[float, ...] = ()


class DamagedRecord(ValueError):
    """The bytes are no record: torn, or changed since they were written."""


def encode(record: Record) -> bytes:
    """Return the bytes of ``record``; every record has the same length."""
    body = _BODY.pack(
        record.number,
        record.time_ms,
        record.readings,
        record.missed,
        0 if record.reason is None else 1 + _REASONS.index(record.reason),
        record.polls,
        *(record.values or _NO_VALUES),
    )
    return body + _CHECKSUM.pack(zlib.crc32(body))


def decode(raw: bytes) -> Record:
    """Return the record in ``raw``.

    Raises:
        DamagedRecord: length, checksum or contents are impossible.
    """
    if len(raw) != RECORD_BYTES:
        raise DamagedRecord(f"{len(raw)} bytes instead of {RECORD_BYTES}")
    body, checksum = raw[: _BODY.size], _CHECKSUM.unpack(raw[_BODY.size :])[0]
    if zlib.crc32(body) != checksum:
        raise DamagedRecord("its checksum is wrong")
    number, time_ms, readings, missed, reason, polls, *values = _BODY.unpack(body)
    if reason > len(_REASONS) or not number or not polls:
        raise DamagedRecord("no reader wrote this")
    return Record(
        number=number,
        time_ms=time_ms,
        readings=readings,
        missed=missed,
        reason=_REASONS[reason - 1] if reason else None,
        polls=polls,
        values=() if reason else tuple(values),
    )
