"""HTTP/1.1 for ASGI applications on trio streams: h11, mutual TLS, limits, reload.

No existing server on trio passes the client's certificate to the application and also disconnects a client
at once that does not read. This one is small because it does nothing else. `ConversationServer` is the same
for a protocol other than HTTP.
"""

from qnode.asgi import Application, Receive, Scope, Send
from qnode.http._conversation import Client, ClientGone, Conversation
from qnode.http._limits import Counters, Limits
from qnode.http._server import ConversationServer, Server, serve, serve_listeners
from qnode.http._tls import TlsSettings, read_server_tls, server_context

__all__ = [
    "Application",
    "Client",
    "ClientGone",
    "Conversation",
    "ConversationServer",
    "Counters",
    "Limits",
    "Receive",
    "Scope",
    "Send",
    "Server",
    "TlsSettings",
    "read_server_tls",
    "serve",
    "serve_listeners",
    "server_context",
]
