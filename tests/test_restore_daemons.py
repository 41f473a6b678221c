"""Both sites set back, as processes: nothing of before comes back, and `qnodectl restore` begins anew."""

import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons_support import ROLES, Encryptor, Sites, encryptors, eventually, qnodectl, two_sites

pytestmark = [pytest.mark.link, pytest.mark.timeout(600)]


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with two_sites(tmp_path) as prepared:
        yield prepared


def test_two_sites_set_back_without_their_anchors_deliver_nothing_until_both_are_restored(
    sites: Sites, tmp_path: Path
) -> None:
    sites.start(*ROLES)
    alice, bob = encryptors(sites.endpoints)
    eventually(lambda: min(alice.stored(), bob.stored()) >= 8, "keys in both directions")
    sites.stop(*ROLES)
    for role in ROLES:
        shutil.copytree(sites.data / role / "store", tmp_path / f"backup-{role}")
    sites.start(*ROLES)
    sites.wait_until_serving(*ROLES)
    before = alice.assign(4)
    assert bob.fetch_soon(list(before)) == before
    before |= bob.assign(4)
    sites.stop(*ROLES)

    for role in ROLES:
        shutil.rmtree(sites.data / role / "store")
        shutil.copytree(tmp_path / f"backup-{role}", sites.data / role / "store")
        (sites.data / role / "anchor").unlink()
    sites.start(*ROLES)
    sites.wait_until_serving(*ROLES)
    sockets = {role: sites.endpoints.sites[role].control_socket for role in ROLES}

    def asks_for_a_restore(role: str) -> bool:
        status = sites.status("alice" if role == "alice" else "bob")
        alarms = [] if status is None else status.alarms
        return any(alarm.name == "store.waiting" and "qnodectl restore" in alarm.text for alarm in alarms)

    for role in ROLES:
        eventually(lambda: asks_for_a_restore(role), f"{role} asks for a restore")  # noqa: B023 - called at once
    assert alice.stored() == bob.stored() == 0
    assert bob.fetch(list(before)[:1]).status_code in (400, 503)

    old = sites.data / "preshared.key"
    new = tmp_path / "new.key"
    new.write_bytes(secrets.token_bytes(64 + 16 * 512))
    new.chmod(0o600)
    refused = qnodectl(sockets["alice"], "restore", "--yes", str(old))
    assert refused.returncode == 3
    assert "make a new one for both sites" in refused.stderr
    for role in ROLES:
        done = qnodectl(sockets[role], "restore", "--yes", str(new))
        assert done.returncode == 0, done.stderr
        assert "256 one-time pads to send and 256 to receive" in done.stdout

    after = alice.assign(8)
    assert bob.fetch_soon(list(after)) == after
    assert not after.keys() & before.keys()
    assert bob.fetch(list(before)[:4]).status_code == 400
    for role in ROLES:
        status = sites.status(role)
        assert status is not None
        assert "store.waiting" not in [alarm.name for alarm in status.alarms]
        for log in (sites.log(role), qnodectl(sockets[role], "events").stdout):
            assert new.read_bytes()[:16].hex() not in log
        assert "store.restored" in sites.log(role)
    shown = qnodectl(sockets["alice"], "status").stdout
    assert "peer runs qnode " in shown
    assert "qnode qnode" not in shown


def flip_a_bit_in_each_unit(database: Path, kind: str) -> int:
    """Spoil all that is sealed of ``kind``, as a failing disk may; return how many units."""
    connection = sqlite3.connect(database)
    rows = connection.execute(
        "SELECT segment, unit, sealed FROM sealed_unit WHERE kind = ?", (kind,)
    ).fetchall()
    for segment, unit, sealed in rows:
        spoilt = sealed[:30] + bytes([sealed[30] ^ 1]) + sealed[31:]
        connection.execute(
            "UPDATE sealed_unit SET sealed = ? WHERE kind = ? AND segment = ? AND unit = ?",
            (spoilt, kind, segment, unit),
        )
    connection.commit()
    connection.close()
    return len(rows)


def test_flipped_bits_cost_the_keys_they_hit_and_no_site_its_service(sites: Sites) -> None:
    sites.start(*ROLES)
    alice, bob = encryptors(sites.endpoints)
    eventually(lambda: min(alice.stored(), bob.stored()) >= 8, "keys in both directions")
    waiting = list(alice.assign(4))
    sites.stop(*ROLES)
    assert flip_a_bit_in_each_unit(sites.data / "bob" / "store" / "keys.sqlite", "chunk") > 0
    connection = sqlite3.connect(sites.data / "alice" / "store" / "keys.sqlite")
    connection.execute(
        "UPDATE sealed_unit SET sealed = zeroblob(length(sealed)) WHERE kind = 'pad_receive' AND unit < 2"
    )
    connection.commit()
    connection.close()

    sites.start(*ROLES)
    sites.wait_until_serving(*ROLES)
    assert bob.fetch(waiting).status_code in (400, 503)

    def delivers(master: Encryptor, slave: Encryptor) -> bool:
        answer = master.post("enc_keys", {"number": 1})
        if answer.status_code != 200:
            return False
        return slave.fetch([key["key_ID"] for key in answer.json()["keys"]]).status_code == 200

    for master, slave in ((alice, bob), (bob, alice)):
        eventually(lambda: delivers(master, slave), "keys that open")  # noqa: B023 - called at once

    def new_blocks() -> bool:
        status = sites.status("alice")
        return status is not None and status.block.accepted >= 2

    eventually(new_blocks, "blocks are made with pads that open")
    for role in ROLES:
        assert sites.processes[role].poll() is None
        status = sites.status(role)
        assert status is not None
        assert "store.damaged" in [alarm.name for alarm in status.alarms], role
