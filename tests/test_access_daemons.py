"""Two daemons as `qnode setup` leaves them: who may look at the page, and what a revocation ends at once."""

import os
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from daemons_support import PATIENCE_S, STOP_S, eventually, look_at

from qnode.addresses import free_ports
from qnode.choices import ROLES, Role
from qnode.cli.control import qnodectl
from qnode.cli.setup import setup
from qnode.operate.control.client import Reloaded, ask_reload

NOBODY = 65534
CERTIFICATES = (
    ("operator", "anna", "berta"),
    ("sae", "encryptor-alice", "kept"),
    *((kind, kind) for kind in ("node", "agent", "page")),
)


class Sites:
    """Both sites on this machine, in one folder beside the lab's; Alice's page by TLS, Bob's at a socket."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lab, self.etc = folder, folder / "lab", folder / "etc"
        link, fibre, self.page, *listen, metrics_alice, metrics_bob = free_ports(7)
        self.listen = dict(zip(ROLES, listen, strict=True))
        self.socket = folder / "page" / "page.sock"
        self.socket.parent.mkdir()
        if os.geteuid() == 0:
            os.chown(self.socket.parent, -1, NOBODY)
            self.socket.parent.chmod(0o2751)  # as docs/page.md says it for a proxy of another group
        self.pki("init", "lab")
        preshared = str(self.etc / "alice" / "preshared.key")
        more: dict[Role, tuple[str, ...]] = {
            "alice": ("--page", f"0.0.0.0:{self.page}", "--metrics", f"127.0.0.1:{metrics_alice}"),
            "bob": (
                *("--page", f"unix:{self.socket}", "--metrics", f"127.0.0.1:{metrics_bob}"),
                *("--preshared-key", preshared),
            ),
        }
        for role in ROLES:
            arguments = [
                *(role, "--folder", self.etc, "--lab", self.lab, "--state", folder / "state"),
                *("--address", f"127.0.0.1:{link}", "--fibre", f"tcp://127.0.0.1:{fibre}"),
                *("--listen", f"127.0.0.1:{self.listen[role]}", *more[role]),
            ]
            done = CliRunner().invoke(setup, list(map(str, arguments)), input="\n" * 9, standalone_mode=False)
            assert done.exception is None, done.exception
        for kind, *names in CERTIFICATES:
            for name in names:
                self.pki("issue", kind, name, "--out", folder / name)
        self.processes: dict[Role, subprocess.Popen[bytes]] = {}
        for role in ROLES:
            command = [sys.executable, "-m", "qnode", "run", "--config", str(self.etc / f"{role}.toml")]
            with (folder / f"{role}.log").open("wb") as log:
                self.processes[role] = subprocess.Popen(command, stdout=log, stderr=log)

    def pki(self, *words: str | Path) -> None:
        command = ["pki", *map(str, words), "--lab", str(self.lab)]
        done = CliRunner().invoke(qnodectl, command, standalone_mode=False)
        assert done.exception is None, done.exception

    def control(self, role: Role) -> Path:
        return self.folder / "state" / role / "control.sock"

    def reload(self, role: Role) -> Reloaded:
        return ask_reload(self.control(role), patience_s=PATIENCE_S)

    def connected(self, role: Role) -> bool:
        assert self.processes[role].poll() is None, (self.folder / f"{role}.log").read_text()[-3000:]
        status = look_at(self.control(role))
        return status is not None and status.peer.connection.state == "connected"

    def log(self, role: Role) -> str:
        return (self.folder / f"{role}.log").read_text()

    def client(self, ca: str, name: str | None, port: int) -> httpx.Client:
        tls = ssl.create_default_context(cafile=self.lab / f"{ca}-ca.pem")
        if name is not None:
            tls.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return httpx.Client(
            base_url=f"https://127.0.0.1:{port}", verify=tls, timeout=PATIENCE_S, trust_env=False
        )

    def copy_revocations(self) -> None:
        for name in ("link", "sae", "operator"):
            fetched = self.etc / "tls" / "fetched.crl"
            fetched.write_bytes((self.lab / f"{name}-ca.crl").read_bytes())
            fetched.replace(self.etc / "tls" / f"{name}-ca.crl")


@pytest.fixture
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    sites = Sites(tmp_path_factory.mktemp("a"))
    try:
        yield sites
    finally:
        for process in sites.processes.values():
            process.kill()
            process.wait(STOP_S)


class Viewer(threading.Thread):
    """Somebody who looks at the page; ``ended``: its live stream has ended."""

    def __init__(self, client: httpx.Client) -> None:
        super().__init__(daemon=True)
        self._client = client
        self.views = 0
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            with self._client as client, client.stream("GET", "/live") as live:
                for line in live.iter_lines():
                    self.views += line.startswith("data: ")
        except httpx.TransportError:
            pass
        finally:
            self.ended.set()


def refused(client: httpx.Client, path: str) -> bool:
    """Tell whether the server refuses the client in the handshake, or has closed its connection."""
    try:
        client.get(path)
    except httpx.TransportError:
        return True
    finally:
        client.close()
    return False


@pytest.mark.timeout(600)
def test_the_page_is_for_operators_and_a_reload_ends_what_revoked_certificates_have_open(
    sites: Sites,
) -> None:
    # The first daemons of a new checkout compile their kernels.
    eventually(
        lambda: sites.connected("alice") and sites.connected("bob"), "the sites meet", within_s=3 * PATIENCE_S
    )

    with sites.client("operator", "anna", sites.page) as client:
        assert client.get("/").status_code == 200
    for stranger in (None, "encryptor-alice", "node", "agent", "page"):
        assert refused(sites.client("operator", stranger, sites.page), "/")

    mode = sites.socket.stat()
    assert (stat.S_ISSOCK(mode.st_mode), stat.S_IMODE(mode.st_mode)) == (True, 0o660)
    transport = httpx.HTTPTransport(uds=str(sites.socket))
    with httpx.Client(transport=transport, timeout=PATIENCE_S) as proxy:
        assert proxy.get("http://page.example/status").json()["title"] == "kme-bob"
    if os.geteuid() == 0:
        assert mode.st_gid == NOBODY

    anna = Viewer(sites.client("operator", "anna", sites.page))
    berta = Viewer(sites.client("operator", "berta", sites.page))
    for viewer in (anna, berta):
        viewer.start()
    eventually(lambda: anna.views and berta.views, "both look")
    status = "/api/v1/keys/encryptor-bob/status"
    open_one = sites.client("sae", "encryptor-alice", sites.listen["alice"])
    assert open_one.get(status).status_code == 200

    for certificate in ("anna.pem", "encryptor-alice.pem", "etc/tls/link-bob.pem"):
        sites.pki("revoke", sites.folder / certificate)
    sites.copy_revocations()
    assert sites.reload("alice").fault is None

    assert refused(open_one, status)
    assert refused(sites.client("sae", "encryptor-alice", sites.listen["alice"]), status)
    with sites.client("sae", "kept", sites.listen["alice"]) as other:  # of the lab, but nobody registered
        assert other.get(status).status_code == 401
    assert anna.ended.wait(PATIENCE_S)
    assert refused(sites.client("operator", "anna", sites.page), "/")
    seen = berta.views
    eventually(lambda: berta.views > seen, "the other operator still looks")
    eventually(
        lambda: "the certificate is not accepted: certificate revoked" in sites.log("alice"), "refusal"
    )
    assert "link.cut" in sites.log("alice")
    assert not sites.connected("alice")

    sites.pki("issue", "node", "kme-bob", "--out", sites.folder / "bob")
    (sites.etc / "tls" / "link-bob.pem").write_bytes((sites.folder / "bob.pem").read_bytes())
    (sites.etc / "bob" / "peer-tls.key").write_bytes((sites.folder / "bob.key").read_bytes())
    assert sites.reload("bob").fault is None
    eventually(lambda: sites.connected("alice") and sites.connected("bob"), "the sites meet again")
    assert not berta.ended.is_set()
