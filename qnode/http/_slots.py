"""Connection slots: limited in total and per client, and freed by closing connections that only wait.

If all slots are in use, a new connection replaces one that waits for its client, unless the new one has to
wait for its handshake. Connections in their handshake are replaced before proven clients, clients with many
connections before those with few, and then the one that has waited longest. So neither a thousand idle
connections nor a flood of half-open handshakes keeps an encryptor out. If a client uses more connections than
it may have, its newest ones get a surplus slot, in which a request is answered 503.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

import trio

from qnode.http._limits import Counters, Limits
from qnode.strangers import network_of
from qnode.tls import Trusted

_MOST_KNOWN = 1024


class ConnectionSlot:
    """The slot of one connection: its client, and since when it waits for the client (None while it works).

    ``network`` identifies the client. A ``surplus`` slot is beyond the limits: the server answers 503 and
    closes.
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
        """The client's certificate (DER), and the trust settings that accepted it."""

    def work(self) -> None:
        """Note that the server works on a request."""
        self.waiting_since = None

    def wait(self) -> None:
        """Note that the connection waits for the client."""
        self.waiting_since = trio.current_time()


class ConnectionSlots:
    """All connections of one server."""

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self.limits = limits
        self._counters = counters
        self._taken: set[ConnectionSlot] = set()
        self._surplus: set[ConnectionSlot] = set()
        self._held: Counter[str] = Counter()
        self._known: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, client: str, *, evicting: bool = True) -> ConnectionSlot | None:
        """Return a slot for ``client`` (an address), or None if even the surplus slots are in use.

        With ``evicting`` it may be the slot of a connection that waits.
        """
        network = network_of(client)
        if self._held[network] >= self.limits.connections_per_client:
            same_client = [slot for slot in self._taken if slot.network == network]
            has_slot = evicting and self._evict(same_client, network)
        else:
            has_free_slot = len(self._taken) < self.limits.connections
            has_slot = has_free_slot or (evicting and self._evict(self._taken, network))
        if has_slot:
            slot = ConnectionSlot(network)
            self._taken.add(slot)
            self._held[network] += 1
            self._counters.connections += 1
            return slot
        self._counters.connections_refused += 1
        if len(self._surplus) >= self.limits.surplus_connections:
            return None
        slot = ConnectionSlot(network, surplus=True)
        self._surplus.add(slot)
        return slot

    def leave(self, slot: ConnectionSlot) -> None:
        """Return ``slot``; no effect if it was taken away before."""
        self._surplus.discard(slot)
        if slot in self._taken:
            self._taken.discard(slot)
            self._held[slot.network] -= 1
            if not self._held[slot.network]:
                del self._held[slot.network]

    def prove(self, slot: ConnectionSlot) -> None:
        """Note that a client has proven itself, and remember its network."""
        slot.proven = True
        self._known[slot.network] = None
        self._known.move_to_end(slot.network)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    def knows(self, network: str) -> bool:
        """Return whether a client of ``network`` has proven itself before."""
        return network in self._known

    def retire(self, spared: Callable[[ConnectionSlot], bool] = lambda slot: False) -> None:
        """Close every connection that waits; the others close after their present answer.

        Connections that are ``spared`` continue.
        """
        for slot in [*self._taken, *self._surplus]:
            if spared(slot):
                continue
            slot.last_request = True
            if slot.waiting_since is not None:
                slot.scope.cancel()

    def _evict(self, candidates: Iterable[ConnectionSlot], network: str) -> bool:
        """Close one of ``candidates`` for a new connection of ``network``, if one may be closed."""
        idle = [slot for slot in candidates if self._replaceable(slot, network)]
        if not idle:
            return False
        victim = min(
            idle,
            key=lambda slot: (
                slot.proven,
                -self._held[slot.network],
                slot.network in self._known,
                slot.waiting_since,
            ),
        )
        victim.scope.cancel()
        self.leave(victim)
        self._counters.connections_evicted += 1
        return True

    def _replaceable(self, slot: ConnectionSlot, network: str) -> bool:
        if slot.waiting_since is None:
            return False
        if not (slot.proven and slot.used):
            return True
        # A request may be on its way: if we close now, the client sees a lost answer.
        rested = trio.current_time() - slot.waiting_since >= self.limits.rest_s
        return rested or self._held[slot.network] > self._held[network] + 1
