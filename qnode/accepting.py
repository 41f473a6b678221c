"""Listening: on an address that may become available later than the daemon, and as fast as connections come.

During boot a name may not resolve yet, an interface may be down, or another program may still use the port.
Ending the daemon would not help. It goes on with everything else, reports the obstacle, and tries again.
"""

import errno
import os
import socket
from collections.abc import Callable

import structlog
import trio

log = structlog.get_logger()

AT_A_TIME = 64
LISTEN_RETRY_S = 2.0
_TRY_AGAIN_S = 1.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


async def open_listeners(
    host: str, port: int, note: Callable[[str | None], None]
) -> list[trio.SocketListener]:
    """Return the listeners of a TCP address as soon as it can be listened on.

    ``note`` is called with each new reason why it cannot be, and with None when it can.
    """
    told = None
    while True:
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            because = error.strerror or str(error)
            if because != told:
                note(because)
                told = because
            await trio.sleep(LISTEN_RETRY_S)
        else:
            note(None)
            return listeners


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
