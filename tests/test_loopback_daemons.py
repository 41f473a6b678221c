"""A loopback that runs on and on: what its users find there, and strangers at its link port."""

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import msgspec
import pytest
import trio
from daemons_support import PATIENCE_S, ROLES, Loopback, encryptors, eventually, has_curl, look_at, loopback
from etsi004_support import Application

from qnode.bench.against.checkout import CaseFailed
from qnode.bench.against.daemons import Staged
from qnode.bench.against.delivery import Encryptors
from qnode.bench.against.inside.stage import outside
from qnode.etsi004.wire import Qos, Status
from qnode.loopback.prepare import Prepared, SaeEndpoint

# The first process on a machine also compiles the kernels, which takes minutes on a slow one.
pytestmark = [pytest.mark.link, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A loopback that runs on and on."""
    with loopback(tmp_path_factory.mktemp("link")) as running:
        running.endpoints()
        yield running


def test_a_second_loopback_on_a_live_folder_is_refused_by_pid_and_writes_nothing(link: Loopback) -> None:
    def written() -> dict[Path, bytes]:
        files = [*link.data.glob("*.*"), *link.data.glob("*/site.toml"), *link.data.glob("tls/*")]
        return {path: path.read_bytes() for path in files}

    before = written()
    command = [*(sys.executable, "-m", "qnode", "loopback"), *("--data-dir", str(link.data), "--json")]
    second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (second.returncode, second.stdout) == (64, "")
    assert f"in use by pid {link.process.pid};" in second.stderr
    assert written() == before


def test_endpoints_file_has_its_frozen_shape(link: Loopback) -> None:
    endpoints = json.loads((link.data / "endpoints.json").read_bytes())
    assert set(endpoints) == {"version", "ca", "sites", "saes", "links"}
    (only,) = endpoints["links"]
    assert only == {"name": "small", "sites": endpoints["sites"], "saes": endpoints["saes"]}
    assert endpoints["version"] == 1
    assert set(endpoints["sites"]) == set(ROLES)
    for site in endpoints["sites"].values():
        others = {"skip_url", "etsi004_address", "page_url"}
        assert set(site) == {"kme_id", "url", "control_socket", "metrics_url", *others}
        assert re.fullmatch(r"https://[^/]+:\d+", site["url"])
    paths = [endpoints["ca"], *(site["control_socket"] for site in endpoints["sites"].values())]
    for sae in endpoints["saes"]:
        assert set(sae) == {"sae_id", "kme", "peer_sae_id", "cert", "key", "demo"}
        paths += [sae["cert"], sae["key"]]
    assert all(Path(path).is_absolute() and Path(path).exists() for path in paths)
    by_id = {sae["sae_id"]: sae for sae in endpoints["saes"]}
    assert sorted(sae["demo"] for sae in endpoints["saes"]) == [False, False, True, True]
    for sae in endpoints["saes"]:
        peer = by_id[sae["peer_sae_id"]]
        assert (peer["peer_sae_id"], peer["demo"]) == (sae["sae_id"], sae["demo"])
        assert {peer["kme"], sae["kme"]} == {site["kme_id"] for site in endpoints["sites"].values()}


def test_the_page_of_each_site_shows_its_link_and_its_figures_over_time(link: Loopback) -> None:
    for role, site in link.endpoints().sites.items():
        with httpx.Client(base_url=site.page_url, trust_env=False) as client:
            assert "text/html" in client.get("/").headers["content-type"]
            view = client.get("/status").json()
            assert (view["title"], view["links"][0]["role"]) == (site.kme_id, role)
            assert view["simulated"]
            assert set(client.get("/trend/hour").json()["links"]) == {"small"}
            assert client.post("/").status_code == 405
        assert f"page of {site.kme_id}: {site.page_url}" in link.stdout.read_text()


def test_the_printed_commands_fetch_the_same_key_at_both_sites(link: Loopback) -> None:
    eventually(encryptors(link.endpoints())[0].stored, "a key for the commands to fetch")
    commands = [line.strip() for line in link.stdout.read_text().splitlines() if "curl" in line]
    assert len(commands) == 2
    answers = _through_a_shell(commands) if has_curl() else _by_hand(commands)
    at_alice, at_bob = (json.loads(answer)["keys"][0] for answer in answers)
    assert at_alice["key_ID"] == at_bob["key_ID"]
    assert at_alice["key"] == at_bob["key"]


def test_the_clients_of_bench_get_the_same_key_at_both_ends(link: Loopback) -> None:
    prepared = Prepared(link.data, {}, link.endpoints())
    clients = Encryptors.of(msgspec.convert(outside(prepared), Staged))

    def fetched() -> bool:
        try:
            clients.pairs(1, keeps=True)
            clients.pairs(1, keeps=False)
        except CaseFailed:  # not enough keys yet
            return False
        return True

    eventually(fetched, "two keys")


def test_two_applications_get_the_same_key_stream_at_both_sites(link: Loopback) -> None:
    endpoints = link.endpoints()
    eventually(encryptors(endpoints)[0].stored, "keys for a stream")
    saes = endpoints.saes_of(demo=False)
    qos = Qos(key_chunk_bytes=40, timeout_ms=60_000, ttl_s=600, metadata_mimetype="application/json")
    keys: dict[str, list[bytes]] = {}

    async def application(sae: SaeEndpoint, address: str) -> None:
        context = ssl.create_default_context(cafile=endpoints.ca)
        context.load_cert_chain(sae.cert, sae.key)
        host, _, port = address.rpartition(":")
        async with await trio.open_ssl_over_tcp_stream(host, int(port), ssl_context=context) as stream:
            one = Application(stream)
            opened = await one.open_connect(sae.sae_id, sae.peer_sae_id, qos, UUID(int=4))
            assert opened.status == Status.SUCCESSFUL
            got = [await one.get_key(index) for index in range(20)]
            assert all(each.facts["qnode_simulated"] is True for each in got)
            keys[sae.kme] = [each.key for each in got]
            assert await one.close() == Status.SUCCESSFUL

    async def both() -> None:
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for sae in saes:
                    site = next(one for one in endpoints.sites.values() if one.kme_id == sae.kme)
                    nursery.start_soon(application, sae, site.etsi004_address)

    trio.run(both)
    at_alice, at_bob = keys.values()
    assert at_alice == at_bob
    assert len({*at_alice}) == 20
    assert {len(key) for key in at_alice} == {40}
    status = look_at(endpoints.sites["alice"].control_socket)
    assert status is not None
    assert status.etsi004 is not None
    assert status.etsi004.streams == []


def _through_a_shell(commands: list[str]) -> list[str]:
    """Run the lines one after the other in one shell, without a proxy that the machine may be set to use."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        ["/bin/sh", "-c", "\n".join(commands)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
        env=environment,
    )
    return done.stdout.split("\n")[:2]


