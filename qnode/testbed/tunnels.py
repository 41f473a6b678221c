"""The tunnel between the sites as an operator sets it up, before the agents give it its first key."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import trio
from msgspec import Struct

from qnode.testbed.network import (
    LINE_ADDRESS,
    SITES,
    TUNNEL_ADDRESS,
    WIREGUARD_SOCKETS,
    Network,
    NetworkRefused,
    Site,
    run_command,
)
from qnode.testbed.parts import Part

TunnelName = Literal["wireguard", "strongswan"]
READY_S: Final = 30.0
_LOOK_S: Final = 0.05
_MTU: Final = "1420"
_LISTEN_PORT: Final = 51820
_KEEPALIVE_S: Final = 25


def other(site: Site) -> Site:
    """Return the other site."""
    return "plant" if site == "office" else "office"


class SiteTunnel(Protocol):
    """One end of the tunnel: its daemon, and what its agent must know."""

    part: Part

    async def set_up(self) -> None:
        """Wait for the daemon, and set it up; no packet passes before the first key.

        Raises:
            NetworkRefused: it does not come up, or refuses.
        """
        ...

    def table(self) -> dict[str, Any]:
        """Return the table ``[tunnel]`` of the agent's file."""
        ...


class TunnelKit(Struct, frozen=True):
    """How one kind of tunnel is set up.

    ``programs``: what it runs, each with its Debian package. ``packages``: of Python, each with an extra.
    """

    title: str
    programs: dict[str, str]
    version: Sequence[str]
    packages: dict[str, str] = {}


KITS: Final[dict[TunnelName, TunnelKit]] = {
    "wireguard": TunnelKit(
        "WireGuard",
        {"wg": "wireguard-tools", "wireguard-go": "wireguard-go"},
        ("wireguard-go", "--version"),
    ),
    "strongswan": TunnelKit(
        "strongSwan",
        {
            "swanctl": "strongswan-swanctl",
            "/usr/lib/ipsec/charon": "strongswan-charon",
            "/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so": "libcharon-extra-plugins",
        },
        ("/usr/lib/ipsec/charon", "--version"),
        {"vici": "strongswan"},
    ),
}


def site_tunnels(kind: TunnelName, network: Network, folder: Path) -> dict[Site, SiteTunnel]:
    """Return both ends of a tunnel; ``folder``: for logs and settings.

    Raises:
        NetworkRefused: its keys cannot be made.
    """
    if kind == "strongswan":
        from qnode.testbed.strongswan import strongswan_ends

        return dict(strongswan_ends(network, folder))
    private = {site: run_command(["wg", "genkey"]).strip() for site in SITES}
    public = {site: run_command(["wg", "pubkey"], private[site]).strip() for site in SITES}
    return {site: WireGuardEnd(network, folder, site, private[site], public[other(site)]) for site in SITES}


class WireGuardEnd:
    """wireguard-go at one site. Its preshared key is its own: nothing passes before the first key of both."""

    def __init__(
        self, network: Network, folder: Path, site: Site, private_key: str, peer_public_key: str
    ) -> None:
        self._network, self._site = network, site
        self._private_key, self._peer = private_key, peer_public_key
        self.interface = network.interface(site)
        command = network.inside(site, "wireguard-go", "--foreground", self.interface)
        self.part = Part(f"WireGuard at the {site}", command, folder / f"wireguard-{site}.log")

    async def set_up(self) -> None:
        """Wait for the interface, and set keys, addresses and routes."""
        await ready(WIREGUARD_SOCKETS / f"{self.interface}.sock", self.part.name)
        await trio.to_thread.run_sync(self._set)

    def table(self) -> dict[str, Any]:
        """Return the table ``[tunnel]`` of the agent's file."""
        return {"kind": "wireguard", "interface": self.interface, "peer_public_key": self._peer}

    def _set(self) -> None:
        far = TUNNEL_ADDRESS[other(self._site)]
        settings = (
            f"[Interface]\nPrivateKey = {self._private_key}\nListenPort = {_LISTEN_PORT}\n"
            f"[Peer]\nPublicKey = {self._peer}\nPresharedKey = {run_command(['wg', 'genpsk']).strip()}\n"
            f"Endpoint = {LINE_ADDRESS[other(self._site)]}:{_LISTEN_PORT}\nAllowedIPs = {far}/32\n"
            f"PersistentKeepalive = {_KEEPALIVE_S}\n"
        )
        inside = self._network.inside
        run_command(inside(self._site, "wg", "setconf", self.interface, "/dev/stdin"), settings)
        own = f"{TUNNEL_ADDRESS[self._site]}/32"
        for words in (
            ("address", "add", own, "dev", self.interface),
            ("link", "set", self.interface, "mtu", _MTU, "up"),
            ("route", "add", f"{far}/32", "dev", self.interface),
        ):
            run_command(inside(self._site, "ip", *words))


async def ready(path: Path, name: str) -> None:
    """Wait until a daemon has made its socket.

    Raises:
        NetworkRefused: it has not within `READY_S`.
    """
    place = trio.Path(path)
    with trio.move_on_after(READY_S):
        while True:
            if await place.is_socket():
                return
            await trio.sleep(_LOOK_S)
    raise NetworkRefused(f"{name} has no socket {path} after {READY_S:g} s; see its log")
