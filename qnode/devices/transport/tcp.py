"""TCP: a device with a network port, or a serial line behind a terminal server."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from qnode.devices.transport.address import Address
from qnode.devices.transport.base import Transport
from qnode.devices.transport.descriptor import DescriptorTransport
from qnode.devices.transport.transcript import Transcript
from qnode.errors import DeviceGone

CONNECT_LIMIT_S: Final = 5.0
# A host that lost its power is noticed after 5 + 3 · 5 seconds, even if nothing is sent.
KEEP_ALIVE: Final = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


@asynccontextmanager
async def open_tcp(address: Address, transcript: Transcript, *, secret: bool) -> AsyncIterator[Transport]:
    """Connect to the device; see `open_transport`."""
    async with await connected(address) as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE:
            stream.setsockopt(socket.IPPROTO_TCP, option, value)
        yield DescriptorTransport(address.text, transcript, stream.socket.fileno(), secret=secret)


async def connected(address: Address) -> trio.SocketStream:
    """Connect to the host and port of ``address``.

    Raises:
        DeviceGone: nobody answers there.
    """
    host, port = address.host_and_port()
    try:
        with trio.fail_after(CONNECT_LIMIT_S):
            return await trio.open_tcp_stream(host, port)
    except trio.TooSlowError:
        why = f"no answer within {CONNECT_LIMIT_S:g} s"
    except OSError as error:
        cause = error.__cause__
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        found = cause if isinstance(cause, OSError) else error
        number = found.errno or 0
        why = os.strerror(number) if number > 0 else found.strerror or str(found)
    raise DeviceGone(
        f"{address.text}: cannot be reached ({why}): switch the device on, check its network, host and port"
    )
