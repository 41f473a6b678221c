"""InfluxDB over the HTTP API of its version 1, as it was seen to behave: what is final, what to try again."""

import math
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Self

import httpx
import msgspec
import trio

from qnode.errors import QnodeError

REQUEST_S: Final = 10.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 8.0
MOST_WORDS_BYTES: Final = 64 * 1024
MOST_ANSWER_BYTES: Final = 256 * 1024 * 1024  # of a question
Precision = Literal["ms", "ns"]
_TAG_ESCAPES: Final = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ "})


class DatabaseAway(QnodeError):
    """The database does not answer, or says that it cannot now; asking again later may help."""


class LineRefused(QnodeError):
    """The database will never take this line."""


def point(measurement: str, tags: Mapping[str, str], fields: Mapping[str, float], stamp: int) -> str:
    """Return a point as a line of line protocol.

    Fields are floats only, for a field keeps the type of its first value. Time stamp and tags name the point,
    so writing it twice is as writing it once. A value that is no number, and an empty tag, is left out.
    Measurement, names of tags and names of fields are plain words.
    """
    present = [f"{name}={float(value)!r}" for name, value in fields.items() if math.isfinite(value)]
    named = "".join(f",{key}={escaped(value)}" for key, value in sorted(tags.items()) if value)
    return f"{measurement}{named} {','.join(present)} {stamp}"


def escaped(tag: str) -> str:
    """Return the value of a tag as line protocol has it.

    Control characters and backslashes, which it cannot hold, are written as their code points.
    """
    told = "".join(one if one.isprintable() and one != "\\" else f"<U+{ord(one):04X}>" for one in tag)
    return told.translate(_TAG_ESCAPES)


class InfluxDb:
    """One database of a server that speaks the API of InfluxDB 1.x.

    ``precision``: of the time stamps in the lines. ``user`` with ``password``, or ``token``: who writes.
    ``tls``: for https; None trusts the system's authorities. ``patience_s``: how long each part of an answer
    may take; the whole may take three times as long.
    """

    def __init__(
        self,
        url: str,
        database: str,
        *,
        precision: Precision = "ms",
        user: str = "",
        password: str = "",
        token: str = "",
        tls: ssl.SSLContext | None = None,
        patience_s: float = REQUEST_S,
    ) -> None:
        self._database, self._precision = database, precision
        self._patience_s = 3 * patience_s
        context = tls if tls is not None or not url.startswith("https:") else ssl.create_default_context()
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=patience_s,
            trust_env=False,
            auth=(user, password) if user else None,
            headers={"Authorization": f"Token {token}"} if token else {},
            verify=context if context is not None else True,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _post(
        self, path: str, content: str | None = None, most_bytes: int = MOST_WORDS_BYTES, **parameters: str
    ) -> tuple[int, bytes]:
        """Return the status and the body of the answer, of ``most_bytes`` at most."""
        request = self._client.build_request("POST", path, params=parameters, content=content)
        request.stream = _Body(request.content)
        try:
            # The client's own limit is for each read: one that drips would never end.
            with trio.fail_after(self._patience_s):
                answer = await self._client.send(request, stream=True)
                try:
                    body = bytearray()
                    async for piece in answer.aiter_bytes():
                        body += piece
                        if len(body) > most_bytes:
                            raise DatabaseAway(f"an answer of more than {most_bytes} bytes")
                finally:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                        await answer.aclose()
                return answer.status_code, bytes(body)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise DatabaseAway(f"{type(error).__name__} {error}".strip()) from None
        except trio.TooSlowError:
            raise DatabaseAway(f"no answer within {self._patience_s:g} s") from None

    async def create(self) -> None:
        """Make sure that the database exists.

        Raises:
            DatabaseAway: the server does not answer as it should.
        """
        name = self._database.replace("\\", "\\\\").replace('"', '\\"')
        answer = await self._post("/query", q=f'CREATE DATABASE "{name}"')
        if answer[0] != 200:
            raise DatabaseAway(f"CREATE DATABASE: {_words(answer)}")

    async def write(self, lines: list[str]) -> None:
        """Write ``lines``; all are stored when this returns.

        Raises:
            LineRefused: at least one line is refused for good; others may have been stored.
            DatabaseAway: as in `create`.
        """
        answer = await self._post("/write", "\n".join(lines), db=self._database, precision=self._precision)
        if answer[0] in (400, 413):
            raise LineRefused(_words(answer))
        if answer[0] == 404:  # the server has lost its folder, or is new
            await self.create()
        if answer[0] != 204:
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

    async def write_until_taken(
        self, lines: list[str], tell_away: Callable[[str], None], longest_pause_s: float = LONGEST_PAUSE_S
    ) -> dict[int, str]:
        """Write until the database has taken or refused each line; returns like `write_each`.

        ``tell_away`` gets the words of each failed attempt; the pause between two doubles.
        """
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await self.write_each(lines)
            except DatabaseAway as error:
                tell_away(str(error))
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_pause_s)

    async def select(self, query: str) -> list[dict[str, Any]]:
        """Return the series that answer an InfluxQL query.

        Raises:
            DatabaseAway: as in `create`.
        """
        answer = await self._post(
            "/query", most_bytes=MOST_ANSWER_BYTES, db=self._database, epoch=self._precision, q=query
        )
        if answer[0] != 200:
            raise DatabaseAway(_words(answer))
        try:
            (result,) = msgspec.json.decode(answer[1])["results"]
            if "error" in result:
                raise DatabaseAway(str(result["error"]))
            series: list[dict[str, Any]] = result.get("series", [])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            raise DatabaseAway(f"an answer that is not InfluxDB's: {answer[1][:200]!r}") from None
        return series


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


def _words(answer: tuple[int, bytes]) -> str:
    status, body = answer
    return f"{status} {body.decode(errors='replace').strip()[:500]}"
