"""Three network namespaces: the central office, the plant, and the operator's line between them.

The central office is Alice's site, the plant Bob's. Every name carries the name of the run, so that several
testbeds run side by side. A lock in `/run` says that a run is alive: what belongs to a lock that nobody holds
is a rest of a killed run, and the next start removes it.
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from qnode.choices import Role
from qnode.errors import QnodeError

Site = Literal["office", "plant"]
Place = Literal["office", "plant", "line"]
SITES: Final[tuple[Site, ...]] = ("office", "plant")
PLACES: Final[tuple[Place, ...]] = ("office", "line", "plant")
ROLE_AT: Final[dict[Site, Role]] = {"office": "alice", "plant": "bob"}
TITLE: Final[dict[Place, str]] = {"office": "central office", "line": "operator's line", "plant": "plant"}
# The subnet of each site on the line, the site's own address in it, and the operator's.
_SUBNET: Final[dict[Site, str]] = {"office": "10.91.1", "plant": "10.91.2"}
LINE_ADDRESS: Final[dict[Site, str]] = {site: f"{subnet}.2" for site, subnet in _SUBNET.items()}
# The table by which the operator routes what comes from a site into the relay.
_TABLE: Final[dict[Site, str]] = {"office": "101", "plant": "102"}
_MTU: Final = "1500"
_TUN_QUEUE_PACKETS: Final = "2000"

# The address of each site inside the tunnel.
TUNNEL_ADDRESS: Final[dict[Site, str]] = {"office": "10.92.1.1", "plant": "10.92.2.1"}
LOCKS: Final = Path("/run/qnode-testbed")
WIREGUARD_SOCKETS: Final = Path("/run/wireguard")
# Interfaces and sockets are named after a run, and an interface may have 15 characters.
NAME: Final = re.compile(r"[a-z0-9]{1,8}")
# How long a killed process may take to go.
_GONE_S: Final = 10.0


class NetworkRefused(QnodeError):
    """The namespaces cannot be made; the message says why and how to mend it."""


class Network(Struct, frozen=True):
    """The namespaces of the run ``name``."""

    name: str

    def namespace(self, place: Place) -> str:
        """Return the name of a namespace."""
        return f"qtb-{self.name}-{place}"

    def interface(self, site: Site) -> str:
        """Return the name of the tunnel's interface at a site: wireguard-go's socket is named after it."""
        return f"qtb{self.name}{site[0]}"

    def inside(self, place: Place, *command: str) -> list[str]:
        """Return ``command``, to be run in a namespace: the process is the command's own."""
        return ["ip", "netns", "exec", self.namespace(place), *command]


@contextmanager
def open_network(name: str) -> Iterator[Network]:
    """Make the namespaces with their addresses and routes, and remove them on every way out.

    At the end every process that is still in them is killed.

    Raises:
        NetworkRefused: without root or `ip`, or if a run of this name is alive.
    """
    check_network()
    LOCKS.mkdir(mode=0o700, exist_ok=True)
    with _setting_up():
        remove_leftovers()
        lock = _lock(LOCKS / name)
    if lock is None:
        raise NetworkRefused(f"a testbed with the name {name} is running; give another one (--name)")
    network = Network(name)
    try:
        _make(network)
        yield network
    finally:
        with _setting_up():
            remove(network)
            (LOCKS / name).unlink(missing_ok=True)
            os.close(lock)


def route_through_relay(network: Network, devices: dict[Site, str]) -> None:
    """Lead what comes from each site into its TUN device; the relay carries it to the other one.

    Raises:
        NetworkRefused: `ip` refuses, with its words.
    """
    line = network.namespace("line")
    for site, device in devices.items():
        _ip("-n", line, "link", "set", device, "up", "mtu", _MTU, "txqueuelen", _TUN_QUEUE_PACKETS)
        _ip("-n", line, "route", "add", "default", "dev", device, "table", _TABLE[site])
        _ip("-n", line, "rule", "add", "iif", site, "lookup", _TABLE[site])


def remove_leftovers() -> None:
    """Remove the namespaces of runs that are no longer alive, and kill what is still in them."""
    for path in sorted(LOCKS.iterdir()):
        lock = _lock(path)
        if lock is not None:
            remove(Network(path.name))
            path.unlink(missing_ok=True)
            os.close(lock)


def remove(network: Network) -> None:
    """Kill every process in the namespaces, and remove them; what is not there is no error."""
    for place in PLACES:
        namespace = network.namespace(place)
        if not Path("/run/netns", namespace).exists():
            continue
        deadline = time.monotonic() + _GONE_S
        while (pids := _pids(namespace)) and time.monotonic() < deadline:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        with suppress(NetworkRefused):  # it is gone
            _ip("netns", "del", namespace)
    for site in SITES:  # a killed wireguard-go leaves its socket
        (WIREGUARD_SOCKETS / f"{network.interface(site)}.sock").unlink(missing_ok=True)


def check_network() -> None:
    """Refuse where namespaces cannot be made.

    Raises:
        NetworkRefused: without root, `ip`, or `/dev/net/tun`.
    """
    if os.geteuid() != 0:
        raise NetworkRefused(
            "network namespaces need root: run it with sudo, or in a virtual machine as root"
        )
    if shutil.which("ip") is None:
        raise NetworkRefused("ip is missing: apt-get install iproute2")
    if not Path("/dev/net/tun").exists():
        raise NetworkRefused("/dev/net/tun is missing: modprobe tun, or give the container this device")


@contextmanager
def _setting_up() -> Iterator[None]:
    """Keep other testbeds from making and removing namespaces meanwhile."""
    folder = os.open(LOCKS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _lock(path: Path) -> int | None:
    """Return the locked file; None: a run that is alive has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _make(network: Network) -> None:
    for place in PLACES:
        _ip("netns", "add", network.namespace(place))
        _ip("-n", network.namespace(place), "link", "set", "lo", "up")
    line = network.namespace("line")
    for site in SITES:
        own, operator = network.namespace(site), f"{_SUBNET[site]}.1"
        _ip("link", "add", site, "netns", line, "type", "veth", "peer", "name", "line", "netns", own)
        _ip("-n", line, "address", "add", f"{operator}/24", "dev", site)
        _ip("-n", own, "address", "add", f"{LINE_ADDRESS[site]}/24", "dev", "line")
        _ip("-n", line, "link", "set", site, "up", "mtu", _MTU)
        _ip("-n", own, "link", "set", "line", "up", "mtu", _MTU)
        _ip("-n", own, "route", "add", "default", "via", operator)
    settings = " && ".join(
        f"echo {value} >/proc/sys/net/ipv4/{key}"
        # The answer to what came through one TUN device goes out by the other: no reverse-path filter.
        for key, value in (("ip_forward", 1), ("conf/all/rp_filter", 0), ("conf/default/rp_filter", 0))
    )
    run_command(network.inside("line", "sh", "-c", settings))


def _pids(namespace: str) -> list[int]:
    return [int(pid) for pid in run_command(["ip", "netns", "pids", namespace]).split()]


def _ip(*words: str) -> str:
    return run_command(["ip", *words])


def run_command(command: Sequence[str], given: str = "") -> str:
    """Run a command that sets up the network, and return what it printed; ``given``: its standard input.

    Raises:
        NetworkRefused: it fails, with its words.
    """
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit {done.returncode}"
        raise NetworkRefused(f"{' '.join(command)}: {said}")
    return done.stdout
