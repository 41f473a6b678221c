"""Bodies of SKIP, with the field names of the draft; bytes are hexadecimal."""

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType


class CapabilitiesBody(Struct, frozen=True):
    """Answer of GET /capabilities. Each entry of ``remoteSystemID`` is a pattern that may have wildcards."""

    entropy: bool
    key: bool
    algorithm: str
    local_system_id: str = msgspec.field(name="localSystemID")
    remote_system_id: list[str] = msgspec.field(name="remoteSystemID")


class KeyBody(Struct, frozen=True, omit_defaults=True, gc=False):
    """Answer of GET /key and GET /key/{keyId}. ``qnode_simulated`` is there only where it is true."""

    key_id: str = msgspec.field(name="keyId")
    key: str
    qnode_simulated: bool | UnsetType = UNSET

    def __repr__(self) -> str:
        return f"KeyBody(key_id={self.key_id})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("key_id", self.key_id)]


class EntropyBody(Struct, frozen=True, gc=False):
    """Answer of GET /entropy; ``minentropy`` in bits."""

    random: str = msgspec.field(name="randomStr")
    min_entropy: int = msgspec.field(name="minentropy")

    def __repr__(self) -> str:
        return f"EntropyBody(min_entropy={self.min_entropy})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("min_entropy", self.min_entropy)]


class ErrorBody(Struct, frozen=True):
    """Answer of a call that failed; the draft defines the status only."""

    message: str
