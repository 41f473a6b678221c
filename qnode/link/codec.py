"""Encoding and decoding of messages: MessagePack with limits, then types.

Decoding is strict: one value, nothing after it, no extension types, text keys, fields within the limits of
`qnode.link.messages`. Invalid data raises `ProtocolError` and nothing else. After the hello this runs
only on payloads whose code has been verified.
"""

import functools
from typing import Any, get_args

import msgpack
import msgspec

from qnode.errors import ProtocolError
from qnode.link.messages import MANY, HelloMessage, Message, SessionMessage
from qnode.units import BULK_BYTES


def _by_kind(union: Any) -> dict[str, type[Message]]:
    return {str(kind.__struct_config__.tag): kind for kind in get_args(union)}


_SESSION_KINDS = _by_kind(SessionMessage)
_HELLO_KINDS = _by_kind(HelloMessage)


def encode(message: Message) -> bytes:
    """Return ``message`` as MessagePack.

    Raises:
        ValueError: a field is outside its limits; the peer would refuse it.
    """
    payload = msgspec.msgpack.encode(message)
    try:
        _checker(type(message)).decode(payload)
    except msgspec.ValidationError as error:
        raise ValueError(f"{type(message).__name__} cannot be sent: {error}") from None
    return payload


@functools.cache
def _checker(kind: type[Message]) -> msgspec.msgpack.Decoder[Message]:
    # A struct is not checked when it is made; decoding the encoded message is the cheapest check.
    return msgspec.msgpack.Decoder(kind)


def decode(payload: bytes) -> SessionMessage:
    """Return the message that ``payload`` holds.

    Raises:
        ProtocolError: not a message that may follow the hello, or a field is outside its limits.
    """
    message: SessionMessage = _convert(_unpack(payload), _SESSION_KINDS)
    return message


def decode_hello(payload: bytes) -> HelloMessage:
    """Return the message of the hello that ``payload`` holds.

    Raises:
        ProtocolError: as in `decode`.
    """
    message: HelloMessage = _convert(_unpack(payload), _HELLO_KINDS)
    return message


def _unpack(payload: bytes) -> Any:
    try:
        return msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            max_bin_len=BULK_BYTES,
            max_str_len=1 << 16,
            max_array_len=MANY,
            max_map_len=256,
            max_ext_len=0,
        )
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"not a MessagePack value within limits: {type(error).__name__}") from None


def _convert(tree: Any, kinds: dict[str, type[Message]]) -> Any:
    # The kind is looked up here because msgspec prepares a union again on every call, which takes 50 us.
    kind = tree.get("kind") if isinstance(tree, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ProtocolError("not a message of this protocol: no known kind")
    try:
        return msgspec.convert(tree, kinds[kind], builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise ProtocolError(f"not a message of this protocol: {error}") from None
