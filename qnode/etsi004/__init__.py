"""Key streams to applications by ETSI GS QKD 004 V2.1.1: OPEN_CONNECT, GET_KEY, CLOSE.

`StreamCalls` implements the calls over the supply that all interfaces of a site share; `server` listens.
"""

from functools import partial

from qnode.etsi004.between import PeerSites
from qnode.etsi004.calls import StreamCalls
from qnode.etsi004.connection import StreamConnection
from qnode.http import ConversationServer, Limits, Server, TlsSettings

__all__ = ["PeerSites", "StreamCalls", "server"]


def server(calls: StreamCalls, tls: TlsSettings, limits: Limits) -> Server:
    """Return the listener of ``calls``: TCP, mutual TLS, the caller by its certificate."""
    return ConversationServer(partial(StreamConnection, calls), tls, limits)
