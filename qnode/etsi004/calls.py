"""The calls of the encryptors of this site: to a stream of this home, or to one whose home is a peer site."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Never
from uuid import UUID

import structlog
import trio

from qnode.audit.door import through
from qnode.choices import Door
from qnode.delivery import Delivery, Key, KeySupply, SaeEntry
from qnode.errors import KeyNotFound, NotNamed, StoreError
from qnode.etsi004.answers import Facts, refused, success
from qnode.etsi004.asking import ask_site
from qnode.etsi004.between import (
    MOST_INDICES,
    Ask,
    AskChunk,
    AskClose,
    AskConnected,
    AskOpen,
    PeerSites,
    Told,
)
from qnode.etsi004.home import Home, ms_since
from qnode.etsi004.leftovers import FETCH_S, Leftovers
from qnode.etsi004.naming import sae_named
from qnode.etsi004.qos import MOST_TIMEOUT_MS
from qnode.etsi004.serving import PeerCalls
from qnode.etsi004.stream import Chunk, KeyStream, Refused
from qnode.etsi004.streams import Opening, Streams, ends_of
from qnode.etsi004.wire import Close, GetKey, Got, OpenConnect, Qos, Status

log = structlog.get_logger()

LOOK_AFTER_S = 1.0
ASK_AGAIN_S = 0.5
MOST_REMEMBERED = 4096
STOCK_HORIZON_S = 3600.0
"""Keys in stock count towards the rate of a link as if they were spread over this time."""


@dataclass(frozen=True)
class Opened:
    """The answer of OPEN_CONNECT."""

    status: Status
    qos: Qos
    stream_id: UUID | None
    again: bool = False


@dataclass(eq=False)
class _Joined:
    """What this site remembers of a stream whose home is elsewhere; without it, it asks every home.

    A later stream of the same Key_stream_ID is another one.
    """

    kme_id: str
    peer: str
    taken: set[int]


class StreamCalls:
    """OPEN_CONNECT, GET_KEY and CLOSE for the encryptors of one site.

    ``link_bps``: the rate at which the link to a site yields key now. ``uris``: encryptors by the URIs of
    their applications.
    """

    def __init__(
        self,
        delivery: Delivery,
        supply: KeySupply,
        peers: PeerSites,
        *,
        most_per_sae: int,
        idle_limit_s: float,
        link_bps: Callable[[str], float] = lambda kme_id: 0.0,
        uris: Mapping[str, str] | None = None,
    ) -> None:
        self.delivery = delivery
        self.uris = uris or {}
        self._supply = supply
        self._peers = peers
        self._link_bps = link_bps
        self._leftovers = Leftovers(supply, peers)
        self.home = Home(Streams(most_per_sae, idle_limit_s), supply, self._spare_bps, self._leftovers.add)
        self.peer_calls = PeerCalls(delivery, supply, self.home)
        self._joined: dict[tuple[str, UUID], _Joined] = {}

    # The calls

    async def open_connect(self, caller: SaeEntry, asked: OpenConnect) -> Opened:
        """Connect the caller to a stream; wait for the other end if the caller names the stream."""
        peer = self._peer(caller, asked)
        if peer is None:
            return Opened(Status.NO_QKD_CONNECTION, asked.qos, asked.key_stream_id)
        home = self.delivery.directory.kme_of(ends_of(caller.sae_id, peer)[0])
        if asked.key_stream_id is not None:
            joined = self._joined.get((caller.sae_id, asked.key_stream_id))
            if joined is not None and joined.peer != peer:
                return Opened(Status.ID_IN_USE, asked.qos, asked.key_stream_id)
        started_s = trio.current_time()
        opened = await self._open(caller.sae_id, peer, home, asked)
        stream_id, status = opened.stream_id, opened.status
        if status > Status.PEER_NOT_CONNECTED or stream_id is None:
            return opened
        if not opened.again or (caller.sae_id, stream_id) not in self._joined:
            self._remember(caller.sae_id, stream_id, _Joined(home, peer, set()))
        if status == Status.PEER_NOT_CONNECTED:
            status = await self._connected(caller.sae_id, stream_id, home, started_s, opened.qos.timeout_ms)
        if status > Status.PEER_NOT_CONNECTED:  # the stream ended meanwhile, as its home was started again
            status = Status.NO_QKD_CONNECTION
        return Opened(status, opened.qos, stream_id)

    async def get_key(
        self, caller: SaeEntry, asked: GetKey, client_gone: Callable[[], bool] = lambda: False
    ) -> Got:
        """Give the caller a chunk of key, once."""
        stream = self._of_home(caller, asked.key_stream_id)
        joined = self._joined.get((caller.sae_id, asked.key_stream_id))
        if (again := self._sent_again(caller, asked, stream or joined)) is not None:
            return again
        started_s = trio.current_time()
        if stream is not None:
            return await self._chunk_of_home(caller, stream, asked, started_s, client_gone)
        worst = Status.PEER_NOT_YET_CONNECTED
        for kme_id in self._homes(caller, asked.key_stream_id):
            told = await self._ask_for_chunk(kme_id, caller.sae_id, asked, joined, started_s)
            if told is None:
                worst = Status.NO_QKD_CONNECTION
            elif told.status == Status.SUCCESSFUL and told.key_id is not None and told.qos is not None:
                if told.master not in caller.peers:  # since a reload
                    return Got(status=worst, index=asked.index)
                facts = Facts(told.age_ms, told.extension if told.qos.metadata_mimetype else None)
                stream_here = joined or _Joined(kme_id, told.master, set())
                got = await self._fetch(
                    caller, asked, told.key_id, told.master, facts, stream_here, client_gone
                )
                if got.status in (Status.SUCCESSFUL, Status.INSUFFICIENT_KEY):
                    self._note_taken(caller.sae_id, asked, stream_here)
                return got
            elif told.known:
                return Got(status=_status(told), index=asked.index)
        return Got(status=worst, index=asked.index)

    async def close(self, caller: SaeEntry, asked: Close) -> Status:
        """Close the caller's end of a stream."""
        sae_id, stream_id = caller.sae_id, asked.key_stream_id
        homes = list(self._homes(caller, stream_id))
        joined = self._joined.pop((sae_id, stream_id), None)
        if self.home.close(sae_id, stream_id):
            return Status.SUCCESSFUL
        worst = Status.PEER_NOT_YET_CONNECTED
        taken = tuple(sorted(joined.taken))[:MOST_INDICES] if joined is not None else ()
        for kme_id in homes:
            told = await self._ask(kme_id, AskClose(sae_id=sae_id, stream_id=stream_id, taken=taken))
            if told is None:
                worst = Status.NO_QKD_CONNECTION
            elif told.known:
                return _status(told)
        if worst == Status.NO_QKD_CONNECTION and joined is not None:
            self._remember(sae_id, stream_id, joined)
        return worst

    async def run(self) -> Never:
        """Drop what is too old, and destroy keys that nobody will take, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._destroy_leftovers)
            while True:
                self.home.expire()
                await trio.sleep(LOOK_AFTER_S)

    async def _destroy_leftovers(self) -> Never:
        """Do so apart from the rest: a peer site may be slow to answer."""
        while True:
            await self._leftovers.destroy(self.delivery.directory)
            await trio.sleep(LOOK_AFTER_S)

    async def look_after(self) -> None:
        """Do once what `run` does."""
        self.home.expire()
        await self._leftovers.destroy(self.delivery.directory)

    # Streams of this home

    async def _open(self, sae_id: str, peer: str, home: str, asked: OpenConnect) -> Opened:
        other = self.delivery.directory.kme_of(peer)
        if other != self.delivery.directory.kme_id and not self._peers.reaches(other):
            return Opened(Status.NO_QKD_CONNECTION, asked.qos, asked.key_stream_id)
        if home == self.delivery.directory.kme_id:
            opening = await self.home.open(sae_id, peer, asked.key_stream_id, asked.qos)
            return _opened(opening, asked.key_stream_id)
        told = await self._ask(
            home, AskOpen(sae_id=sae_id, peer=peer, stream_id=asked.key_stream_id, qos=asked.qos)
        )
        if told is None:
            if asked.key_stream_id is not None:  # the home may have opened it, and it may be a new one
                self._joined.pop((sae_id, asked.key_stream_id), None)
            return Opened(Status.NO_QKD_CONNECTION, asked.qos, asked.key_stream_id)
        return Opened(_status(told), told.qos or asked.qos, told.stream_id, told.again)

    async def _connected(
        self, sae_id: str, stream_id: UUID, home: str, started_s: float, timeout_ms: int
    ) -> Status:
        """Wait for the other end until the time is over."""
        if home == self.delivery.directory.kme_id:
            return await self.home.connected(sae_id, stream_id, started_s + timeout_ms / 1000.0)
        while True:
            asked_s = trio.current_time()
            told = await self._ask(
                home,
                AskConnected(sae_id=sae_id, stream_id=stream_id, waited_ms=ms_since(started_s)),
            )
            if told is None:
                return Status.NO_QKD_CONNECTION
            if told.final or ms_since(started_s) > MOST_TIMEOUT_MS:
                return _status(told)
            await trio.sleep_until(asked_s + ASK_AGAIN_S)

    async def _chunk_of_home(
        self,
        caller: SaeEntry,
        stream: KeyStream,
        asked: GetKey,
        started_s: float,
        client_gone: Callable[[], bool],
    ) -> Got:
        sae_id, index = caller.sae_id, asked.index
        until_s = started_s + stream.qos.timeout_ms / 1000.0
        found = await self.home.chunk(stream, sae_id, index, until_s)
        if not isinstance(found, Chunk):
            return Got(status=found.status if isinstance(found, Refused) else found, index=index)
        extension = found.extension if stream.qos.metadata_mimetype else None
        facts = Facts(ms_since(found.made_at_s), extension)
        if sae_id == stream.slave:
            got = await self._fetch(caller, asked, found.key_id, stream.master, facts, stream, client_gone)
            if got.status in (Status.SUCCESSFUL, Status.INSUFFICIENT_KEY):
                self.home.take(stream, sae_id, index)
            return got
        if (no := refused(asked, facts, client_gone)) is not None:
            return no
        key = self.home.take(stream, sae_id, index)
        if key is None:  # another call of the same encryptor was faster
            return Got(status=Status.INSUFFICIENT_KEY, index=index)
        return self._counted(caller, asked, key, facts, stream)

    async def _spare_bps(self, master: str, slave: str, bits: int) -> float:
        """Return the rate that a new stream may be promised: new keys and stock, less what is promised."""
        kme_of = self.delivery.directory.kme_of
        sites = {kme_of(master), kme_of(slave)}
        own = self.delivery.directory.kme_id
        try:
            with trio.fail_after(FETCH_S):
                stored = bits * await self._supply.stored_key_count(master, slave, bits)
        except (StoreError, trio.TooSlowError):
            stored = 0
        promised = self.home.streams.promised_bps(
            lambda one: {kme_of(one.master), kme_of(one.slave)} == sites
        )
        rate_bps = sum(self._link_bps(site) for site in sites - {own})
        return rate_bps + stored / STOCK_HORIZON_S - promised

    # Keys

    async def _fetch(
        self,
        caller: SaeEntry,
        asked: GetKey,
        key_id: UUID,
        master: str,
        facts: Facts,
        stream: object,
        client_gone: Callable[[], bool],
    ) -> Got:
        """Take the slave's bytes from the store of this site, which delivers each key_ID once."""
        if (no := refused(asked, facts, client_gone)) is not None:
            return no
        try:
            with trio.fail_after(FETCH_S), through(Door.ETSI004):
                key = (await self._supply.fetch(caller.sae_id, master, (key_id,)))[0]
        except (KeyNotFound, NotNamed):
            return Got(status=Status.INSUFFICIENT_KEY, index=asked.index)
        except trio.TooSlowError:
            return Got(status=Status.TIMEOUT, index=asked.index)
        except StoreError:
            return Got(status=Status.NO_QKD_CONNECTION, index=asked.index)
        return self._counted(caller, asked, key, facts, stream)

    def _counted(self, caller: SaeEntry, asked: GetKey, key: Key, facts: Facts, stream: object) -> Got:
        self.delivery.usage[caller.sae_id].add(1)
        log.info("key.streamed", sae=caller.sae_id, stream=str(asked.key_stream_id), index=asked.index)
        return success(asked, key.key, facts, stream)

    def _sent_again(self, caller: SaeEntry, asked: GetKey, stream: object | None) -> Got | None:
        """Return a chunk of ``stream`` whose answer could not be sent before; None if there is none."""
        owner = _owner(caller, asked, stream)
        unsent = self.delivery.unsent.take_any(owner) if stream is not None else None
        if unsent is None:
            return None
        facts = Facts(0, unsent[0].extension or None)
        if (no := refused(asked, facts, lambda: False)) is not None:
            self.delivery.unsent.hold(owner, unsent)
            return no
        return success(asked, unsent[0].key, facts, stream)

    def take_back(self, caller: SaeEntry, asked: GetKey, got: Got) -> None:
        """Keep a chunk whose answer was certainly not sent, until the same encryptor asks for it again."""
        key = Key(asked.key_stream_id, got.key, got.extension)
        self.delivery.unsent.hold(_owner(caller, asked, got.stream), [key])

    # The peer sites

    async def _ask(self, kme_id: str, ask: Ask) -> Told | None:
        return await ask_site(self._peers, kme_id, ask)

    async def _ask_for_chunk(
        self, kme_id: str, sae_id: str, asked: GetKey, joined: _Joined | None, started_s: float
    ) -> Told | None:
        stream_id = asked.key_stream_id
        while True:
            taken = tuple(sorted(joined.taken))[:MOST_INDICES] if joined is not None else ()
            asked_s, waited_ms = trio.current_time(), ms_since(started_s)
            told = await self._ask(
                kme_id,
                AskChunk(
                    sae_id=sae_id, stream_id=stream_id, index=asked.index, waited_ms=waited_ms, taken=taken
                ),
            )
            if told is not None and joined is not None:
                joined.taken.difference_update(taken)
            if told is None or told.final or waited_ms > MOST_TIMEOUT_MS:
                return told
            await trio.sleep_until(asked_s + ASK_AGAIN_S)

    # Names and memory

    def _peer(self, caller: SaeEntry, asked: OpenConnect) -> str | None:
        """Return the encryptor at the other end; Source or Destination must name the caller."""
        known = (caller.sae_id, *caller.peers)
        named = [sae_named(uri, known, self.uris) for uri in (asked.source, asked.destination)]
        if caller.sae_id not in named:
            return None
        return next((name for name in named if name is not None and name != caller.sae_id), None)

    def _of_home(self, caller: SaeEntry, stream_id: UUID) -> KeyStream | None:
        """Return the stream if this site is its home and the caller is connected to it."""
        stream = self.home.streams.find(caller.sae_id, stream_id, trio.current_time())
        return None if stream is None or stream.other(caller.sae_id) not in caller.peers else stream

    def _homes(self, caller: SaeEntry, stream_id: UUID) -> Iterable[str]:
        """Return the other sites that may be the home of a stream of the caller."""
        joined = self._joined.get((caller.sae_id, stream_id))
        if joined is not None:
            return (joined.kme_id,) if joined.kme_id != self.delivery.directory.kme_id else ()
        kme_of = self.delivery.directory.kme_of
        homes = {kme_of(peer) for peer in caller.peers if ends_of(caller.sae_id, peer)[0] == peer}
        return sorted(homes - {self.delivery.directory.kme_id})

    def _remember(self, sae_id: str, stream_id: UUID, joined: _Joined) -> None:
        self._joined[(sae_id, stream_id)] = joined
        while len(self._joined) > MOST_REMEMBERED:
            del self._joined[next(iter(self._joined))]

    def _note_taken(self, sae_id: str, asked: GetKey, joined: _Joined) -> None:
        joined.taken.add(asked.index)
        if (sae_id, asked.key_stream_id) not in self._joined:  # after a restart of this site
            self._remember(sae_id, asked.key_stream_id, joined)


def _owner(caller: SaeEntry, asked: GetKey, stream: object) -> Hashable:
    """Return who may get a chunk again whose answer was not sent.

    A later stream of the same Key_stream_ID has other chunks at the same indices.
    """
    return ("GET_KEY", caller.sae_id, stream, asked.index)


def _opened(opening: Opening, asked_id: UUID | None) -> Opened:
    stream_id = asked_id if opening.stream is None else opening.stream.stream_id
    return Opened(opening.status, opening.qos, stream_id, opening.again)


def _status(told: Told) -> Status:
    try:
        return Status(told.status)
    except ValueError:  # of a newer peer
        return Status.NO_QKD_CONNECTION
