"""The streams whose home is this site: opened, joined, closed, forgotten; no clock, no network, no store."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID, uuid4

from qnode.etsi004.qos import offered
from qnode.etsi004.stream import End, KeyStream
from qnode.etsi004.wire import Qos, Status


@dataclass(frozen=True)
class Opening:
    """The result of OPEN_CONNECT; ``stream`` is None if it failed.

    ``again``: the end was connected to this stream already.
    """

    status: Status
    qos: Qos
    stream: KeyStream | None = None
    again: bool = False


@dataclass(frozen=True)
class Leftover:
    """Keys in the store of the slave's site that nobody will take."""

    slave: str
    master: str
    key_ids: tuple[UUID, ...]


def ends_of(one: str, other: str) -> tuple[str, str]:
    """Return (master, slave) of a stream between two encryptors; both sites say the same."""
    return min(one, other), max(one, other)


class Streams:
    """All streams of this home. ``most_per_sae``: streams to which one encryptor is connected."""

    def __init__(self, most_per_sae: int, idle_limit_s: float, new_id: Callable[[], UUID] = uuid4) -> None:
        self.most_per_sae = most_per_sae
        self.idle_limit_s = idle_limit_s
        self._new_id = new_id
        self._streams: dict[UUID, KeyStream] = {}
        self._used_at_s: dict[UUID, float] = {}

    def __iter__(self) -> Iterator[KeyStream]:
        return iter(tuple(self._streams.values()))

    def promised_bps(self, has_link: Callable[[KeyStream], bool]) -> int:
        """Return the sum of Min_bps of the streams over a link."""
        return sum(stream.qos.min_bps for stream in self if has_link(stream))

    def open(
        self, sae_id: str, peer: str, stream_id: UUID | None, qos: Qos, now_s: float, spare_bps: float
    ) -> Opening:
        """Connect an end to a new stream, or to the one that the other end has opened.

        An end that is connected already stays so: its application may have been started again.
        """
        known = None if stream_id is None else self._streams.get(stream_id)
        master, slave = ends_of(sae_id, peer)
        if known is not None and (
            (known.master, known.slave) != (master, slave) or known.ends[sae_id] is End.CLOSED
        ):
            return Opening(Status.ID_IN_USE, known.qos if sae_id in known.ends else qos)
        is_connected = known is not None and known.ends[sae_id] is End.CONNECTED
        n_connected = sum(one.ends.get(sae_id) is End.CONNECTED for one in self)
        if not is_connected and n_connected >= self.most_per_sae and not self._forget_unjoined(sae_id, now_s):
            return Opening(Status.NO_QKD_CONNECTION, qos)
        if known is not None:
            if not is_connected:
                known.connect(sae_id)
            self._used_at_s[known.stream_id] = now_s
            status = Status.SUCCESSFUL if known.both_connected else Status.PEER_NOT_CONNECTED
            return Opening(status, known.qos, known, is_connected)
        offer, met = offered(qos, spare_bps)
        if not met:
            return Opening(Status.QOS_NOT_MET, offer)
        stream = KeyStream(self._new_id() if stream_id is None else stream_id, master, slave, offer)
        stream.connect(sae_id)
        self._streams[stream.stream_id] = stream
        self._used_at_s[stream.stream_id] = now_s
        # Without an ID of its own, the caller gets one at once, to tell its peer (case 1 of the standard).
        return Opening(
            Status.SUCCESSFUL if stream_id is None else Status.PEER_NOT_CONNECTED, stream.qos, stream
        )

    def find(self, sae_id: str, stream_id: UUID, now_s: float) -> KeyStream | None:
        """Return the stream if ``sae_id`` is connected to it."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.ends.get(sae_id) is not End.CONNECTED:
            return None
        self._used_at_s[stream_id] = now_s
        return stream

    def close(self, stream: KeyStream, sae_id: str) -> Leftover | None:
        """Close an end; the last one ends the stream."""
        key_ids = stream.close(sae_id)
        if stream.over:
            self._forget(stream)
        return _leftover(stream, key_ids)

    def expire(self, now_s: float) -> list[Leftover]:
        """Drop chunks after their time to live, and streams that nobody has used for long.

        A stream that one end has closed is kept for the other end no longer than its chunks would be.
        """
        found: list[Leftover | None] = []
        for stream in self:
            found.append(_leftover(stream, stream.expire(now_s)))
            half_closed = End.CLOSED in stream.ends.values()
            limit_s = min(stream.qos.ttl_s, self.idle_limit_s) if half_closed else self.idle_limit_s
            if now_s - self._used_at_s[stream.stream_id] >= limit_s:
                for sae_id in stream.ends:
                    found.append(_leftover(stream, stream.close(sae_id)))
                self._forget(stream)
        return [one for one in found if one is not None]

    def _forget_unjoined(self, sae_id: str, now_s: float) -> bool:
        """Forget the oldest stream of ``sae_id`` that its peer did not join within Timeout, if there is one.

        Such a stream has no keys. Applications that end before their peer joins leave one behind each time.
        """
        unjoined = [
            one
            for one in self
            if one.ends.get(sae_id) is End.CONNECTED
            and one.ends[one.other(sae_id)] is End.ABSENT
            and now_s - self._used_at_s[one.stream_id] >= one.left_s(0)
        ]
        if unjoined:
            self._forget(min(unjoined, key=lambda one: self._used_at_s[one.stream_id]))
        return bool(unjoined)

    def _forget(self, stream: KeyStream) -> None:
        del self._streams[stream.stream_id], self._used_at_s[stream.stream_id]


def _leftover(stream: KeyStream, key_ids: list[UUID]) -> Leftover | None:
    return Leftover(stream.slave, stream.master, tuple(key_ids)) if key_ids else None
