"""Serves an interface for encryptors as an ASGI application: the caller, its answer, unsent keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
import structlog
import trio

from qnode.asgi import Application, Receive, Scope, Send
from qnode.audit.door import through
from qnode.choices import Door
from qnode.delivery import description
from qnode.delivery.calls import Delivery, Given
from qnode.delivery.directory import SaeEntry
from qnode.delivery.interface import Asked, Interface, Route
from qnode.delivery.refusal import Refusal, gone
from qnode.strangers import StrangersLog, network_of
from qnode.tls import certificate_names

log = structlog.get_logger()


class _Exchange(Protocol):
    """The server's facts about the client of one request."""

    @property
    def client_gone(self) -> bool: ...

    @property
    def nothing_sent(self) -> bool: ...


class _Unknown:
    """The facts from another server: none, so that no key counts as unsent."""

    client_gone = False
    nothing_sent = False


def application(delivery: Delivery, interface: Interface) -> Application:
    """Return the ASGI application of ``interface``; it also serves its description at /openapi.json.

    The server must put the client's certificate into the scope, as ``qnode.http`` does.
    """
    strangers = StrangersLog()
    by_path: dict[str, dict[str, Route | bytes]] = {}
    for route in interface.routes:
        by_path.setdefault(route.path, {})[route.method] = route
    by_path[description.PATH] = {"GET": msgspec.json.encode(description.description(interface))}
    paths = [(_Path(path), _Endpoint(delivery, interface, strangers, by_path[path])) for path in by_path]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Paths match undecoded, because a decoded SAE ID may contain a slash.
        segments = _undecoded_path(scope).split("/")
        for path, endpoint in paths:
            values = path.match(segments)
            if values is not None:
                await endpoint(scope, receive, send, values)
                return
        await _refused(interface, Refusal(404, "no such path", reason="no such path")).send_by(send)

    return app


class _Path:
    """A path whose variable segments are names in braces."""

    def __init__(self, template: str) -> None:
        self._segments = template.split("/")
        self._names = {
            i: segment[1:-1] for i, segment in enumerate(self._segments) if segment.startswith("{")
        }
        self._fixed = [(i, segment) for i, segment in enumerate(self._segments) if i not in self._names]
        self._fixed.reverse()  # the paths of an interface differ at their ends

    def match(self, segments: Sequence[str]) -> dict[str, str] | None:
        """Return the variable segments of a path by name, None for another path; none of them is empty."""
        if len(segments) != len(self._segments) or any(segments[i] != fixed for i, fixed in self._fixed):
            return None
        values = {name: segments[i] for i, name in self._names.items()}
        return values if all(values.values()) else None


@dataclass
class _Answer:
    """An answer in JSON; no proxy may keep a copy of a key."""

    status: int
    body: bytes = field(repr=False)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def send_by(self, send: Send) -> None:
        """Send the answer."""
        own = [
            (b"cache-control", b"no-store"),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body)),
        ]
        headers = own + self.headers
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class _Endpoint:
    """One path: its methods, the check of the caller, the answer or refusal.

    ``routes``: by method; bytes are a fixed body for every SAE.
    """

    def __init__(
        self,
        delivery: Delivery,
        interface: Interface,
        strangers: StrangersLog,
        routes: Mapping[str, Route | bytes],
    ) -> None:
        self._delivery = delivery
        self._interface = interface
        self._strangers = strangers
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send, values: Mapping[str, str]) -> None:
        exchange = _exchange(scope)
        caller: SaeEntry | None = None
        given: Given | None = None
        try:
            route = self._routes.get(scope["method"])
            if route is None:
                raise Refusal(405, "method not allowed", reason="method not allowed")
            tls: dict[str, Any] = scope.get("extensions", {}).get("tls", {})
            caller = self._delivery.directory.caller(tls.get("client_cert_der"))
            if isinstance(route, bytes):
                answer = _answer(self._interface, 200, route)
            else:
                asked = Asked(
                    caller,
                    values,
                    scope["query_string"],
                    await _body(receive),
                    lambda: exchange.client_gone,
                )
                with through(Door(self._interface.name)):
                    body = await route.call(asked)
                if isinstance(body, Given):
                    given = body
                    if exchange.client_gone:
                        self._delivery.take_back(given)
                        raise gone()
                    body = self._interface.container(given.keys)
                answer = _answer(self._interface, 200, msgspec.json.encode(body))
        except Refusal as refusal:
            given = None
            self._note(scope, caller, refusal)
            answer = _refused(self._interface, refusal)
            if refusal.status == 405:
                answer.headers.append((b"allow", ", ".join(self._routes).encode()))
        try:
            await answer.send_by(send)
        except OSError:
            if given is not None and exchange.nothing_sent:
                self._delivery.take_back(given)
            raise

    def _note(self, scope: Scope, caller: SaeEntry | None, refusal: Refusal) -> None:
        """Count a refusal and log it; callers that are not an SAE of this site have a budget of lines."""
        if caller is not None:
            self._delivery.usage[caller.sae_id].requests_refused += 1
        if refusal.status == 401:
            self._delivery.requests_unauthorised[self._interface.name] += 1
        client = scope["client"][0] if scope.get("client") else ""
        told = {
            "method": scope["method"],
            "path": _undecoded_path(scope),
            "status": refusal.status,
            "reason": refusal.reason,
            "client": client,
            "names": _names(scope.get("extensions", {}).get("tls", {}).get("client_cert_der")),
        }
        if caller is not None:
            log.info("request.refused", sae=caller.sae_id, **told)
        else:
            network = network_of(client)
            self._strangers.write("info", "request.refused", network, trio.current_time(), sae=None, **told)


def _refused(interface: Interface, refusal: Refusal) -> _Answer:
    answer = _answer(interface, refusal.status, msgspec.json.encode(interface.refusal(refusal)))
    if refusal.retry_after_s is not None:
        answer.headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
    return answer


def _answer(interface: Interface, status: int, body: bytes) -> _Answer:
    return _Answer(status, body, [(b"connection", b"close")] if interface.closes else [])


async def _body(receive: Receive) -> bytes:
    """Return the whole body of a request.

    Raises:
        Refusal: 400; the client has disconnected.
    """
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise gone()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _undecoded_path(scope: Scope) -> str:
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
    return raw.decode("ascii")


def _exchange(scope: Scope) -> _Exchange:
    exchange: _Exchange = scope.get("extensions", {}).get("qnode.exchange", _Unknown())
    return exchange


def _names(certificate: bytes | None) -> list[str]:
    """Return the names in a certificate (DER) for the log; none if it is missing or not readable."""
    try:
        return list(certificate_names(certificate)) if certificate is not None else []
    except ValueError:
        return []
