"""Places for connections: bounded in total and per client, and taken from whoever only waits.

A full house does not turn a newcomer away while somebody holds a place without using it: the connection
that has waited longest for its client gives way, strangers in their handshake before proven clients. So
neither a thousand idle connections nor a flood of half handshakes keeps an encryptor out.
"""

import trio

from qnode.http._limits import Counters, Limits


class Place:
    """One connection's place: whose it is, and since when it waits for its client (None while it works)."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.scope = trio.CancelScope()
        self.opened = trio.current_time()
        self.waiting_since: float | None = self.opened
        self.proven = False
        self.last_request = False

    def work(self) -> None:
        """Note that the next move is ours."""
        self.waiting_since = None

    def wait(self) -> None:
        """Note that the next move is the client's."""
        self.waiting_since = trio.current_time()


class Places:
    """All connections of one server."""

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self._limits = limits
        self._counters = counters
        self._taken: set[Place] = set()

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, client: str) -> Place | None:
        """Return a place for ``client``, or None when all are taken by connections that work."""
        same_client = [place for place in self._taken if place.client == client]
        if len(same_client) >= self._limits.connections_per_client:
            candidates = same_client
        elif len(self._taken) >= self._limits.connections:
            candidates = list(self._taken)
        else:
            candidates = []
        if candidates and not self._evict(candidates):
            self._counters.connections_refused += 1
            return None
        place = Place(client)
        self._taken.add(place)
        self._counters.connections += 1
        return place

    def leave(self, place: Place) -> None:
        """Give ``place`` back; harmless when it was taken away before."""
        self._taken.discard(place)

    def retire(self) -> None:
        """Close every connection that waits; the others close behind the answer they are working on."""
        for place in list(self._taken):
            place.last_request = True
            if place.waiting_since is not None:
                place.scope.cancel()

    def _evict(self, candidates: list[Place]) -> bool:
        waiting = [place for place in candidates if place.waiting_since is not None]
        if not waiting:
            return False
        victim = min(waiting, key=lambda place: (place.proven, place.waiting_since))
        victim.scope.cancel()
        self._taken.discard(victim)
        self._counters.connections_evicted += 1
        return True
