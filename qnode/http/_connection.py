"""One connection: reads requests within limits, passes them to the application, writes the answers."""

import contextlib
import time
from email.utils import formatdate
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import h11
import msgspec
import trio

from qnode.asgi import Application, Message
from qnode.http._conversation import Client, ClientGone
from qnode.http._linger import linger
from qnode.streams import LeanStream

_READ_BYTES = 16 * 1024
_RETRY_AFTER_S = 2


# Larger answers are encrypted in slices.
_AT_ONCE_BYTES = 64 * 1024


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    """Return the value of a Date field, made once a second."""
    return formatdate(second, usegmt=True).encode()


@lru_cache(maxsize=64)
def _response(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> h11.Response:
    """Return the head of a response; most differ from the one before by nothing."""
    return h11.Response(status_code=status, headers=list(headers))


class _Refused(Exception):
    """A request is refused: the server answers with this status and closes."""

    def __init__(self, status: int, reason: str, retry_after_s: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class Connection:
    """HTTP/1.1 with one client over an open stream."""

    def __init__(self, app: Application, client: Client) -> None:
        self._app = app
        self._stream = client.stream
        self._lean: LeanStream | None = None
        if isinstance(client.stream, LeanStream) and client.stream.can_send_at_once:
            self._lean = client.stream
        self.wire = client.wire
        self._limits = client.limits
        self._counters = client.counters
        self._slot = client.slot
        self._base_scope = client.scope
        self._strangers = client.strangers
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=client.limits.head_bytes)
        self._head_only = False
        self.lost: str | None = None

    async def run(self) -> None:
        """Answer requests until one end closes the connection.

        Raises:
            ClientGone: the client disconnected during a request.
            Exception: the application raised it.
        """
        while True:
            try:
                request = await self._read_head()
                if request is None:
                    return
                body = await self._read_body(request)
                if self._slot.surplus:
                    raise _Refused(503, "too many connections", _RETRY_AFTER_S)
            except _Refused as refused:
                self._counters.requests_refused += 1
                self._log_refused(refused)
                await self._refuse(refused.status, refused.reason, refused.retry_after_s)
                return
            self._slot.work()
            self._slot.used = True
            self._counters.requests += 1
            exchange = _Exchange(self, body, bodiless=self._head_only)
            scope = self._scope(request)
            scope["extensions"] = {**scope["extensions"], "qnode.exchange": exchange}
            await self._app(scope, exchange.receive, exchange.send)
            exchange.check_complete()
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            if self._slot.last_request:
                return
            self._http.start_next_cycle()
            self._slot.wait()

    @property
    def last_request(self) -> bool:
        """Whether the connection ends with the present answer."""
        return self._slot.last_request

    async def apologise(self) -> None:
        """Answer 500 without details, if no answer has begun yet."""
        if self._http.our_state is h11.SEND_RESPONSE:
            await self._refuse(500, "internal error")

    async def transmit(self, *events: h11.Event) -> None:
        """Send ``events`` in one write, within the deadline for writes.

        Raises:
            ClientGone: the client does not read.
        """
        data = b"".join([self._http.send(event) or b"" for event in events])
        try:
            if self._lean is not None and len(data) <= _AT_ONCE_BYTES:
                if self._lean.send_at_once(data):
                    return
                data = b""  # the stream has the rest
            with trio.move_on_after(self._limits.send_s) as deadline:
                await self._stream.send_all(data)
        except trio.BrokenResourceError:
            raise self._lose("connection lost") from None
        if deadline.cancelled_caught:
            raise self._lose("client does not read")

    async def read(self, most: int = _READ_BYTES) -> bool:
        """Pass the next bytes of the client to the parser; False at the end of the stream.

        Raises:
            ClientGone: the connection broke.
        """
        try:
            data = bytes(await self._stream.receive_some(most))
        except trio.BrokenResourceError:
            raise self._lose("connection lost") from None
        self._http.receive_data(data)
        return bool(data)

    def _log_refused(self, refused: _Refused) -> None:
        self._strangers.write(
            "info",
            "http.request_refused",
            self._slot.network,
            trio.current_time(),
            client=self._base_scope["client"][0],
            status=refused.status,
            reason=refused.reason,
        )

    def _lose(self, why: str) -> ClientGone:
        # Kept as well as raised: frameworks convert this OSError into errors of their own.
        self.lost = why
        return ClientGone(why)

    def response(self, status: int, headers: list[tuple[bytes, bytes]]) -> h11.Response:
        """Return the head of a response, with the headers common to all answers of this server."""
        own = [(b"date", _date(int(time.time())))]
        if self._slot.last_request or trio.current_time() - self._slot.opened > self._limits.age_s:
            own.append((b"connection", b"close"))
        return _response(status, (*headers, *own))

    async def _read_head(self) -> h11.Request | None:
        """Return the next request, or None when the client has none."""
        idle, waited = True, False
        with trio.move_on_after(self._limits.idle_s) as deadline:
            while True:
                event = self._next_event()
                if isinstance(event, h11.Request):
                    if not waited:  # many requests may have come in one piece
                        await trio.lowlevel.checkpoint()
                    return event
                if isinstance(event, h11.ConnectionClosed):
                    return None
                taken = len(self._http.trailing_data[0])
                if idle and taken:
                    idle = False
                    deadline.deadline = trio.current_time() + self._limits.head_s
                room = self._limits.head_bytes - taken
                if room <= 0:
                    raise _Refused(431, "request head is too large")
                await self.read(min(room, _READ_BYTES))
                waited = True
        if not idle:
            raise _Refused(408, "request head took too long")
        return None

    async def _read_body(self, request: h11.Request) -> bytes:
        """Return the whole body; the applications here accept only small bodies."""
        self._head_only = request.method == b"HEAD"
        fields = dict(request.headers)
        if b"transfer-encoding" in fields and (b"content-length" in fields or request.http_version != b"1.1"):
            # A proxy in front may use the other framing than h11, and so see different requests.
            raise _Refused(400, "request has two framings")
        if int(fields.get(b"content-length", b"0")) > self._limits.body_bytes:
            raise _Refused(413, "request body is too large")
        body = bytearray()
        if self._take_body(body):
            return bytes(body)
        with trio.move_on_after(self._limits.body_s):
            if self._http.they_are_waiting_for_100_continue:
                await self.transmit(h11.InformationalResponse(status_code=100, headers=[]))
            while not self._take_body(body):
                await self.read()
            return bytes(body)
        raise _Refused(408, "request body took too long")

    def _take_body(self, body: bytearray) -> bool:
        """Add what has arrived to ``body``; return whether it is complete."""
        while True:
            event = self._next_event()
            if isinstance(event, h11.EndOfMessage):
                return True
            if not isinstance(event, h11.Data):
                return False
            body += event.data
            if len(body) > self._limits.body_bytes:
                raise _Refused(413, "request body is too large")

    def _next_event(self) -> object:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            # After the colon h11 quotes the client's bytes.
            raise _Refused(error.error_status_hint, str(error).partition(":")[0]) from None

    async def _refuse(self, status: int, reason: str, retry_after_s: int | None = None) -> None:
        """Answer ``status`` and close the connection."""
        body = msgspec.json.encode({"message": reason})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        if retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % retry_after_s))
        data = [] if self._head_only else [h11.Data(data=body)]
        await self.transmit(self.response(status, headers), *data, h11.EndOfMessage())
        with trio.move_on_after(self._limits.linger_s):
            await linger(self._stream)

    def _scope(self, request: h11.Request) -> dict[str, Any]:
        raw_path, _, query = _origin_form(request.target).partition(b"?")
        return {
            **self._base_scope,
            "http_version": request.http_version.decode("ascii"),
            "method": request.method.decode("ascii"),
            "path": unquote(raw_path.decode("ascii")),
            "raw_path": raw_path,
            "query_string": query,
            "headers": list(request.headers),
        }


