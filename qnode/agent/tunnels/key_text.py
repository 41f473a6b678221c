"""How a key is written for a program or a file."""

import base64
from typing import Literal

KeyFormat = Literal["base64", "hex", "raw"]
KeySize = Literal[128, 192, 256, 384, 512]


def key_text(key: bytes, written_as: KeyFormat) -> bytes:
    """Return ``key`` as one line of text, or as it is."""
    if written_as == "base64":
        return base64.b64encode(key) + b"\n"
    if written_as == "hex":
        return key.hex().encode() + b"\n"
    return key


def shows_key(output: bytes, key: bytes) -> bool:
    """Return whether ``output`` has a part of ``key`` in any form; such output must not be shown."""
    lower = output.lower()
    encoded = base64.b64encode(key)
    as_hex = key.hex().encode()
    return (
        any(part in output for part in _parts(key, 4))
        or any(part in output for part in _parts(encoded, 8))
        or any(part in lower for part in _parts(as_hex, 8))
    )


def _parts(text: bytes, length: int) -> list[bytes]:
    return [text[at : at + length] for at in range(len(text) - length + 1)] or [text]
