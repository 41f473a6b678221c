"""The status of the interfaces for encryptors: a part of that of a node (`qnode.operate.status.model`)."""

from msgspec import Struct


class SaeStatus(Struct, frozen=True, kw_only=True):
    """One encryptor (``kme_id``: its site; ``keys_per_minute``: its limit)."""

    sae_id: str
    peers: list[str] = []
    kme_id: str = ""
    keys_delivered_total: int = 0
    last_key_at: float | None = None
    requests_refused_total: int = 0
    keys_per_minute: int | None = None


class HttpStatus(Struct, frozen=True, kw_only=True):
    """Connections of one key delivery interface; the totals are since the daemon started.

    Connections are refused while all slots are in use, or after too many failed handshakes from their
    address. They are evicted to make room for a new one. ``requests_refused_total``: malformed HTTP requests.
    ``requests_unauthorised_total``: answered 401, to a certificate that names no SAE of this site, or to an
    SAE that was not named for a key.
    """

    connections_open: int = 0
    connections_total: int = 0
    connections_refused_total: int = 0
    connections_evicted_total: int = 0
    connections_failed_total: int = 0
    handshakes_failed_total: int = 0
    requests_total: int = 0
    requests_refused_total: int = 0
    requests_unauthorised_total: int = 0

    @property
    def turned_away(self) -> int:
        """The number of refusals of clients that are not an encryptor, or exceed a limit."""
        return (
            self.connections_refused_total
            + self.connections_evicted_total
            + self.handshakes_failed_total
            + self.requests_refused_total
            + self.requests_unauthorised_total
        )


class EtsiStatus(Struct, frozen=True, kw_only=True):
    """The key delivery interface. ``differences``: pairs of encryptors that one site alone has, in words.

    ``keys_unsent_total``: keys whose answer could not be sent because the client had disconnected, and which
    waited for a repeated request. ``keys_lost_total``: the keys among them that were not requested in time.
    ``away``: why it cannot listen on its address; None: it listens.
    """

    url: str = ""
    away: str | None = None
    saes: list[SaeStatus] = []
    http: HttpStatus = HttpStatus()
    differences: list[str] = []
    keys_unsent_total: int = 0
    keys_lost_total: int = 0


class SkipStatus(Struct, frozen=True, kw_only=True):
    """The interface for SKIP; its encryptors and their keys are those of `EtsiStatus`, and so is ``away``."""

    url: str = ""
    away: str | None = None
    http: HttpStatus = HttpStatus()


class StreamStatus(Struct, frozen=True, kw_only=True):
    """A key stream whose home is this site. ``waiting``: chunks that an end has not taken yet.

    ``ends``: whether each encryptor is `connected`, `absent` or `closed`. ``allocated_total``: chunks.
    """

    stream_id: str
    ends: dict[str, str]
    key_chunk_bytes: int
    allocated_total: int
    waiting: int


class Etsi004Status(Struct, frozen=True, kw_only=True):
    """The interface for key streams; its encryptors, their keys and ``away`` are those of `EtsiStatus`.

    ``chunks_left_total``: allocated chunks that the other end did not take before it closed, or in time.
    """

    address: str = ""
    away: str | None = None
    http: HttpStatus = HttpStatus()
    streams: list[StreamStatus] = []
    chunks_allocated_total: int = 0
    chunks_left_total: int = 0
