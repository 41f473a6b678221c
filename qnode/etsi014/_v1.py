"""Version 1 of the API: paths, methods and answers of ETSI GS QKD 014 V1.1.1 as an ASGI application."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
import structlog
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from qnode.delivery.calls import Delivery, Given
from qnode.delivery.directory import SaeEntry
from qnode.delivery.refusal import Refusal, gone
from qnode.delivery.supply import Key
from qnode.etsi014 import _reading
from qnode.etsi014._bodies import ErrorBody, KeyBody, KeyContainerBody, StatusBody
from qnode.strangers import StrangersLog, network_of
from qnode.tls import certificate_names

log = structlog.get_logger()

_PREFIX = "/api/v1/keys/{sae_id}"
_VENDOR = "qnode_"

Call = Callable[[Request, SaeEntry, str], Awaitable[msgspec.Struct | Given]]


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


def application(delivery: Delivery) -> ASGIApp:
    """Return the ASGI application of ``delivery``: /api/v1/keys/{SAE_ID}/status, enc_keys, dec_keys.

    The server must put the client's certificate into the scope, as ``qnode.http`` does.
    """

    async def status(_request: Request, caller: SaeEntry, sae_id: str) -> StatusBody:
        limits = delivery.limits
        stock = await delivery.status(caller, sae_id)
        return StatusBody(
            source_kme_id=delivery.directory.kme_id,
            target_kme_id=stock.slave.kme_id,
            master_sae_id=stock.master.sae_id,
            slave_sae_id=stock.slave.sae_id,
            key_size=limits.key_size_bits,
            stored_key_count=stock.stored_key_count,
            max_key_count=limits.max_key_count,
            max_key_per_request=limits.max_key_per_request,
            max_key_size=limits.max_key_size_bits,
            min_key_size=limits.min_key_size_bits,
            max_sae_id_count=limits.max_sae_id_count,
            status_extension=delivery.extension,
        )

    async def enc_keys(request: Request, caller: SaeEntry, sae_id: str) -> Given:
        if request.method == "GET":
            asked = _reading.key_request_of_query(request.scope["query_string"])
        else:
            asked = _reading.key_request_of_body(await request.body())
        exchange = _exchange(request.scope)
        return await delivery.allocate(caller, sae_id, asked, lambda: exchange.client_gone)

    async def dec_keys(request: Request, caller: SaeEntry, sae_id: str) -> Given:
        if request.method == "GET":
            key_ids = _reading.key_ids_of_query(request.scope["query_string"])
        else:
            key_ids = _reading.key_ids_of_body(await request.body())
        exchange = _exchange(request.scope)
        return await delivery.fetch(caller, sae_id, key_ids, lambda: exchange.client_gone)

    strangers = StrangersLog()
    router = Router(
        [
            Route(f"{_PREFIX}/status", _Endpoint(delivery, strangers, status, ("GET",))),
            Route(f"{_PREFIX}/enc_keys", _Endpoint(delivery, strangers, enc_keys, ("GET", "POST"))),
            Route(f"{_PREFIX}/dec_keys", _Endpoint(delivery, strangers, dec_keys, ("GET", "POST"))),
        ],
        redirect_slashes=False,
        default=_not_found,
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Routes match the undecoded path, because a decoded SAE ID may contain a slash.
        raw = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
        await router({**scope, "path": raw.decode("ascii")}, receive, send)

    return app


class _Endpoint:
    """One path: its methods, the check of the caller, the answer or refusal."""

    def __init__(
        self, delivery: Delivery, strangers: StrangersLog, call: Call, methods: tuple[str, ...]
    ) -> None:
        self._delivery = delivery
        self._strangers = strangers
        self._call = call
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, exchange = Request(scope, receive), _exchange(scope)
        caller: SaeEntry | None = None
        given: Given | None = None
        try:
            if request.method not in self._methods:
                raise Refusal(405, "method not allowed", reason="method not allowed")
            tls: dict[str, Any] = scope.get("extensions", {}).get("tls", {})
            caller = self._delivery.directory.caller(tls.get("client_cert_der"))
            sae_id = _reading.sae_id(request.path_params["sae_id"])
            body = await self._call(request, caller, sae_id)
            if isinstance(body, Given):
                given = body
                if exchange.client_gone:
                    self._delivery.take_back(given)
                    raise gone()
                body = _container(self._delivery, given.keys)
            response = _json(200, body)
        except Refusal as refusal:
            given = None
            self._note(scope, caller, refusal)
            response = self._refused(refusal)
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
            self._delivery.requests_unauthorised += 1
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

    def _refused(self, refusal: Refusal) -> Response:
        response = _json(refusal.status, ErrorBody(refusal.message, tuple(map(dict, refusal.details))))
        if refusal.status == 405:
            response.headers["allow"] = ", ".join(self._methods)
        if refusal.retry_after_s is not None:
            response.headers["retry-after"] = str(refusal.retry_after_s)
        return response


def _exchange(scope: Scope) -> _Exchange:
    exchange: _Exchange = scope.get("extensions", {}).get("qnode.exchange", _Unknown())
    return exchange


def _names(certificate: bytes | None) -> list[str]:
    """Return the names in a certificate (DER) for the log; none if it is missing or not readable."""
    try:
        return list(certificate_names(certificate)) if certificate is not None else []
    except ValueError:
        return []


def _container(delivery: Delivery, keys: list[Key]) -> KeyContainerBody:
    bodies: list[KeyBody] = []
    told: Mapping[str, Any] | None = None
    extension: dict[str, Any] | None = None
    for key in keys:
        if key.extension is not told:  # keys of one block have the same extension
            told = key.extension
            named = {f"{_VENDOR}{name}": value for name, value in told.items()}
            extension = {**named, **(delivery.extension or {})} or None
        bodies.append(KeyBody(key.key_id, key.key, extension))
    return KeyContainerBody(keys=bodies, key_container_extension=delivery.extension)


def _json(status: int, body: msgspec.Struct) -> Response:
    # No proxy may keep a copy of a key.
    headers = {"cache-control": "no-store"}
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await _json(404, ErrorBody("no such path"))(scope, receive, send)
