"""The product as its users meet it: real daemons, real TLS, real encryptors, and what must never happen."""

import json
import os
import secrets
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

import httpx
import pytest
import trio
from daemons_support import (
    PATIENCE_S,
    ROLES,
    STOP_S,
    Loopback,
    Sites,
    alter,
    encryptors,
    events_of,
    eventually,
    files_with_a_trace,
    keys_in,
    look_at,
    loopback,
    qnodectl,
    run_once,
    two_sites,
)
from exchange_support import Exchange

from qnode.config import Role
from qnode.emulate.oz_dd100 import OzDd100Emulator
from qnode.emulate.ports import tcp_port
from qnode.loopback.prepare import Endpoints
from qnode.operate.status.model import NodeStatus

# The first process on a machine also compiles the kernels, which takes minutes on a slow one.
pytestmark = [pytest.mark.link, pytest.mark.timeout(600)]

RESULT_NAMES = {
    "keys_delivered",
    "keys_compared",
    "keys_different",
    "simulated_s",
    "wall_s",
    "simulated_s_per_wall_s",
    "qber_z",
    "e_vis",
    "phase_error_upper",
    "sifted_bits",
    "secret_bits",
    "lambda_ec_bits",
    "f_ec",
    "secret_bits_per_simulated_s",
    "blocks_accepted",
    "blocks_discarded",
    "simulated",
}


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with two_sites(tmp_path) as prepared:
        yield prepared


# The frozen outside


def test_loopback_delivers_keys_at_both_ends_and_prints_one_json_object(tmp_path: Path) -> None:
    with loopback(tmp_path, "--json", "--until-keys", "100") as link:
        assert link.process.wait(2 * PATIENCE_S) == 0, link.stderr.read_text()[-3000:]
    result = json.loads(link.stdout.read_bytes())
    assert set(result) == RESULT_NAMES | {"links"}
    assert result["links"] == [{"name": "small", **{name: result[name] for name in RESULT_NAMES}}]
    assert result["keys_compared"] >= 100
    assert result["keys_delivered"] >= result["keys_compared"]
    assert result["keys_different"] == 0
    assert result["simulated"] is True
    assert result["blocks_accepted"] >= 3
    assert result["secret_bits"] >= 256 * result["keys_compared"]
    assert 0 < result["lambda_ec_bits"] < result["sifted_bits"]
    assert 0 < result["qber_z"] < result["phase_error_upper"] < 0.5


def test_qnodectl_tells_ok_degraded_and_not_running_apart(sites: Sites) -> None:
    sockets = {role: sites.endpoints.sites[role].control_socket for role in ROLES}
    assert qnodectl(sockets["alice"], "status").returncode == 2
    sites.start("alice")
    sites.wait_until_serving("alice")
    alone = qnodectl(sockets["alice"], "status")
    assert alone.returncode == 1, alone.stdout + alone.stderr

    sites.start("bob")
    for role in ROLES:
        eventually(partial(_is_told, sockets[role], 0), f"{role} is ok")
    shown = json.loads(qnodectl(sockets["bob"], "status", "--json").stdout)
    assert shown["simulated"] is True
    assert shown["site"]["role"] == "bob"
    tested = qnodectl(sockets["bob"], "selftest")
    assert tested.stdout.startswith("passed in "), tested.stderr
    again = json.loads(qnodectl(sockets["bob"], "status", "--json").stdout)
    assert again["self_tested_at"] > shown["self_tested_at"]

    sites.kill("bob")
    assert qnodectl(sockets["bob"], "status").returncode == 2
    eventually(partial(_is_told, sockets["alice"], 1), "alice reports the missing peer")


def _is_told(control_socket: str, code: int) -> bool:
    return qnodectl(control_socket, "status").returncode == code


def test_the_status_call_counts_the_keys_of_its_pair_and_direction(sites: Sites) -> None:
    sites.start(*ROLES)
    alice, bob = encryptors(sites.endpoints)
    eventually(lambda: min(alice.stored(), bob.stored()) >= 30, "keys in both directions")
    body = alice.get("status").json()
    assert (body["source_KME_ID"], body["target_KME_ID"]) == ("kme-alice", "kme-bob")
    assert (body["master_SAE_ID"], body["slave_SAE_ID"]) == (alice.sae.sae_id, bob.sae.sae_id)
    assert body["key_size"] == 256

    number = min(body["stored_key_count"], 128)
    taken = keys_in(alice.post("enc_keys", {"number": number}))
    assert len(taken) == number  # what is counted can be had
    assert (
        not bob.assign(8).keys() & taken.keys()
    )  # and is not Bob's to give, however ownership moves meanwhile


