"""The codec: what goes in comes out, and nothing else comes out."""

import contextlib
import functools
import math
from typing import Any, get_args

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.errors import ProtocolError
from qnode.link import messages as m
from qnode.link.codec import decode, decode_hello, encode
from qnode.units import BULK_BYTES

KINDS: list[type[m.Message]] = [*get_args(m.SessionMessage), *get_args(m.HelloMessage)]


def values_of(kind: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    """Draw values that satisfy a field's type and limits."""
    i = msgspec.inspect
    match kind:
        case i.IntType():
            return st.integers(kind.ge, kind.le)
        case i.FloatType():
            low = kind.ge if kind.ge is not None else kind.gt
            return st.floats(low, kind.le, exclude_min=kind.ge is None)
        case i.BytesType():
            low = kind.min_length or 0
            return st.binary(min_size=low, max_size=min(kind.max_length or 99, low + 99))
        case i.StrType():
            return st.text(max_size=20)
        case i.BoolType():
            return st.booleans()
        case i.NoneType():
            return st.none()
        case i.LiteralType():
            return st.sampled_from(kind.values)
        case i.EnumType():
            return st.sampled_from(list(kind.cls))
        case i.UnionType():
            return st.one_of([values_of(option) for option in kind.types])
        case i.TupleType():
            return st.tuples(*[values_of(item) for item in kind.item_types])
        case i.VarTupleType():
            low, high = kind.min_length or 0, kind.max_length
            most = low + 5 if high is None else min(high, low + 5)
            return st.lists(values_of(kind.item_type), min_size=low, max_size=most).map(tuple)
        case i.DictType():
            return st.dictionaries(st.text(max_size=8), st.integers(0, 9) | st.text(max_size=8), max_size=4)
        case i.StructType():
            return instances(kind.cls)
    raise AssertionError(kind)


@functools.cache
def instances(kind: type[Any]) -> st.SearchStrategy[Any]:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return st.builds(kind, **{field.name: values_of(field.type) for field in info.fields})


any_message = st.sampled_from(KINDS).flatmap(instances)


def decoded(message: m.Message, payload: bytes) -> m.Message:
    return decode_hello(payload) if isinstance(message, m.HelloMessage) else decode(payload)


@settings(deadline=None)
@given(any_message)
def test_every_message_survives_the_journey(message: m.Message) -> None:
    assert decoded(message, encode(message)) == message


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_protocol_error_and_nothing_else(payload: bytes) -> None:
    for read in (decode, decode_hello):
        with pytest.raises(ProtocolError):
            read(payload)


@settings(deadline=None)
@given(any_message, st.data())
def test_damaged_messages_raise_protocol_error_or_are_messages(
    message: m.Message, data: st.DataObject
) -> None:
    payload = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        assert isinstance(decoded(message, bytes(payload)), m.Message)


@settings(deadline=None)
@given(any_message)
def test_a_truncated_or_lengthened_message_is_refused(message: m.Message) -> None:
    payload = encode(message)
    for wrong in (payload[:-1], payload[: len(payload) // 2], payload + b"\xc0"):
        with pytest.raises(ProtocolError):
            decoded(message, wrong)


def test_the_kinds_on_the_wire_are_frozen() -> None:
    assert {kind.__struct_config__.tag for kind in KINDS} == {
        "hello", "hello_proof", "refused", "goodbye", "ping", "pong",
        "emission_run_started", "alignment_probe_message", "alignment_result",
        "block_proposed", "block_agreed", "click_batch", "clicks_ended", "sifted",
        "sample_request", "sample_answer",
        "reconcile_begin", "reconcile_request", "reconcile_answer",
        "verify_begin", "verify_challenge", "verified", "amplify",
        "transcript_tag", "prepared", "block_discarded",
        "assign", "void_assignments", "give_away", "void_handover", "key_answer",
        "release_assignments",
        "block_state_query", "block_state_answer", "saes_registered", "void_lost",
        "stream_request", "stream_answer",
    }  # fmt: skip


GOOD = {
    "kind": "reconcile_begin",
    "block_id": 1,
    "method": "cascade",
    "seed": b"12345678",
    "qber_estimate": 0.02,
}


@pytest.mark.parametrize(
    "change",
    [
        {"block_id": -1},
        {"block_id": 1 << 63},
        {"block_id": True},
        {"block_id": 1.0},
        {"method": "x" * 129},
        {"seed": b"short"},
        {"seed": b"x" * 65},
        {"seed": "MTIzNDU2Nzg="},
        {"qber_estimate": math.nan},
        {"qber_estimate": math.inf},
        {"qber_estimate": 1.5},
        {"kind": "hello"},
        {"kind": "nonsense"},
        {"kind": None},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_field_outside_its_limits_is_refused(change: dict[str, Any]) -> None:
    assert decode(msgpack.packb(GOOD)) == m.ReconcileBegin(1, "cascade", b"12345678", 0.02)
    with pytest.raises(ProtocolError):
        decode(msgpack.packb(GOOD | change))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x91" * 5000,  # nested deeper than the unpacker's stack
        b"\xdd\xff\xff\xff\xff",  # announces 2^32 items
        b"\xc6\xff\xff\xff\xff",  # announces 2^32 bytes
        b"\xd6\xff\0\0\0\0",  # extension: time-stamp
        msgpack.packb({1: 2}),
        msgpack.packb([0] * 5000),
    ],
)
def test_hostile_msgpack_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(payload)


def test_a_message_outside_its_limits_is_not_sent() -> None:
    with pytest.raises(ValueError, match=r"ClicksEnded cannot be sent: .*\$\.nonce"):
        encode(m.ClicksEnded(1, 2, 3, b"short", False))


def test_a_long_message_is_checked_like_a_short_one() -> None:
    payload = bytes(100_000)
    good = m.ClickBatch(1, 2, payload)
    assert decode(encode(good)) == good
    for wrong in (m.ClickBatch(1, -2, payload), m.ClickBatch(1, 2, bytes(BULK_BYTES + 1))):
        with pytest.raises(ValueError, match="ClickBatch cannot be sent"):
            encode(wrong)


def test_a_message_shows_no_payload() -> None:
    assert repr(m.ClickBatch(1, 2, b"secret")) == "ClickBatch(block_id=1, first_slot=2, payload=<6 bytes>)"


def test_a_newer_hello_with_more_fields_is_still_read() -> None:
    hello = m.Hello(2, 1, "alice", "kme-alice", "link", bytes(32), {}, bytes(32), 0, 0, b"", "qnode 9")
    tree = msgpack.unpackb(encode(hello)) | {"invented_later": [1, 2]}
    assert decode_hello(msgpack.packb(tree)) == hello


TAGS = {
    "cross_clicks": 1,
    "double_clicks": 2,
    "out_of_gate": 3,
    "too_close": 4,
    "live_slots": [100] * 16,
    "z_clicks": [1] * 16,
    "x_clicks": [0] * 16,
}
ENDED = {"kind": "clicks_ended", "block_id": 1, "n_clicks": 16, "dropped": 0, "nonce": bytes(16)}


@pytest.mark.parametrize(
    "change",
    [
        {"cross_clicks": -1},
        {"too_close": 1 << 63},
        {"out_of_gate": 1.0},
        {"live_slots": [100] * 15},
        {"z_clicks": [1] * 17},
        {"x_clicks": [-1] + [0] * 15},
        {"unknown": 1},
    ],
    ids=str,
)
def test_tag_counts_outside_their_limits_are_refused(change: dict[str, Any]) -> None:
    ended = ENDED | {"recorded": False}
    message = decode(msgpack.packb(ended | {"tags": TAGS}))
    assert isinstance(message, m.ClicksEnded)
    assert message.tags is not None
    assert message.tags.live_slots == (100,) * 16
    with pytest.raises(ProtocolError, match=r"\$\.tags"):
        decode(msgpack.packb(ended | {"tags": TAGS | change}))


def test_what_a_message_does_not_say_takes_no_byte() -> None:
    ended = m.ClicksEnded(1, 16, 0, bytes(16), False)
    assert msgpack.unpackb(encode(ended)) == ENDED | {"recorded": False}
    sifted = m.Sifted(1, b"k", b"d", 4, ((1, 2),) * 5, 0, False, n_z_plus=(0, 0), boundary=0)
    assert set(msgpack.unpackb(encode(sifted))) > {"n_z_plus", "boundary"}
