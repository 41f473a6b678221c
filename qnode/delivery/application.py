"""Serves an interface for encryptors as an ASGI application: the caller, its answer, unsent keys."""

from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
import structlog
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as PathRoute
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

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


def application(delivery: Delivery, interface: Interface) -> ASGIApp:
    """Return the ASGI application of ``interface``; it also serves its description at /openapi.json.

    The server must put the client's certificate into the scope, as ``qnode.http`` does.
    """
    strangers = StrangersLog()
    by_path: dict[str, dict[str, Route | bytes]] = {}
    for route in interface.routes:
        by_path.setdefault(route.path, {})[route.method] = route
    by_path[description.PATH] = {"GET": msgspec.json.encode(description.description(interface))}

    async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
        refusal = Refusal(404, "no such path", reason="no such path")
        await _refused(interface, refusal)(scope, receive, send)

    router = Router(
        [
            PathRoute(path, _Endpoint(delivery, interface, strangers, routes))
            for path, routes in by_path.items()
        ],
        redirect_slashes=False,
        default=not_found,
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Routes match the undecoded path, because a decoded SAE ID may contain a slash.
        raw = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
        await router({**scope, "path": raw.decode("ascii")}, receive, send)

    return app


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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, exchange = Request(scope, receive), _exchange(scope)
        caller: SaeEntry | None = None
        given: Given | None = None
        try:
            route = self._routes.get(request.method)
            if route is None:
                raise Refusal(405, "method not allowed", reason="method not allowed")
            tls: dict[str, Any] = scope.get("extensions", {}).get("tls", {})
            caller = self._delivery.directory.caller(tls.get("client_cert_der"))
            if isinstance(route, bytes):
                response = _response(self._interface, 200, route)
            else:
                asked = Asked(
                    caller,
                    request.path_params,
                    scope["query_string"],
                    await request.body(),
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
                response = _response(self._interface, 200, msgspec.json.encode(body))
        except Refusal as refusal:
            given = None
            self._note(scope, caller, refusal)
            response = _refused(self._interface, refusal)
            if refusal.status == 405:
                response.headers["allow"] = ", ".join(self._routes)
        try:
            await response(scope, receive, send)
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
            "path": scope["path"],
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


def _refused(interface: Interface, refusal: Refusal) -> Response:
    response = _response(interface, refusal.status, msgspec.json.encode(interface.refusal(refusal)))
    if refusal.retry_after_s is not None:
        response.headers["retry-after"] = str(refusal.retry_after_s)
    return response


def _response(interface: Interface, status: int, body: bytes) -> Response:
    # No proxy may keep a copy of a key.
    headers = {"cache-control": "no-store"}
    if interface.closes:
        headers["connection"] = "close"
    return Response(body, status, headers, media_type="application/json")


def _exchange(scope: Scope) -> _Exchange:
    exchange: _Exchange = scope.get("extensions", {}).get("qnode.exchange", _Unknown())
    return exchange


def _names(certificate: bytes | None) -> list[str]:
    """Return the names in a certificate (DER) for the log; none if it is missing or not readable."""
    try:
        return list(certificate_names(certificate)) if certificate is not None else []
    except ValueError:
        return []
