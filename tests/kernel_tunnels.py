"""Tunnels of the Linux kernel, whose keys an agent changes, in a small virtual machine.

    python tests/kernel_tunnels.py FOLDER [KIND…]

It needs root, the Debian packages below, about 600 MB in FOLDER, and the network the first time: it unpacks
Debian's kernel package into FOLDER.

    apt-get install --no-install-recommends qemu-system-x86 busybox-static kmod iproute2 iputils-ping

In the machine each kind of tunnel joins two network namespaces. For each end a process has the tunnel of
`qnode.agent.tunnels`; keys change in the order of `qnode/agent/tunnel.py`, under a ping. KIND is one of
macsec, macsec-xpn; both if none is named. The machine's processor is emulated: times say
little.
"""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import trio
from virtual_machine import run_machine

from qnode.agent.tunnel import Role, TunnelKey
from qnode.agent.tunnels.macsec import MacsecConfig, MacsecTunnel
from qnode.errors import TunnelError

HERE: Final = Path(__file__).resolve()
PASSED: Final = "KERNEL-TUNNELS-PASSED"
RUN_LIMIT_S: Final = 400  # of one kind; a minute or two on a machine that does nothing else
KERNEL: Final = "linux-image-amd64"
MODULES: Final = (
    *("veth", "macsec"),
    *("gcm", "ctr", "ghash_generic", "aesni_intel"),
)
N_CHANGES: Final = 10
PING_PERIOD_S: Final = 0.02
SITES: Final = ("a", "b")


# Outside: what the machine runs