def test_the_site_that_alone_is_asked_gets_nearly_all_keys(sites: Sites) -> None:
    sites.start(*ROLES)
    slave, master = encryptors(sites.endpoints)
    n_got = 0

    def ready_at_alice() -> int:
        status = sites.status("alice")
        assert status is not None
        return status.keys.available_own

    def enough() -> bool:
        nonlocal n_got
        if number := min(master.stored(), 128):
            keys = master.assign(number)
            assert slave.fetch_soon(list(keys)) == keys
            n_got += len(keys)
        return n_got >= 250 and ready_at_alice() < 0.2 * n_got

    eventually(enough, "nearly all keys come to the site that asks")


@pytest.mark.parametrize("full", ROLES)
def test_a_full_store_gives_blocks_up_without_spending_pads_until_keys_are_fetched(
    sites: Sites, full: Role
) -> None:
    alter(sites.site_files[full], store__most_chunks=60)
    sites.start(*ROLES)

    def given_up() -> int:
        status = sites.status(full)
        return status.block.discarded.get("store_full", 0) if status else 0

    def spent() -> list[object]:
        """Return the pads left and the blocks accepted at both sites."""
        statuses = [eventually(partial(sites.status, role), f"{role} says what it is") for role in ROLES]
        assert all(status.keys.available_own + status.keys.available_peer < 60 * 33 for status in statuses)
        return [(status.authentication, status.block.accepted) for status in statuses]

    def nothing_is_spent_on_three_more() -> bool:
        """Tell so once what was in the air is decided, and the figures of the store have followed."""
        before, seen = spent(), given_up()
        eventually(lambda: given_up() >= seen + 3, "more blocks are given up")
        return spent() == before

    eventually(lambda: given_up() >= 3, "blocks are given up")
    eventually(nothing_is_spent_on_three_more, "blocks are given up without spending pads")

    ends = encryptors(sites.endpoints)
    accepted = eventually(partial(sites.status, full), "its status").block.accepted

    def key_again_as_keys_are_fetched() -> bool:
        for master, slave in (ends, ends[::-1]):
            response = master.post("enc_keys", {"number": max(1, min(master.stored(), 128))})
            if response.status_code == 503:  # they went to the other site meanwhile, or there are none
                continue
            keys = keys_in(response)
            assert slave.fetch_soon(list(keys)) == keys
        status = sites.status(full)
        return status is not None and status.block.accepted > accepted

    eventually(key_again_as_keys_are_fetched, "blocks give key again")


# What breaks must heal


def test_keys_flow_again_after_each_kill_and_none_is_delivered_twice(tmp_path: Path) -> None:
    rng = Random(20)
    with loopback(tmp_path, "--json") as link, ThreadPoolExecutor(1) as threads:
        endpoints = link.endpoints()
        exchange = Exchange(endpoints)
        running = threads.submit(exchange.run)
        try:
            eventually(lambda: len(exchange.fetched) > 20, "keys before the first kill")
            for role in ("alice", "bob", "alice", "bob"):
                threading.Event().wait(rng.uniform(0.0, 2.0))  # a random moment
                _kill(link, role)
                _wait_for_news(exchange, endpoints)
        finally:
            exchange.stop()
        running.result(PATIENCE_S)
        assert link.stop() == 0, link.stderr.read_text()[-3000:]
    assert exchange.different == []
    assert exchange.refused == []
    assert len(set(exchange.assigned)) == len(exchange.assigned)
    assert len(set(exchange.fetched)) == len(exchange.fetched)
    assert set(exchange.fetched) <= set(exchange.assigned)
    result = json.loads(link.stdout.read_bytes())
    assert result["keys_different"] == 0
    assert result["keys_compared"] > 0
    assert link.stderr.read_text().count("SIGKILL") == 4


def test_the_daemons_do_not_outlive_a_loopback_that_was_killed(tmp_path: Path) -> None:
    with loopback(tmp_path) as link:
        link.endpoints()
        daemons = [eventually(partial(link.daemon, role), f"{role} runs") for role in ROLES]
        link.process.kill()
        link.process.wait(STOP_S)
        eventually(lambda: not any(_alive(daemon) for daemon in daemons), "their end")


