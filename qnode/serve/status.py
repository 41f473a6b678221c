"""What a front end says of itself: its status, and figures for Prometheus. Nothing in it is secret."""

from collections.abc import Iterator

from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from qnode.operate.status.families import gauge, rendered
from qnode.operate.status.interfaces import EtsiStatus
from qnode.operate.status.validity_metrics import validity_families
from qnode.tls_validity import Validity


class FrontEndStatus(Struct, frozen=True, kw_only=True):
    """A front end at the time ``at`` (Unix time, as all times in it).

    ``because``: why it delivers nothing; empty if it delivers. ``node_is_away``: it delivers what was agreed
    until that is used up. ``keys_delivered_total`` of an SAE are those of this process.
    """

    version: str
    at: float
    name: str
    kme_id: str
    peer_kme_id: str
    since: float
    because: str
    node_is_away: bool
    etsi014: EtsiStatus
    certificates: list[Validity]

    @property
    def exit_code(self) -> int:
        """0: it delivers; 1: not, or only what is left."""
        return int(bool(self.because) or self.node_is_away or self.etsi014.away is not None)


def status_lines(status: FrontEndStatus) -> list[str]:
    """Return the status as lines for people."""
    word = "WAITING" if status.because else "SERVING"
    lines = [f"{status.name}   {word}   front end of {status.kme_id}   qnode {status.version}"]
    if status.because:
        lines.append(f"  because   {status.because}")
    elif status.node_is_away:
        lines.append("  node      away: keys agreed before are delivered until they are used up")
    lines.append(f"  listens   {status.etsi014.away or status.etsi014.url}")
    for sae in status.etsi014.saes:
        lines.append(
            f"  sae       {sae.sae_id}: {sae.keys_delivered_total} keys, "
            f"{sae.requests_refused_total} requests refused"
        )
    return lines


def render_front_end_metrics(status: FrontEndStatus) -> bytes:
    """Return the metrics in Prometheus' text format."""
    return rendered(_families(status))


def _families(status: FrontEndStatus) -> Iterator[Metric]:
    """Yield all families whose figures are known."""
    info = GaugeMetricFamily(
        "qkd_front_end_info",
        "Version, name and site of this front end; the value is always 1.",
        labels=["version", "name", "kme_id"],
    )
    info.add_metric([status.version, status.name, status.kme_id], 1)
    yield info
    for name, text, value in (
        ("qkd_front_end_serving", "1 while this front end can deliver.", not status.because),
        ("qkd_front_end_node_away", "1 while the node of the store is away.", status.node_is_away),
        ("qkd_front_end_connections", "Open connections.", status.etsi014.http.connections_open),
    ):
        yield gauge(name, text, value)
    delivered = CounterMetricFamily(
        "qkd_front_end_keys_delivered", "Keys that an SAE got here.", labels=["sae_id"]
    )
    refused = CounterMetricFamily(
        "qkd_front_end_requests_refused", "Requests of an SAE that were refused here.", labels=["sae_id"]
    )
    for sae in status.etsi014.saes:
        delivered.add_metric([sae.sae_id], sae.keys_delivered_total)
        refused.add_metric([sae.sae_id], sae.requests_refused_total)
    yield delivered
    yield refused
    yield from validity_families(status.certificates)
