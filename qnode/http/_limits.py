"""Limits per client and per server, and the counters of the server."""

from dataclasses import dataclass

from msgspec import Struct


class Limits(Struct, frozen=True, kw_only=True):
    """Deadlines for each wait for a client, sizes, and numbers of connections."""

    handshake_s: float = 5.0
    """For the TLS handshake, both directions."""
    head_s: float = 10.0
    """From the first byte of a request to the end of its head."""
    body_s: float = 10.0
    """From the end of the head to the end of the body."""
    idle_s: float = 30.0
    """Between two requests, and before the first."""
    send_s: float = 10.0
    """For one write that the client does not read."""
    linger_s: float = 1.0
    """For reading on after a refusal, so that the client sees the answer instead of a reset."""
    age_s: float = 3600.0
    """After this time a connection closes with its next answer: only handshakes check certificates."""
    head_bytes: int = 16 * 1024
    body_bytes: int = 64 * 1024
    connections: int = 512
    connections_per_client: int = 256
    """From one IPv4 address, or one /64 of IPv6."""
    surplus_connections: int = 32
    """Beyond these limits, for an answer 503."""
    rest_s: float = 5.0
    """A connection with a more recent request is not closed for another one of its client."""
    failed_handshakes_hz: float = 50.0
    """Of one client, in addition to ``failed_handshakes_at_once``; successful handshakes do not count."""
    failed_handshakes_at_once: int = 256
    unknown_handshakes_hz: float = 200.0
    """Of all unproven clients together, in addition to ``unknown_handshakes_at_once``."""
    unknown_handshakes_at_once: int = 512
    handshake_wait_s: float = 2.0
    """Beyond the budget a handshake waits at most this long; if it had to wait longer, it is refused."""


@dataclass
class Counters:
    """Running totals of one server since its start."""

    connections: int = 0
    connections_refused: int = 0
    """Without a slot: answered 503, or closed at once. After too many handshakes: closed at once."""
    connections_evicted: int = 0
    connections_failed: int = 0
    handshakes_failed: int = 0
    requests: int = 0
    requests_refused: int = 0
