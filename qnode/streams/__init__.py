"""Byte streams of the node's own protocols: a socket, and TLS over any stream, without needless turns.

A call of trio's own streams is a turn of the scheduler for each read and each write, and the TLS stream has
several. Here a call waits only if there is nothing to do, and gives way to the other tasks now and then.
"""

from qnode.streams.lean import LeanStream, receive_into
from qnode.streams.tls import TlsStream
from qnode.streams.wire import Wire

__all__ = ["LeanStream", "TlsStream", "Wire", "receive_into"]
