"""Places for connections: bounded in total and by client, and taken from whoever only waits.

A full house does not turn a newcomer away while somebody holds a place without using it: the connection
that has waited longest for its client gives way, strangers in their handshake before proven clients, and
clients with many connections before those with few. So neither a thousand idle connections nor a flood of
half handshakes keeps an encryptor out. A client that keeps more connections in use than it may have is told
so: its newest get a surplus place, in which a request is answered 503.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

import trio

from qnode.http._limits import Counters, Limits
from qnode.strangers import network_of
from qnode.tls import Trusted

_MOST_KNOWN = 1024


class Place:
    """One connection's place: whose it is, and since when it waits for its client (None while it works).

    ``network`` stands for the client; ``surplus`` places are beyond the limits, to say so and hang up.
    """

    def __init__(self, network: str, *, surplus: bool = False) -> None:
        self.network = network
        self.surplus = surplus
        self.scope = trio.CancelScope()
        self.opened = trio.current_time()
        self.waiting_since: float | None = self.opened
        self.proven = False
        self.used = False
        self.last_request = False
        self.admitted: tuple[bytes, Trusted] | None = None
        """The client's certificate (DER) and what it was judged by."""

    def work(self) -> None:
        """Note that the next move is ours."""
        self.waiting_since = None

    def wait(self) -> None:
        """Note that the next move is the client's."""
        self.waiting_since = trio.current_time()


class Places:
    """All connections of one server."""

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self.limits = limits
        self._counters = counters
        self._taken: set[Place] = set()
        self._surplus: set[Place] = set()
        self._held: Counter[str] = Counter()
        self._known: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, client: str) -> Place | None:
        """Return a place for ``client`` (an address), or None when there is not even a surplus one."""
        network = network_of(client)
        if self._held[network] >= self.limits.connections_per_client:
            same_client = [place for place in self._taken if place.network == network]
            has_place = self._evict(same_client, network)
        else:
            has_place = len(self._taken) < self.limits.connections or self._evict(self._taken, network)
        if has_place:
            place = Place(network)
            self._taken.add(place)
            self._held[network] += 1
            self._counters.connections += 1
            return place
        self._counters.connections_refused += 1
        if len(self._surplus) >= self.limits.surplus_connections:
            return None
        place = Place(network, surplus=True)
        self._surplus.add(place)
        return place

    def leave(self, place: Place) -> None:
        """Give ``place`` back; harmless when it was taken away before."""
        self._surplus.discard(place)
        if place in self._taken:
            self._taken.discard(place)
            self._held[place.network] -= 1
            if not self._held[place.network]:
                del self._held[place.network]

    def prove(self, place: Place) -> None:
        """Note that a client has proven itself, and remember whence it came."""
        place.proven = True
        self._known[place.network] = None
        self._known.move_to_end(place.network)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    def knows(self, network: str) -> bool:
        """Say whether a client of ``network`` has proven itself before."""
        return network in self._known

    def retire(self, spared: Callable[[Place], bool] = lambda place: False) -> None:
        """Close every connection that waits; the others close behind the answer they are working on.

        Those that are ``spared`` go on.
        """
        for place in [*self._taken, *self._surplus]:
            if spared(place):
                continue
            place.last_request = True
            if place.waiting_since is not None:
                place.scope.cancel()

    def _evict(self, candidates: Iterable[Place], network: str) -> bool:
        """Take a place from one of ``candidates`` for a newcomer of ``network``, if one may be taken."""
        idle = [place for place in candidates if self._gives_way(place, network)]
        if not idle:
            return False
        victim = min(
            idle,
            key=lambda place: (
                place.proven,
                -self._held[place.network],
                place.network in self._known,
                place.waiting_since,
            ),
        )
        victim.scope.cancel()
        self.leave(victim)
        self._counters.connections_evicted += 1
        return True

    def _gives_way(self, place: Place, network: str) -> bool:
        if place.waiting_since is None:
            return False
        if not (place.proven and place.used):
            return True
        # A request may be on its way to us: cutting it off would look like a lost answer to the client.
        rested = trio.current_time() - place.waiting_since >= self.limits.rest_s
        return rested or self._held[place.network] > self._held[network] + 1
