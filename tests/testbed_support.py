"""A recorded outcome of a testbed, as its page needs it."""

import math
from typing import Any

from qnode.testbed.measure import PathFigures
from qnode.testbed.outcome import (
    CurrentBin,
    KeySide,
    Outage,
    Outcome,
    SensorSide,
    TunnelSide,
    key_hours,
)
from qnode.testbed.relay import LineCounts

CURRENTS = [
    CurrentBin(minute=(n + 0.5) / 5, least_a=mean - 1.0, mean_a=mean, most_a=mean + 1.0)
    for n, mean in enumerate(12.0 + math.sin(n / 10) for n in range(300))
]


def outcome(**changes: Any) -> Outcome:
    """Return an outcome of an hour in which all was reached, with ``changes``."""
    blocks = [(132.0, 171_600, 0.015), (132.0, 0, None), (132.0, 170_000, 0.0151)] * 600
    figures: dict[str, Any] = {
        "command": "qnode testbed --minutes 60 --outages --hours 66 --speed max",
        "versions": {"qnode": "0.2.0", "InfluxDB": "1.6.7 <debian>"},
        "began_at_s": 1_796_052_000.0,
        "minutes": 60.0,
        "line": LineCounts(received=400_000, passed=399_000, passed_bytes=10**8, lost_in_cut=1000),
        "tunnel": tunnel(),
        "sensors": sensors(),
        "outages": [
            Outage(what="tunnel", minute=12.0, lasted_s=60.0, recovered_s=1.5, waiting=610),
            Outage(what="database", minute=33.0, lasted_s=60.0, recovered_s=3.0, waiting=612),
            Outage(what="collector", minute=45.0, lasted_s=60.0, recovered_s=2.0, waiting=615),
        ],
        "keys": keys(blocks=key_hours(blocks, 66 * 3600.0)),
    }
    return Outcome(**{**figures, **changes})


def keys(**changes: Any) -> KeySide:
    """Return a key side of 66 hours, with ``changes``."""
    figures: dict[str, Any] = {
        "hours_wanted": 66.0,
        "hours": 66.0,
        "wall_s": 250.0,
        "secret_bits_per_s": 1300.0,
        "qber_z": 0.015,
        "keys": 1_200_000,
        "different": 0,
        "accepted": 1200,
        "discarded": {"short": 600},
        "blocks": [],
    }
    return KeySide(**{**figures, **changes})


def sensors(**changes: Any) -> SensorSide:
    """Return an hour of samples, with ``changes``."""
    figures: dict[str, Any] = {
        "due": 36_000,
        "read": 36_004,
        "stored": 36_004,
        "lost": 0,
        "missed": {},
        "set_aside": 0,
        "currents": CURRENTS,
    }
    return SensorSide(**{**figures, **changes})


def tunnel(**changes: Any) -> TunnelSide:
    """Return an hour of a tunnel, with ``changes``."""
    path = PathFigures(
        rtt_median_ms=0.31, rtt_p99_ms=1.2, pings_sent=300, pings_lost=0, throughput_bits_per_s=6.3e8
    )
    figures: dict[str, Any] = {
        "kind": "WireGuard",
        "period_s": 30.0,
        "changes": 118,
        "failed_changes": 0,
        "keys_used": 118,
        "differ_longest_s": 0.05,
        "direct": path,
        "through": path,
        "pings_sent": 36_000,
        "pings_lost": 0,
        "pings_lost_in_cut": 600,
    }
    return TunnelSide(**{**figures, **changes})
