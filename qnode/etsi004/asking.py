"""Asking the other site of a stream."""

import msgspec
import structlog

from qnode.errors import LinkDown
from qnode.etsi004.between import Ask, PeerSites, Told

log = structlog.get_logger()


async def ask_site(peers: PeerSites, kme_id: str, ask: Ask) -> Told | None:
    """Return the answer of a site; None if it cannot be asked or has no streams."""
    try:
        answer = await peers.ask(kme_id, msgspec.msgpack.encode(ask))
        return msgspec.msgpack.decode(answer, type=Told) if answer else None
    except LinkDown:
        return None
    except msgspec.DecodeError as error:
        log.warning("stream.answer_unreadable", peer=kme_id, reason=str(error)[:200])
        return None
