"""SIGHUP on a running daemon: all or nothing, never its end, and every step told to the service manager."""

import json
import os
import signal
import socket
import ssl
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trustme
from click.testing import CliRunner, Result
from cryptography import x509
from daemons_support import Encryptor, Sites, alter, encryptors, events_of, eventually, two_sites
from http_support import Pki

from qnode.cli.control import qnodectl
from qnode.config import SiteConfig, load
from qnode.delivery_server import connection_limits
from qnode.http import Limits
from qnode.operate.status.model import NodeStatus

CONFIG = Path(__file__).parent.parent / "config"


class Manager:
    """A service manager's end of sd_notify."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(60.0)

    def until(self, word: str) -> str:
        """Return the next notification that says ``word``."""
        while word not in (told := self.socket.recv(4096).decode()):
            pass
        return told


class Running:
    """Alice's daemon, whose files a test changes."""

    def __init__(self, sites: Sites, manager: Manager, authority: Pki) -> None:
        self.sites, self.manager, self.authority = sites, manager, authority
        self.file = sites.site_files["alice"]
        self.socket = sites.endpoints.sites["alice"].control_socket

    def reload(self) -> str:
        """Send SIGHUP; return what the service manager is told at the end."""
        self.sites.processes["alice"].send_signal(signal.SIGHUP)
        self.manager.until("RELOADING=1")
        return self.manager.until("READY=1")

    def status(self) -> NodeStatus:
        """Return the daemon's status; it has not ended."""
        assert self.sites.processes["alice"].poll() is None, self.sites.log("alice")[-3000:]
        status = self.sites.status("alice")
        assert status is not None
        return status

    def alarms(self) -> dict[str, str]:
        """Return the text of each of the node's own alarms."""
        return {alarm.name: alarm.text for alarm in self.status().alarms}

    def last(self, event: str) -> dict[str, Any]:
        """Return the latest event of this name."""
        return [one for one in events_of(self.socket) if one["event"] == event][-1]


def wait_until_hangups_are_held(process_id: int) -> None:
    """Wait until SIGHUP no longer ends the process."""
    bit = 1 << (signal.SIGHUP - 1)

    def held() -> bool:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
        masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk", "SigCgt"))]
        return any(mask & bit for mask in masks)

    eventually(held, "SIGHUP is held")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("reload")
    manager = Manager(folder / "notify")
    with pytest.MonkeyPatch.context() as environment, two_sites(folder) as sites:
        environment.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        authority = Pki(folder)
        authority.revoke()
        for name in ("server", "sae-alice"):
            authority.write(name, authority.ca.issue_cert(name, "127.0.0.1"))
        for path in folder.glob("*.key"):
            path.chmod(0o600)
        alter(
            sites.site_files["alice"],
            etsi014__tls={
                "ca": str(authority.ca_file),
                "certificate": str(folder / "server.pem"),
                "key": str(folder / "server.key"),
                "crl": str(folder / "crl.pem"),
            },
        )
        sites.start("alice")
        wait_until_hangups_are_held(sites.processes["alice"].pid)
        sites.processes["alice"].send_signal(signal.SIGHUP)  # long before the node is up
        manager.until("READY=1")
        manager.until("READY=1")  # and the reload that waited for it
        yield Running(sites, manager, authority)
    manager.socket.close()


@pytest.fixture
def restored(running: Running) -> Iterator[Running]:
    """Put the files back as they were when the test ends."""
    folder = running.authority.folder
    paths = [running.file, *folder.glob("*.pem"), *folder.glob("*.key")]
    kept = {path: path.read_bytes() for path in paths}
    yield running
    for path, content in kept.items():
        path.write_bytes(content)
    assert "reload_failed" not in running.reload()
    assert "node.reload_failed" not in running.alarms()


def caller(running: Running) -> Encryptor:
    folder = running.authority.folder
    alice, _ = encryptors(running.sites.endpoints)
    alice._tls = ssl.create_default_context(cafile=str(running.authority.ca_file))
    alice._tls.load_cert_chain(folder / "sae-alice.pem", folder / "sae-alice.key")
    return alice


def test_a_hangup_before_the_node_is_up_ends_nothing(running: Running) -> None:
    assert running.status().state.state == "running"
    assert running.last("node.reloaded")["at"] >= running.last("node.started")["at"]


def empty_crl(pki: Pki) -> None:
    (pki.folder / "crl.pem").write_bytes(b"")


