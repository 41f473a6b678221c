"""Accepts connections as fast as they come, so that a flood does not delay admitted clients."""

import errno
import os
import socket
from collections.abc import Callable

import structlog
import trio

log = structlog.get_logger()

AT_A_TIME = 64
_TRY_AGAIN_S = 1.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


async def accept_all(listener: trio.SocketListener, admit: Callable[[socket.socket], None]) -> None:
    """Pass every connection to ``admit``, which uses or closes it, until cancelled.

    trio accepts one connection per turn of its scheduler. If a turn includes a handshake, this is slower than
    a flood of strangers, and the kernel's queue of thousands delays everybody.
    """
    with listener.socket, socket.socket(fileno=os.dup(listener.socket.fileno())) as listening:
        listening.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(listener.socket)
            for _ in range(AT_A_TIME):
                try:
                    connection, _ = listening.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _EXHAUSTED:
                        log.warning("listener.exhausted", reason=error.strerror)
                        await trio.sleep(_TRY_AGAIN_S)
                        break
                    continue  # this client disconnected before it was accepted
                admit(connection)
