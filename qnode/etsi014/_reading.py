"""Strict reading of version 1 requests: query strings and JSON bodies."""

import re
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from qnode.delivery.calls import KeyRequest
from qnode.delivery.refusal import malformed
from qnode.etsi014._bodies import KeyIdsBody, KeyRequestBody

T = TypeVar("T")

_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_UUID_CHARACTERS = 36
_PLACE = re.compile(r" - at `\$\.?(?P<field>[^`]*)`")

_POST_ONLY = ("additional_slave_SAE_IDs", "extension_mandatory", "extension_optional")


def sae_id(segment: str) -> str:
    """Decode the SAE ID of a path, a percent-encoded segment (an ID may contain a slash).

    Raises:
        Refusal: 400.
    """
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise malformed("SAE ID is not UTF-8", "malformed SAE ID", {"field": "SAE_ID"}) from None


def key_request_of_query(query: bytes) -> KeyRequest:
    """Read the GET form of Get key; unknown parameters are ignored.

    Raises:
        Refusal: 400; also for members that only POST can have, because ignoring them would be an error.
    """
    values = _parameters(query)
    for name in _POST_ONLY:
        if name in values:
            raise malformed(f"{name} needs POST", "parameter needs POST", {"field": name})
    return KeyRequest(
        number=_integer(values.get("number", UNSET)), size_bits=_integer(values.get("size", UNSET))
    )


def key_request_of_body(body: bytes) -> KeyRequest:
    """Read the POST form of Get key; no body is an empty request.

    Raises:
        Refusal: 400.
    """
    request = _decode(body, KeyRequestBody) if body else KeyRequestBody()
    mandatory = tuple(pair for entry in request.extension_mandatory for pair in entry.items())
    return KeyRequest(
        number=request.number,
        size_bits=request.size,
        additional_slaves=request.additional_slave_sae_ids,
        mandatory=mandatory,
    )


def key_ids_of_query(query: bytes) -> tuple[UUID, ...]:
    """Read the GET form of Get key with key IDs: exactly one key_ID.

    Raises:
        Refusal: 400.
    """
    values = _parameters(query)
    if "key_ID" not in values:
        raise malformed("key_ID is missing", "no key_ID", {"field": "key_ID"})
    return _uuids([values["key_ID"]])


def key_ids_of_body(body: bytes) -> tuple[UUID, ...]:
    """Read the POST form of Get key with key IDs.

    Raises:
        Refusal: 400.
    """
    return _uuids([entry.key_id for entry in _decode(body, KeyIdsBody).key_ids])


def _parameters(query: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64)
    except ValueError:
        raise malformed("query is malformed", "malformed query") from None
    values = dict(pairs)
    if len(values) < len(pairs):
        raise malformed("query names a parameter twice", "malformed query")
    return values


def _integer(text: str | UnsetType) -> int | str | UnsetType:
    """Return the integer of plain digits; any other text is returned unchanged, to be refused later."""
    return int(text) if isinstance(text, str) and _INTEGER.fullmatch(text) else text


def _uuids(texts: list[str]) -> tuple[UUID, ...]:
    """Read UUIDs in the format of RFC 9562, in either case, without braces and not as bare digits."""
    try:
        if any(len(text) != _UUID_CHARACTERS for text in texts):
            raise ValueError
        return msgspec.convert(texts, tuple[UUID, ...])
    except ValueError:
        raise malformed("key_ID is not a UUID", "malformed key_ID", {"field": "key_ID"}) from None


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        # Decode to text first, because msgspec skips unknown members without checking their encoding.
        return msgspec.json.decode(body.decode("utf-8"), type=kind)
    except msgspec.ValidationError as error:
        text, place = str(error), _PLACE.search(str(error))
        details: list[dict[str, Any]] = [{"field": place["field"]}] if place and place["field"] else []
        raise malformed(_PLACE.sub("", text), "malformed body", *details) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise malformed("body is not JSON in UTF-8", "malformed body") from None
