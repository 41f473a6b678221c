"""Encoding and decoding of messages: MessagePack with types and limits.

Decoding is strict: one value, nothing after it, no extension types, text keys, fields within the limits of
`qnode.link.messages`. Invalid data raises `ProtocolError` and nothing else. After the hello this runs
only on payloads whose code has been verified. A hello, of anybody, is unpacked within limits before its types
are looked at: its parameters may hold anything.
"""

import functools
from typing import Any, get_args

import msgpack
import msgspec

from qnode.errors import ProtocolError
from qnode.link.messages import MANY, HelloMessage, Message, SessionMessage
from qnode.units import BULK_BYTES

_HELLO_KINDS = {str(kind.__struct_config__.tag): kind for kind in get_args(HelloMessage)}
_LONG_BYTES = 64 << 10
_encoder = msgspec.msgpack.Encoder()
# Each field of these messages has its type, and each sequence its limit: nothing is unpacked without both.
_decoder: msgspec.msgpack.Decoder[SessionMessage] = msgspec.msgpack.Decoder(SessionMessage)


def encode(message: Message) -> bytes:
    """Return ``message`` as MessagePack.

    Raises:
        ValueError: a field is outside its limits; the peer would refuse it.
    """
    payload = _encoder.encode(message)
    kind = type(message)
    try:
        # A struct is not checked when it is made; decoding the encoded message is the cheapest check.
        if len(payload) < _LONG_BYTES:
            _checker(kind).decode(payload)
        else:  # without a copy of its bytes
            tree = msgspec.to_builtins(message, builtin_types=(bytes,))
            msgspec.convert(tree, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise ValueError(f"{kind.__name__} cannot be sent: {error}") from None
    return payload


@functools.cache
def _checker(kind: type[Message]) -> msgspec.msgpack.Decoder[Message]:
    return msgspec.msgpack.Decoder(kind)


def decode(payload: bytes | memoryview) -> SessionMessage:
    """Return the message that ``payload`` holds.

    Raises:
        ProtocolError: not a message that may follow the hello, or a field is outside its limits.
    """
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message of this protocol: {error}") from None


def decode_hello(payload: bytes | memoryview) -> HelloMessage:
    """Return the message of the hello that ``payload`` holds.

    Raises:
        ProtocolError: as in `decode`.
    """
    tree = _unpack(payload)
    # The kind is looked up here because msgspec prepares a union again on every call, which takes 50 us.
    kind = tree.get("kind") if isinstance(tree, dict) else None
    if not isinstance(kind, str) or kind not in _HELLO_KINDS:
        raise ProtocolError("not a message of this protocol: no known kind")
    try:
        message: HelloMessage = msgspec.convert(tree, _HELLO_KINDS[kind], builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise ProtocolError(f"not a message of this protocol: {error}") from None
    return message


def _unpack(payload: bytes | memoryview) -> Any:
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
