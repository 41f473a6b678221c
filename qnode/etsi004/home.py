"""The home of streams: allocates their keys, and lets each end wait for the other and for keys."""

from collections.abc import Awaitable, Callable
from uuid import UUID
from weakref import WeakKeyDictionary

import structlog
import trio

from qnode.audit.door import through
from qnode.choices import Door
from qnode.delivery import Key, KeySupply
from qnode.errors import LinkDown, NotEnoughKeys, SaeLimitReached, ShareUsedUp, StoreError
from qnode.etsi004.qos import offered
from qnode.etsi004.stream import Allocate, Chunk, End, KeyStream, Refused
from qnode.etsi004.streams import Leftover, Opening, Streams, ends_of
from qnode.etsi004.wire import Qos, Status

log = structlog.get_logger()

LOOK_AGAIN_S = 0.5
LEAST_ALLOCATION_S = 1.0


class Home:
    """The streams of this home, over a supply of keys.

    ``spare_bps``: the rate that the link of a new stream between (master, slave) can give. ``leave``: is
    given the keys in the store of a slave's site that nobody will take.
    """

    def __init__(
        self,
        streams: Streams,
        supply: KeySupply,
        spare_bps: Callable[[str, str, int], Awaitable[float]],
        leave: Callable[[Leftover], None],
    ) -> None:
        self.streams = streams
        self._supply = supply
        self._spare_bps = spare_bps
        self._leave = leave
        self._locks: WeakKeyDictionary[KeyStream, trio.Lock] = WeakKeyDictionary()
        self._short: WeakKeyDictionary[KeyStream, tuple[float, int]] = WeakKeyDictionary()
        self._changes: WeakKeyDictionary[KeyStream, trio.Event] = WeakKeyDictionary()
        self.chunks_allocated = 0
        self.chunks_left = 0

    async def open(self, sae_id: str, peer: str, stream_id: UUID | None, qos: Qos) -> Opening:
        """Connect an end to a new or known stream."""
        master, slave = ends_of(sae_id, peer)
        bits = 8 * offered(qos, 0.0)[0].key_chunk_bytes
        spare_bps = await self._spare_bps(master, slave, bits) if qos.min_bps else 0.0
        opening = self.streams.open(sae_id, peer, stream_id, qos, trio.current_time(), spare_bps)
        if opening.stream is not None:
            stream = opening.stream
            log.info("stream.opened", stream=str(stream.stream_id), sae=sae_id, peer=peer)
            self._tell(stream)
        return opening

    async def connected(self, sae_id: str, stream_id: UUID, until_s: float) -> Status:
        """Wait until both ends are connected, not longer than to ``until_s``."""
        while True:
            stream = self._find(sae_id, stream_id)
            if stream is None:
                return Status.PEER_NOT_YET_CONNECTED
            if stream.both_connected:
                return Status.SUCCESSFUL
            if stream.ends[stream.other(sae_id)] is End.CLOSED or trio.current_time() >= until_s:
                return Status.PEER_NOT_CONNECTED
            await self._change(stream, until_s)

    async def chunk(
        self, stream: KeyStream, sae_id: str, index: int, until_s: float
    ) -> Chunk | Refused | Status:
        """Return the chunk that an end may take now; it is not taken yet.

        A `Refused` is final; a bare status is what was missing until ``until_s``.
        """
        while True:
            if self._find(sae_id, stream.stream_id) is not stream:
                return Refused(Status.PEER_NOT_YET_CONNECTED)
            step = stream.look(sae_id, index, trio.current_time())
            if isinstance(step, Chunk | Refused):
                return step
            if isinstance(step, Allocate):
                missing = await self._allocate(stream, sae_id, index, until_s)
                if missing is None:
                    continue
            else:
                missing = step.status
            if trio.current_time() >= until_s:
                return missing
            await self._change(stream, until_s)

    def take(self, stream: KeyStream, sae_id: str, index: int) -> Key | None:
        """Note that an end has taken a chunk; return the bytes to the master, once."""
        key = stream.take(sae_id, index)
        self._tell(stream)
        return key

    def close(self, sae_id: str, stream_id: UUID) -> bool:
        """Close an end; return whether it was connected."""
        stream = self._find(sae_id, stream_id)
        if stream is None:
            return False
        self._leave_behind(self.streams.close(stream, sae_id))
        log.info("stream.closed", stream=str(stream_id), sae=sae_id)
        self._tell(stream)
        return True

    def expire(self) -> None:
        """Drop what is too old; call it regularly."""
        for leftover in self.streams.expire(trio.current_time()):
            self._leave_behind(leftover)
        for stream in self.streams:
            self._tell(stream)

    async def _allocate(self, stream: KeyStream, sae_id: str, index: int, until_s: float) -> Status | None:
        """Allocate what the call needs; return None to look again, or what is missing."""
        limit_s = max(until_s - trio.current_time(), LEAST_ALLOCATION_S)
        try:
            with trio.fail_after(limit_s):
                async with self._locks.setdefault(stream, trio.Lock()):
                    step = stream.look(sae_id, index, trio.current_time())
                    if not isinstance(step, Allocate):
                        return None
                    short_until_s, too_many = self._short.get(stream, (0.0, 0))
                    if trio.current_time() < short_until_s and step.needed >= too_many:
                        return Status.INSUFFICIENT_KEY  # as another call has just heard from the store
                    with through(Door.ETSI004):
                        keys = await self._keys(stream, step)
                    left = stream.add(keys, trio.current_time())
        except (NotEnoughKeys, SaeLimitReached, ShareUsedUp):
            return Status.INSUFFICIENT_KEY
        except (LinkDown, trio.TooSlowError):
            return Status.TIMEOUT
        except StoreError as trouble:
            log.warning("stream.store_refused", stream=str(stream.stream_id), reason=str(trouble))
            return Status.TIMEOUT
        self.chunks_allocated += len(keys)
        if left:
            self._leave_behind(Leftover(stream.slave, stream.master, tuple(left)))
        self._tell(stream)
        return None

    async def _keys(self, stream: KeyStream, step: Allocate) -> list[Key]:
        bits = 8 * stream.qos.key_chunk_bytes
        master, slaves = stream.master, (stream.slave,)
        asked_s = trio.current_time()
        for number in sorted({step.needed + step.ahead, step.needed}, reverse=True):
            try:
                return await self._supply.allocate(master, slaves, number, bits)
            except (NotEnoughKeys, SaeLimitReached):
                if number == step.needed:
                    self._short[stream] = asked_s + LOOK_AGAIN_S, step.needed
                    raise
        raise AssertionError("the last number is what is needed")

    def _leave_behind(self, leftover: Leftover | None) -> None:
        if leftover is not None:
            self.chunks_left += len(leftover.key_ids)
            self._leave(leftover)

    def _find(self, sae_id: str, stream_id: UUID) -> KeyStream | None:
        return self.streams.find(sae_id, stream_id, trio.current_time())

    def _tell(self, stream: KeyStream) -> None:
        """Let the calls that wait for a change of the stream look again."""
        event = self._changes.pop(stream, None)
        if event is not None:
            event.set()

    async def _change(self, stream: KeyStream, until_s: float) -> None:
        """Wait for a change; keys come without one, so look again from time to time."""
        event = self._changes.setdefault(stream, trio.Event())
        with trio.move_on_at(min(until_s, trio.current_time() + LOOK_AGAIN_S)):
            await event.wait()


def ms_since(since_s: float) -> int:
    """Return the milliseconds since a time of trio's clock, as far as 32 bits go."""
    return min(max(0, round(1000.0 * (trio.current_time() - since_s))), 2**32 - 1)
