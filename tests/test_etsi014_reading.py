"""Whatever a client writes is either understood exactly or refused with 400."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
import structlog
from etsi014_support import ENTRIES, A, B, MemorySupply
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.delivery import Delivery, KeyRequest, Refusal, SaeDirectory
from qnode.etsi014 import _reading

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "number",
    "size",
    "additional_slave_SAE_IDs",
    "extension_mandatory",
    "extension_optional",
    "key_IDs",
]

quick = settings(max_examples=50, deadline=None)


def is_read_or_refused(read: Callable[[bytes], object], data: bytes) -> None:
    """Anything but a result or a Refusal fails the test."""
    with suppress(Refusal):
        read(data)


@quick
@given(st.binary())
def test_any_bytes_as_a_body_are_read_or_refused(body: bytes) -> None:
    for read in (_reading.key_request_of_body, _reading.key_ids_of_body):
        is_read_or_refused(read, body)


@quick
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON, max_size=4))
def test_any_json_object_as_a_body_is_read_or_refused(body: dict[str, Any]) -> None:
    for read in (_reading.key_request_of_body, _reading.key_ids_of_body):
        is_read_or_refused(read, json.dumps(body).encode())


@quick
@given(st.binary())
def test_any_bytes_as_a_query_are_read_or_refused(query: bytes) -> None:
    for read in (_reading.key_request_of_query, _reading.key_ids_of_query):
        is_read_or_refused(read, query)


@quick
@given(st.integers(-(10**18) + 1, 10**18 - 1), st.integers(0, 10**18 - 1))
def test_integers_are_read_as_written(number: int, size: int) -> None:
    query = urlencode({"number": number, "size": size}).encode()
    body = json.dumps({"number": number, "size": size}).encode()
    expected = KeyRequest(number=number, size_bits=size)
    assert _reading.key_request_of_query(query) == _reading.key_request_of_body(body) == expected


@quick
@given(st.lists(st.uuids(), min_size=1, max_size=5), st.booleans())
def test_key_ids_are_read_as_written_in_either_case(key_ids: list[UUID], upper: bool) -> None:
    texts = [str(key_id).upper() if upper else str(key_id) for key_id in key_ids]
    body = json.dumps({"key_IDs": [{"key_ID": text} for text in texts]}).encode()
    assert _reading.key_ids_of_body(body) == tuple(key_ids)
    assert _reading.key_ids_of_query(f"key_ID={texts[0]}".encode()) == (key_ids[0],)


@quick
@given(st.text())
def test_a_text_that_is_no_uuid_is_refused(text: str) -> None:
    body = json.dumps({"key_IDs": [{"key_ID": text}]}).encode()
    with pytest.raises(Refusal):
        _reading.key_ids_of_body(body)


@quick
@given(
    st.integers(-10, 200) | st.booleans() | st.floats() | st.text(max_size=4),
    st.integers(-10, 70_000) | st.sampled_from([64, 65_536]) | st.booleans() | st.floats(),
)
async def test_allocate_gives_exactly_what_was_asked_or_refuses_with_the_range(
    number: Any, size: Any
) -> None:
    supply = MemorySupply(chunks=1 << 20)
    delivery = Delivery(SaeDirectory("alice", ENTRIES), supply)
    caller = next(entry for entry in ENTRIES if entry.sae_id == A)
    good = type(number) is int and 1 <= number <= 128
    good = good and type(size) is int and 64 <= size <= 65_536 and size % 8 == 0
    request = KeyRequest(number=number, size_bits=size)
    with structlog.testing.capture_logs():
        if good:
            given = await delivery.allocate(caller, B, request)
            assert [8 * len(key.key) for key in given.keys] == [size] * number
        else:
            with pytest.raises(Refusal) as caught:
                await delivery.allocate(caller, B, request)
            assert caught.value.status == 400
            assert caught.value.details[0]["field"] in ("number", "size")
            assert supply.chunks == 1 << 20
