"""What quality of service a stream gets: clause 6.1 and table 2 of ETSI GS QKD 004 V2.1.1."""

import msgspec

from qnode.etsi004.wire import JSON, Qos

LEAST_CHUNK_BYTES = 8
MOST_CHUNK_BYTES = 8192
DEFAULT_CHUNK_BYTES = 32
DEFAULT_TIMEOUT_MS = 5_000
MOST_TIMEOUT_MS = 60_000
DEFAULT_TTL_S = 3_600
MOST_TTL_S = 86_400


def offered(asked: Qos, spare_bps: float) -> tuple[Qos, bool]:
    """Return the quality closest to ``asked`` and whether it meets it; otherwise it is a counter-proposal.

    A value that is not stated gets a default. Jitter, Priority and Max_bps are guidance and refuse nothing.
    Timeout and TTL are cut to the longest that there is. ``spare_bps``: what the link can give now.
    """
    chunk_bytes = asked.key_chunk_bytes or DEFAULT_CHUNK_BYTES
    offer = msgspec.structs.replace(
        asked,
        key_chunk_bytes=min(max(chunk_bytes, LEAST_CHUNK_BYTES), MOST_CHUNK_BYTES),
        min_bps=min(asked.min_bps, max(0, int(spare_bps))),
        timeout_ms=min(asked.timeout_ms or DEFAULT_TIMEOUT_MS, MOST_TIMEOUT_MS),
        ttl_s=min(asked.ttl_s or DEFAULT_TTL_S, MOST_TTL_S),
        metadata_mimetype=JSON if asked.metadata_mimetype else "",
    )
    met = (
        offer.key_chunk_bytes == chunk_bytes
        and offer.min_bps == asked.min_bps
        and offer.metadata_mimetype == asked.metadata_mimetype
    )
    return offer, met
