"""One daemon with three links to three peers: keys from all, each with its name, and each for itself."""

import json
from pathlib import Path

import httpx
import pytest
from daemons_support import Sites, encryptors, eventually, qnodectl, two_sites

from qnode.operate.status.model import NodeStatus

# The first process on a machine also compiles the kernels, which takes minutes on a slow one.
pytestmark = [pytest.mark.link, pytest.mark.timeout(600)]

LINKS = ("small", "small-2", "small-3")
SITES = ("alice", "bob", "bob-2", "bob-3")


def status_of(sites: Sites) -> NodeStatus:
    status = sites.status("alice")
    assert status is not None
    return status


def accepted(sites: Sites) -> list[int]:
    return [link.block.accepted for link in status_of(sites).links]


def test_three_links_of_one_site_make_keys_and_the_fault_of_one_is_its_own(tmp_path: Path) -> None:
    with two_sites(tmp_path, links=3) as sites:
        sites.start(*SITES)
        sites.wait_until_serving(*SITES)
        eventually(lambda: min(accepted(sites)) >= 2, "two blocks of each link")

        # Keys of each link, for the encryptors of its own two sites.
        for link in range(3):
            alice, bob = encryptors(sites.endpoints, link)
            keys = alice.assign(2)
            assert len(keys) == 2
            assert bob.fetch_soon(list(keys)) == keys
            assert bob.fetch(list(keys)).status_code == 400  # each once

        status = status_of(sites)
        assert [link.name for link in status.links] == list(LINKS)
        assert [link.peer.kme_id for link in status.links] == ["kme-bob", "kme-bob-2", "kme-bob-3"]
        assert status.peer == status.links[0].peer
        socket = sites.endpoints.sites["alice"].control_socket
        screen = qnodectl(socket, "status").stdout
        assert [line.split()[0] for line in screen.splitlines() if line.startswith("alice@")] == [
            f"alice@{name}" for name in LINKS
        ]
        of_second = json.loads(qnodectl(socket, "--link", "small-2", "status", "--json").stdout)
        assert of_second["peer"]["kme_id"] == "kme-bob-2"
        assert qnodectl(socket, "--link", "small-4", "status").returncode == 64
        at_bob = qnodectl(sites.endpoints.links[2].sites["bob"].control_socket, "blocks", "--csv").stdout
        at_alice = qnodectl(socket, "--link", "small-3", "blocks", "--csv").stdout
        assert at_alice.splitlines()[1].split(",")[4:8] == at_bob.splitlines()[1].split(",")[4:8]
        metrics = httpx.get(sites.endpoints.sites["alice"].metrics_url, trust_env=False).text
        for name in LINKS:
            assert f'qkd_peer_connected{{link="{name}"}} 1.0' in metrics

        # A peer that is gone is the matter of its link alone.
        sites.kill("bob-2")
        eventually(lambda: not status_of(sites).links[1].peer.connected, "the second peer is missed")
        before = accepted(sites)
        eventually(
            lambda: all(accepted(sites)[link] >= before[link] + 3 for link in (0, 2)), "blocks of the others"
        )
        assert accepted(sites)[1] == before[1]
        alarms = qnodectl(socket, "status").stdout
        assert "small-2: disconnected" in alarms
        sites.start("bob-2")
        eventually(lambda: accepted(sites)[1] > before[1], "the second link makes keys again")
        assert sites.stop(*SITES) == [0, 0, 0, 0]

        # A store that cannot be opened keeps its own link alone from starting.
        (sites.site_files["alice"].parent / "store-2" / "keys.sqlite").unlink()
        sites.start("alice", "bob", "bob-3")
        sites.wait_until_serving("alice", "bob", "bob-3")
        eventually(lambda: min(accepted(sites)[::2]) >= 1, "blocks of the other links")
        told = {alarm.name: alarm for alarm in status_of(sites).alarms}["link.failed"]
        assert told.link == "small-2"
        assert "the database is gone" in told.text
        assert status_of(sites).links[1].devices == []
        assert not status_of(sites).links[1].quantum.locked
        refused = encryptors(sites.endpoints, 1)[0].get("enc_keys")
        assert refused.status_code == 503
        assert "the KME is in trouble" in refused.text
        assert sites.stop("alice", "bob", "bob-3") == [0, 0, 0]
