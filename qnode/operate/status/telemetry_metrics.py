"""The figures of the writer to InfluxDB for Prometheus."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from qnode.operate.status.model import TelemetryStatus


def telemetry_families(telemetry: TelemetryStatus | None) -> Iterator[Metric]:
    """Yield the families of the writer, if there is one."""
    if telemetry is None:
        return
    yield GaugeMetricFamily(
        "qkd_telemetry_away",
        "1 while the database of `[telemetry]` does not take samples.",
        value=float(telemetry.away is not None),
    )
    yield GaugeMetricFamily(
        "qkd_telemetry_waiting_samples",
        "Samples on disk that wait for the database.",
        value=telemetry.waiting,
    )
    yield CounterMetricFamily(
        "qkd_telemetry_stored_samples_total", "Samples that the database has taken.", telemetry.stored_total
    )
    yield CounterMetricFamily(
        "qkd_telemetry_lost_samples_total",
        "Samples that were not written, or lost because their spool was full.",
        telemetry.lost_total,
    )
    yield CounterMetricFamily(
        "qkd_telemetry_refused_lines_total",
        "Lines of samples that the database refused for good.",
        telemetry.refused_lines_total,
    )
    if telemetry.last_stored_at is not None:
        yield GaugeMetricFamily(
            "qkd_telemetry_last_stored_timestamp_seconds",
            "When the database last took a sample.",
            value=telemetry.last_stored_at,
        )
