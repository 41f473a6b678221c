"""A client of one HTTPS server over one connection, which is opened on demand and kept open."""

import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11
import trio

PATIENCE_S = 10.0
_READ_BYTES = 1 << 16


class NoResponse(Exception):
    """The server was not reachable, disconnected, or did not answer in time."""


@dataclass(frozen=True)
class HttpResponse:
    """Status and complete body of an answer; the body may have keys."""

    status: int
    body: bytes = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether the request succeeded."""
        return self.status == 200


class HttpsClient:
    """One connection to ``url`` (scheme, host, port). Calls are serialised; it reopens if broken."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._authority = parts.netloc
        self._context = context
        self._turn = trio.Lock()
        self._stream: trio.SSLStream[trio.SocketStream] | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def call(self, method: str, path: str, body: bytes = b"") -> HttpResponse:
        """Return the server's answer.

        Raises:
            NoResponse: there is none; whether the server acted on the request is unknown.
        """
        async with self._turn:
            try:
                with trio.fail_after(PATIENCE_S):
                    return await self._exchange(method, path, body)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError, h11.RemoteProtocolError) as error:
                await self.aclose()
                raise NoResponse(f"{method} {path}: {error}") from None
            except trio.Cancelled:
                await self.aclose()  # an incomplete exchange would disturb the next one
                raise

    async def aclose(self) -> None:
        """Close at once; the next call connects again."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            with trio.CancelScope(shield=True):  # so that a cancelled caller closes everything
                await trio.aclose_forcefully(stream)

    async def _exchange(self, method: str, path: str, body: bytes) -> HttpResponse:
        stream = await self._connected()
        headers = [("host", self._authority), ("content-length", str(len(body)))]
        if body:
            headers.append(("content-type", "application/json"))
        request = h11.Request(method=method, target=path, headers=headers)
        events = (request, h11.Data(data=body), h11.EndOfMessage())
        await stream.send_all(b"".join(self._http.send(event) or b"" for event in events))
        status, parts = 0, []
        while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                self._http.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                parts.append(event.data)
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("closed by the server")
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            await self.aclose()
        return HttpResponse(status, b"".join(parts))

    async def _connected(self) -> trio.SSLStream[trio.SocketStream]:
        if self._stream is None:
            self._stream = await trio.open_ssl_over_tcp_stream(
                self._host, self._port, https_compatible=True, ssl_context=self._context
            )
            self._http = h11.Connection(h11.CLIENT)
        return self._stream
