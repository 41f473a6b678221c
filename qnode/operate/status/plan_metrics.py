"""What a link gives, beside what `qnode plan` says that it should give, for Prometheus."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from qnode.operate.status.model import NodeStatus

BITS_PER_BYTE = 8


def plan_families(status: NodeStatus) -> Iterator[Metric]:
    """Yield the families of a link whose figures are known."""
    rate, planned = status.block.secret_bits_per_s, status.expected.secret_bits_per_s
    for name, text, value in (
        (
            "qkd_secret_bytes_per_second",
            "Secret key of the last hour's blocks per second of tag time.",
            None if rate is None else rate / BITS_PER_BYTE,
        ),
        (
            "qkd_planned_secret_bytes_per_second",
            "Secret key per second that `qnode plan` expects of this link.",
            None if planned is None else planned / BITS_PER_BYTE,
        ),
        ("qkd_loss_decibels", "Loss between the sites, by the clicks of the Z arm.", status.quantum.loss_db),
        (
            "qkd_planned_loss_decibels",
            "Loss that the file of this site states for the plan.",
            status.expected.loss_db,
        ),
        (
            "qkd_keys_last_seconds",
            "How long the keys that are ready last at the use of the last hour.",
            status.keys.lasts_s,
        ),
    ):
        if value is not None:
            yield GaugeMetricFamily(name, text, value=value)
