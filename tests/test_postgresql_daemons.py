"""Two real sites, one with its store on a real PostgreSQL server that goes away (make test-postgresql)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons_support import ROLES, Sites, alter, encryptors, eventually, run_once, two_sites
from postgresql_support import Server, missing

pytestmark = [
    pytest.mark.link,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing()), reason=missing() or "nothing is missing"),
]


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with two_sites(tmp_path) as prepared:
        yield prepared


def test_while_the_server_of_a_site_is_away_encryptors_get_503_and_afterwards_keys_again(
    sites: Sites, postgresql: Server
) -> None:
    alter(
        sites.site_files["alice"], store__postgresql={"parameters": postgresql.parameters, "schema": "alice"}
    )
    sites.start(*ROLES)
    alice, bob = encryptors(sites.endpoints)
    eventually(lambda: min(alice.stored(), bob.stored()) >= 8, "keys in both directions", within_s=300)
    before = alice.assign(4)
    assert bob.fetch_soon(list(before)) == before
    waiting = alice.assign(2)

    def alarms() -> list[str]:
        status = sites.status("alice")
        return (
            [] if status is None else [alarm.text for alarm in status.alarms if alarm.name == "store.failed"]
        )

    for how in ("INT", "KILL"):
        postgresql.stop(how)
        eventually(lambda: any("is away" in text or "cannot be reached" in text for text in alarms()), "told")
        answer = alice.post("enc_keys", {"number": 1})
        assert answer.status_code == 503, answer.text
        postgresql.start()
        sites.wait_until_serving("alice")
        eventually(lambda: not alarms(), "the alarm is gone")
        more = alice.assign(2)
        assert bob.fetch_soon(list(more)) == more
        assert not more.keys() & (before.keys() | waiting.keys())
        before |= more
    assert bob.fetch_soon(list(waiting)) == waiting
    back = bob.assign(2)
    assert alice.fetch_soon(list(back)) == back
    assert sites.stop(*ROLES) == [0, 0]
    assert "Traceback" not in sites.log("alice") + sites.log("bob")
    postgresql.stop()
    refused = run_once(sites.site_files["alice"])
    postgresql.start()
    assert refused.returncode == 1
    assert "cannot be reached" in refused.stderr
    assert "Traceback" not in refused.stderr
