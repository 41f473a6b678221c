"""A sample: all figures of a node at one time, as lines of InfluxDB's line protocol, kept in the spool.

The figures and their names are those of the metrics for Prometheus, without their prefix; labels are tags. So
each set of labels is one point of the measurement `qkd`.
"""

from typing import Final

from qnode.influxdb import point
from qnode.operate.status.metrics import metric_families
from qnode.operate.status.model import NodeStatus
from qnode.spool import Entry

MEASUREMENT: Final = "qkd"
SPOOL_MEASUREMENT: Final = "qkd_telemetry"
_PREFIX: Final = "qkd_"


def sample_of(status: NodeStatus, at_ns: int) -> bytes:
    """Return the sample of ``status`` with the Unix time ``at_ns`` in nanoseconds in its first line."""
    points: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for family in metric_families(status):
        for one in family.samples:
            tags = tuple(sorted({"kme_id": status.site.kme_id, **one.labels}.items()))
            points.setdefault(tags, {})[one.name.removeprefix(_PREFIX)] = one.value
    lines = [point(MEASUREMENT, dict(tags), fields, at_ns) for tags, fields in points.items()]
    return "\n".join([f"{at_ns} {status.site.kme_id}", *lines]).encode()


def lines_of(entry: Entry, spool: str, before: int) -> list[str]:
    """Return the lines of a sample in the spool, first that of the sample itself.

    ``spool``: the random name of the spool. ``before``: the number of the sample before this one; numbers
    between them are samples that were lost, which the field ``lost`` of the first line counts.

    Raises:
        ValueError: the entry is no sample.
    """
    head, _, rest = entry.content.decode().partition("\n")
    stamp, _, kme_id = head.partition(" ")
    fields = {"number": entry.number, "lost": entry.number - before - 1}
    own = point(SPOOL_MEASUREMENT, {"kme_id": kme_id, "spool": spool}, fields, int(stamp))
    return [own, *rest.splitlines()]
