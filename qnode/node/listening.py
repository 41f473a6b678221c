"""Listens on the configured addresses, even if they become available later than the node.

During boot a name may not resolve yet, an interface may be down, or another program may still use the port.
Ending the node would not help. The node continues with everything else, reports the obstacle, and tries
again.
"""

from pathlib import Path

import structlog
import trio

from qnode.addresses import host_and_port
from qnode.http import Server
from qnode.node.status.site_figures import SiteFigures
from qnode.operate.control.listening import listening_at

RETRY_S = 2.0
FIRST_ATTEMPT_S = 1.0

log = structlog.get_logger()


async def start_serving(
    nursery: trio.Nursery, server: Server, address: str, where: str, figures: SiteFigures
) -> None:
    """Have ``server`` listen on ``address`` in ``nursery``; return when it listens, or must wait.

    While it cannot listen, the alarm ``listener.waiting`` states the reason.

    Raises:
        ConfigError: the address is not valid.
    """
    host, port = host_and_port(address, where)
    tried = trio.Event()
    nursery.start_soon(_listen, server, host, port, where, figures, tried)
    with trio.move_on_after(FIRST_ATTEMPT_S):  # a resolver that is down needs long
        await tried.wait()


async def serve_at_socket(
    server: Server,
    path: Path,
    where: str,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve at a local socket until cancelled; the permissions of its file decide who may connect.

    Raises:
        ConfigError: the socket cannot be made, or another program serves it; ``where`` names the key.
    """
    with listening_at(path, where) as bound:
        task_status.started()
        await server.run([trio.SocketListener(trio.socket.from_stdlib_socket(bound))])


async def _listen(
    server: Server, host: str, port: int, where: str, figures: SiteFigures, tried: trio.Event
) -> None:
    while True:
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            figures.note_listening(where, f"cannot listen on {host}:{port}: {error.strerror or error}")
            tried.set()
            await trio.sleep(RETRY_S)
            continue
        figures.note_listening(where, None)
        tried.set()
        await server.run(listeners)
        return
