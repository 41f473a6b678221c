"""What one client may cost, and what the server counts."""

from dataclasses import dataclass

from msgspec import Struct


class Limits(Struct, frozen=True, kw_only=True):
    """Deadlines of each wait for a client, sizes, and numbers of connections."""

    handshake_s: float = 5.0
    """TLS handshake, both directions."""
    head_s: float = 10.0
    """From the first byte of a request to the end of its head."""
    body_s: float = 10.0
    """From the end of the head to the end of the body."""
    idle_s: float = 30.0
    """Between two requests, and before the first."""
    send_s: float = 10.0
    """One write that the client does not read."""
    linger_s: float = 1.0
    """Reading on after a refusal, so that the client sees the answer instead of a reset."""
    age_s: float = 3600.0
    """Then a connection closes behind its next answer, for certificates are judged at handshakes only."""
    head_bytes: int = 16 * 1024
    body_bytes: int = 64 * 1024
    connections: int = 512
    connections_per_client: int = 256
    """Of one IPv4 address, or one /64 of IPv6."""
    surplus_connections: int = 32
    """Beyond these limits, to answer 503."""
    rest_s: float = 5.0
    """A connection that asked less than so long ago gives way to no other of its client."""
    failed_handshakes_hz: float = 50.0
    """Of one client, for ever, beside ``failed_handshakes_at_once``; those that succeed do not count."""
    failed_handshakes_at_once: int = 256
    unknown_handshakes_hz: float = 200.0
    """Of all clients of which none has proven itself yet, likewise, beside ``unknown_handshakes_at_once``."""
    unknown_handshakes_at_once: int = 512
    handshake_wait_s: float = 2.0
    """Beyond that budget a handshake waits so long at most; if it had to wait longer it is refused."""


@dataclass
class Counters:
    """Running totals of one server since its start."""

    connections: int = 0
    connections_refused: int = 0
    """Without a place: answered 503, or closed at once; or after too many handshakes: closed at once."""
    connections_evicted: int = 0
    connections_failed: int = 0
    handshakes_failed: int = 0
    requests: int = 0
    requests_refused: int = 0
