"""Which node and which of its links a command asks."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_status, decode_status

if TYPE_CHECKING:
    from qnode.operate.status.model import NodeStatus

SOCKETS = Path("/run/qnode")
SOCKET_NAME = "control.sock"


class Where:
    """The socket, the time to wait for it, and the link; an empty link means all of them, or the first."""

    def __init__(self, path: Path | None, patience_s: float, link: str = "") -> None:
        self._path = path
        self.patience_s = patience_s
        self.link = link

    @property
    def path(self) -> Path:
        """Return the socket: from the option or the environment, else the only one of this machine.

        Raises:
            NodeNotRunning: there is no socket.
            NoAnswer: there are several sockets.
        """
        return self._path or only_socket(SOCKETS, "qnode@alice", "nodes")


def only_socket(folder: Path, service: str, daemons: str) -> Path:
    """Return the control socket of the only daemon with a folder below ``folder``.

    Raises:
        NodeNotRunning: there is no socket; ``service`` is what to start.
        NoAnswer: there are several; ``daemons``: of what.
    """
    found = sorted(folder.glob(f"*/{SOCKET_NAME}"))
    if not found:
        raise NodeNotRunning(
            f"no control socket under {folder}; start the service (systemctl start {service}), or name its "
            "socket with --socket"
        )
    if len(found) > 1:
        raise NoAnswer(f"several {daemons} run here, name one with --socket: {', '.join(map(str, found))}")
    return found[0]


def node_of(where: Where) -> "NodeStatus":
    """Return the status of the node for the requested link, or for the first one."""
    node = decode_status(ask_status(where.path, patience_s=where.patience_s))
    return of_link(node, where.link) if where.link else node.each_link[0]


def of_link(node: "NodeStatus", link: str) -> "NodeStatus":
    """Return the status of ``link`` alone; of all links if it is empty."""
    if not link:
        return node
    try:
        return node.of_link(link)
    except KeyError:
        names = ", ".join(view.site.link for view in node.each_link)
        raise click.UsageError(f"no link {link} (links: {names})") from None
