"""Addresses to listen on or connect to, as a site's file writes them."""

import socket
from contextlib import ExitStack

from qnode.errors import ConfigError


def host_and_port(address: str, where: str) -> tuple[str, int]:
    """Return both parts of "host:port" or "[v6]:port".

    Raises:
        ConfigError: it is neither, or no name can be like this host; ``where`` names its key.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError(f"{where}: expected host:port, got {address!r}")
    try:
        host.encode("idna")  # as the resolver does, which fails with an error of its own
    except UnicodeError:
        raise ConfigError(
            f"{where}: expected host:port, got {address!r}: a part of the host's name is empty or too long"
        ) from None
    return host, int(port)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
