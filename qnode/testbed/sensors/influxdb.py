"""What the sensor chain writes to InfluxDB, and reads back."""

from typing import Final

from msgspec import Struct

from qnode.influxdb import InfluxDb, point
from qnode.testbed.sensors.power_meter import NAMES
from qnode.testbed.sensors.record import Record

READINGS: Final = "power_meter"
GAPS: Final = "power_meter_gap"
# Of questions about a whole run: days of samples on a busy machine.
QUESTION_S: Final = 300.0


class Stored(Struct, frozen=True, kw_only=True):
    """What can be read back: readings, records of gaps, and missed polls by reason."""

    readings: int
    gaps: int
    missed: dict[str, int]


class Extent(Struct, frozen=True, kw_only=True):
    """The values of a quantity between two times; ``time_ms``: the middle, in Unix milliseconds."""

    time_ms: float
    least: float
    mean: float
    most: float


def line_of(record: Record, spool: str) -> str:
    """Return the line of ``record``: floats only, for a field's type is fixed by its first value.

    Time stamp and tags name the record, so writing it twice is as writing it once.
    """
    number = {"number": float(record.number)}
    if record.reason is not None:
        tags = {"spool": spool, "reason": record.reason}
        return point(GAPS, tags, number | {"polls": record.polls}, record.time_ms)
    values = dict(zip(NAMES, record.values, strict=True))
    return point(READINGS, {"spool": spool}, number | values, record.time_ms)


class SensorDatabase(InfluxDb):
    """The database of a sensor chain; stamps are in milliseconds."""

    async def stored(self, spool: str) -> Stored:
        """Return what of ``spool`` can be read back.

        Raises:
            DatabaseAway: the database does not answer as it should.
        """
        readings = await self.select(f"SELECT count(number) FROM {READINGS} WHERE spool='{spool}'")
        gaps = await self.select(
            f"SELECT count(number), sum(polls) FROM {GAPS} WHERE spool='{spool}' GROUP BY reason"
        )
        return Stored(
            readings=sum(int(row["values"][0][1]) for row in readings),
            gaps=sum(int(row["values"][0][1]) for row in gaps),
            missed={row["tags"]["reason"]: int(row["values"][0][2]) for row in gaps},
        )

    async def extents(self, spool: str, name: str, begin_ms: int, end_ms: int, bins: int) -> list[Extent]:
        """Return least, mean and most of the quantity ``name`` of ``spool`` in up to ``bins`` equal bins.

        ``begin_ms``, ``end_ms``: Unix milliseconds, the end excluded. The database computes them, so days of
        samples cost no memory here. Empty bins are left out.

        Raises:
            DatabaseAway: the database does not answer as it should.
        """
        width_ms = -(-(end_ms - begin_ms) // bins)
        series = await self.select(
            f"SELECT min({name}), mean({name}), max({name}) FROM {READINGS} WHERE spool='{spool}' "
            f"AND time >= {begin_ms}ms AND time < {end_ms}ms "
            f"GROUP BY time({width_ms}ms, {begin_ms % width_ms}ms) fill(none)"
        )
        return [
            Extent(time_ms=time_ms + width_ms / 2, least=least, mean=mean, most=most)
            for row in series
            for time_ms, least, mean, most in row["values"]
        ]
