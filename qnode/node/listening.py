"""Listens on the configured addresses, even if they become available later than the node."""

from pathlib import Path

import trio

from qnode.accepting import open_listeners
from qnode.addresses import host_and_port
from qnode.http import Server
from qnode.node.status.site_figures import SiteFigures
from qnode.operate.control.listening import listening_at

FIRST_ATTEMPT_S = 1.0


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

    def note(because: str | None) -> None:
        figures.note_listening(where, because and f"cannot listen on {host}:{port}: {because}")
        tried.set()

    async def serve() -> None:
        await server.run(await open_listeners(host, port, note))

    nursery.start_soon(serve)
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
