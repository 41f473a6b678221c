"""The validity of certificates and CRLs for Prometheus."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from qnode.tls_validity import Validity


def validity_families(certificates: Iterable[Validity]) -> Iterator[Metric]:
    """Yield when each begins and expires."""
    labels = ["file", "subject"]
    begins = GaugeMetricFamily(
        "qkd_tls_valid_from_timestamp_seconds",
        "When a certificate or CRL in use became valid.",
        labels=labels,
    )
    expires = GaugeMetricFamily(
        "qkd_tls_expiry_timestamp_seconds", "When a certificate or CRL in use expires.", labels=labels
    )
    # Of two certificates with one name, as during the renewal of an authority, the later one counts.
    by_expiry = sorted(certificates, key=lambda one: one.expires_at)
    for names, one in {(one.file, one.subject): one for one in by_expiry}.items():
        begins.add_metric(names, one.begins_at)
        expires.add_metric(names, one.expires_at)
    yield from (begins, expires)
