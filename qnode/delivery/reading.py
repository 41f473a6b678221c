"""Strict reading of requests, for every interface over HTTP."""

import re
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import UnsetType

from qnode.delivery.refusal import malformed

T = TypeVar("T")

_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_PLACE = re.compile(r" - at `\$\.?(?P<field>[^`]*)`")


def parameters(query: bytes) -> dict[str, str]:
    """Return the parameters of a query string.

    Raises:
        Refusal: 400; the query is malformed, or names a parameter twice.
    """
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64)
    except ValueError:
        raise malformed("query is malformed", "malformed query") from None
    values = dict(pairs)
    if len(values) < len(pairs):
        raise malformed("query names a parameter twice", "malformed query")
    return values


def integer(text: str | UnsetType) -> int | str | UnsetType:
    """Return the integer of plain digits; any other text is returned unchanged, to be refused later."""
    return int(text) if isinstance(text, str) and _INTEGER.fullmatch(text) else text


def json_body(body: bytes, kind: type[T]) -> T:
    """Decode a body of JSON.

    Raises:
        Refusal: 400.
    """
    try:
        # Decode to text first, because msgspec skips unknown members without checking their encoding.
        return msgspec.json.decode(body.decode("utf-8"), type=kind)
    except msgspec.ValidationError as error:
        text, place = str(error), _PLACE.search(str(error))
        details: list[dict[str, Any]] = [{"field": place["field"]}] if place and place["field"] else []
        raise malformed(_PLACE.sub("", text), "malformed body", *details) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise malformed("body is not JSON in UTF-8", "malformed body") from None
