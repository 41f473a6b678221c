"""Messages on the wire: calls of ETSI GS QKD 004 V2.1.1 in the form of ETSI's own implementation in C.

The standard leaves the transport open. A message is a header (three bytes of version, one byte of service,
the length of the payload as a 32-bit integer) and the payload. Integers are in network byte order. Two forms
are in use: ETSI's ends the mimetype of the metadata with a zero byte, QUBIP's fills it with zero bytes to 256
bytes and sends no metadata buffer with GET_KEY. Both are read, and OPEN_CONNECT is answered in its own form.
"""

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any, TypeAlias
from uuid import UUID

from msgspec import Meta, Struct

from qnode.errors import QnodeError

HEADER_BYTES = 8
MOST_PAYLOAD_BYTES = 64 * 1024
MOST_URI_BYTES = 2048
MIMETYPE_BYTES = 256
JSON = "application/json"

Number: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]

_HEADER = struct.Struct("!3sBI")
_QOS = struct.Struct("!7I")
_NUMBER = struct.Struct("!I")
_ID_BYTES = 16


class Service(IntEnum):
    """The service of a message; an answer has the number of its request, plus 1."""

    OPEN_CONNECT = 0x02
    GET_KEY = 0x04
    CLOSE = 0x08


class Status(IntEnum):
    """The status of a call, table 2 of the standard."""

    SUCCESSFUL = 0
    PEER_NOT_CONNECTED = 1
    INSUFFICIENT_KEY = 2
    PEER_NOT_YET_CONNECTED = 3
    NO_QKD_CONNECTION = 4
    ID_IN_USE = 5
    TIMEOUT = 6
    QOS_NOT_MET = 7
    METADATA_SIZE_INSUFFICIENT = 8


class MalformedMessage(QnodeError):
    """A message that cannot be read; the message says what is wrong."""


class Qos(Struct, frozen=True, kw_only=True):
    """The quality of service of a stream. A value of 0, or an empty mimetype, is not stated."""

    key_chunk_bytes: Number = 0
    max_bps: Number = 0
    min_bps: Number = 0
    jitter_bps: Number = 0
    priority: Number = 0
    timeout_ms: Number = 0
    ttl_s: Number = 0
    metadata_mimetype: Annotated[str, Meta(max_length=MIMETYPE_BYTES - 1)] = ""


class OpenConnect(Struct, frozen=True, kw_only=True):
    """Request of OPEN_CONNECT; ``padded``: with a mimetype of 256 bytes."""

    source: str
    destination: str
    qos: Qos
    key_stream_id: UUID | None
    padded: bool


class GetKey(Struct, frozen=True, kw_only=True):
    """Request of GET_KEY."""

    key_stream_id: UUID
    index: int
    metadata_bytes: int


class Close(Struct, frozen=True, kw_only=True):
    """Request of CLOSE."""

    key_stream_id: UUID


class Got(Struct, frozen=True, kw_only=True):
    """Answer of GET_KEY. ``metadata_bytes``: the size that the metadata needs, if it was too small.

    Not sent: ``extension``, the facts of the metadata, and ``stream``, which tells streams apart that have
    the same Key_stream_ID one after another.
    """

    status: Status
    index: int
    key: bytes = b""
    metadata: bytes = b""
    metadata_bytes: int = 0
    extension: Mapping[str, Any] = {}
    stream: object = None

    def __repr__(self) -> str:
        return f"Got({self.status.name}, index={self.index}, {len(self.key)} bytes)"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        # The inherited method lists every field, and tracebacks with local variables use it.
        return [("status", self.status), ("index", self.index)]


Request: TypeAlias = OpenConnect | GetKey | Close


def read_header(header: bytes) -> tuple[bytes, int, int]:
    """Return version (3 bytes), service and length of the payload of a header of 8 bytes."""
    version, service, length = _HEADER.unpack(header)
    return version, service, length


def message(version: bytes, service: int, payload: bytes) -> bytes:
    """Return a whole message."""
    return _HEADER.pack(version, service, len(payload)) + payload


