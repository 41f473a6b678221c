"""Connections at a peer's port that have not proven to be the peer: few, and each soon replaced.

Strangers can connect to the port. The number of unproven connections is limited. If all slots are in use, a
new connection replaces another one: first one that does not come from the peer's addresses, of these one that
has sent nothing yet, of these one in the network with the most connections, and of these the one that has
waited longest. Failed handshakes cost processor time. Each network has a budget for them, beyond which it
waits. All networks except the peer's also have a budget for connections.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

import trio

from qnode.errors import LinkError
from qnode.strangers import Budget, network_of

PLACES = 32
CONNECTIONS_HZ = 300.0
CONNECTIONS_AT_ONCE = 1000
FAILED_HANDSHAKES_HZ = 20.0
FAILED_HANDSHAKES_AT_ONCE = 100
# A waiting connection uses a slot. One network may have fewer waiting connections than there are slots;
# otherwise the peer, behind the address of a flood, would lose its slot before its turn each time.
LONGEST_TURN_S = 1.0


@dataclass(eq=False)
class Place:
    """One unproven connection: its origin, and whether it has sent anything."""

    network: str
    preferred: bool
    opened_s: float
    spoken: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Unproven:
    """The slots for unproven connections; ``connects_from``: addresses or networks of the peer."""

    def __init__(self, connects_from: tuple[str, ...] = ()) -> None:
        self._peer_networks = [ip_network(one, strict=False) for one in connects_from]
        self._last_proven: str | None = None
        self._places: set[Place] = set()
        self._connections = Budget(rate_hz=CONNECTIONS_HZ, burst=CONNECTIONS_AT_ONCE)
        self._handshakes = Budget(rate_hz=FAILED_HANDSHAKES_HZ, burst=FAILED_HANDSHAKES_AT_ONCE)

    def __len__(self) -> int:
        return len(self._places)

    def admits(self, address: str) -> bool:
        """Return whether another connection from ``address`` is admitted; otherwise it is closed at once."""
        if self._is_the_peers(address):
            return True
        return self._connections.spend(network_of(address), trio.current_time()) is not None

    @contextmanager
    def place(self, address: str, evicted: Callable[[], None]) -> Iterator[Place]:
        """Hold a slot during the block; if another connection takes it, the block is cancelled.

        ``evicted`` is called then.
        """
        network = network_of(address)
        if len(self._places) >= PLACES:
            self._evict()
        place = Place(network, self._is_the_peers(address), trio.current_time())
        self._places.add(place)
        with place.scope:
            try:
                yield place
            finally:
                self._places.discard(place)
        if place.scope.cancelled_caught:
            evicted()

    async def wait_for_turn(self, stream: trio.abc.Stream, place: Place) -> None:
        """Wait until the far end has sent something and its network is allowed a handshake.

        Raises:
            LinkError: its network has had too many failed handshakes.
        """
        if isinstance(stream, trio.SocketStream):
            await trio.lowlevel.wait_readable(stream.socket)
        place.spoken = True
        wait_s = self._handshakes.spend(place.network, trio.current_time(), longest_wait_s=LONGEST_TURN_S)
        if wait_s is None:
            raise LinkError("too many handshakes from there came to nothing")
        await trio.sleep(wait_s)

    def proven(self, address: str) -> None:
        """Note that the peer came from ``address``: give priority to it, and charge nothing."""
        self._last_proven = network_of(address)
        self._handshakes.give_back(self._last_proven)

    def _is_the_peers(self, address: str) -> bool:
        if network_of(address) == self._last_proven:
            return True
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        return any(parsed in network for network in self._peer_networks)

    def _evict(self) -> None:
        of_network = Counter(place.network for place in self._places)
        victim = min(
            self._places,
            key=lambda place: (place.preferred, place.spoken, -of_network[place.network], place.opened_s),
        )
        self._places.discard(victim)
        victim.scope.cancel()


def address_of(stream: trio.abc.Stream) -> str:
    """Return the far end's address, or '' for a stream without one."""
    if not isinstance(stream, trio.SocketStream):
        return ""
    try:
        name = stream.socket.getpeername()
    except OSError:
        return ""
    return str(name[0]) if isinstance(name, tuple) else ""
