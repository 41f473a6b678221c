"""Two sites with a real strongSwan each: network namespaces, one cable, charon with ESP in user space.

Each site's charon is controlled over its own socket, and the ends prove who they are with an IKE PSK that
has nothing to do with QKD.
"""

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHARON = Path("/usr/lib/ipsec/charon")
_SETTINGS = """
charon {{
    load_modular = yes
    retransmit_timeout = 0.5
    retransmit_base = 1.5
    retransmit_tries = 10
    install_routes = yes
    filelog {{
        log {{
            path = {folder}/charon.log
            flush_line = yes
            default = 1
        }}
    }}
    plugins {{
        include /etc/strongswan.d/charon/*.conf
        kernel-libipsec {{
            load = yes
        }}
        bypass-lan {{
            load = no
        }}
        vici {{
            socket = unix://{folder}/vici
        }}
    }}
}}
"""
IKE = "aes256gcm16-prfsha384-x25519"
ESP = "aes256gcm16-x25519"


def missing() -> str | None:
    """Return why sites with strongSwan cannot be set up here, or None."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    for program in ("ip", "swanctl", "unshare", "ping"):
        if shutil.which(program) is None:
            return f"needs {program}"
    if not CHARON.exists():
        return "needs charon of strongSwan"
    if "kernel-libipsec" not in "".join(path.name for path in Path("/usr/lib/ipsec/plugins").glob("*")):
        return "needs strongSwan's plugin kernel-libipsec"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun"
    return None


class Site:
    """One end: a namespace, a charon in it, and what an agent there would be told."""

    def __init__(self, name: str, number: int, namespace: str, folder: Path) -> None:
        other = 3 - number
        self.name = name
        self.namespace = namespace
        self.folder = folder
        self.socket = folder / "vici"
        self.address = f"10.217.0.{number}"
        self.tunnel_address = f"10.216.{number}.1"
        self.peer_tunnel_address = f"10.216.{other}.1"
        self.tunnel_addresses = (self.tunnel_address, self.peer_tunnel_address)
        self._inside = ("ip", "netns", "exec", namespace)
        self._charon: subprocess.Popen[bytes] | None = None
        self.connection: dict[str, Any] = {
            "local_addrs": [self.address],
            "remote_addrs": [f"10.217.0.{other}"],
            "encap": "yes",
            "proposals": [IKE],
            "local": {"auth": "psk", "id": name},
            "remote": {"auth": "psk", "id": "bob" if name == "alice" else "alice"},
            "children": {
                "net": {
                    "local_ts": [f"{self.tunnel_address}/32"],
                    "remote_ts": [f"{self.peer_tunnel_address}/32"],
                    "esp_proposals": [ESP],
                }
            },
        }

    @property
    def daemon_pid(self) -> int:
        """The process of charon, which runs."""
        assert self._charon is not None
        return self._charon.pid

    def tunnel_table(self) -> dict[str, Any]:
        """Return the table `[tunnel]` of the agent's file."""
        return {"kind": "strongswan", "socket": str(self.socket), "connection": self.connection}

    def run(self, *arguments: str, check: bool = True) -> str:
        """Run a command in the site's namespace and return what it printed."""
        done = subprocess.run([*self._inside, *arguments], capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def swanctl(self, *arguments: str, check: bool = True) -> str:
        """Run the operator's command."""
        return self.run("swanctl", *arguments, "--uri", f"unix://{self.socket}", check=check)

    def route_in_clear(self) -> None:
        """Have packets that find no tunnel go over the cable."""
        peer = self.connection["remote_addrs"][0]
        self.run("ip", "route", "replace", self.peer_tunnel_address, "via", peer)

    def start_daemon(self) -> None:
        """Start charon and load the operator's credentials, as strongSwan's service does."""
        self.socket.unlink(missing_ok=True)
        settings = self.folder / "strongswan.conf"
        settings.write_text(_SETTINGS.format(folder=self.folder))
        # A private /run, for all charons of a machine would write one process file.
        self._charon = subprocess.Popen(
            [*self._inside, "unshare", "-m", "sh", "-c", f"mount -t tmpfs tmpfs /run && exec {CHARON}"],
            env={**os.environ, "STRONGSWAN_CONF": str(settings)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not self.socket.exists():
            assert self._charon.poll() is None, (self.folder / "charon.log").read_text()
            assert time.monotonic() < deadline, "charon has no socket after 60 s"
            time.sleep(0.02)
        self.load_operators_file()

    def load_operators_file(self) -> None:
        """Do what `systemctl reload strongswan` does."""
        self.swanctl("--load-all", "--file", str(self.folder / "swanctl.conf"))

    def kill_daemon(self) -> None:
        """End charon at once, without a word to the peer."""
        if self._charon is not None:
            self._charon.send_signal(signal.SIGKILL)
            self._charon.wait()
            self._charon = None

    def log(self) -> str:
        """Return what charon has said."""
        return (self.folder / "charon.log").read_text()


@contextmanager
def sites(mark: str, folder: Path, *, routed_in_clear: bool = False) -> Iterator[tuple[Site, Site]]:
    """Yield Alice's and Bob's site; ``mark`` (at most 9 characters) begins the names of namespaces.

    ``routed_in_clear``: packets that find no tunnel have a route over the cable; without, they have none.
    """
    pair = []
    secret = secrets.token_hex(32)
    try:
        for number, name in enumerate(("alice", "bob"), 1):
            namespace = f"{mark}-{name}"
            home = folder / name
            home.mkdir(mode=0o700)
            (home / "swanctl.conf").write_text(
                f"secrets {{\n ike-operator {{\n id-1 = alice\n id-2 = bob\n secret = 0x{secret}\n }}\n}}\n"
            )
            subprocess.run(["ip", "netns", "add", namespace], check=True)
            pair.append(Site(name, number, namespace, home))
        alice, bob = pair
        near, far = (f"{mark}-a", alice.namespace), (f"{mark}-b", bob.namespace)
        made = (
            "ip",
            "link",
            "add",
            near[0],
            "netns",
            near[1],
            "type",
            "veth",
            "peer",
            far[0],
            "netns",
            far[1],
        )
        subprocess.run(made, check=True)
        for site, cable, other in ((alice, f"{mark}-a", bob), (bob, f"{mark}-b", alice)):
            site.run("ip", "link", "set", "lo", "up")
            site.run("ip", "link", "set", cable, "name", "cable")
            site.run("ip", "addr", "add", f"{site.address}/24", "dev", "cable")
            site.run("ip", "link", "set", "cable", "up")
            site.run("ip", "addr", "add", f"{site.tunnel_address}/32", "dev", "lo")
            if routed_in_clear:
                site.route_in_clear()
            else:
                site.run("ip", "route", "add", "unreachable", other.tunnel_address)
        for site in pair:
            site.start_daemon()
        yield alice, bob
    finally:
        for site in pair:
            site.kill_daemon()
            subprocess.run(["ip", "netns", "del", site.namespace], check=False)
