"""Two sites with a real WireGuard each: network namespaces, one cable, wireguard-go.

The interfaces are set up as docs/encryptors.md says: each site has a preshared key of its own, which no other
site has. Both ends can be controlled from any namespace, for wireguard-go's sockets are files.
"""

import base64
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qnode.agent.tunnel import Role
from qnode.agent.tunnels.wireguard import WireGuardConfig, WireGuardTunnel

KEEPALIVE_S = 25
SOCKETS = Path("/var/run/wireguard")
LISTEN_PORT = 51900


def missing() -> str | None:
    """Return why sites with WireGuard cannot be set up here, or None."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    for program in ("ip", "wg", "wireguard-go", "ping"):
        if shutil.which(program) is None:
            return f"needs {program}"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun"
    return None


class Site:
    """One end: a namespace, a wireguard-go in it, and what an agent there would be told."""

    def __init__(self, name: str, number: int, mark: str, folder: Path) -> None:
        self.name = name
        self.namespace = f"{mark}-{name}"
        self.interface = f"{mark}{number}"
        self.folder = folder
        self.address = f"10.214.0.{number}"
        self.peer_address = f"10.214.0.{3 - number}"
        self.tunnel_address = f"10.215.0.{number}"
        self.peer_tunnel_address = f"10.215.0.{3 - number}"
        self.private_key = _wg("genkey")
        self.public_key = _wg("pubkey", given=self.private_key)
        self.own_preshared_key = _wg("genpsk")
        self.peer_public_key = ""
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def daemon_pid(self) -> int:
        """The process to kill."""
        assert self._daemon is not None
        return self._daemon.pid

    def tunnel_table(self) -> dict[str, Any]:
        """Return the table ``[tunnel]`` of the agent of this site."""
        return {"kind": "wireguard", "interface": self.interface, "peer_public_key": self.peer_public_key}

    def tunnel(self, role: Role, **settings: Any) -> WireGuardTunnel:
        """Return the agent's tunnel, which is not open."""
        config = WireGuardConfig(interface=self.interface, peer_public_key=self.peer_public_key, **settings)
        return WireGuardTunnel(config, role)

    def run(self, *arguments: str, given: str = "", check: bool = True) -> str:
        """Run a command in the site's namespace and return what it printed."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def settings(self, preshared_key: str | None) -> str:
        """Return the interface's settings as the operator's file has them."""
        return (
            f"[Interface]\nPrivateKey = {self.private_key}\nListenPort = {LISTEN_PORT}\n"
            f"[Peer]\nPublicKey = {self.peer_public_key}\nAllowedIPs = {self.peer_tunnel_address}/32\n"
            f"Endpoint = {self.peer_address}:{LISTEN_PORT}\nPersistentKeepalive = {KEEPALIVE_S}\n"
            + (f"PresharedKey = {preshared_key}\n" if preshared_key else "")
        )

    def apply(self, command: str, preshared_key: str | None) -> None:
        """Run `wg setconf` or `wg syncconf`, as wg-quick and administrators do."""
        self.run("wg", command, self.interface, "/dev/stdin", given=self.settings(preshared_key))

    def preshared_key(self) -> str:
        """Return the preshared key that WireGuard holds."""
        return self.run("wg", "show", self.interface, "preshared-keys").split()[1]

    def set_preshared_key(self, key: str) -> None:
        """Set the preshared key behind the agent's back."""
        self.run(
            *("wg", "set", self.interface, "peer", self.peer_public_key, "preshared-key", "/dev/stdin"),
            given=key,
        )

    def latest_handshake(self) -> int:
        """Return the time of the latest handshake by wg, in seconds; 0: none."""
        return int(self.run("wg", "show", self.interface, "latest-handshakes").split()[1])

    def start_daemon(self) -> None:
        """Start wireguard-go and set the interface up, as the operator's service does."""
        socket = SOCKETS / f"{self.interface}.sock"
        socket.unlink(missing_ok=True)
        with (self.folder / "wireguard.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "wireguard-go", "-f", self.interface],
                env={**os.environ, "LOG_LEVEL": "error"},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while not socket.exists():
            assert self._daemon.poll() is None, self.log()
            assert time.monotonic() < deadline, "wireguard-go has no socket after 60 s"
            time.sleep(0.02)
        self.apply("setconf", self.own_preshared_key)
        self.run("ip", "addr", "add", f"{self.tunnel_address}/24", "dev", self.interface)
        self.run("ip", "link", "set", self.interface, "mtu", "1420", "up")

    def kill_daemon(self) -> None:
        """End wireguard-go at once."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None

    def log(self) -> str:
        """Return what wireguard-go has said."""
        return (self.folder / "wireguard.log").read_text()


def _wg(command: str, given: str = "") -> str:
    done = subprocess.run(["wg", command], input=given, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def preshared_key(key: bytes) -> str:
    """Return a key as wg writes it."""
    return base64.b64encode(key).decode()


@contextmanager
def sites(mark: str, folder: Path) -> Iterator[tuple[Site, Site]]:
    """Yield Alice's and Bob's site; ``mark`` (at most 9 characters) begins the names of namespaces."""
    pair = []
    try:
        for number, name in enumerate(("alice", "bob"), 1):
            home = folder / name
            home.mkdir(mode=0o700)
            site = Site(name, number, mark, home)
            subprocess.run(["ip", "netns", "add", site.namespace], check=True)
            pair.append(site)
        alice, bob = pair
        alice.peer_public_key, bob.peer_public_key = bob.public_key, alice.public_key
        subprocess.run(
            f"ip link add {mark}-a netns {alice.namespace} type veth"
            f" peer name {mark}-b netns {bob.namespace}".split(),
            check=True,
        )
        for site, cable in ((alice, f"{mark}-a"), (bob, f"{mark}-b")):
            site.run("ip", "link", "set", "lo", "up")
            site.run("ip", "link", "set", cable, "name", "cable")
            site.run("ip", "addr", "add", f"{site.address}/24", "dev", "cable")
            site.run("ip", "link", "set", "cable", "up")
        for site in pair:
            site.start_daemon()
        yield alice, bob
    finally:
        for site in pair:
            site.kill_daemon()
            (SOCKETS / f"{site.interface}.sock").unlink(missing_ok=True)
            subprocess.run(["ip", "netns", "del", site.namespace], check=False)


def new_mark() -> str:
    """Return a mark that no other run on this machine has."""
    return f"qw{secrets.token_hex(3)}"
