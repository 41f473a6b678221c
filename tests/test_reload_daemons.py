"""Two daemons, changed while they run: nobody who polls them notices."""

import signal
import threading
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trustme
from daemons_support import Encryptor, Sites, alter, encryptors, events_of, eventually, keys_in, two_sites

from qnode.config import Role

PAIR = (
    {"sae_id": "new-alice", "kme_id": "kme-alice", "peers": ["new-bob"]},
    {"sae_id": "new-bob", "kme_id": "kme-bob", "peers": ["new-alice"]},
)


class Poller(threading.Thread):
    """A client that asks for its status again and again, each time anew, and keeps what went wrong."""

    def __init__(self, encryptor: Encryptor) -> None:
        super().__init__()
        self._encryptor, self._stop_it = encryptor, threading.Event()
        self.answers = 0
        self.lost: list[str] = []

    def run(self) -> None:
        while not self._stop_it.wait(0.05):
            try:
                answer = self._encryptor.get("status")
                if answer.status_code == 200:
                    self.answers += 1
                else:
                    self.lost.append(answer.text)
            except httpx.TransportError as error:
                self.lost.append(repr(error))

    def stop(self) -> None:
        self._stop_it.set()
        self.join()


def reload(sites: Sites, role: Role, event: str) -> dict[str, Any]:
    """Send SIGHUP and return the event that it ends with."""
    socket = sites.endpoints.sites[role].control_socket

    def ended() -> list[dict[str, Any]]:
        return [one for one in events_of(socket) if one["event"] in ("node.reloaded", "node.reload_failed")]

    before = len(ended())
    sites.processes[role].send_signal(signal.SIGHUP)
    last = eventually(lambda: ended()[before:], f"{role} has reloaded")[-1]
    assert last["event"] == event, last
    return last


def alarms(sites: Sites, role: Role) -> dict[str, str]:
    status = sites.status(role)
    return {} if status is None else {alarm.name: alarm.text for alarm in status.alarms}


def agreed(sites: Sites, role: Role) -> bool:
    """Tell whether the site has no alarm of encryptors that differ or of a reload."""
    return not set(alarms(sites, role)) & {"saes.differ", "node.reload_failed"}


def issue(authority: trustme.CA, folder: Path, name: str) -> tuple[str, str]:
    issued = authority.issue_cert(name, common_name=name)
    issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
    (folder / f"{name}.key").chmod(0o600)
    (folder / f"{name}.pem").write_bytes(issued.cert_chain_pems[0].bytes())
    return str(folder / f"{name}.pem"), str(folder / f"{name}.key")


def newcomers(sites: Sites, authority: trustme.CA) -> tuple[Encryptor, Encryptor]:
    """Return the new pair of encryptors, with certificates of an authority of their own."""
    folder = sites.data / "tls"
    template = encryptors(sites.endpoints)
    found = []
    for old, (name, peer) in zip(template, (("new-alice", "new-bob"), ("new-bob", "new-alice")), strict=True):
        certificate, key = issue(authority, folder, name)
        sae = msgspec.structs.replace(old.sae, sae_id=name, peer_sae_id=peer, cert=certificate, key=key)
        found.append(Encryptor(sites.endpoints, sae))
    return found[0], found[1]


@pytest.mark.timeout(300)
def test_an_encryptor_certificate_and_crl_come_and_go_by_reload_and_a_polling_client_loses_nothing(
    tmp_path: Path,
) -> None:
    with two_sites(tmp_path) as sites:
        sites.start("alice", "bob")
        sites.wait_until_serving("alice", "bob")
        alice, _ = encryptors(sites.endpoints)
        eventually(lambda: alice.stored() >= 8, "keys")
        poller = Poller(alice)
        poller.start()
        try:
            authority = trustme.CA()
            bundle = sites.data / "tls" / "etsi014-ca.pem"
            bundle.write_bytes(bundle.read_bytes() + authority.cert_pem.bytes())
            at_alice, at_bob = newcomers(sites, authority)
            saes = tomllib.loads(sites.site_files["alice"].read_text())["etsi014"]["sae"]

            # At one site only: refused there before a key is spent, and shown at both.
            alter(sites.site_files["alice"], etsi014__sae=[*saes, *PAIR])
            assert "etsi014.sae" in reload(sites, "alice", "node.reloaded")["applied"]
            for role in ("alice", "bob"):
                told = eventually(lambda role=role: alarms(sites, role).get("saes.differ"), "it is shown")  # type: ignore[misc]
                assert told.startswith("new-alice at kme-alice shares keys with new-bob, which at kme-bob")
            answer = at_alice.post("enc_keys", {"number": 1})
            assert (answer.status_code, "is not registered" in answer.text) == (400, True)

            # A wrong file changes nothing.
            alter(sites.site_files["bob"], etsi014__tls__crl=str(tmp_path / "crl.pem"))
            (tmp_path / "crl.pem").write_bytes(b"")
            reload(sites, "bob", "node.reload_failed")
            alter(sites.site_files["bob"], etsi014__tls__crl=None)

            # A renewed certificate, and the pair at the other site as well: it gets the same keys.
            issue(authority, sites.data / "tls", "kme-bob")
            alter(sites.site_files["bob"], etsi014__sae=[*saes, *PAIR])
            reload(sites, "bob", "node.reloaded")
            eventually(partial(agreed, sites, "alice"), "ok")
            eventually(partial(agreed, sites, "bob"), "ok")
            keys = at_alice.assign(2)
            at_bob._tls.load_verify_locations(cadata=authority.cert_pem.bytes().decode())
            at_bob._tls.check_hostname = False
            assert keys_in(at_bob.fetch(list(keys))) == keys
        finally:
            poller.stop()
        assert poller.lost == []
        assert poller.answers > 0
        assert sites.stop("alice", "bob") == [0, 0]