def _origin_form(target: bytes) -> bytes:
    """Return path and query of a request target; a target for a proxy also has scheme and host."""
    if target.startswith((b"/", b"*")):
        return target
    _, marker, rest = target.partition(b"://")
    _, slash, path = rest.partition(b"/")
    return slash + path if marker and slash else b"/"


class _Exchange:
    """One request and its answer, as the application sees them (ASGI's extension ``qnode.exchange``)."""

    def __init__(self, connection: Connection, body: bytes, *, bodiless: bool) -> None:
        self._connection = connection
        self._sent_before_bytes = connection.wire.sent_bytes
        self._bodiless = bodiless
        self._body: bytes | None = body
        self._start: Message | None = None
        self._begun = False
        self._complete = trio.Event()

    @property
    def client_gone(self) -> bool:
        """Whether the client has closed its side of the connection, or reset it."""
        return self._connection.wire.gone

    @property
    def last_of_connection(self) -> bool:
        """Whether the connection ends with this answer: a long answer should end soon."""
        return self._connection.last_request

    @property
    def nothing_sent(self) -> bool:
        """Whether it is certain that the client has seen no byte of an answer."""
        return self._connection.wire.sent_bytes == self._sent_before_bytes

    async def receive(self) -> Message:
        """Return the body once, then wait until the exchange ends or the client disconnects."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        with contextlib.suppress(ClientGone):
            if not self._complete.is_set() and await self._connection.read():
                # The client has already sent its next request; the parser keeps it until then.
                await self._complete.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Send a message of the answer; head and first piece of body go out in one write."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is None or self._complete.is_set():
            raise RuntimeError(f"application sent {message['type']} out of turn")
        events: list[h11.Event] = []
        if not self._begun:
            self._begun = True
            status = self._start["status"]
            self._bodiless = self._bodiless or status in (204, 304)
            events.append(self._connection.response(status, list(self._start.get("headers", []))))
        body = message.get("body", b"")
        if body and not self._bodiless:
            events.append(h11.Data(data=body))
        if not message.get("more_body", False):
            events.append(h11.EndOfMessage())
            self._complete.set()
        await self._connection.transmit(*events)

    def check_complete(self) -> None:
        """Raise RuntimeError if the application returned before its answer was complete."""
        if not self._complete.is_set():
            raise RuntimeError("application returned before its answer was complete")