def cut_crl(pki: Pki) -> None:
    whole = (pki.folder / "crl.pem").read_bytes()
    (pki.folder / "crl.pem").write_bytes(whole + whole[: len(whole) // 2])


def crl_of_another_authority(pki: Pki) -> None:
    other = pki.folder / "other"
    other.mkdir(exist_ok=True)
    Pki(other).revoke()
    (pki.folder / "crl.pem").write_bytes((other / "crl.pem").read_bytes())


def forged_crl(pki: Pki) -> None:
    """Write a CRL in the authority's name that somebody else has signed."""
    ours, pki.ca._private_key = pki.ca._private_key, trustme.CA()._private_key
    try:
        pki.revoke()
    finally:
        pki.ca._private_key = ours


def certificate_as_crl(pki: Pki) -> None:
    (pki.folder / "crl.pem").write_bytes(trustme.CA().cert_pem.bytes())


def certificate_without_its_key(pki: Pki) -> None:
    renewed = pki.ca.issue_cert("127.0.0.1")
    (pki.folder / "server.pem").write_bytes(renewed.cert_chain_pems[0].bytes())


def expired_certificate(pki: Pki) -> None:
    then = x509.load_pem_x509_certificate(pki.ca.cert_pem.bytes()).not_valid_before_utc
    pki.write("server", pki.ca.issue_cert("127.0.0.1", not_before=then, not_after=then.replace(year=2021)))


def missing_key(pki: Pki) -> None:
    (pki.folder / "server.key").unlink()


def readable_key(pki: Pki) -> None:
    (pki.folder / "server.key").chmod(0o644)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (empty_crl, "crl.pem: holds no CRL"),
        (cut_crl, "a CRL that is cut"),
        (crl_of_another_authority, "is missing, and without it nobody"),
        (forged_crl, "is not signed by that authority"),
        (certificate_as_crl, "crl.pem: holds no CRL"),
        (certificate_without_its_key, "does not belong to the key"),
        (expired_certificate, "has expired, and the one in use has not"),
        (missing_key, "server.key"),
        (readable_key, "can be read by others"),
    ],
)
def test_what_cannot_be_used_changes_nothing_and_is_told(
    restored: Running, spoil: Callable[[Pki], None], reason: str
) -> None:
    spoil(restored.authority)
    try:
        told = restored.reload()
    finally:
        (restored.authority.folder / "server.key").touch(0o600)
        (restored.authority.folder / "server.key").chmod(0o600)
    assert "STATUS=running; node.reload_failed: the node continues as before the reload" in told
    assert reason in told
    assert reason in restored.last("node.reload_failed")["reason"]
    assert reason in restored.alarms()["node.reload_failed"]
    assert caller(restored).get("status").status_code == 200


def test_a_hangup_renews_the_certificates_of_encryptors_and_of_the_link(restored: Running) -> None:
    authority = restored.authority
    renewed = authority.write("server", authority.ca.issue_cert("127.0.0.1", common_name="renewed"))
    tls = restored.sites.data / "tls"
    link = trustme.CA().issue_cert("kme-alice")
    kept = (tls / "link-alice.pem").read_bytes(), (tls / "link-alice.key").read_bytes()
    (tls / "link-alice.pem").write_bytes(link.cert_chain_pems[0].bytes())
    link.private_key_pem.write_to_path(str(tls / "link-alice.key"))
    assert "failed" not in restored.reload()
    restored.last("node.reloaded")
    url = restored.sites.endpoints.sites["alice"].url.rpartition("//")[2]
    assert presented(url) == renewed.cert_chain_pems[0].bytes()
    skip_url = restored.sites.endpoints.sites["alice"].skip_url
    assert presented(skip_url.rpartition("//")[2]) == renewed.cert_chain_pems[0].bytes()
    etsi004_address = restored.sites.endpoints.sites["alice"].etsi004_address
    assert presented(etsi004_address) == renewed.cert_chain_pems[0].bytes()
    assert presented(peer_address(restored.file)) == link.cert_chain_pems[0].bytes()
    (tls / "link-alice.pem").write_bytes(kept[0])
    (tls / "link-alice.key").write_bytes(kept[1])