def read_request(service: int, payload: bytes) -> Request:
    """Return the request in ``payload``.

    Raises:
        MalformedMessage: it is none.
    """
    if service == Service.OPEN_CONNECT:
        return _read_open_connect(payload)
    if service == Service.GET_KEY:
        if len(payload) < _ID_BYTES + 8:
            raise MalformedMessage(f"GET_KEY: expected 24 bytes or more, got {len(payload)}")
        # After the size of the metadata ETSI's client sends its buffer, whose content does not matter.
        index, size = _number(payload, _ID_BYTES), _number(payload, _ID_BYTES + 4)
        return GetKey(key_stream_id=UUID(bytes=payload[:_ID_BYTES]), index=index, metadata_bytes=size)
    if service == Service.CLOSE:
        if len(payload) != _ID_BYTES:
            raise MalformedMessage(f"CLOSE: expected 16 bytes, got {len(payload)}")
        return Close(key_stream_id=UUID(bytes=payload))
    raise MalformedMessage(f"unknown service {service}")


def _read_open_connect(payload: bytes) -> OpenConnect:
    source, rest = _uri("Source", payload)
    destination, rest = _uri("Destination", rest)
    if len(rest) < _QOS.size + _ID_BYTES + 1:
        raise MalformedMessage("OPEN_CONNECT: ends before its Key_stream_ID")
    numbers = _QOS.unpack_from(rest)
    mimetype, key_stream_id = rest[_QOS.size : -_ID_BYTES], UUID(bytes=rest[-_ID_BYTES:])
    text, zeros = mimetype.partition(b"\0")[::2]
    padded = len(mimetype) == MIMETYPE_BYTES
    if len(text) == len(mimetype) or zeros.strip(b"\0") or not (padded or not zeros):
        raise MalformedMessage("OPEN_CONNECT: Metadata_mimetype is not one string of at most 255 bytes")
    return OpenConnect(
        source=source,
        destination=destination,
        qos=Qos(
            key_chunk_bytes=numbers[0],
            max_bps=numbers[1],
            min_bps=numbers[2],
            jitter_bps=numbers[3],
            priority=numbers[4],
            timeout_ms=numbers[5],
            ttl_s=numbers[6],
            metadata_mimetype=_text("Metadata_mimetype", text),
        ),
        key_stream_id=key_stream_id if key_stream_id.int else None,
        padded=padded,
    )


def _uri(name: str, payload: bytes) -> tuple[str, bytes]:
    text, end, rest = payload.partition(b"\0")
    if not end or len(text) > MOST_URI_BYTES:
        raise MalformedMessage(f"OPEN_CONNECT: {name} is not a string of at most {MOST_URI_BYTES} bytes")
    return _text(name, text), rest


def _text(name: str, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise MalformedMessage(f"OPEN_CONNECT: {name} is not UTF-8") from None


def _number(payload: bytes, offset: int) -> int:
    return int(_NUMBER.unpack_from(payload, offset)[0])


def opened_payload(status: Status, qos: Qos, key_stream_id: UUID | None, *, padded: bool) -> bytes:
    """Return the payload of the answer of OPEN_CONNECT."""
    mimetype = qos.metadata_mimetype.encode()[: MIMETYPE_BYTES - 1]
    return b"".join(
        (
            _NUMBER.pack(status),
            _QOS.pack(
                qos.key_chunk_bytes,
                qos.max_bps,
                qos.min_bps,
                qos.jitter_bps,
                qos.priority,
                qos.timeout_ms,
                qos.ttl_s,
            ),
            mimetype.ljust(MIMETYPE_BYTES if padded else len(mimetype) + 1, b"\0"),
            bytes(_ID_BYTES) if key_stream_id is None else key_stream_id.bytes,
        )
    )


def got_payload(got: Got) -> bytes:
    """Return the payload of the answer of GET_KEY.

    If the metadata was too small, a buffer of the needed size with zero bytes follows, because ETSI's client
    reads as many bytes as the size says.
    """
    metadata = bytes(got.metadata_bytes) if got.metadata_bytes else got.metadata
    return b"".join(
        (
            _NUMBER.pack(got.status),
            _NUMBER.pack(got.index),
            _NUMBER.pack(len(got.key)),
            got.key,
            _NUMBER.pack(len(metadata)),
            metadata,
        )
    )


def closed_payload(status: Status) -> bytes:
    """Return the payload of the answer of CLOSE."""
    return _NUMBER.pack(status)
