"""Encryptors of running daemons: added, limited, kept over a kill, removed while their requests run."""

import threading
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner
from daemons_support import Encryptor, Sites, alter, encryptors, eventually, keys_in, qnodectl, two_sites

from qnode.cli.control import qnodectl as command
from qnode.config import Role


def saes(sites: Sites, role: Role, *words: str) -> str:
    socket = sites.endpoints.sites[role].control_socket
    done = qnodectl(socket, "saes", *words, "--config", str(sites.site_files[role]))
    assert done.returncode == 0, done.stderr
    return done.stdout


def newcomers(sites: Sites, folder: Path) -> tuple[Encryptor, Encryptor]:
    """Return a new pair of encryptors, with certificates of a lab that the sites trust as well."""

    def pki(*words: str | Path) -> None:
        done = CliRunner().invoke(command, ["pki", *map(str, words)], standalone_mode=False)
        assert done.exception is None, done.exception

    lab = folder / "lab"
    pki("init", "lab", "--lab", lab)
    bundle = sites.data / "tls" / "etsi014-ca.pem"
    bundle.write_bytes(bundle.read_bytes() + (lab / "sae-ca.pem").read_bytes())
    found = []
    for old, (name, peer) in zip(
        encryptors(sites.endpoints), (("new-alice", "new-bob"), ("new-bob", "new-alice")), strict=True
    ):
        pki("issue", "sae", name, "--lab", lab, "--out", folder / name)
        files = {"cert": str(folder / f"{name}.pem"), "key": str(folder / f"{name}.key")}
        sae = msgspec.structs.replace(old.sae, sae_id=name, peer_sae_id=peer, **files)
        found.append(Encryptor(sites.endpoints, sae))
    return found[0], found[1]


class Asking(threading.Thread):
    """A client that asks for keys on one open connection, and keeps the statuses of the answers."""

    def __init__(self, encryptor: Encryptor) -> None:
        super().__init__()
        self._client, self._path = encryptor._client(), f"/api/v1/keys/{encryptor.sae.peer_sae_id}/enc_keys"
        self._stop_it, self._refused = threading.Event(), threading.Event()
        self.statuses: list[Any] = []

    def run(self) -> None:
        with self._client:
            while not self._stop_it.is_set():
                try:
                    self.statuses.append(self._client.get(self._path).status_code)
                except httpx.TransportError as error:
                    self.statuses.append(repr(error))
                if self.statuses[-1] == 401:
                    self._refused.set()

    def stop(self) -> None:
        self._refused.wait(60)
        self._stop_it.set()
        self.join()


@pytest.mark.timeout(400)
def test_an_encryptor_and_its_limit_survive_a_kill_and_a_removed_one_gets_401_while_it_asks(
    tmp_path: Path,
) -> None:
    with two_sites(tmp_path) as sites:
        for role in ("alice", "bob"):
            alter(sites.site_files[role], etsi014__saes_file="saes.toml")
        at_alice, at_bob = newcomers(sites, tmp_path)
        sites.start("alice", "bob")
        sites.wait_until_serving("alice", "bob")
        assert at_alice.get("status").status_code == 401

        assert "In force now" in saes(sites, "alice", "add", "new-alice", "new-bob")
        saes(sites, "bob", "add", "new-bob", "new-alice")
        eventually(lambda: at_alice.stored() >= 8, "keys")
        saes(sites, "alice", "limit", "new-alice", "3")
        keys = at_alice.assign(3)
        refused = at_alice.post("enc_keys", {"number": 3})
        assert (refused.status_code, refused.json()["message"]) == (
            503,
            "this SAE may get 3 keys of 256 bits a minute",
        )
        assert 0 < int(refused.headers["retry-after"]) <= 60
        audit = qnodectl(sites.endpoints.sites["alice"].control_socket, "audit", "export").stdout
        assert "at kme-alice, shares keys with new-bob, at most 3 keys a minute" in audit

        sites.kill("alice")
        sites.start("alice")
        sites.wait_until_serving("alice")
        assert at_bob.fetch_soon(list(keys)) == keys
        status = sites.status("alice")
        assert status is not None
        assert {sae.sae_id: sae.keys_per_minute for sae in status.etsi014.saes}["new-alice"] == 3
        keys = at_alice.assign(3)
        assert at_alice.post("enc_keys", {"number": 3}).status_code == 503

        saes(sites, "alice", "limit", "new-alice", "any")
        asking = [Asking(at_alice) for _ in range(3)]
        for one in asking:
            one.start()
        try:
            eventually(lambda: all(len(one.statuses) > 3 for one in asking), "answers")
            saes(sites, "alice", "remove", "new-alice")
            assert at_alice.post("enc_keys", {"number": 1}).status_code == 401
        finally:
            for one in asking:
                one.stop()
        for one in asking:
            first = one.statuses.index(401)
            assert set(one.statuses[:first]) <= {200, 503}
            assert set(one.statuses[first:]) == {401}
        # Its peer still has what it got before, until it is removed at the other site too.
        assert keys_in(at_bob.fetch(list(keys))) == keys
        saes(sites, "bob", "remove", "new-alice")
        assert at_bob.get("status").status_code == 401
        assert sites.stop("alice", "bob") == [0, 0]
