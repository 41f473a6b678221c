"""Two real sites, one with its store on a PostgreSQL server that comes and goes (make test-postgresql)."""

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
    postgresql.stop()
    sites.start(*ROLES)  # both are ready
    alice, bob = encryptors(sites.endpoints)

    def alarms() -> list[str]:
        status = sites.status("alice")
        return (
            [] if status is None else [alarm.text for alarm in status.alarms if alarm.name == "store.failed"]
        )

    eventually(lambda: any("cannot be reached" in text for text in alarms()), "told at the start")
    assert alice.post("enc_keys", {"number": 1}).status_code == 503
    postgresql.start()
    eventually(lambda: min(alice.stored(), bob.stored()) >= 8, "keys in both directions", within_s=300)
    before = alice.assign(4)
    assert bob.fetch_soon(list(before)) == before
    waiting = alice.assign(2)

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
    with postgresql.admin() as session:
        session.execute("UPDATE alice.schema_version SET version = 3")
    refused = run_once(sites.site_files["alice"])
    assert refused.returncode == 1
    assert "schema 3, but this qnode knows" in refused.stderr
    assert "Traceback" not in refused.stderr
