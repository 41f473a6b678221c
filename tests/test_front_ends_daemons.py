"""`qnode serve` as processes, beside the stores of two sites without a link (make test-postgresql)."""

import random
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
import tomli_w
from daemons_support import (
    ROLES,
    STOP_S,
    Encryptor,
    Sites,
    alter,
    encryptors,
    eventually,
    files_with_a_trace,
    keys_in,
    two_sites,
)
from front_ends_support import LIFETIME_S, fill, needs_server, stocked, waiting
from postgresql_support import Server

from qnode.config import load_site
from qnode.errors import StoreAway
from qnode.node.process import open_link_store
from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_status
from qnode.serve.status import FrontEndStatus

pytestmark = [
    pytest.mark.link,
    pytest.mark.timeout(900),
    needs_server,
]

N_KILLS = 4


class FrontEnd:
    """A front end of Alice's site as a process, with encryptors of hers that ask it instead of her node."""

    def __init__(self, sites: Sites, name: str, parameters: str, schema: str) -> None:
        self.folder = sites.data / f"serve-{name}"
        self.folder.mkdir()
        self.file = self.folder / "serve.toml"
        site_file = sites.site_files["alice"]
        alter(site_file, store__postgresql={"parameters": parameters, "schema": schema})
        site: Any = tomllib.loads(site_file.read_text())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        folder = site_file.resolve().parent
        etsi014 = {**site["etsi014"], "listen": f"127.0.0.1:{self.port}"}
        etsi014["tls"] = {key: str(folder / value) for key, value in etsi014["tls"].items()}
        tables = {
            "front_end": {
                "name": name,
                "kme_id": site["node"]["kme_id"],
                "peer_kme_id": site["peer"]["kme_id"],
                "allow_simulated": True,
            },
            "store": {
                "store_key": str(folder / site["store"]["store_key"]),
                "anchor": "anchor/anchor",
                "postgresql": site["store"]["postgresql"],
            },
            "etsi014": etsi014,
            "operate": {"control_socket": "control.sock"},
        }
        self.file.write_text(tomli_w.dumps(tables))
        self.sae = encryptors(sites.endpoints)[0]
        self.sae._url = f"https://localhost:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "qnode", "serve", "--config", str(self.file)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_S)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(STOP_S)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def status(self) -> FrontEndStatus | None:
        assert self.process is not None
        assert self.process.poll() is None, self.log()[-3000:]
        try:
            raw = ask_status(self.folder / "control.sock", patience_s=30.0)
        except (NodeNotRunning, NoAnswer):
            return None
        return msgspec.json.decode(raw, type=FrontEndStatus)

    def serves(self) -> bool:
        status = self.status()
        return status is not None and not status.because and not status.node_is_away


@contextmanager
def front_ends(sites: Sites, server: Server, *names: str) -> Iterator[list[FrontEnd]]:
    schema = f"front_ends_{names[0]}"  # the server is that of several tests
    made = [FrontEnd(sites, name, server.parameters, schema) for name in names]
    try:
        yield made
    finally:
        for one in made:
            if one.process is not None and one.process.poll() is None:
                one.process.kill()
                one.process.wait(STOP_S)


class Masters:
    """Alice's encryptor, which asks at several places at once for keys, and keeps what it was given."""

    def __init__(self, *places: Encryptor) -> None:
        self.acknowledged: list[dict[str, bytes]] = []
        self._seen = 0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(place,)) for place in places]
        for thread in self._threads:
            thread.start()

    def _ask(self, place: Encryptor) -> None:
        while not self._ended.is_set():
            try:
                answer = place.post("enc_keys", {"number": 2})
            except httpx.TransportError:
                time.sleep(0.02)
                continue
            if answer.status_code == 200:
                self.acknowledged.append(keys_in(answer))
            time.sleep(0.02)

    def get_on(self) -> bool:
        """Whether three more answers came since this was last true."""
        if len(self.acknowledged) < self._seen + 3:
            return False
        self._seen = len(self.acknowledged)
        return True

    def end(self) -> dict[str, bytes]:
        self._ended.set()
        for thread in self._threads:
            thread.join(STOP_S)
        every: dict[str, bytes] = {}
        for keys in self.acknowledged:
            assert not keys.keys() & every.keys(), "a key was given twice"
            every |= keys
        assert len(set(every.values())) == len(every)
        return every


class Node:
    """Alice's node without its link: her store, Bob's, and the agreement on keys between them."""

    def __init__(self, sites: Sites) -> None:
        stores: list[Any] = [open_link_store(load_site(sites.site_files[role])[0]) for role in ROLES]
        self.alice, self.bob = stores
        self.master, self.slave = (one.sae.sae_id for one in encryptors(sites.endpoints))
        fill(self.alice, self.bob, 4, 500)
        self._ended = threading.Event()
        self.begin()

    def begin(self) -> None:
        self._ended.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            with suppress(StoreAway):
                self.alice.tend_front_ends(LIFETIME_S)
                if self.alice.stock_count(self.master, self.slave) < 12:
                    stocked(self.alice, self.bob, 8, self.master, self.slave)

    def rest(self) -> None:
        self._ended.set()
        self._thread.join(STOP_S)

    def close(self) -> None:
        self.rest()
        self.alice.close()
        self.bob.close()

    def of_bobs_master(self, number: int) -> dict[str, bytes]:
        """Return keys that Bob's encryptor got as master: they wait for Alice's."""
        keys = waiting(self.bob, self.alice, number, self.slave, (self.master,))
        return {str(key.key_id): key.key for key in keys}

    def fetched_at_bob(self, key_ids: Iterable[str]) -> dict[str, bytes]:
        asked = [UUID(key_id) for key_id in key_ids]
        keys = self.bob.deliver_to_slave(self.slave, self.master, asked)
        return {str(key.key_id): key.key for key in keys}


