"""HTTP/1.1 for ASGI applications on trio streams: h11, mutual TLS, limits, reload.

No ready-made server gives the client's certificate to the application, lets go at once of a client that
will not read, and runs on trio; this one is small because it does nothing else.
"""

from qnode.http._asgi import Application, Receive, Scope, Send
from qnode.http._limits import Counters, Limits
from qnode.http._server import Server, serve, serve_listeners
from qnode.http._tls import TlsSettings, server_context

__all__ = [
    "Application",
    "Counters",
    "Limits",
    "Receive",
    "Scope",
    "Send",
    "Server",
    "TlsSettings",
    "serve",
    "serve_listeners",
    "server_context",
]
