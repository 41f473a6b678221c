"""Frames between the node and the process of a maker's library: a length, then msgpack."""

import struct
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

LENGTH: Final = struct.Struct("<I")
MOST_BYTES: Final = 1 << 26


class DamagedAnswer(Exception):
    """What the process sent is no answer."""


class Array(msgspec.Struct, frozen=True, array_like=True):
    """A row of numbers: ``kind`` as numpy names it, such as ``<i8``."""

    kind: Annotated[str, Meta(pattern="^[<>|][biufc][0-9]{1,2}$")]
    data: bytes


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A call of the library's adapter."""

    number: int
    call: str
    arguments: dict[str, Any]


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What the call numbered ``number`` returned; ``fault`` and ``fault_kind`` are "" if it did.

    ``fault_kind``: ``missing`` if the library is not installed, else the name of the exception.
    """

    number: int
    values: dict[str, Any]
    arrays: dict[str, Array]
    fault: str = ""
    fault_kind: str = ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Answer)


def encoded(message: Request | Answer) -> bytes:
    """Return a message as a frame."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def answered(number: int, result: dict[str, Any]) -> Answer:
    """Return the answer with the values and arrays of ``result``."""
    arrays = {
        name: Array(value.dtype.str, np.ascontiguousarray(value).tobytes())
        for name, value in result.items()
        if isinstance(value, np.ndarray)
    }
    values = {name: value for name, value in result.items() if name not in arrays}
    return Answer(number, values, arrays)


def frame_bytes(pending: bytearray) -> int:
    """Return the length of the frame that ``pending`` begins with. Raises DamagedAnswer: it is too long."""
    n_bytes: int = LENGTH.unpack_from(pending)[0]
    if n_bytes > MOST_BYTES:
        raise DamagedAnswer(f"a frame of {n_bytes} bytes, the most is {MOST_BYTES}")
    return LENGTH.size + n_bytes


def decoded(body: bytes | bytearray) -> Answer:
    """Return the answer in a frame without its length. Raises DamagedAnswer."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedAnswer(str(error)) from None


def result_of(answer: Answer) -> dict[str, Any]:
    """Return values and arrays of an answer, each array a copy of its own. Raises DamagedAnswer."""
    try:
        arrays = {name: np.frombuffer(one.data, one.kind).copy() for name, one in answer.arrays.items()}
    except (TypeError, ValueError) as error:  # no such kind, or not a whole number of them
        raise DamagedAnswer(str(error)) from None
    return {**answer.values, **arrays}
