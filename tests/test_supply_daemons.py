"""Key delivery of real daemons whose other site hangs, or is far away: quick answers, and no key lost."""

import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from daemons_support import ROLES, Encryptor, Sites, alter, encryptors, eventually, keys_in, two_sites
from keys_support import add_block, make_block

from qnode.config import SiteConfig, load
from qnode.keys import open_store
from qnode.loopback.delay import delay_line
from qnode.loopback.prepare import LongLine, LoopbackConfig, Staging, prepare

pytestmark = [pytest.mark.link, pytest.mark.timeout(600)]

ROUND_TRIP_S = 3.0


class FarSites(Sites):
    """Two daemons without devices, far apart, on stores that hold keys already."""

    def __init__(self, folder: Path) -> None:
        self.data, self._logs = folder / "data", folder / "logs"
        self._logs.mkdir()
        prepared = prepare(self.data, LoopbackConfig(), Staging(1.0, round_trip_s=ROUND_TRIP_S))
        assert prepared.line is not None
        self.line: LongLine = prepared.line
        self.site_files, self.endpoints = prepared.site_files, prepared.endpoints
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        stores = []
        for site_file in self.site_files.values():
            alter(site_file, devices={})
            config = load(site_file, SiteConfig)
            store = open_store(
                config.store.path,
                role=config.node.role,
                store_key=config.store.store_key.read_bytes(),
                anchor=config.store.anchor,
                kme_id=config.node.kme_id,
                peer_kme_id=config.peer.kme_id,
                create=True,
            )
            store.load_preshared(config.store.preshared_key.read_bytes())
            stores.append(store)
        add_block(make_block(1, 200), *stores)
        for store in stores:
            store.close()


@contextmanager
def far_sites(folder: Path) -> Iterator[FarSites]:
    """Hold both sites and the long line between them; what still runs at the end is killed."""
    sites = FarSites(folder)
    carrying, over = threading.Event(), threading.Event()

    async def carry() -> None:
        async with delay_line(sites.line.bob_port, sites.line.alice_port, ROUND_TRIP_S):
            carrying.set()
            await trio.to_thread.run_sync(over.wait)

    line = threading.Thread(target=trio.run, args=(carry,))
    line.start()
    try:
        assert carrying.wait(30.0)
        yield sites
    finally:
        for process in sites.processes.values():
            process.kill()
            process.wait(30.0)
        over.set()
        line.join(30.0)


def test_over_a_round_trip_of_three_seconds_encryptors_are_answered_and_no_key_is_void(
    tmp_path: Path,
) -> None:
    with far_sites(tmp_path) as sites:
        sites.start(*ROLES)
        sites.wait_until_serving(*ROLES)
        alice, bob = encryptors(sites.endpoints)
        eventually(lambda: alice.stored() >= 100, "the sites are connected and agree on keys")
        for _ in range(2):
            response = alice.post("enc_keys", {"number": 3, "size": 256})
            keys = keys_in(response)
            assert keys_in(bob.fetch(list(keys))) == keys
        for role in ROLES:
            status = sites.status(role)
            assert status is not None
            assert status.keys.void_total == 0


def test_while_the_other_site_hangs_the_reserve_is_served_and_then_all_are_told_at_once_and_no_key_is_lost(
    tmp_path: Path,
) -> None:
    with two_sites(tmp_path) as sites:
        sites.start(*ROLES)
        sites.wait_until_serving(*ROLES)
        alice, bob = encryptors(sites.endpoints)
        first = alice.assign(1)
        assert bob.fetch_soon(list(first)) == first

        def has_reserve() -> bool:
            status = sites.status("alice")
            return status is not None and status.keys.stock > 4

        eventually(has_reserve, "the pair that asked has a reserve")
        sites.processes["bob"].send_signal(signal.SIGSTOP)
        answers = Counter[int]()
        got: dict[str, bytes] = {}
        slow = 0
        hung_until = time.monotonic() + 6.0  # less than the silence after which the session ends
        try:
            while time.monotonic() < hung_until:
                asked_at = time.monotonic()
                response = alice.post("enc_keys", {"number": 2, "size": 256})
                slow += time.monotonic() - asked_at > 1.9  # the time-out of the assignment's announcement
                answers[response.status_code] += 1
                if response.status_code == 200:
                    got |= keys_in(response)
                time.sleep(0.02)
        finally:
            sites.processes["bob"].send_signal(signal.SIGCONT)
        assert slow <= 1
        assert answers[200] >= 2
        assert answers.keys() == {200, 503}
        assert len(got) == 2 * answers[200]
        assert bob.fetch_soon(list(got)) == got
        again = alice.assign(2)
        assert bob.fetch_soon(list(again)) == again

        def settled() -> bool:
            status = sites.status("alice")
            return status is not None and status.keys.assigned == 0  # besides stock

        eventually(settled, "what was not acknowledged is free again")
        for role in ROLES:
            status = sites.status(role)
            assert status is not None
            assert status.keys.void_total == 0


def test_a_pair_whose_slave_never_fetches_does_not_starve_another(tmp_path: Path) -> None:
    with two_sites(tmp_path) as sites:
        for site_file in sites.site_files.values():
            alter(site_file, store__most_chunks=200)
        sites.start(*ROLES)
        sites.wait_until_serving(*ROLES)
        hoarder, _ = encryptors(sites.endpoints)
        alice, bob = (Encryptor(sites.endpoints, sae) for sae in sites.endpoints.saes_of(demo=True))

        def refused() -> bool:
            response = hoarder.post("enc_keys", {"number": 8})
            return response.status_code == 503 and "wait to be fetched" in response.text

        eventually(refused, "the hoarder has had its share")
        for _ in range(10):
            hoarder.post("enc_keys", {"number": 1})  # goes on as if it could have more
            keys = alice.assign(4)
            assert bob.fetch_soon(list(keys)) == keys