def test_skip_admits_and_refuses_the_same_encryptors_through_a_reload(restored: Running) -> None:
    authority, folder = restored.authority, restored.authority.folder
    site = restored.sites.endpoints.sites["alice"]

    def capabilities() -> httpx.Response:
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        context.load_cert_chain(folder / "sae-alice.pem", folder / "sae-alice.key")
        return httpx.get(f"{site.skip_url}/capabilities", verify=context, timeout=60, trust_env=False)

    own = authority.write("sae-alice", authority.ca.issue_cert("sae-alice"))
    tables = tomllib.loads(restored.file.read_text())
    for sae in tables["etsi014"]["sae"]:
        sae["system_id"] = f"system of {sae['sae_id']}"
    assert capabilities().json()["localSystemID"] == "sae-alice"
    alter(restored.file, etsi014__sae=tables["etsi014"]["sae"])
    restored.reload()
    assert capabilities().json()["localSystemID"] == "system of sae-alice"
    status = restored.status()
    assert status.skip is not None
    assert (status.skip.url, status.skip.http.requests_total) == (site.skip_url, 2)
    authority.revoke(own)
    restored.reload()
    with pytest.raises(httpx.TransportError):
        capabilities()


def peer_address(site_file: Path) -> str:
    line = next(line for line in site_file.read_text().splitlines() if line.startswith("address"))
    return line.split('"')[1]


