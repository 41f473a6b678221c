"""The product as processes: a small fast link, daemons started and killed, encryptors as HTTPS clients."""

import base64
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import tomli_w

from qnode.config import Role, convert
from qnode.loopback.prepare import Endpoints, LoopbackConfig, SaeEndpoint, Staging, prepare
from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_events, ask_status, decode_status
from qnode.operate.status.model import NodeStatus

# Blocks of 1.3 s of tags that give some 35 keys each: an optimistic interferometer and quiet detectors.
_DETECTOR = {"dark_rate_hz": 100.0, "afterpulse_probability": 0.0, "dead_time_s": 2e-6}
SMALL_LINK: dict[str, Any] = {
    "link": {
        "name": "small",
        "source": {"mu": [0.4, 0.1], "p": [0.5, 0.5]},
        "block": {"sifted_bits": 40_000},
        "estimation": {"estimator": "rusca2018", "x_mode": "visibility", "eps_sec": 1e-9},
    },
    "simulation": {
        "attenuation_db": 22.0,
        "visibility": 0.995,
        "wrong_bin_fraction": 0.001,
        "z_detector": _DETECTOR,
        "x_detector": _DETECTOR,
    },
}
SPEED = 4.0  # times real time: a block takes a third of a second, and a loaded machine just takes longer

PATIENCE_S = 90.0  # for what takes seconds, on a machine that does other things as well
STOP_S = 60.0
ROLES: tuple[Role, Role] = ("alice", "bob")

T = TypeVar("T")


def eventually(look: Callable[[], T | None], what: str, *, within_s: float = PATIENCE_S) -> T:
    """Return the first true value of ``look()``, asked again and again."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(0.05)
    return found


def write_small_link(path: Path) -> Path:
    """Write the loopback file of the small link."""
    path.write_text(tomli_w.dumps(SMALL_LINK))
    return path


def alter(site_file: Path, **changes: Any) -> None:
    """Change keys of a site's file; "__" stands for the dot between tables, None removes the key."""
    tables = tomllib.loads(site_file.read_text())
    for place, value in changes.items():
        *path, key = place.split("__")
        table = tables
        for name in path:
            table = table[name]
        if value is None:
            del table[key]
        else:
            table[key] = value
    site_file.write_text(tomli_w.dumps(tables))


