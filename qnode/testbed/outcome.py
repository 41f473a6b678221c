"""What came out of a testbed: every figure of its page, and whether what was asked for was reached."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct

from qnode.testbed.measure import PathFigures
from qnode.testbed.relay import LineCounts

OutageOf = Literal["tunnel", "database", "collector"]


class KeyHour(Struct, frozen=True, kw_only=True):
    """A block of the key side, or an hour of them: its middle in hours of simulated time, and its length.

    ``qber_z``: None if no block came as far as that.
    """

    hour: float
    span_s: float
    secret_bits_per_s: float
    qber_z: float | None


class KeySide(Struct, frozen=True, kw_only=True):
    """The link over the hours asked for. ``keys``: compared from both ends, ``different`` among them."""

    hours_wanted: float
    hours: float
    wall_s: float
    secret_bits_per_s: float
    qber_z: float | None
    keys: int
    different: int
    accepted: int
    discarded: dict[str, int]
    blocks: list[KeyHour]


class CurrentBin(Struct, frozen=True, kw_only=True):
    """Samples of the current as the database has them: between two times, in minutes since the start."""

    minute: float
    least_a: float
    mean_a: float
    most_a: float


class SensorSide(Struct, frozen=True, kw_only=True):
    """Samples from meter to database. ``due``: polls in this time; ``lost``: read, but not in the database.

    ``missed``: polls without a reading, by reason. ``set_aside``: refused by the database for ever.
    """

    due: int
    read: int
    stored: int
    lost: int
    missed: dict[str, int]
    set_aside: int
    currents: list[CurrentBin]


class TunnelSide(Struct, frozen=True, kw_only=True):
    """The tunnel. ``differ_longest_s``: longest time in which the ends may have used different keys.

    ``direct``, ``through``: the same path without the tunnel and through it. ``pings_lost``: of a ping ten
    times a second through the tunnel, outside the outages of the line; ``pings_lost_in_cut``: in them, and
    until all was as before.
    """

    kind: str
    period_s: float
    changes: int
    failed_changes: int
    keys_used: int
    differ_longest_s: float | None
    direct: PathFigures
    through: PathFigures
    pings_sent: int
    pings_lost: int
    pings_lost_in_cut: int


class Outage(Struct, frozen=True, kw_only=True):
    """An outage: minutes since the start, seconds, and how long after its end all was as before.

    ``recovered_s`` is None if that was not seen. ``waiting``: most samples that waited at the plant.
    """

    what: OutageOf
    minute: float
    lasted_s: float
    recovered_s: float | None
    waiting: int


class Outcome(Struct, frozen=True, kw_only=True):
    """The figures of one testbed; times of day are Unix time."""

    command: str
    versions: dict[str, str]
    began_at_s: float
    minutes: float
    line: LineCounts
    tunnel: TunnelSide
    sensors: SensorSide
    outages: list[Outage]
    keys: KeySide | None = None

    @property
    def faults(self) -> list[str]:
        """What was asked for and not reached, a sentence each; empty if all was."""
        return [*self._key_faults(), *self._sensor_faults(), *self._tunnel_faults(), *self._outage_faults()]

    def _key_faults(self) -> Iterator[str]:
        if self.keys is None:
            return
        if self.keys.hours < self.keys.hours_wanted:
            yield f"The key side reached {self.keys.hours:.1f} of {self.keys.hours_wanted:g} hours."
        if self.keys.different or not self.keys.keys:
            yield f"{self.keys.different} of {self.keys.keys} keys were different at the two ends."

    def _sensor_faults(self) -> Iterator[str]:
        sensors = self.sensors
        if not sensors.read:
            yield "No sample was read."
        if sensors.lost:
            yield f"{sensors.lost} of {sensors.read} samples are not in the database."
        # Samples from before and after the time asked for do not make up for a missed one in it.
        missed = max(sum(sensors.missed.values()), sensors.due - sensors.read)
        if missed > 0:
            yield f"{missed} of {sensors.due} polls gave no sample."

    def _tunnel_faults(self) -> Iterator[str]:
        tunnel = self.tunnel
        for path, words in ((tunnel.direct, "without"), (tunnel.through, "through")):
            if path.throughput_bits_per_s is None:
                yield f"iperf3 gave no throughput {words} the tunnel."
        cut_s = math.fsum(one.lasted_s for one in self.outages if one.what == "tunnel")
        # The first change brings the tunnel up; an outage of the line may cost one change on each side of it.
        expected = int((60.0 * self.minutes - cut_s) / tunnel.period_s) - (2 if cut_s else 1)
        expected = max(expected, int(60.0 * self.minutes >= 2.0 * tunnel.period_s))
        if tunnel.changes < expected:
            yield f"The key was changed {tunnel.changes} times, expected at least {expected}."
        if tunnel.pings_lost:
            yield f"{tunnel.pings_lost} of {tunnel.pings_sent} pings through the tunnel were lost."

    def _outage_faults(self) -> Iterator[str]:
        for outage in self.outages:
            if outage.recovered_s is None:
                yield f"After the outage of the {outage.what} not all came back."


def key_hours(blocks: Sequence[tuple[float | None, int, float | None]], end_s: float) -> list[KeyHour]:
    """Return the points of blocks, oldest first, of which the last ends at ``end_s``.

    Each block is (span in s, secret bits, error rate).
    """
    points = []
    for span_s, secret_bits, qber_z in reversed(blocks):
        if span_s:
            hour = (end_s - span_s / 2.0) / 3600.0
            points.append(
                KeyHour(hour=hour, span_s=span_s, secret_bits_per_s=secret_bits / span_s, qber_z=qber_z)
            )
            end_s -= span_s
    return points[::-1]


def hourly(blocks: Sequence[KeyHour]) -> list[KeyHour]:
    """Return the means over time of each full or begun hour, at its middle."""
    by_hour: dict[int, list[KeyHour]] = {}
    for block in blocks:
        by_hour.setdefault(int(block.hour), []).append(block)
    means = []
    for hour, inside in sorted(by_hour.items()):
        span_s = math.fsum(one.span_s for one in inside)
        bits = math.fsum(one.secret_bits_per_s * one.span_s for one in inside)
        rates = [(one.qber_z * one.span_s, one.span_s) for one in inside if one.qber_z is not None]
        errors, of_s = (math.fsum(column) for column in zip(*rates, strict=True)) if rates else (0.0, 0.0)
        means.append(
            KeyHour(
                hour=hour + 0.5,
                span_s=span_s,
                secret_bits_per_s=bits / span_s,
                qber_z=errors / of_s if of_s else None,
            )
        )
    return means
