"""The HTTP application of the page: one file, the live view, the figures over time. It only answers GET."""

import base64
import functools
import hashlib
import re
from collections.abc import Callable
from importlib import resources
from ipaddress import ip_address
from typing import Final

import msgspec
import trio

from qnode.asgi import Receive, Scope, Send
from qnode.operate.page.live import PERIOD_S, Live, event
from qnode.operate.trend.figures import FIGURES
from qnode.operate.trend.ring import RESOLUTIONS, WINDOWS, Trend
from qnode.tls import certificate_names

# A stream ends after this time, and the browser opens it again.
STREAM_S: Final = 600.0
_TREND_AGE_S: Final = 10.0
_JSON, _TEXT = b"application/json", b"text/plain; charset=utf-8"

MayLook = Callable[[list[str]], bool]
"""Tells by the names in a client's certificate whether it may look."""


@functools.cache
def page_file() -> tuple[bytes, bytes]:
    """Return the page, and the Content-Security-Policy that allows its own script and style alone."""
    page = (resources.files("qnode.operate.page") / "page.html").read_bytes()
    script, style = (
        " ".join(f"'sha256-{_digest(part)}'" for part in re.findall(pattern, page, re.DOTALL))
        for pattern in (rb"<script>(.*?)</script>", rb"<style>(.*?)</style>")
    )
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy.encode()


def _digest(part: bytes) -> str:
    return base64.b64encode(hashlib.sha256(part).digest()).decode()


class Page:
    """The application. ``trends``: by the name of the link. ``now_s``: the present Unix time.

    ``loopback_only``: the listener is plain HTTP on a loopback address; then the page answers requests for
    such an address only, so that no other web site reads it through a name of its own.
    """

    def __init__(
        self,
        live: Live,
        trends: dict[str, Trend],
        now_s: Callable[[], float],
        *,
        may_look: MayLook = lambda _names: True,
        loopback_only: bool = False,
    ) -> None:
        self._live = live
        self._trends = trends
        self._now_s = now_s
        self._may_look = may_look
        self._loopback_only = loopback_only
        self._encoded: dict[str, tuple[float, bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        path, window = scope["path"], scope["path"].removeprefix("/trend/")
        if refusal is not None:
            await _answer(scope, send, *refusal)
        elif path == "/":
            body, policy = page_file()
            await _answer(scope, send, 200, b"text/html; charset=utf-8", body, policy)
        elif path == "/status":
            await _answer(scope, send, 200, _JSON, self._live.present())
        elif path == "/live":
            await self._stream(scope, send)
        elif path.startswith("/trend/") and window in WINDOWS:
            await _answer(scope, send, 200, _JSON, self._trend(window))
        else:
            await _answer(scope, send, 404, _TEXT, b"The page is at /.\n")

    def _refusal(self, scope: Scope) -> tuple[int, bytes, bytes] | None:
        """Return the answer to a request that is refused."""
        if scope["method"] not in ("GET", "HEAD"):
            return 405, _TEXT, b"Only GET.\n"
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if self._loopback_only and not (len(hosts) == 1 and _is_loopback(hosts[0])):
            return 421, _TEXT, b"This page answers at a loopback address only.\n"
        tls = scope.get("extensions", {}).get("tls")
        if tls is not None:
            der = tls.get("client_cert_der")
            if der is None or not self._may_look(_names(der)):
                return 403, _TEXT, b"This certificate is not for viewers.\n"
        return None

    async def _stream(self, scope: Scope, send: Send) -> None:
        """Send a view every `PERIOD_S`, until the viewer may look no more.

        The server drops viewers that do not read.
        """
        await send({"type": "http.response.start", "status": 200, "headers": _headers(b"text/event-stream")})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body"})
            return
        first = b"retry: 3000\n\n" + event(self._live.present())
        await send({"type": "http.response.body", "body": first, "more_body": True})
        ends_at, pause_s = trio.current_time() + STREAM_S, self._live.first_pause_s()
        while trio.current_time() < ends_at:
            await trio.sleep(pause_s)
            if self._ends(scope):
                break
            body = event(self._live.present())
            await send({"type": "http.response.body", "body": body, "more_body": True})
            pause_s = PERIOD_S
        await send({"type": "http.response.body"})

    def _ends(self, scope: Scope) -> bool:
        """Return whether a reload has withdrawn the certificate of a viewer, or its right to look."""
        exchange = scope["extensions"].get("qnode.exchange")
        return (exchange is not None and exchange.last_of_connection) or self._refusal(scope) is not None

    def _trend(self, window: str) -> bytes:
        """Return a window of all links as JSON; all viewers get the same bytes for ten seconds."""
        at_s = self._now_s()
        made_s, encoded = self._encoded.get(window, (0.0, b""))
        if not 0.0 <= at_s - made_s < _TREND_AGE_S:
            step_s = next(one.step_s for one in RESOLUTIONS if one.window == window)
            series = {name: _columns(trend, window, at_s) for name, trend in self._trends.items()}
            encoded = msgspec.json.encode({"at_s": at_s, "step_s": step_s, "links": series})
            self._encoded[window] = (at_s, encoded)
        return encoded


def _columns(trend: Trend, window: str, at_s: float) -> dict[str, list[float | None]]:
    """Return the values of each figure; None for a gap, and for what is not known."""
    rows = trend.series(window, at_s)
    return {
        figure: [
            None if row is None or row[index] != row[index] else float(f"{row[index]:.5g}") for row in rows
        ]
        for index, figure in enumerate(FIGURES)
    }


def _names(der: bytes) -> list[str]:
    try:
        return list(certificate_names(der))
    except ValueError:  # broken in a part that TLS does not check
        return []


def _is_loopback(host: bytes) -> bool:
    """Return whether a Host header names a loopback address."""
    name = re.sub(rb":\d*$", b"", host).strip(b"[]").decode("latin-1").lower()
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _headers(
    kind: bytes, policy: bytes = b"default-src 'none'; frame-ancestors 'none'"
) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", kind),
        (b"cache-control", b"no-store"),
        (b"content-security-policy", policy),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
    ]


async def _answer(
    scope: Scope, send: Send, status: int, kind: bytes, body: bytes, policy: bytes | None = None
) -> None:
    headers = _headers(kind) if policy is None else _headers(kind, policy)
    headers.append((b"content-length", str(len(body)).encode()))
    if status == 405:
        headers.append((b"allow", b"GET, HEAD"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
