"""Answers of GET_KEY: a chunk with its metadata, or why a chunk stays where it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from qnode.etsi004.wire import GetKey, Got, Status


@dataclass(frozen=True)
class Facts:
    """What the metadata of a chunk says; ``extension`` is None if its stream wants no metadata."""

    age_ms: int
    extension: Mapping[str, Any] | None


def _metadata(asked: GetKey, facts: Facts) -> bytes:
    """Return the metadata (JSON); empty if the stream or this call wants none."""
    if facts.extension is None or not asked.metadata_bytes:
        return b""
    told = {f"qnode_{name}": value for name, value in facts.extension.items()}
    return msgspec.json.encode({"age": facts.age_ms, "hops": 0, **told})


def refused(asked: GetKey, facts: Facts, client_gone: Callable[[], bool]) -> Got | None:
    """Return the answer if the call cannot have its chunk, which then stays where it is."""
    metadata = _metadata(asked, facts)
    if len(metadata) > asked.metadata_bytes:
        return Got(status=Status.METADATA_SIZE_INSUFFICIENT, index=asked.index, metadata_bytes=len(metadata))
    return Got(status=Status.TIMEOUT, index=asked.index) if client_gone() else None


def success(asked: GetKey, key: bytes, facts: Facts, stream: object) -> Got:
    """Return the answer with a chunk of ``stream``."""
    return Got(
        status=Status.SUCCESSFUL,
        index=asked.index,
        key=key,
        metadata=_metadata(asked, facts),
        extension=facts.extension or {},
        stream=stream,
    )