def _alive(process_id: int | None) -> bool:
    """Tell whether a process runs; one that ended and was not waited for does not."""
    try:
        return bool(Path(f"/proc/{process_id}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


def _kill(link: Loopback, role: Role) -> None:
    """Kill a daemon and wait until its successor runs."""
    victim = eventually(lambda: link.daemon(role), f"{role} runs")
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: link.daemon(role) not in (None, victim), f"{role} is started again")


def _wait_for_news(exchange: Exchange, endpoints: Endpoints) -> None:
    """Wait until a block more is accepted and keys more are fetched than now."""
    fetched, accepted = len(exchange.fetched), _accepted(endpoints)
    eventually(lambda: _accepted(endpoints) > accepted, "a block after the kill")
    eventually(lambda: len(exchange.fetched) > fetched, "keys after the kill")


def _accepted(endpoints: Endpoints) -> int:
    """Return how many blocks Bob's present daemon has accepted."""
    status = look_at(endpoints.sites["bob"].control_socket)
    return status.block.accepted if status else 0


def _with_key(status: NodeStatus | None) -> NodeStatus | None:
    """Return a status that knows of a block's keys: the store is looked at only now and then."""
    return status if status is not None and status.keys.epsilon_total >= 1e-9 else None


def test_sigterm_ends_both_in_seconds_and_a_restart_goes_on_with_their_keys(sites: Sites) -> None:
    sites.start(*ROLES)
    sites.wait_until_serving(*ROLES)
    alice, bob = encryptors(sites.endpoints)
    keys = alice.assign(5)
    early, late = list(keys)[:2], list(keys)[2:]
    assert keys_in(bob.fetch(early)) == {name: keys[name] for name in early}
    eventually(lambda: alice.stored() >= 20, "keys to keep")
    kept = alice.stored()
    before = eventually(lambda: _with_key(sites.status("alice")), "the sum of at least one block")

    began = time.monotonic()
    assert sites.stop(*ROLES) == [0, 0]
    assert time.monotonic() - began < STOP_S / 2

    sites.start(*ROLES)
    sites.wait_until_serving(*ROLES)
    restarted = sites.status("alice")
    assert restarted is not None
    assert restarted.keys.available_own + restarted.keys.stock >= kept  # the stock is agreed ahead
    assert restarted.keys.epsilon_total >= before.keys.epsilon_total
    assert bob.fetch_soon(late) == {name: keys[name] for name in late}
    assert bob.fetch(late).status_code == 400
    assert bob.fetch(early).status_code == 400
    assert not set(alice.assign(3)) & set(keys)


# What must never be seen


def test_no_byte_of_a_key_is_in_logs_metrics_status_or_files(sites: Sites, tmp_path: Path) -> None:
    for role in ROLES:
        alter(sites.site_files[role], operate__log_level="debug")
    keys: list[bytes] = []
    sites.start(*ROLES)
    sites.wait_until_serving(*ROLES)
    keys += _some_keys(sites, 6)
    said = _all_that_is_said(sites, tmp_path)
    sites.kill(*ROLES)
    assert list(sites.data.rglob("*-wal")), "the journals should be there to be looked into"
    stores = [path for role in ROLES for path in (sites.data / role / "store").iterdir()]
    assert not [path for path in stores if path.stat().st_mode & 0o077]
    assert files_with_a_trace(keys, tmp_path) == []

    sites.start(*ROLES)
    sites.wait_until_serving(*ROLES)
    keys += _some_keys(sites, 6)
    said += _all_that_is_said(sites, tmp_path)
    assert sites.stop(*ROLES) == [0, 0]
    assert files_with_a_trace(keys, tmp_path) == []
    assert all(path.stat().st_size for path in said)

    planted = tmp_path / "planted"  # the search does find what it looks for
    planted.write_bytes(b"x" + keys[-1][16:].hex().encode())
    assert files_with_a_trace(keys, tmp_path) == [planted]


def _some_keys(sites: Sites, number: int) -> list[bytes]:
    """Return keys that both ends have, some that only their master has, and a long one."""
    found: list[bytes] = []
    for master, slave in (encryptors(sites.endpoints), encryptors(sites.endpoints)[::-1]):
        keys = master.assign(number)
        found += keys.values()
        assert slave.fetch_soon(list(keys)[:-2])
        (key,) = master.assign(1, size_bits=1024).values()
        found += [key[first : first + 32] for first in range(0, len(key), 32)]
    return found


def _all_that_is_said(sites: Sites, folder: Path) -> list[Path]:
    """Write metrics, status, blocks and events of both sites into ``folder``."""
    written: list[Path] = []
    for role in ROLES:
        site = sites.endpoints.sites[role]
        answers = {
            "metrics": httpx.get(site.metrics_url, timeout=PATIENCE_S, trust_env=False)
            .raise_for_status()
            .text,
            "status": qnodectl(site.control_socket, "status", "--json").stdout,
            "blocks": qnodectl(site.control_socket, "blocks", "--csv").stdout,
            "events": "\n".join(map(json.dumps, events_of(site.control_socket))),
        }
        for name, text in answers.items():
            path = folder / f"{role}-{name}-{secrets.token_hex(4)}"
            path.write_text(text)
            written.append(path)
    return written


# Who must be refused


def _other_parameters(sites: Sites) -> str:
    alter(sites.site_files["bob"], link__block__sifted_bits=50_000)
    return "link.block.sifted_bits"


def _other_preshared_key(sites: Sites) -> str:
    other = sites.data / "bob" / "other.key"
    other.write_bytes(secrets.token_bytes((sites.data / "preshared.key").stat().st_size))
    other.chmod(0o600)
    alter(sites.site_files["bob"], store__preshared_key=str(other))
    return "session roots differ"


def _other_name(sites: Sites) -> str:
    alter(sites.site_files["alice"], peer__kme_id="kme-bob")
    alter(sites.site_files["bob"], node__kme_id="kme-carol")
    return "peer.kme_id"


@pytest.mark.parametrize("make_unfit", [_other_parameters, _other_preshared_key, _other_name])
def test_a_peer_that_does_not_fit_is_refused_and_both_logs_say_why(
    sites: Sites, make_unfit: Callable[[Sites], str]
) -> None:
    difference = make_unfit(sites)
    sites.start(*ROLES)
    for role in ROLES:
        # Twice: Bob tries again, and is refused again.
        eventually(partial(_says_twice, sites, role, difference), f"{role} says {difference}")
        status = sites.status(role)
        assert status is not None
        assert not status.peer.connected
        assert status.block.current is None
    assert sites.stop(*ROLES) == [0, 0]
    for role in ROLES:
        assert "link.connected" not in sites.log(role)
        with sqlite3.connect(sites.data / role / "store" / "keys.sqlite") as store:
            assert store.execute("SELECT last_block_id FROM site").fetchone() == (0,)
        store.close()


def _says_twice(sites: Sites, role: Role, text: str) -> bool:
    return sites.log(role).count(text) >= 2


def test_the_second_of_two_sites_of_one_role_says_that_its_port_is_taken(sites: Sites) -> None:
    alter(sites.site_files["bob"], node__role="alice", devices={})
    sites.start("alice")
    sites.wait_until_serving("alice")
    sites.start("bob")

    def reason() -> str | None:
        status = sites.status("bob")
        because = status.peer.connection.because if status is not None else ""
        return because if "cannot listen" in because else None

    because = eventually(reason, "it says why")
    assert "peer.address" in because


# What a site must not start on


@pytest.fixture(scope="module")
def used_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """A prepared folder whose Alice has run once, so that there is a store."""
    with two_sites(tmp_path_factory.mktemp("store")) as sites:
        sites.start("alice")
        sites.wait_until_serving("alice")
        assert sites.stop("alice") == [0]
        yield sites


@pytest.fixture
def store_file(used_store: Sites) -> Iterator[Path]:
    """Alice's database, put right again afterwards."""
    path = used_store.data / "alice" / "store" / "keys.sqlite"
    sound = path.read_bytes()
    yield path
    path.write_bytes(sound)


def _flip_header(path: Path) -> str:
    content = bytearray(path.read_bytes())
    content[:16] = bytes(byte ^ 0xFF for byte in content[:16])
    path.write_bytes(content)
    return "damaged"


def _flip_pages(path: Path) -> str:
    content = bytearray(path.read_bytes())
    rng = Random(7)
    for first in range(4096, len(content), 4096):
        for place in rng.sample(range(first, first + 64), 8):
            content[place] ^= 0xFF
    path.write_bytes(content)
    return "damaged"


def _truncate(path: Path) -> str:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "damaged"


def _empty(path: Path) -> str:
    path.write_bytes(b"")
    return "not a qnode key store"


def _newer_schema(path: Path) -> str:
    with sqlite3.connect(path) as store:
        store.execute("PRAGMA user_version = 99")
    store.close()
    return "schema 99"


@pytest.mark.parametrize("spoil", [_flip_header, _flip_pages, _truncate, _empty, _newer_schema])
def test_a_store_that_cannot_be_trusted_is_refused_and_left_alone(
    used_store: Sites, store_file: Path, spoil: Callable[[Path], str]
) -> None:
    reason = spoil(store_file)
    spoiled, inode = store_file.read_bytes(), store_file.stat().st_ino
    refused = run_once(used_store.site_files["alice"])
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert str(store_file) in line
    assert reason in line
    assert (store_file.read_bytes(), store_file.stat().st_ino) == (spoiled, inode)


def _refused_with(attenuator: OzDd100Emulator, site_file: Path) -> subprocess.CompletedProcess[str]:
    """Run a daemon that cannot start, and that has an attenuator."""
    before = site_file.read_text()

    async def run() -> subprocess.CompletedProcess[str]:
        async with tcp_port(attenuator) as address:
            alter(site_file, devices__voa={"driver": "oz-dd100", "config": {"address": address}})
            return await trio.to_thread.run_sync(run_once, site_file)

    try:
        return trio.run(run)
    finally:
        site_file.write_text(before)


def test_a_node_that_cannot_start_darkens_the_light_that_an_earlier_one_left_on(
    used_store: Sites, store_file: Path
) -> None:
    attenuator = OzDd100Emulator()
    attenuator.attenuation_db = 10.0  # the earlier node was killed
    _empty(store_file)
    refused = _refused_with(attenuator, used_store.site_files["alice"])
    assert refused.returncode == 1
    assert "not a qnode key store" in refused.stderr
    assert attenuator.attenuation_db == 60.0


def test_a_node_that_finds_another_one_running_leaves_the_devices_alone(used_store: Sites) -> None:
    attenuator = OzDd100Emulator()
    attenuator.attenuation_db = 10.0
    used_store.start("alice")
    used_store.wait_until_serving("alice")
    refused = _refused_with(attenuator, used_store.site_files["alice"])
    assert "another process has this store open" in refused.stderr
    assert used_store.stop("alice") == [0]
    assert attenuator.attenuation_db == 10.0
    assert attenuator.heard == []


def test_a_missing_or_readable_secret_is_a_usage_error_that_says_how_to_mend_it(used_store: Sites) -> None:
    site_file = used_store.site_files["alice"]
    store_key = used_store.data / "alice" / "store.key"
    store_key.chmod(0o644)
    refused = run_once(site_file)
    assert refused.returncode == 64
    assert f"chmod 600 {store_key}" in refused.stderr
    store_key.chmod(0o600)

    away = store_key.rename(store_key.with_name("elsewhere"))
    refused = run_once(site_file)
    assert refused.returncode == 64
    (line,) = refused.stderr.splitlines()
    assert str(store_key) in line
    assert not store_key.exists()
    away.rename(store_key)


def test_a_readable_preshared_key_is_refused_and_accepted_once_it_is_private(sites: Sites) -> None:
    preshared = sites.data / "preshared.key"
    preshared.chmod(0o644)
    refused = run_once(sites.site_files["alice"])
    assert refused.returncode == 64
    assert f"chmod 600 {preshared}" in refused.stderr
    preshared.chmod(0o600)
    sites.start("alice")
    sites.wait_until_serving("alice")
    assert sites.stop("alice") == [0]


def test_an_unknown_key_in_the_configuration_is_named_with_its_near_match(sites: Sites) -> None:
    alter(sites.site_files["bob"], link__block__sifted_bit=40_000)
    refused = run_once(sites.site_files["bob"])
    assert refused.returncode == 64
    (line,) = refused.stderr.splitlines()
    for part in (str(sites.site_files["bob"]), "[link.block]", "sifted_bit,", "did you mean sifted_bits"):
        assert part in line
    assert refused.stdout == ""


def test_simulated_devices_are_refused_unless_they_are_allowed(sites: Sites) -> None:
    alter(sites.site_files["bob"], node__allow_simulated=False)
    refused = run_once(sites.site_files["bob"])
    assert refused.returncode == 64
    assert "allow_simulated" in refused.stderr
