"""Both sites set back, as processes: nothing of before comes back, and `qnodectl restore` begins anew."""

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons_support import ROLES, Sites, encryptors, eventually, qnodectl, two_sites

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
