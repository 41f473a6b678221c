"""Bodies of version 1, with the field names of clause 6 of ETSI GS QKD 014 V1.1.1."""

from typing import Any
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct, UnsetType


class StatusBody(Struct, frozen=True, omit_defaults=True):
    """Answer of Get status (6.1)."""

    source_kme_id: str = msgspec.field(name="source_KME_ID")
    target_kme_id: str = msgspec.field(name="target_KME_ID")
    master_sae_id: str = msgspec.field(name="master_SAE_ID")
    slave_sae_id: str = msgspec.field(name="slave_SAE_ID")
    key_size: int
    stored_key_count: int
    max_key_count: int
    max_key_per_request: int
    max_key_size: int
    min_key_size: int
    max_sae_id_count: int = msgspec.field(name="max_SAE_ID_count")
    status_extension: dict[str, Any] | None = None


class KeyRequestBody(Struct, frozen=True):
    """Request of Get key (6.2). A member is absent or has its type; null is an error.

    ``number`` and ``size`` are checked later, so that the answer to a wrong value states the range.
    """

    number: Any = UNSET
    size: Any = UNSET
    additional_slave_sae_ids: tuple[str, ...] = msgspec.field(name="additional_slave_SAE_IDs", default=())
    extension_mandatory: tuple[dict[str, Any], ...] = ()
    extension_optional: tuple[dict[str, Any], ...] = ()


class KeyBody(Struct, frozen=True, omit_defaults=True, gc=False):
    """One key of a container (6.3); the encoder writes ``key`` as base64."""

    key_id: UUID = msgspec.field(name="key_ID")
    key: bytes
    key_extension: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"KeyBody(key_id={self.key_id})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("key_id", self.key_id)]


class KeyContainerBody(Struct, frozen=True, omit_defaults=True):
    """Answer of Get key and of Get key with key IDs (6.3)."""

    keys: list[KeyBody]
    key_container_extension: dict[str, Any] | None = None


class KeyIdBody(Struct, frozen=True, gc=False):
    """One entry of key_IDs (6.4); its extension is reserved."""

    key_id: str = msgspec.field(name="key_ID")
    key_id_extension: dict[str, Any] | UnsetType = msgspec.field(name="key_ID_extension", default=UNSET)


class KeyIdsBody(Struct, frozen=True):
    """Request of Get key with key IDs (6.4)."""

    key_ids: tuple[KeyIdBody, ...] = msgspec.field(name="key_IDs")
    key_ids_extension: dict[str, Any] | UnsetType = msgspec.field(name="key_IDs_extension", default=UNSET)


class ErrorBody(Struct, frozen=True, omit_defaults=True):
    """Answer of a call that failed (6.5)."""

    message: str
    details: tuple[dict[str, Any], ...] = ()
