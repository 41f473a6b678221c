"""The sites at the other ends of the links, for key streams: each is asked within the session of its link."""

from collections.abc import Mapping
from typing import Protocol

from qnode.errors import LinkDown
from qnode.etsi004 import PeerSites


class StreamLink(Protocol):
    """The part of a link that streams need."""

    @property
    def peer_has_streams(self) -> bool:
        """Whether there is a session whose protocol knows key streams."""

    async def ask_about_stream(self, request: bytes) -> bytes:
        """Return the peer's answer; raises LinkDown."""


class LinkedSites(PeerSites):
    """``links``: by the kme_id of the peer."""

    def __init__(self, links: Mapping[str, StreamLink]) -> None:
        self._links = dict(links)

    def reaches(self, kme_id: str) -> bool:
        """Return whether the site at the other end of a link can be asked now."""
        return kme_id in self._links and self._links[kme_id].peer_has_streams

    async def ask(self, kme_id: str, request: bytes) -> bytes:
        """Return the answer of a site; raises LinkDown."""
        if kme_id not in self._links:
            raise LinkDown(f"no link leads to {kme_id}")
        return await self._links[kme_id].ask_about_stream(request)