def _by_hand(commands: list[str]) -> list[str]:
    """Make the same two requests without curl."""
    answers: list[str] = []
    for command in commands:
        found = re.search(r"--cacert (\S+) --cert (\S+) --key (\S+) (https://[^\s\")]+)", command)
        assert found is not None
        authority, certificate, key, url = found.groups()
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(certificate, key)
        if url.endswith("key_ID="):
            url += json.loads(answers[0])["keys"][0]["key_ID"]
        answers.append(httpx.get(url, verify=context, timeout=PATIENCE_S, trust_env=False).text)
    return answers


@pytest.mark.parametrize("who", ["without a certificate", "an encryptor", "no TLS at all"])
def test_a_stranger_at_the_link_port_hears_nothing_and_the_link_goes_on(link: Loopback, who: str) -> None:
    endpoints = link.endpoints()
    control_socket = endpoints.sites["bob"].control_socket
    eventually(
        lambda: (status := look_at(control_socket)) and status.peer.connected, "the sites are connected"
    )
    before = look_at(control_socket)
    assert before is not None
    host, port = tomllib.loads((link.data / "alice" / "site.toml").read_text())["peer"]["address"].split(":")

    context: ssl.SSLContext | None = None
    if who != "no TLS at all":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if who == "an encryptor":
            sae = endpoints.saes_of(demo=False)[1]
            context.load_cert_chain(sae.cert, sae.key)
    heard = _heard_by_stranger(host, int(port), context)
    if context is None:
        assert len(heard) <= 7  # an alert of TLS at most
    else:
        assert heard == b""

    eventually(
        lambda: (now := look_at(control_socket)) and now.block.accepted > before.block.accepted + 1,
        "blocks after the stranger",
    )
    after = look_at(control_socket)
    assert after is not None
    assert after.peer.connection == before.peer.connection


def _heard_by_stranger(host: str, port: int, context: ssl.SSLContext | None) -> bytes:
    """Say something like a hello to the port and return everything that comes back."""
    heard = b""
    with socket.create_connection((host, port), timeout=PATIENCE_S) as raw:
        try:
            stream = raw if context is None else context.wrap_socket(raw)
            with stream:
                stream.sendall((64).to_bytes(4, "big") + b"\x93\x01\x01" + bytes(61))
                while received := stream.recv(1 << 12):
                    heard += received
        except (ssl.SSLError, ConnectionError):
            pass  # turned away
    return heard