def get_kernel(folder: Path) -> None:
    """Unpack Debian's kernel package into ``folder``, unless one is there."""
    if (folder / "boot").is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    needed = subprocess.run(
        ["apt-cache", "depends", KERNEL], check=True, capture_output=True, text=True
    ).stdout
    [package] = re.findall(r"Depends: (linux-image-\S+)", needed)
    subprocess.run(["apt-get", "download", package], check=True, cwd=folder)
    [archive] = folder.glob("linux-image-*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    archive.unlink()
    [modules] = (folder / "lib/modules").iterdir()
    subprocess.run(["depmod", "-b", folder, modules.name], check=True)


# Inside: one end


def run_site(kind: str, role: Role, config: str) -> None:
    """Be one end: read calls of the tunnel from standard input, answer each in a line."""
    try:
        trio.run(_site, kind, role, json.loads(config))
    except TunnelError as error:
        print(json.dumps({"error": str(error)}), flush=True)


async def _site(kind: str, role: Role, config: dict[str, Any]) -> None:
    tunnel_kind: Any = TUNNELS[kind]
    async with tunnel_kind[0](tunnel_kind[1](**config), role).open(first_key_required=True) as tunnel:
        print(json.dumps({"ok": None}), flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            method, *words = line.split()
            arguments = [TunnelKey(words[0], bytes.fromhex(words[1]))] if words else []
            try:
                answer = await getattr(tunnel, method)(*arguments)
                in_use = method == "in_use" and answer is not None
                print(json.dumps({"ok": [answer.key_id, answer.proof] if in_use else answer}), flush=True)
            except TunnelError as error:
                print(json.dumps({"error": str(error)}), flush=True)


TUNNELS: Final[dict[str, tuple[Any, Any]]] = {"macsec": (MacsecTunnel, MacsecConfig)}


# Inside: both ends


class Site:
    """The process of one end."""

    def __init__(self, name: str, kind: str, role: Role, config: dict[str, Any]) -> None:
        self._command = ["ip", "netns", "exec", name, sys.executable, "-u", str(HERE)]
        self._command += ["--site", kind, role, json.dumps(config)]
        self.start()

    def start(self) -> None:
        """Start the process; it opens the tunnel."""
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        self._answer()

    def kill(self) -> None:
        """End the process without warning."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def call(self, method: str, key: TunnelKey | None = None) -> Any:
        """Call a method of the tunnel."""
        assert self._process.stdin is not None
        words = [method] if key is None else [method, key.key_id, key.key.hex()]
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in answer:
            raise TunnelError(answer["error"])
        return answer["ok"]


def new_key() -> TunnelKey:
    """Return a random key."""
    return TunnelKey(str(uuid.uuid4()), secrets.token_bytes(32))


class Pair:
    """Both ends, initiator first."""

    def __init__(self, initiator: Site, responder: Site) -> None:
        self.initiator, self.responder = initiator, responder
        self.differed_s: list[float] = []
        self.took_s: list[float] = []

    def each(self, method: str, key: TunnelKey) -> None:
        """Call a method at the responder, then at the initiator."""
        self.responder.call(method, key)
        self.initiator.call(method, key)

    def change(self) -> TunnelKey:
        """Change the key; both encryptors must say that it is in use."""
        key, began = new_key(), time.monotonic()
        self.initiator.call("prepare")
        self.responder.call("prepare")
        self.each("load", key)
        self.responder.call("activate", key)
        first = time.monotonic()
        self.initiator.call("activate", key)
        self.differed_s.append(time.monotonic() - first)
        for site in (self.responder, self.initiator):
            self.wait_for(site, key)
        self.each("retire", key)
        self.took_s.append(time.monotonic() - began)
        return key

    def wait_for(self, site: Site, key: TunnelKey) -> None:
        """Wait until one end says that a key is in use."""
        deadline = time.monotonic() + 20
        while (said := site.call("in_use")) is None or said[0] != key.key_id:
            assert time.monotonic() < deadline, f"{key.key_id} is not in use, but {said}"
            time.sleep(0.1)

    def fail_half_way(self) -> None:
        """Load a key at both ends, activate it at the responder, then unload it."""
        key = new_key()
        self.each("load", key)
        self.responder.call("activate", key)
        time.sleep(0.5)
        self.each("unload", key)


def run(*command: str, namespace: str = "", text: str | None = None) -> str:
    """Run a command, and return what it printed."""
    inside = ["ip", "netns", "exec", namespace] if namespace else []
    done = subprocess.run([*inside, *command], check=False, capture_output=True, text=True, input=text)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def make_line() -> None:
    """Make two namespaces with a line between them, which speaks nothing by itself."""
    for site in SITES:
        subprocess.run(["ip", "netns", "delete", site], stderr=subprocess.DEVNULL, check=False)
        run("ip", "netns", "add", site)
    ends = [f"line netns {site} address 02:00:00:00:00:0{site}" for site in SITES]
    run("ip", *f"link add {ends[0]} type veth peer name {ends[1]}".split())
    for site in SITES:
        run("sysctl", "-qw", "net.ipv6.conf.line.disable_ipv6=1", namespace=site)
        for interface in ("lo", "line"):
            run("ip", "link", "set", interface, "up", namespace=site)


@contextmanager
def pinging(target: str, *, n: int | None = None) -> Iterator[Callable[[], tuple[int, int]]]:
    """Ping from site a; yield what ends it and returns the packets sent and received."""
    command = ["ip", "netns", "exec", "a", "ping", "-i", str(PING_PERIOD_S), "-W", "1", target]
    ping = subprocess.Popen([*command, *(["-c", str(n)] if n else [])], stdout=subprocess.PIPE, text=True)

    def counts() -> tuple[int, int]:
        if n is None:
            ping.send_signal(signal.SIGINT)
        assert ping.stdout is not None
        found = re.search(r"(\d+) packets transmitted, (\d+) received", ping.stdout.read())
        assert found is not None
        return int(found[1]), int(found[2])

    try:
        yield counts
    finally:
        ping.kill()
        ping.wait()


def nothing_passes(target: str) -> None:
    """Check that no ping is answered."""
    with pinging(target, n=20) as counts:
        sent, received = counts()
    assert received == 0, f"{received} of {sent} packets passed"


COUNT_ETHERTYPES: Final = """
import collections, json, socket, sys, threading
line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
line.bind(("line", 0))
counts = collections.Counter()
def count():
    while True:
        frame = line.recv(2048)
        counts[frame[12:14].hex() + (f"/{frame[23]}" if frame[12:14] == b"\\x08\\x00" else "")] += 1
threading.Thread(target=count, daemon=True).start()
print("", flush=True)
sys.stdin.readline()
print(json.dumps(counts), flush=True)
"""


@contextmanager
def watched_line() -> Iterator[Callable[[], dict[str, int]]]:
    """Count the frames on the line by their ethertype, and IP protocol; yield what returns the counts."""
    pipe = subprocess.PIPE
    command = ["ip", "netns", "exec", "b", sys.executable, "-c", COUNT_ETHERTYPES]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as watcher:
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        watcher.stdout.readline()

        def counts() -> dict[str, int]:
            assert watcher.stdin is not None
            assert watcher.stdout is not None
            watcher.stdin.write("\n")
            watcher.stdin.flush()
            return dict(json.loads(watcher.stdout.readline()))

        yield counts


def change_under_traffic(pair: Pair, target: str, n_changes: int) -> TunnelKey:
    """Change the key several times under a ping; print what was lost."""
    pair.differed_s.clear()
    pair.took_s.clear()
    with pinging(target) as counts:
        time.sleep(1)
        for _ in range(n_changes):
            key = pair.change()
            time.sleep(0.5)
        time.sleep(1)
        sent, received = counts()
    differed_ms, took_ms = max(pair.differed_s) * 1000, max(pair.took_s) * 1000
    print(
        f"  {n_changes} changes, {sent} packets sent, {sent - received} lost; the initiator activated within",
        end=" ",
    )
    print(f"{differed_ms:.0f} ms, a change took at most {took_ms:.0f} ms")
    assert sent > 50
    assert sent == received, f"{sent - received} of {sent} packets lost"
    return key


# MACsec


def try_macsec(cipher: str) -> None:
    """Changes without loss, a failed change, restarts, an end made anew, and nothing in clear."""
    inner = {"a": "10.9.0.1", "b": "10.9.0.2"}
    addresses = {"a": "02:00:00:00:00:0a", "b": "02:00:00:00:00:0b"}

    def make(site: str) -> None:
        options = f"cipher {cipher} encrypt on validate strict replay on window 32"
        run("ip", *f"link add link line macsec0 type macsec {options}".split(), namespace=site)
        run("ip", "address", "add", f"{inner[site]}/24", "dev", "macsec0", namespace=site)

    for site in SITES:
        make(site)
        run("ip", "address", "add", f"192.0.2.{SITES.index(site) + 1}/24", "dev", "line", namespace=site)
    run("ip", "route", "add", "default", "via", "192.0.2.2", namespace="a")  # the way in clear
    configs = {site: {"interface": "macsec0", "peer_address": addresses[peer]} for site, peer in ("ab", "ba")}
    with watched_line() as seen:
        pair = Pair(
            Site("a", "macsec", "initiator", configs["a"]), Site("b", "macsec", "responder", configs["b"])
        )
        assert pair.initiator.call("in_use") is None
        for site in SITES:
            run("ip", "link", "set", "macsec0", "up", namespace=site)
        nothing_passes(inner["b"])
        print("  nothing passes before the first key")
        key = pair.change()
        key = change_under_traffic(pair, inner["b"], N_CHANGES)
        print(f"  in use: {pair.responder.call('in_use')[1]}")

        with pinging(inner["b"]) as counts:
            pair.fail_half_way()
            assert pair.initiator.call("in_use")[0] == pair.responder.call("in_use")[0] == key.key_id
            pair.responder.kill()
            pair.responder.start()
            assert pair.responder.call("in_use")[0] == key.key_id
            pair.change()
            sent, received = counts()
        print(f"  a failed change and a restart of an agent: {sent} packets sent, {sent - received} lost")
        assert sent == received

        run("ip", "link", "delete", "macsec0", namespace="a")
        make("a")
        pair.initiator.kill()
        pair.initiator.start()
        n_tries = heal(pair)
        print(f"  an end made anew: in step again at change {n_tries}")
        change_under_traffic(pair, inner["b"], 2)

        used = new_key()
        pair.each("load", used)
        pair.each("activate", used)
        for one in (pair.initiator, pair.responder):
            one.call("take_down")
            assert one.call("in_use") is None
            try:
                one.call("load", used)
            except TunnelError as error:
                told = str(error)
        print(f"  refused: {told}")
        nothing_passes(inner["b"])
        print("  nothing passes after take_down")
        pair.change()
        change_under_traffic(pair, inner["b"], 1)
        frames = seen()
    print(f"  frames on the line by ethertype: {frames}")
    assert set(frames) == {"88e5"}, frames
    setting = "link set macsec0 type macsec"
    for faulty, told in (("encrypt off", "sends in clear"), ("validate check", "without protection")):
        run("ip", *f"{setting} {faulty}".split(), namespace="a")
        refused(lambda: Site("a", "macsec", "initiator", configs["a"]), told)
        run("ip", *f"{setting} encrypt on validate strict".split(), namespace="a")
    refused(
        lambda: Site("a", "macsec", "initiator", {**configs["a"], "interface": "line"}), "no MACsec interface"
    )


def heal(pair: Pair) -> int:
    """Change the key until both ends use it, as an agent does; return the number of changes tried."""
    for n in range(1, 5):
        try:
            pair.change()
        except AssertionError:
            continue
        return n
    raise AssertionError("the ends did not come in step")


def refused(start: Callable[[], object], told: str) -> None:
    """Check that a tunnel is refused with a reason."""
    said = "it was not refused"
    try:
        start()
    except TunnelError as error:
        said = str(error)
    assert told in said, said
    print(f"  refused: {said}")


TRIALS: Final[dict[str, Callable[[], None]]] = {
    "macsec": lambda: try_macsec("gcm-aes-256"),
    "macsec-xpn": lambda: try_macsec("gcm-aes-xpn-256"),
}


def run_inside(folder: Path, kind: str) -> None:
    """Run the trial of one kind in the machine."""
    Path("/lib/modules").mkdir(parents=True, exist_ok=True)
    run("mount", "--bind", str(folder / "lib/modules"), "/lib/modules")
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    run("modprobe", "-a", *MODULES)
    print(f"{kind} (kernel {os.uname().release}):", flush=True)
    make_line()
    TRIALS[kind]()
    print(PASSED)


def main(arguments: list[str]) -> int:
    """Run outside, inside, or as one end."""
    if arguments[:1] == ["--site"]:
        run_site(*arguments[1:])  # type: ignore[arg-type]
        return 0
    if arguments[:1] == ["--inside"]:
        run_inside(Path(arguments[1]), arguments[2])
        return 0
    if not arguments or set(arguments[1:]) - set(TRIALS):
        sys.exit(__doc__)
    folder, kinds = Path(arguments[0]).resolve(), arguments[1:] or list(TRIALS)
    get_kernel(folder)
    failed = 0
    for kind in kinds:
        failed += run_machine(
            folder, [str(HERE), "--inside", str(folder), kind], passed=PASSED, limit_s=RUN_LIMIT_S
        )
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
