"""What a trial of tunnels needs to know of a kind: two sites in namespaces, joined by `cable`."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import msgspec


class Site(Protocol):
    """One end. Its interface `cable` reaches the other end's ``address``."""

    name: str
    namespace: str
    address: str
    tunnel_address: str
    peer_tunnel_address: str

    @property
    def daemon_pid(self) -> int:
        """The encryptor's process."""
        ...

    def start_daemon(self) -> None:
        """Start the encryptor with the operator's settings, as its service does."""
        ...

    def kill_daemon(self) -> None:
        """End the encryptor at once."""
        ...

    def log(self) -> str:
        """Return what the encryptor has said."""
        ...

    def tunnel_table(self) -> dict[str, Any]:
        """Return the table ``[tunnel]`` of the agent's file."""
        ...

    def run(self, *arguments: str, check: bool = True) -> str:
        """Run a command in the namespace."""
        ...


class Kind(msgspec.Struct, frozen=True):
    """One kind of tunnel.

    ``missing`` tells why it cannot run here; ``sites(mark, folder)`` sets both sites up. ``first`` and
    ``answers``: filters of tcpdump for the first message of a handshake and for its answer.
    """

    missing: Callable[[], str | None]
    sites: Callable[[str, Path], AbstractContextManager[tuple[Any, Any]]]
    first: str
    answers: str


def wireguard() -> Kind:
    """Return the kind WireGuard, with wireguard-go."""
    support = importlib.import_module("wireguard_support")
    return Kind(
        missing=support.missing,
        sites=support.sites,
        first=f"udp port {support.LISTEN_PORT} and udp[4:2] = 156 and udp[8] = 1",
        answers=f"udp port {support.LISTEN_PORT} and udp[4:2] = 100 and udp[8] = 2",
    )


def strongswan() -> Kind:
    """Return the kind strongSwan, with ESP in user space."""
    support = importlib.import_module("strongswan_support")
    # IKE_SA_INIT is exchange 34; a bit of the flags tells an answer. Port 4500 has four zeros before IKE.
    places = (("udp port 500", 26), ("udp port 4500 and udp[8:4] = 0", 30))
    wanted = {
        sign: " or ".join(
            f"({port} and udp[{at}] = 34 and udp[{at + 1}] & 32 {sign} 0)" for port, at in places
        )
        for sign in ("=", "!=")
    }
    return Kind(missing=support.missing, sites=support.sites, first=wanted["="], answers=wanted["!="])


KINDS: dict[str, Callable[[], Kind]] = {"wireguard": wireguard, "strongswan": strongswan}