def presented(address: str) -> bytes:
    """Return the certificate, in PEM, that a server presents to whoever connects."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=30).replace("\r", "").encode()


def test_new_saes_limits_and_the_log_level_are_applied_and_the_rest_is_named(restored: Running) -> None:
    pki = restored.authority
    tables = tomllib.loads(restored.file.read_text())
    saes = [
        *tables["etsi014"]["sae"],
        {"sae_id": "sae-new", "kme_id": "kme-alice", "peers": ["sae-far"]},
        {"sae_id": "sae-far", "kme_id": "kme-bob", "peers": ["sae-new"]},
    ]
    pki.write("sae-alice", pki.ca.issue_cert("sae-new"))
    newcomer = caller(restored)
    newcomer.sae = msgspec.structs.replace(newcomer.sae, peer_sae_id="sae-far")
    assert newcomer.get("status").status_code == 401
    alter(
        restored.file,
        etsi014__sae=saes,
        store__most_chunks=4096,
        operate__log_level="debug",
        link__block__longest_s=100.0,
        operate__metrics_listen="127.0.0.1:1",
    )
    told = restored.reload()
    assert newcomer.get("status").json()["max_key_count"] == 4096
    event = restored.last("node.reloaded")
    assert sorted(event["applied"]) == ["etsi014.sae", "operate.log_level", "store.most_chunks"]
    assert sorted(event["restart_needed"]) == ["link.block.longest_s", "operate.metrics_listen"]
    named = "changed, but not applied: link.block.longest_s, operate.metrics_listen"
    assert restored.alarms()["node.restart_needed"] == named
    assert f"STATUS=running; node.restart_needed: {named}" in told
    assert "sae-new" in {sae.sae_id for sae in restored.status().etsi014.saes}
    alter(
        restored.file,
        link__block__longest_s=3600.0,
        operate__metrics_listen=tables["operate"]["metrics_listen"],
    )
    restored.reload()  # which says again what is running already
    assert "node.restart_needed" not in restored.alarms()


def test_an_encryptor_is_added_and_removed_by_command_at_once_or_not_at_all_and_by_whom_is_recorded(
    restored: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_file = restored.sites.site_files["alice"]
    alter(site_file, etsi014__saes_file="more.toml")

    def command(*arguments: str) -> Result:
        asked = [*arguments, "--config", str(site_file)]
        done = CliRunner().invoke(qnodectl, ["saes", *asked], standalone_mode=False)
        restored.manager.until("READY=1")  # at the end of the reload
        return done

    def known() -> set[str]:
        return {sae.sae_id for sae in restored.status().etsi014.saes}

    assert "In force now, and after a restart" in command("add", "new-a", "new-b").output
    assert "new-a" in known()
    before = site_file.with_name("more.toml").read_bytes()
    crl_of_another_authority(restored.authority)  # which the node refuses, and `qnode check` only remarks on
    assert "the node refuses, and nothing was changed" in str(command("add", "other-a", "other-b").exception)
    assert site_file.with_name("more.toml").read_bytes() == before
    restored.authority.revoke()
    assert "In force now" in command("remove", "new-a").output
    assert "new-a" not in known()
    socket = restored.sites.endpoints.sites["alice"].control_socket
    assert (
        "applied:"
        in CliRunner().invoke(qnodectl, ["--socket", socket, "reload"], standalone_mode=False).output
    )
    restored.manager.until("READY=1")
    monkeypatch.setenv("SUDO_USER", "anna")
    alter(restored.file, operate__log_level="warning")
    CliRunner().invoke(qnodectl, ["--socket", socket, "reload"], standalone_mode=False)
    restored.manager.until("READY=1")
    alter(restored.file, operate__log_level="info")
    restored.reload()
    exported = CliRunner().invoke(qnodectl, ["--socket", socket, "audit", "export"], standalone_mode=False)
    entries = [json.loads(line) for line in exported.output.splitlines()]
    by = [one["details"] for one in entries if one.get("subject") == "operate.log_level"]
    assert by[-2:] == [f"by user {os.geteuid()}, SUDO_USER anna", "by SIGHUP"]


def test_encryptors_wait_with_the_names_of_the_sites_for_a_restart(restored: Running) -> None:
    saes = [
        {"sae_id": "sae-new", "kme_id": "kme-renamed", "peers": ["sae-far"]},
        {"sae_id": "sae-far", "kme_id": "kme-bob", "peers": ["sae-new"]},
    ]
    alter(restored.file, node__kme_id="kme-renamed", etsi014__sae=saes)
    restored.reload()
    answer = caller(restored).get("status")
    assert (answer.status_code, answer.json()["source_KME_ID"]) == (200, "kme-alice")
    waiting = "changed, but not applied: node.kme_id, etsi014.sae"
    assert restored.alarms()["node.restart_needed"] == waiting


def test_as_many_clients_may_come_at_once_as_may_stay() -> None:
    config = load(CONFIG / "alice.toml", SiteConfig)
    section = msgspec.structs.replace(
        config.etsi014, most_connections=4000, most_connections_per_address=2000
    )
    limits = connection_limits(section)
    assert limits.failed_handshakes_at_once == 2000
    assert limits.unknown_handshakes_at_once == 4000
    assert connection_limits(config.etsi014) == Limits()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"operate__log_levl": "debug"}, "unknown key log_levl, did you mean log_level?"),
        ({"store__most_chunks": "many"}, "[store] most_chunks"),
        ({"store__key_lifetime_s": 0.0}, "store.key_lifetime_s: expected 1 to 1e+09, got 0"),
        ({"etsi014__listen": "nowhere"}, "etsi014.listen: expected host:port, got 'nowhere'"),
        ({"skip__listen": "nowhere"}, "skip.listen: expected host:port, got 'nowhere'"),
        ({"etsi004__listen": "nowhere"}, "etsi004.listen: expected host:port, got 'nowhere'"),
        ({"etsi004__uris": {"qkd://app": "nobody"}}, "expected the sae_id of an encryptor, got 'nobody'"),
        ({"etsi004__idle_limit_s": 1.0}, "etsi004.idle_limit_s: expected 60 to 1e+07, got 1"),
        ({"store__most_chunks": -1}, "store.most_chunks: expected 1 to 1e+09, got -1"),
        ({"peer__tls__crl": False}, "[peer.tls] crl: expected `str` (got False)"),
        ({"etsi014__tls__ca": "a\0"}, "[etsi014.tls] ca: expected a path without a null character"),
        ({"devices__transmitter__driver": "simulated-transmiter"}, "simulated-transmiter"),
        ({"etsi014__sae": [{"sae_id": "a", "kme_id": "kme-alice", "peers": ["nobody"]}]}, "got 'nobody'"),
    ],
)
def test_a_typo_in_the_file_is_a_failed_reload(
    restored: Running, change: dict[str, Any], reason: str
) -> None:
    alter(restored.file, **change)
    assert "node.reload_failed" in restored.reload()
    assert reason in restored.alarms()["node.reload_failed"]
    assert caller(restored).get("status").status_code == 200


def test_a_file_that_is_gone_or_not_text_is_a_failed_reload(restored: Running) -> None:
    restored.file.write_bytes(b"\xff\xfe")
    assert "not TOML" in restored.reload()
    restored.file.unlink()
    assert "cannot be read" in restored.reload()


def test_hangups_while_the_daemon_ends_do_not_change_its_exit_status(running: Running) -> None:
    process = running.sites.processes["alice"]  # whose last test this is
    process.send_signal(signal.SIGTERM)
    while process.poll() is None:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.001)
    assert process.returncode == 0