def run_once(site_file: Path, *, within_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """Run a daemon that is expected to refuse to start."""
    command = [sys.executable, "-m", "qnode", "run", "--config", str(site_file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)


def look_at(control_socket: str | Path) -> NodeStatus | None:
    """Return what a daemon says of itself, None while it does not answer."""
    try:
        return decode_status(ask_status(Path(control_socket), patience_s=30.0))
    except (NodeNotRunning, NoAnswer):
        return None


def events_of(control_socket: str | Path) -> list[dict[str, Any]]:
    """Return a daemon's latest events."""
    return ask_events(Path(control_socket), 1000, patience_s=30.0)


def qnodectl(control_socket: str | Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `qnodectl` as an operator would."""
    command = [sys.executable, "-m", "qnode.cli.control", "--socket", str(control_socket), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


class Encryptor:
    """One SAE as a client of its key manager."""

    def __init__(self, endpoints: Endpoints, sae: SaeEndpoint) -> None:
        self.sae = sae
        self._tls = ssl.create_default_context(cafile=endpoints.ca)
        self._tls.load_cert_chain(sae.cert, sae.key)
        sites = [site for link in endpoints.links for site in link.sites.values()]
        self._url = next(site.url for site in sites if site.kme_id == sae.kme)

    def get(self, call: str) -> httpx.Response:
        """Call ``{peer}/{call}`` with GET."""
        with self._client() as client:
            return client.get(f"/api/v1/keys/{self.sae.peer_sae_id}/{call}")

    def post(self, call: str, body: Any) -> httpx.Response:
        """Call ``{peer}/{call}`` with POST."""
        with self._client() as client:
            return client.post(f"/api/v1/keys/{self.sae.peer_sae_id}/{call}", json=body)

    def stored(self) -> int:
        """Return how many keys this SAE could have as master; 0 while nobody answers."""
        try:
            response = self.get("status")
        except httpx.TransportError:
            return 0
        return int(response.json()["stored_key_count"]) if response.status_code == 200 else 0

    def assign(self, number: int, *, size_bits: int = 256) -> dict[str, bytes]:
        """Fetch new keys as master, by key_ID; waits until there are so many."""
        body = {"number": number, "size": size_bits}
        return self._patiently(lambda: self.post("enc_keys", body))

    def fetch(self, key_ids: list[str]) -> httpx.Response:
        """Ask for keys as slave."""
        return self.post("dec_keys", {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]})

    def fetch_soon(self, key_ids: list[str]) -> dict[str, bytes]:
        """Fetch keys as slave, by key_ID; waits until the key manager serves them."""
        return self._patiently(lambda: self.fetch(key_ids))

    def _patiently(self, ask: Callable[[], httpx.Response]) -> dict[str, bytes]:
        """Ask again while the answer is 503."""

        def served() -> httpx.Response | None:
            response = ask()
            return None if response.status_code == 503 else response

        return keys_in(eventually(served, f"keys for {self.sae.sae_id}"))

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._url, verify=self._tls, timeout=PATIENCE_S, trust_env=False)


def keys_in(response: httpx.Response) -> dict[str, bytes]:
    """Return the keys of a key container by key_ID."""
    assert response.status_code == 200, response.text
    entries = response.json()["keys"]
    keys = {entry["key_ID"]: base64.b64decode(entry["key"], validate=True) for entry in entries}
    assert len(keys) == len(entries)
    return keys


def encryptors(endpoints: Endpoints, link: int = 0) -> tuple[Encryptor, Encryptor]:
    """Return the pair of a link, at Alice and at Bob, that loopback does not drain."""
    alice, bob = endpoints.links[link].saes_of(demo=False)
    return Encryptor(endpoints, alice), Encryptor(endpoints, bob)


class Sites:
    """Daemons of `qnode run` over one prepared folder, started and ended one by one.

    They are ``alice`` and ``bob``; with several ``links`` also ``bob-2``, ``bob-3`` ...
    """

    def __init__(self, folder: Path, links: int = 1, tables: dict[str, Any] = SMALL_LINK) -> None:
        self.data = folder / "data"
        self._logs = folder / "logs"
        self._logs.mkdir()
        config = convert(tables, LoopbackConfig, where="the small link")
        prepared = prepare(self.data, config, Staging(SPEED, links=links))
        self.site_files, self.endpoints = prepared.site_files, prepared.endpoints
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *roles: str) -> None:
        """Start daemons; they may take a while to answer."""
        for role in roles:
            command = [sys.executable, "-m", "qnode", "run", "--config", str(self.site_files[role])]
            with self._log_file(role).open("ab") as log:
                self.processes[role] = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self, *roles: str) -> list[int]:
        """Ask daemons to stop and return their exit codes."""
        for role in roles:
            self.processes[role].terminate()
        return [self.processes[role].wait(STOP_S) for role in roles]

    def kill(self, *roles: str) -> None:
        """End daemons as a power cut would."""
        for role in roles:
            self.processes[role].kill()
            self.processes[role].wait(STOP_S)

    def log(self, role: str) -> str:
        """Return all that a site's daemons have logged."""
        return self._log_file(role).read_text(errors="replace")

    def status(self, role: str) -> NodeStatus | None:
        """Return what a daemon says of itself."""
        return look_at(str(self.data / role / "control.sock"))

    def wait_until_serving(self, *roles: str) -> None:
        """Wait until daemons answer everywhere."""

        def runs(role: str) -> bool:
            assert self.processes[role].poll() is None, self.log(role)[-3000:]
            status = self.status(role)
            return status is not None and status.state.state == "running"

        for role in roles:
            eventually(partial(runs, role), f"{role} runs")

    def _log_file(self, role: str) -> Path:
        return self._logs / f"{role}.log"


@contextmanager
def two_sites(folder: Path, links: int = 1, tables: dict[str, Any] = SMALL_LINK) -> Iterator[Sites]:
    """Hold a prepared folder; what still runs at the end is killed."""
    sites = Sites(folder, links, tables)
    try:
        yield sites
    finally:
        for process in sites.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait(STOP_S)


class Loopback:
    """A running `qnode loopback` that ends when it is told to."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.data = folder / "data"
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        self._command = [
            *(sys.executable, "-m", "qnode", "loopback"),
            *("--config", str(write_small_link(folder / "small.toml"))),
            *("--data-dir", str(self.data), "--speed", str(SPEED), *options),
        ]

    def start(self) -> None:
        """Start it in a process group of its own."""
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.process = subprocess.Popen(self._command, stdout=out, stderr=err, start_new_session=True)

    def endpoints(self) -> Endpoints:
        """Return `endpoints.json`, once it is there."""
        path = self.data / "endpoints.json"

        def written() -> bool:
            assert self.process.poll() is None, self.stderr.read_text()[-3000:]
            return path.exists()

        eventually(written, "endpoints.json")
        return msgspec.json.decode(path.read_bytes(), type=Endpoints)

    def stop(self) -> int:
        """Interrupt it as Ctrl-C would and return its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(2 * STOP_S)

    def daemon(self, role: Role) -> int | None:
        """Return the process id of a site's daemon that is running now."""
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == self.process.pid and str(self.data / role / "site.toml").encode() in words:
                return int(folder.name)
        return None


@contextmanager
def loopback(folder: Path, *options: str) -> Iterator[Loopback]:
    """Run `qnode loopback` with these options; what still runs at the end is killed, daemons included."""
    link = Loopback(folder, *options)
    link.start()
    try:
        yield link
    finally:
        process = link.process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(2 * STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S)


def traces_of(key: bytes) -> list[bytes]:
    """Return every way in which half a key could stand in a file: plain, hexadecimal, or in base64."""
    found: list[bytes] = []
    for half in (key[: len(key) // 2], key[len(key) // 2 :]):
        found += [half, half.hex().encode(), half.hex().upper().encode()]
    for encoded in (base64.b64encode(key), base64.urlsafe_b64encode(key)):
        found += [encoded[: len(encoded) // 2], encoded[len(encoded) // 2 :].rstrip(b"=")]
    return found


def files_with_a_trace(keys: list[bytes], *folders: Path) -> list[Path]:
    """Return the files below ``folders`` in which any part of ``keys`` can be read."""
    needles = [needle for key in keys for needle in traces_of(key)]
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and _any_in(needles, path.read_bytes())
    ]


def _any_in(needles: list[bytes], content: bytes) -> bool:
    return any(needle in content for needle in needles)


def has_curl() -> bool:
    """Tell whether the printed commands can be run here as they are."""
    return shutil.which("curl") is not None
