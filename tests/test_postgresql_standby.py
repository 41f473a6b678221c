"""A primary server that is lost, and a standby that is promoted: with and without the last commits."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from front_ends_support import (
    LIFETIME_S,
    WITHIN_S,
    bits,
    front_end,
    needs_server,
    ready,
    stocked,
    take,
    when_open,
)
from keys_support import Site, add_block, assigned, make_block, pairs, preshared
from postgresql_support import PostgresqlSite, Server, running_server

from qnode.errors import StoreAway, StoreError
from qnode.keys import StoreCondition

pytestmark = needs_server


class TwoServers:
    """A primary and its standby; the parameters of a store name both."""

    def __init__(self, primary: Server, standby: Server) -> None:
        self.primary, self.standby = primary, standby

    @property
    def parameters(self) -> str:
        return f"host={self.primary.folder},{self.standby.folder} dbname=postgres user=qnode"

    def admin(self) -> object:
        return self.primary.admin()


@pytest.fixture
def servers() -> Iterator[TwoServers]:
    with running_server() as primary, running_server(copy_of=primary) as standby:
        yield TwoServers(primary, standby)


def wait_for_standby(servers: TwoServers, state: str) -> None:
    until = time.monotonic() + WITHIN_S
    with servers.primary.admin() as session:
        while session.execute("SELECT sync_state FROM pg_stat_replication").fetchall() != [(state,)]:
            assert time.monotonic() < until
            time.sleep(0.05)


def wait_until_standby_has_all(servers: TwoServers) -> None:
    until = time.monotonic() + WITHIN_S
    query = "SELECT replay_lsn = pg_current_wal_lsn() FROM pg_stat_replication"
    with servers.primary.admin() as session:
        while session.execute(query).fetchall() != [(True,)]:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("synchronous", [True, False])
def test_a_promoted_standby_serves_on_if_it_has_every_commit_and_voids_all_if_not(
    servers: TwoServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synchronous: bool
) -> None:
    monkeypatch.setattr(PostgresqlSite, "server", servers, raising=False)
    if synchronous:
        with servers.primary.admin() as session:
            session.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            session.execute("SELECT pg_reload_conf()")
    wait_for_standby(servers, "sync" if synchronous else "async")
    with PostgresqlSite(tmp_path / "a", "alice").open() as alice, Site(tmp_path / "b", "bob").open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(64))
        add_block(make_block(1, 40), alice, bob)
        if not synchronous:
            servers.standby.stop()
        keys = alice.deliver_to_master(assigned(alice, bob, 4))
        before = alice.positions(), alice.counts()
        servers.primary.stop("KILL")
        if not synchronous:
            servers.standby.start()
        servers.standby.promote()
        until = time.monotonic() + WITHIN_S
        while True:
            try:
                condition = alice.condition()
                break
            except StoreAway:
                assert time.monotonic() < until
                time.sleep(0.1)
        if synchronous:
            assert condition.state == StoreCondition.SERVING
            assert (alice.positions(), alice.counts()) == before
        else:
            assert condition.state == StoreCondition.NEEDS_PEER_CONFIRMATION
            assert "older" in condition.reason
            assert alice.counts().available_own == alice.counts().available_peer == 0
        assert pairs(bob.deliver_to_slave("s", "m", [key.key_id for key in keys])) == pairs(keys)


@pytest.mark.parametrize("synchronous", [True, False])
def test_a_promoted_standby_that_lacks_what_a_front_end_delivered_is_voided_before_anybody_delivers(
    servers: TwoServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synchronous: bool
) -> None:
    monkeypatch.setattr(PostgresqlSite, "server", servers, raising=False)
    monkeypatch.setattr("qnode.keys._front_end_store.RETRY_S", 0.05)
    if synchronous:
        with servers.primary.admin() as session:
            session.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            session.execute("SELECT pg_reload_conf()")
    wait_for_standby(servers, "sync" if synchronous else "async")
    site = PostgresqlSite(tmp_path / "a", "alice")
    with site.open() as alice, Site(tmp_path / "b", "bob").open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(64))
        add_block(make_block(1, 40), alice, bob)
        one = front_end(site, "one")
        ready(alice, one)
        stocked(alice, bob, 6)
        alice.expire(0.0, LIFETIME_S)  # the node's own anchor knows no later commit
        if not synchronous:
            wait_until_standby_has_all(servers)
            servers.standby.stop()
        given = bits(take(one, 4))
        servers.primary.stop("KILL")
        if not synchronous:
            servers.standby.start()
        servers.standby.promote()
        condition = when_open(alice.condition, one)
        if synchronous:
            assert condition.state == StoreCondition.SERVING
            ready(alice, one)
            more = bits(take(one, 2))
            assert not more.keys() & given.keys()
            assert bits(bob.deliver_to_slave("s", "m", [*given, *more])) == given | more
        else:
            assert condition.state == StoreCondition.NEEDS_PEER_CONFIRMATION
            assert "front end one" in condition.reason
            alice.tend_front_ends(LIFETIME_S)
            with pytest.raises(StoreError, match="waits for the peer"):
                take(one, 1)
            assert alice.counts().here == 0
            assert bits(bob.deliver_to_slave("s", "m", list(given))) == given
        one.close()
