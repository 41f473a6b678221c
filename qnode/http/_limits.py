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
    connections: int = 256
    connections_per_client: int = 64
    """Of one network address."""


@dataclass
class Counters:
    """Running totals of one server since its start."""

    connections: int = 0
    connections_refused: int = 0
    connections_evicted: int = 0
    connections_failed: int = 0
    handshakes_failed: int = 0
    requests: int = 0
    requests_refused: int = 0
