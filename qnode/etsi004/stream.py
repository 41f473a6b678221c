"""One key stream: which end has which chunk of key; no clock, no network, no store.

A stream lives at one of its two sites, its home: the site of the encryptor whose sae_id comes first, which is
the master of its keys. Each chunk of key is one key of the supply. The master's bytes wait here until it
takes them; those of the slave wait in its site's store, where each key_ID is delivered once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from uuid import UUID

from qnode.delivery import Key
from qnode.etsi004.wire import Qos, Status

MOST_CHUNKS_AHEAD = 64
MOST_BYTES_AHEAD = 64 * 1024
INDICES = 1 << 32
BURST_S = 1.0


class End(Enum):
    """The state of one end."""

    ABSENT = "absent"
    CONNECTED = "connected"
    CLOSED = "closed"


@dataclass
class Chunk:
    """A chunk that not every end has taken; ``key``: the master's bytes, until it takes them."""

    index: int
    key_id: UUID
    made_at_s: float
    extension: Mapping[str, Any]
    owed: set[str]
    key: Key | None = field(repr=False)


@dataclass(frozen=True)
class Refused:
    """The call ends with this status."""

    status: Status


@dataclass(frozen=True)
class Wait:
    """The chunk may come later; a call that waits no longer ends with this status."""

    status: Status


@dataclass(frozen=True)
class Allocate:
    """Keys must be allocated: ``needed`` at least, and up to ``ahead`` more."""

    needed: int
    ahead: int


class KeyStream:
    """The stream ``stream_id`` of ``master`` and ``slave``."""

    def __init__(self, stream_id: UUID, master: str, slave: str, qos: Qos) -> None:
        self.stream_id = stream_id
        self.master = master
        self.slave = slave
        self.qos = qos
        self.ends = {master: End.ABSENT, slave: End.ABSENT}
        self.next_index = 0
        self._chunks: dict[int, Chunk] = {}
        self._paced_until_s = 0.0

    @property
    def window(self) -> int:
        """The most chunks that wait to be taken, at either end."""
        return max(2, min(MOST_CHUNKS_AHEAD, MOST_BYTES_AHEAD // self.qos.key_chunk_bytes))

    @property
    def waiting(self) -> int:
        """The number of chunks that an end has not taken."""
        return len(self._chunks)

    @property
    def both_connected(self) -> bool:
        """Whether both ends are connected."""
        return all(end is End.CONNECTED for end in self.ends.values())

    @property
    def over(self) -> bool:
        """Whether no end is connected any more."""
        return End.CONNECTED not in self.ends.values()

    def left_s(self, waited_ms: int) -> float:
        """Return how long a call that has waited may still wait, by the Timeout of the stream."""
        return max(0.0, (self.qos.timeout_ms - waited_ms) / 1000.0)

    def other(self, sae_id: str) -> str:
        """Return the encryptor at the other end."""
        return self.slave if sae_id == self.master else self.master

    def connect(self, sae_id: str) -> None:
        """Connect an end that was absent."""
        assert self.ends[sae_id] is End.ABSENT, "an end connects once"
        self.ends[sae_id] = End.CONNECTED

    def close(self, sae_id: str) -> list[UUID]:
        """Close an end; return the keys at the slave's store that nobody will take.

        The other end may still take what was allocated before. Nothing more is allocated.
        """
        self.ends[sae_id] = End.CLOSED
        return self._drop(list(self._chunks.values()), (sae_id,))

    def look(self, sae_id: str, index: int, now_s: float) -> Chunk | Refused | Wait | Allocate:
        """Return the chunk at ``index`` if ``sae_id`` can take it, or what is missing."""
        if self.ends[sae_id] is not End.CONNECTED:
            return Refused(Status.PEER_NOT_YET_CONNECTED)
        chunk = self._chunks.get(index)
        if chunk is not None and sae_id in chunk.owed:
            return chunk
        needed = index - self.next_index + 1
        if needed <= 0 or needed > self.window:  # given or expired, or farther than is ever allocated
            return Refused(Status.INSUFFICIENT_KEY)
        other = self.ends[self.other(sae_id)]
        if other is End.CLOSED:
            return Refused(Status.PEER_NOT_YET_CONNECTED)
        if other is End.ABSENT:
            return Wait(Status.PEER_NOT_YET_CONNECTED)
        room = self.window - len(self._chunks)
        if needed > room or now_s < self._paced_until_s:
            return Wait(Status.INSUFFICIENT_KEY)
        ahead = min(room - needed, self.window // 4, INDICES - 1 - index)
        return Allocate(needed, ahead)

    def add(self, keys: Sequence[Key], now_s: float) -> list[UUID]:
        """Add allocated keys; return those at the slave's store that nobody will take.

        An end may have closed while they were allocated.
        """
        if self.qos.max_bps:
            bits = 8 * self.qos.key_chunk_bytes * len(keys)
            since_s = max(self._paced_until_s, now_s - BURST_S)
            self._paced_until_s = since_s + bits / self.qos.max_bps
        new = [
            Chunk(self.next_index + number, key.key_id, now_s, key.extension, {self.master, self.slave}, key)
            for number, key in enumerate(keys)
        ]
        self._chunks.update((chunk.index, chunk) for chunk in new)
        self.next_index += len(new)
        return self._drop(new, [sae_id for sae_id, end in self.ends.items() if end is End.CLOSED])

    def take(self, sae_id: str, index: int) -> Key | None:
        """Note that ``sae_id`` has taken a chunk; return the bytes to the master, once."""
        chunk = self._chunks.get(index)
        if chunk is None or sae_id not in chunk.owed:
            return None
        key = chunk.key if sae_id == self.master else None
        self._settle(chunk, sae_id)
        return key

    def expire(self, now_s: float) -> list[UUID]:
        """Drop what nobody took in time; return the keys at the slave's store that nobody will take."""
        old = [one for one in self._chunks.values() if now_s - one.made_at_s >= self.qos.ttl_s]
        return self._drop(old, (self.master, self.slave))

    def _drop(self, chunks: Sequence[Chunk], sae_ids: Sequence[str]) -> list[UUID]:
        """Let ``sae_ids`` take none of ``chunks`` any more."""
        left = [one.key_id for one in chunks if self.slave in sae_ids and self.slave in one.owed]
        for chunk in chunks:
            for sae_id in sae_ids:
                self._settle(chunk, sae_id)
        return left

    def _settle(self, chunk: Chunk, sae_id: str) -> None:
        chunk.owed.discard(sae_id)
        if sae_id == self.master:
            chunk.key = None
        if not chunk.owed:
            self._chunks.pop(chunk.index, None)
