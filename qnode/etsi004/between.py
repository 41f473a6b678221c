"""What the two sites of a stream say to each other: the site that is not its home asks the home.

A request and its answer are the content of `StreamRequest` and `StreamAnswer` of the link, which
authenticates them. A request says how long its call has waited, so that the home needs no memory of it. The
home answers at the latest after `LONGEST_WAIT_S`. The encryptor in a request is one of the asking site.
"""

from typing import Annotated, Protocol
from uuid import UUID

from msgspec import Meta, Struct

from qnode.config import SAE_ID_CHARACTERS
from qnode.etsi004.wire import Number, Qos

LONGEST_WAIT_S = 5.0
MOST_INDICES = 256
MOST_KEY_IDS = 256

_SaeId = Annotated[str, Meta(max_length=SAE_ID_CHARACTERS)]


class AskOpen(Struct, frozen=True, kw_only=True, tag="open"):
    """OPEN_CONNECT of ``sae_id`` to its ``peer`` at the home."""

    sae_id: _SaeId
    peer: _SaeId
    stream_id: UUID | None
    qos: Qos


class AskConnected(Struct, frozen=True, kw_only=True, tag="connected"):
    """Wait until the other end of a stream, to which ``sae_id`` is connected, is connected as well."""

    sae_id: _SaeId
    stream_id: UUID
    waited_ms: Number


class AskChunk(Struct, frozen=True, kw_only=True, tag="chunk"):
    """GET_KEY of ``sae_id``. ``taken``: indices that it has taken since the last request."""

    sae_id: _SaeId
    stream_id: UUID
    index: Number
    waited_ms: Number
    taken: Annotated[tuple[Number, ...], Meta(max_length=MOST_INDICES)] = ()


class AskClose(Struct, frozen=True, kw_only=True, tag="close"):
    """CLOSE of ``sae_id``."""

    sae_id: _SaeId
    stream_id: UUID
    taken: Annotated[tuple[Number, ...], Meta(max_length=MOST_INDICES)] = ()


class AskDiscard(Struct, frozen=True, kw_only=True, tag="discard"):
    """From the home: destroy keys of ``slave``, an encryptor of the receiver, that nobody will take."""

    slave: _SaeId
    master: _SaeId
    key_ids: Annotated[tuple[UUID, ...], Meta(max_length=MOST_KEY_IDS)]


Ask = AskOpen | AskConnected | AskChunk | AskClose | AskDiscard


class Told(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer. ``known``: the stream is known here. ``final``: waiting longer is of no use.

    ``again``: the end that opens was connected to this stream already.
    """

    status: Annotated[int, Meta(ge=0, le=255)]
    known: bool = True
    final: bool = True
    again: bool = False
    stream_id: UUID | None = None
    qos: Qos | None = None
    key_id: UUID | None = None
    master: _SaeId = ""
    age_ms: Number = 0
    extension: dict[str, bool | int | float | str] = {}


class PeerSites(Protocol):
    """The sites at the other ends of the links, as far as streams go."""

    def reaches(self, kme_id: str) -> bool:
        """Return whether this site can be asked now."""

    async def ask(self, kme_id: str, request: bytes) -> bytes:
        """Return the answer of a site to a request; empty if it has no streams.

        Raises:
            LinkDown: it cannot be asked, or the link broke before the answer.
        """
