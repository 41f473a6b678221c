"""InfluxDB 1.x over its HTTP API, as it was seen to behave: what is final, what to retry, what is stored."""

import math
from typing import Any, Final, Self

import httpx
import msgspec
from msgspec import Struct

from qnode.errors import QnodeError
from qnode.testbed.sensors.power_meter import NAMES
from qnode.testbed.sensors.record import Record

READINGS: Final = "power_meter"
GAPS: Final = "power_meter_gap"
REQUEST_S: Final = 10.0
# Of questions about a whole run: days of samples on a busy machine.
QUESTION_S: Final = 300.0


class DatabaseAway(QnodeError):
    """The database does not answer, or says that it cannot now; asking again later may help."""


class LineRefused(QnodeError):
    """The database will never take this line."""


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
    if record.reason is not None:
        fields = f"number={record.number}.0,polls={record.polls}.0"
        return f"{GAPS},spool={spool},reason={record.reason} {fields} {record.time_ms}"
    present = [
        f"{name}={value!r}" for name, value in zip(NAMES, record.values, strict=True) if math.isfinite(value)
    ]
    return f"{READINGS},spool={spool} {','.join((f'number={record.number}.0', *present))} {record.time_ms}"


class InfluxDb:
    """One database of an InfluxDB 1.x server; ``patience_s``: how long an answer may take."""

    def __init__(self, url: str, database: str, patience_s: float = REQUEST_S) -> None:
        self._database = database
        self._client = httpx.AsyncClient(base_url=url, timeout=patience_s, trust_env=False)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _post(self, path: str, content: str | None = None, **parameters: str) -> httpx.Response:
        request = self._client.build_request("POST", path, params=parameters, content=content)
        request.stream = _Body(request.content)
        try:
            return await self._client.send(request)
        except httpx.HTTPError as error:
            raise DatabaseAway(f"{type(error).__name__} {error}".strip()) from None

    async def create(self) -> None:
        """Make sure that the database exists.

        Raises:
            DatabaseAway: the server does not answer as it should.
        """
        answer = await self._post("/query", q=f'CREATE DATABASE "{self._database}"')
        if answer.status_code != 200:
            raise DatabaseAway(f"CREATE DATABASE: {_words(answer)}")

    async def write(self, lines: list[str]) -> None:
        """Write ``lines``; all are stored when this returns.

        Raises:
            LineRefused: at least one line is refused for good; others may have been stored.
            DatabaseAway: as in `create`.
        """
        answer = await self._post("/write", "\n".join(lines), db=self._database, precision="ms")
        if answer.status_code in (400, 413):
            raise LineRefused(_words(answer))
        if answer.status_code == 404:  # the server has lost its folder, or is new
            await self.create()
        if answer.status_code != 204:
            raise DatabaseAway(_words(answer))

    async def write_each(self, lines: list[str]) -> dict[int, str]:
        """Write ``lines``, and return the places of those refused for good with the server's words.

        Raises:
            DatabaseAway: as in `create`.
        """
        try:
            await self.write(lines)
        except LineRefused as refused:
            if len(lines) == 1:
                return {0: str(refused)}
            half = len(lines) // 2
            second = await self.write_each(lines[half:])
            return await self.write_each(lines[:half]) | {half + n: words for n, words in second.items()}
        return {}

    async def _select(self, query: str) -> list[dict[str, Any]]:
        answer = await self._post("/query", db=self._database, epoch="ms", q=query)
        if answer.status_code != 200:
            raise DatabaseAway(_words(answer))
        try:
            (result,) = msgspec.json.decode(answer.content)["results"]
            if "error" in result:
                raise DatabaseAway(str(result["error"]))
            series: list[dict[str, Any]] = result.get("series", [])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            raise DatabaseAway(f"an answer that is not InfluxDB's: {answer.text[:200]!r}") from None
        return series

    async def stored(self, spool: str) -> Stored:
        """Return what of ``spool`` can be read back.

        Raises:
            DatabaseAway: as in `create`.
        """
        readings = await self._select(f"SELECT count(number) FROM {READINGS} WHERE spool='{spool}'")
        gaps = await self._select(
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
            DatabaseAway: as in `create`.
        """
        width_ms = -(-(end_ms - begin_ms) // bins)
        series = await self._select(
            f"SELECT min({name}), mean({name}), max({name}) FROM {READINGS} WHERE spool='{spool}' "
            f"AND time >= {begin_ms}ms AND time < {end_ms}ms "
            f"GROUP BY time({width_ms}ms, {begin_ms % width_ms}ms) fill(none)"
        )
        return [
            Extent(time_ms=time_ms + width_ms / 2, least=least, mean=mean, most=most)
            for row in series
            for time_ms, least, mean, most in row["values"]
        ]


class _Body(httpx.AsyncByteStream):
    """The body of a request in one piece, as often as it is sent.

    The library's own is an async generator, which is left open if the server goes before it has the body.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> "_Once":
        return _Once([self._content])


class _Once:
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


def _words(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.text.strip()[:500]}"
