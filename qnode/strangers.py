"""Limits for clients that have not proven themselves: budgets by network, and lines of the log."""

from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

import structlog

_IPV6_NETWORK_BITS = 64


@lru_cache(maxsize=1024)
def network_of(host: str) -> str:
    """Return the key of a budget for ``host``: an IPv4 address, the /64 of an IPv6 address, else the text.

    One IPv6 customer has 2^64 addresses, so a single address identifies nobody.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((address, _IPV6_NETWORK_BITS), strict=False))


class Budget:
    """Each key may spend ``burst`` at once (which may be changed), and then ``rate_hz`` per second.

    The latest ``most_keys`` keys are remembered; a forgotten one starts again.
    """

    def __init__(self, *, rate_hz: float, burst: int, most_keys: int = 4096) -> None:
        self._period_s = 1.0 / rate_hz
        self.burst = burst
        self._most_keys = most_keys
        self._paid_until_s: OrderedDict[str, float] = OrderedDict()

    def spend(self, key: str, now_s: float, *, longest_wait_s: float = 0.0) -> float | None:
        """Spend one and return the wait for it in seconds; None, without spending, if it is too long."""
        paid_s = max(now_s, self._paid_until_s.get(key, now_s)) + self._period_s
        wait_s = max(0.0, paid_s - now_s - self.burst * self._period_s)
        if wait_s > longest_wait_s:
            return None
        self._paid_until_s[key] = paid_s
        self._paid_until_s.move_to_end(key)
        if len(self._paid_until_s) > self._most_keys:
            self._paid_until_s.popitem(last=False)
        return wait_s

    def give_back(self, key: str) -> None:
        """Undo one `spend`."""
        if key in self._paid_until_s:
            self._paid_until_s[key] -= self._period_s


class StrangersLog:
    """Logs events that strangers can cause: limited lines per network and in total, the rest is counted.

    The next written line states the number of omitted ones since the last line (``not_logged``).
    """

    def __init__(self, *, rate_hz: float = 1.0, burst: int = 20) -> None:
        self._of_network = Budget(rate_hz=rate_hz / 4, burst=max(1, burst // 4))
        self._of_all = Budget(rate_hz=rate_hz, burst=burst)
        self._left_out: dict[str, int] = {}

    def write(self, level: str, event: str, network: str, now_s: float, /, **fields: Any) -> None:
        """Write an event that ``network`` caused, if budgets allow; ``now_s`` is of any clock."""
        if (
            self._of_network.spend(f"{event} {network}", now_s) is None
            or self._of_all.spend(event, now_s) is None
        ):
            self._left_out[event] = self._left_out.get(event, 0) + 1
            return
        if left_out := self._left_out.pop(event, 0):
            fields["not_logged"] = left_out
        getattr(structlog.get_logger(), level)(event, **fields)
