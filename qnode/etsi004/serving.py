"""What the other site of a stream asks of its home."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import structlog
import trio

from qnode.delivery import Delivery, KeySupply
from qnode.etsi004.between import (
    LONGEST_WAIT_S,
    Ask,
    AskChunk,
    AskClose,
    AskConnected,
    AskDiscard,
    AskOpen,
    Told,
)
from qnode.etsi004.home import Home, ms_since
from qnode.etsi004.leftovers import discard
from qnode.etsi004.stream import Chunk, KeyStream, Refused
from qnode.etsi004.streams import ends_of
from qnode.etsi004.wire import Status

log = structlog.get_logger()

MOST_WAITING_PER_SAE = 16


class PeerCalls:
    """The calls of encryptors of peer sites to streams of this home."""

    def __init__(self, delivery: Delivery, supply: KeySupply, home: Home) -> None:
        self._delivery = delivery
        self._supply = supply
        self._home = home
        self._waiting = Counter[str]()

    async def serve(self, kme_id: str, content: bytes) -> bytes:
        """Answer a request of the site ``kme_id``; empty for one that cannot be read."""
        try:
            ask = msgspec.msgpack.decode(content, type=Ask)
        except msgspec.DecodeError as error:
            log.warning("stream.request_unreadable", peer=kme_id, reason=str(error)[:200])
            return b""
        return msgspec.msgpack.encode(await self._serve(kme_id, ask))

    async def _serve(self, kme_id: str, ask: Ask) -> Told:
        if isinstance(ask, AskDiscard):
            if not self._are_pair(ask.slave, ask.master, kme_id):
                return Told(status=Status.SUCCESSFUL)
            done = await discard(self._supply, ask.slave, ask.master, ask.key_ids)
            return Told(status=Status.SUCCESSFUL if done else Status.TIMEOUT)
        if isinstance(ask, AskOpen):
            return await self._open(kme_id, ask)
        stream = self._home.streams.find(ask.sae_id, ask.stream_id, trio.current_time())
        if stream is None or not self._are_pair(stream.other(ask.sae_id), ask.sae_id, kme_id):
            return Told(status=Status.PEER_NOT_YET_CONNECTED, known=False)
        if isinstance(ask, AskConnected):
            return await self._connected(stream, ask)
        for index in ask.taken:
            self._home.take(stream, ask.sae_id, index)
        if isinstance(ask, AskClose):
            self._home.close(ask.sae_id, ask.stream_id)
            return Told(status=Status.SUCCESSFUL)
        return await self._chunk(stream, ask)

    async def _open(self, kme_id: str, ask: AskOpen) -> Told:
        directory = self._delivery.directory
        is_home = directory.kme_of(ends_of(ask.sae_id, ask.peer)[0]) == directory.kme_id
        if not is_home or not self._are_pair(ask.peer, ask.sae_id, kme_id):
            return Told(status=Status.NO_QKD_CONNECTION)
        opening = await self._home.open(ask.sae_id, ask.peer, ask.stream_id, ask.qos)
        stream_id = None if opening.stream is None else opening.stream.stream_id
        return Told(status=opening.status, stream_id=stream_id, qos=opening.qos, again=opening.again)

    async def _connected(self, stream: KeyStream, ask: AskConnected) -> Told:
        wait_s = stream.left_s(ask.waited_ms)
        with self._wait(ask.sae_id, wait_s) as (until_s, final):
            status = await self._home.connected(ask.sae_id, ask.stream_id, until_s)
        return Told(status=status, final=final or status != Status.PEER_NOT_CONNECTED)

    async def _chunk(self, stream: KeyStream, ask: AskChunk) -> Told:
        wait_s = stream.left_s(ask.waited_ms)
        with self._wait(ask.sae_id, wait_s) as (until_s, final):
            found = await self._home.chunk(stream, ask.sae_id, ask.index, until_s)
        if isinstance(found, Refused):
            return Told(status=found.status)
        if not isinstance(found, Chunk):
            return Told(status=found, final=final)
        return Told(
            status=Status.SUCCESSFUL,
            key_id=found.key_id,
            master=stream.master,
            qos=stream.qos,
            age_ms=ms_since(found.made_at_s),
            extension=dict(found.extension),
        )

    @contextmanager
    def _wait(self, sae_id: str, wait_s: float) -> Iterator[tuple[float, bool]]:
        """Yield until when a call may wait here, and whether its time is over then.

        If many calls of one encryptor wait, more of them do not, so that others can: their site asks again.
        """
        now_s = trio.current_time()
        may_wait = self._waiting[sae_id] < MOST_WAITING_PER_SAE
        limit_s = LONGEST_WAIT_S if may_wait else 0.0
        self._waiting[sae_id] += may_wait
        try:
            yield now_s + min(wait_s, limit_s), wait_s <= limit_s
        finally:
            self._waiting[sae_id] -= may_wait
            if not self._waiting[sae_id]:
                del self._waiting[sae_id]

    def _are_pair(self, own: str, other: str, kme_id: str) -> bool:
        """Return whether ``own`` is an encryptor of this site that shares keys with ``other`` of that one."""
        directory = self._delivery.directory
        return directory.kme_of(other) == kme_id and any(
            sae.sae_id == own and other in sae.peers for sae in directory.local
        )
