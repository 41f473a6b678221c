"""ETSI GS QKD 004 on the wire: both forms in use are read, answers are what their clients read."""

import contextlib
import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnode.etsi004.wire import (
    Close,
    GetKey,
    Got,
    MalformedMessage,
    OpenConnect,
    Qos,
    Service,
    Status,
    closed_payload,
    got_payload,
    message,
    opened_payload,
    read_header,
    read_request,
)

NUMBER = st.integers(0, 2**32 - 1)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)
QOS = st.builds(
    Qos,
    key_chunk_bytes=NUMBER,
    max_bps=NUMBER,
    min_bps=NUMBER,
    jitter_bps=NUMBER,
    priority=NUMBER,
    timeout_ms=NUMBER,
    ttl_s=NUMBER,
    metadata_mimetype=TEXT,
)
IDS = st.uuids(allow_nil=True)


def asked_open(source: str, destination: str, qos: Qos, stream_id: UUID, *, padded: bool) -> bytes:
    """Return the request as a client writes it: the quality and the identity are as in the answer."""
    answer = opened_payload(Status.SUCCESSFUL, qos, stream_id, padded=padded)
    return source.encode() + b"\0" + destination.encode() + b"\0" + answer[4:]


@given(TEXT, TEXT, QOS, IDS, st.booleans())
def test_open_connect_is_read_in_both_forms(
    source: str, destination: str, qos: Qos, stream_id: UUID, padded: bool
) -> None:
    payload = asked_open(source, destination, qos, stream_id, padded=padded)
    assert read_request(Service.OPEN_CONNECT, payload) == OpenConnect(
        source=source,
        destination=destination,
        qos=qos,
        key_stream_id=stream_id if stream_id.int else None,
        padded=padded or len(qos.metadata_mimetype.encode()) == 255,
    )


@given(st.uuids(), NUMBER, NUMBER, st.binary(max_size=40))
def test_get_key_is_read_with_and_without_a_metadata_buffer(
    stream_id: UUID, index: int, size: int, buffer: bytes
) -> None:
    payload = stream_id.bytes + struct.pack("!II", index, size) + buffer
    assert read_request(Service.GET_KEY, payload) == GetKey(
        key_stream_id=stream_id, index=index, metadata_bytes=size
    )
    assert read_request(Service.CLOSE, stream_id.bytes) == Close(key_stream_id=stream_id)


@given(st.sampled_from([*Service, 0, 1, 3, 5, 9, 255]), st.binary(max_size=700))
def test_arbitrary_bytes_are_a_request_or_malformed_and_nothing_else(service: int, payload: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        read_request(service, payload)


@pytest.mark.parametrize(
    ("service", "payload", "reason"),
    [
        (Service.OPEN_CONNECT, b"no end", "Source is not a string"),
        (Service.OPEN_CONNECT, b"\xff\0b\0", "Source is not UTF-8"),
        (Service.OPEN_CONNECT, b"a\0" + b"b" * 3000 + b"\0", "Destination is not a string"),
        (Service.OPEN_CONNECT, b"a\0b\0" + bytes(44), "ends before its Key_stream_ID"),
        (Service.OPEN_CONNECT, b"a\0b\0" + bytes(28) + b"json" + bytes(16)[:15] + b"1", "mimetype"),
        (Service.OPEN_CONNECT, b"a\0b\0" + bytes(28) + bytes(300) + bytes(16), "mimetype"),
        (Service.GET_KEY, bytes(23), "expected 24 bytes or more, got 23"),
        (Service.CLOSE, bytes(17), "expected 16 bytes, got 17"),
        (0xFF, b"", "unknown service 255"),
    ],
)
def test_a_malformed_request_is_named(service: int, payload: bytes, reason: str) -> None:
    with pytest.raises(MalformedMessage, match=reason):
        read_request(service, payload)


def test_answers_are_laid_out_as_the_clients_read_them() -> None:
    assert read_header(message(b"\x01\x00\x01", 3, b"abc")[:8]) == (b"\x01\x00\x01", 3, 3)
    qos = Qos(key_chunk_bytes=32, ttl_s=7, metadata_mimetype="application/json")
    stream_id = UUID(int=5)
    padded = opened_payload(Status.SUCCESSFUL, qos, stream_id, padded=True)
    assert len(padded) == 4 + 28 + 256 + 16
    assert padded[4 + 28 + 256 :] == stream_id.bytes
    terminated = opened_payload(Status.QOS_NOT_MET, qos, None, padded=False)
    assert terminated[4 + 28 :] == b"application/json\0" + bytes(16)
    got = got_payload(Got(status=Status.SUCCESSFUL, index=3, key=b"k" * 8, metadata=b"{}"))
    assert got == struct.pack("!III", 0, 3, 8) + b"k" * 8 + struct.pack("!I", 2) + b"{}"
    # A client that reads status, index, key and metadata in turn finds all that the sizes say.
    small = got_payload(Got(status=Status.METADATA_SIZE_INSUFFICIENT, index=3, metadata_bytes=9))
    assert small == struct.pack("!IIII", 8, 3, 0, 9) + bytes(9)
    assert closed_payload(Status.PEER_NOT_YET_CONNECTED) == struct.pack("!I", 3)


def test_a_key_is_not_in_the_representation_of_an_answer() -> None:
    assert "kkkk" not in repr(Got(status=Status.SUCCESSFUL, index=0, key=b"kkkk"))
