"""The HTTP application for Prometheus."""

from collections.abc import Callable
from typing import Final, TypeVar

import trio

from qnode.asgi import Application, Receive, Scope, Send
from qnode.operate.status.model import NodeStatus

ProvideStatus = Callable[[], NodeStatus]

_TEXT_FORMAT: Final = "text/plain; version=0.0.4; charset=utf-8"


T = TypeVar("T")


def metrics_app(provide_status: ProvideStatus) -> Application:
    """Return an ASGI application that answers ``GET /metrics`` with the figures of a node."""
    return figures_app(provide_status, _rendered)


def figures_app(provide: Callable[[], T], render: Callable[[T], bytes]) -> Application:
    """Return an ASGI application that answers ``GET /metrics`` and nothing else; a thread runs ``render``."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, kind, body = 200, _TEXT_FORMAT, b""
        extra: list[tuple[bytes, bytes]] = []
        if scope["path"] != "/metrics":
            status, kind, body = 404, "text/plain; charset=utf-8", b"The metrics are at /metrics.\n"
        elif scope["method"] not in ("GET", "HEAD"):
            status, kind, body = 405, "text/plain; charset=utf-8", b"Only GET.\n"
            extra = [(b"allow", b"GET, HEAD")]
        else:
            body = await trio.to_thread.run_sync(render, provide())
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *extra]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app


def _rendered(status: NodeStatus) -> bytes:
    # Imported at the first request, so that the start does not wait for the Prometheus client.
    from qnode.operate.status.metrics import render_metrics

    return render_metrics(status)
