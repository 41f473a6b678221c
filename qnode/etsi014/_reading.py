"""Strict reading of version 1 requests: query strings and JSON bodies."""

from urllib.parse import unquote
from uuid import UUID

import msgspec
from msgspec import UNSET

from qnode.delivery.calls import KeyRequest
from qnode.delivery.reading import integer, json_body, parameters
from qnode.delivery.refusal import malformed
from qnode.etsi014._bodies import KeyIdsBody, KeyRequestBody

_UUID_CHARACTERS = 36

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
    values = parameters(query)
    for name in _POST_ONLY:
        if name in values:
            raise malformed(f"{name} needs POST", "parameter needs POST", {"field": name})
    return KeyRequest(
        number=integer(values.get("number", UNSET)), size_bits=integer(values.get("size", UNSET))
    )


def key_request_of_body(body: bytes) -> KeyRequest:
    """Read the POST form of Get key; no body is an empty request.

    Raises:
        Refusal: 400.
    """
    request = json_body(body, KeyRequestBody) if body else KeyRequestBody()
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
    values = parameters(query)
    if "key_ID" not in values:
        raise malformed("key_ID is missing", "no key_ID", {"field": "key_ID"})
    return _uuids([values["key_ID"]])


def key_ids_of_body(body: bytes) -> tuple[UUID, ...]:
    """Read the POST form of Get key with key IDs.

    Raises:
        Refusal: 400.
    """
    return _uuids([entry.key_id for entry in json_body(body, KeyIdsBody).key_ids])


def _uuids(texts: list[str]) -> tuple[UUID, ...]:
    """Read UUIDs in the format of RFC 9562, in either case, without braces and not as bare digits."""
    try:
        if any(len(text) != _UUID_CHARACTERS for text in texts):
            raise ValueError
        return msgspec.convert(texts, tuple[UUID, ...])
    except ValueError:
        raise malformed("key_ID is not a UUID", "malformed key_ID", {"field": "key_ID"}) from None