def test_front_ends_deliver_through_kills_the_absence_of_the_node_and_another_server(
    tmp_path: Path, postgresql: Server
) -> None:
    with two_sites(tmp_path) as sites, front_ends(sites, postgresql, "one", "two") as (one, two):
        checked = [sys.executable, "-m", "qnode", "serve", "check", str(one.file)]
        assert subprocess.run(checked, check=False).returncode == 0
        with closing(Node(sites)) as node:
            for front_end in (one, two):
                front_end.start()
            for front_end in (one, two):
                eventually(front_end.serves, "the front ends serve")
            keys = one.sae.assign(2)
            assert node.fetched_at_bob(keys) == keys
            theirs = node.of_bobs_master(2)
            assert two.sae.fetch_soon(list(theirs)) == theirs
            assert one.sae.fetch(list(theirs)).status_code == 400
            assert one.sae.post("enc_keys", {"size": 512}).status_code == 400
            told = one.sae.get("status").json()
            assert (told["max_key_size"], told["max_SAE_ID_count"]) == (256, 0)
            assert told["stored_key_count"] > 0

            draw = random.Random(7)
            masters = Masters(one.sae, two.sae)
            for number in range(N_KILLS):
                victim = (one, two)[number % 2]
                eventually(masters.get_on, "keys come")
                time.sleep(draw.uniform(0.0, 0.3))
                victim.kill()
                victim.start()
                eventually(victim.serves, "it serves again")
            eventually(masters.get_on, "keys come")
            every = masters.end()
            assert node.fetched_at_bob(every) == every  # none that was acknowledged is lost

            node.rest()  # what was agreed is delivered without the node
            eventually(lambda: (told := two.status()) is not None and told.node_is_away, "it is told")
            left: dict[str, bytes] = {}
            while (answer := two.sae.post("enc_keys", {"number": 1})).status_code == 200:
                left |= keys_in(answer)
            assert answer.status_code == 503
            assert "not enough keys" in answer.json()["message"]
            assert len(left) >= 4
            assert node.fetched_at_bob(left) == left
            node.begin()
            eventually(one.serves, "the node is back")

            postgresql.stop("KILL")  # another process of the server: a new epoch
            assert one.sae.post("enc_keys", {"number": 1}).status_code == 503
            eventually(lambda: (told := one.status()) is not None and told.because, "the reason is told")
            postgresql.start()
            for front_end in (one, two):
                eventually(front_end.serves, "the front ends serve again")
            after = two.sae.assign(1)
            assert not after.keys() & (every.keys() | left.keys())
            assert node.fetched_at_bob(after) == after

            shown = [
                sys.executable,
                "-m",
                "qnode",
                "serve",
                "status",
                "--socket",
                str(two.folder / "control.sock"),
            ]
            words = subprocess.run(shown, check=False, capture_output=True, text=True)
            assert words.returncode == 0
            assert "two   SERVING" in words.stdout
            assert [one.stop(), two.stop()] == [0, 0]
            with postgresql.admin() as session:  # they have left
                assert session.execute("SELECT count(*) FROM front_ends_one.front_end").fetchone() == (0,)
            assert subprocess.run(shown, check=False, capture_output=True).returncode == 2
        assert "Traceback" not in one.log() + two.log()
        assert not files_with_a_trace(list(after.values()), one.folder, two.folder)


def test_a_node_agrees_on_as_many_keys_ahead_as_its_front_end_is_asked_for(
    tmp_path: Path, postgresql: Server
) -> None:
    with two_sites(tmp_path) as sites, front_ends(sites, postgresql, "beside") as (beside,):
        sites.start(*ROLES)
        beside.start()  # before there is a store: it waits
        alice, bob = encryptors(sites.endpoints)
        eventually(lambda: min(alice.stored(), bob.stored()) >= 20, "keys in both directions", within_s=300)
        eventually(beside.serves, "the front end serves")
        every: dict[str, bytes] = {}
        while len(every) < 60:  # nobody asks the node
            more = beside.sae.assign(4)
            assert not more.keys() & every.keys()
            assert bob.fetch_soon(list(more)) == more
            every |= more
        theirs = bob.assign(2)
        assert beside.sae.fetch_soon(list(theirs)) == theirs
        assert not alice.assign(2).keys() & every.keys()
        assert "front_ends.changed" in sites.log("alice")
        assert sites.stop("alice") == [0]
        eventually(lambda: not beside.serves(), "it notices that its node is away")
        sites.start("alice")
        eventually(beside.serves, "without a new epoch it goes on")
        after = beside.sae.assign(1)
        assert bob.fetch_soon(list(after)) == after
        assert [beside.stop(), *sites.stop(*ROLES)] == [0, 0, 0]
        assert "Traceback" not in beside.log() + sites.log("alice")
