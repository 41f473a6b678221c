"""Front ends that deliver from the store of a node, on a real server (``make test-postgresql``)."""

import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio
from etsi014_support import MemorySupply
from front_ends_support import (
    LIFETIME_S,
    WITHIN_S,
    bits,
    fetch,
    front_end,
    live_chunks,
    needs_server,
    ready,
    stocked,
    take,
    two_stores,
    waiting,
    when_open,
)
from postgresql_support import PostgresqlSite, Server

from qnode.config import SaeSection
from qnode.delivery import SaeDirectory
from qnode.errors import (
    AboveSaeLimit,
    KeyNotFound,
    NotEnoughKeys,
    NotNamed,
    QnodeError,
    SaeLimitReached,
    StoreAway,
    StoreError,
    StoreUnusable,
)
from qnode.keys import StoreCondition, StoredKey
from qnode.keys._front_end_batch import Fetch, Take
from qnode.node.supply.async_store import AsyncStore
from qnode.node.supply.site_supply import SiteKeySupply
from qnode.serve.supply import FrontEndSupply

pytestmark = needs_server


@pytest.fixture(autouse=True)
def sites_on_a_server(postgresql: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgresqlSite, "server", postgresql, raising=False)
    monkeypatch.setattr("qnode.keys._postgresql_store.RETRY_S", 0.05)
    monkeypatch.setattr("qnode.keys._front_end_store.RETRY_S", 0.05)


def test_a_front_end_gives_keys_agreed_ahead_and_waiting_keys_each_once(tmp_path: Path) -> None:
    with two_stores(tmp_path) as (site, alice, bob):
        one = front_end(site, "one")
        stocked(alice, bob, 5)
        with pytest.raises(StoreAway, match="waits until the node has admitted"):
            take(one, 1)
        ready(alice, one)
        given = take(one, 3) + alice.take_from_stock("m", "s", 2)
        with pytest.raises(NotEnoughKeys):
            take(one, 1)
        ids = [key.key_id for key in given]
        assert bits(bob.deliver_to_slave("s", "m", ids)) == bits(given)

        theirs = waiting(bob, alice, 4, slaves=("s", "t"), size_bits=512)
        ids = [key.key_id for key in theirs]
        assert bits(fetch(one, ids[:2])) == bits(theirs[:2])
        with pytest.raises(KeyNotFound):
            fetch(one, ids[1:3])
        with pytest.raises(NotNamed):
            fetch(one, ids[:1], slave="stranger")
        assert bits(alice.deliver_to_slave("s", "m", ids[2:])) == bits(theirs[2:])
        assert bits(fetch(one, ids, slave="t")) == bits(theirs)
        with pytest.raises(KeyNotFound):
            fetch(one, ids, slave="t")

        counts = alice.counts()
        assert (counts.delivered, counts.assigned, counts.stock) == (5 + 8, 0, 0)
        assert counts.here == 800 - 13 == live_chunks(alice)
        page = alice.audit_page(1, 0, 1 << 20)
        assert len(page.rows) == page.chains[-1].last_number == 6
        assert alice.expire(0.0, LIFETIME_S) == 0
        one.leave()


def test_two_front_ends_and_the_node_under_load_give_each_key_once_and_the_same_at_both_sites(
    tmp_path: Path,
) -> None:
    n_rounds, part = 12, 3
    given: list[list[StoredKey]] = []
    fetched: list[list[StoredKey]] = []
    troubles: list[Exception] = []
    with two_stores(tmp_path, 1000) as (site, alice, bob):
        front_ends = [front_end(site, name) for name in ("one", "two")]
        ready(alice, *front_ends)
        done = threading.Event()

        def enough() -> bool:
            return sum(len(keys) for keys in given) >= 4 * n_rounds * part

        def master(ask: Any, name: str) -> None:
            draw = random.Random(name)
            for _ in range(n_rounds):
                pair = draw.choice(("s", "t"))
                while not troubles:
                    try:
                        given.append(ask(draw.choice((part, part + 1)), pair))
                        break
                    except NotEnoughKeys:
                        time.sleep(0.001)

        def slave(ask: Any, keys: list[list[StoredKey]], saes: list[str]) -> None:
            for sae, some in zip(saes, keys, strict=True):
                fetched.append(ask([key.key_id for key in some], sae))

        def stock() -> None:
            while not done.is_set():
                for pair in ("s", "t"):
                    if alice.stock_count("m", pair) < 8:
                        stocked(alice, bob, 8, slave=pair)
                alice.tend_front_ends(LIFETIME_S)

        def running(work: Any, *arguments: Any) -> threading.Thread:
            def safe() -> None:
                try:
                    work(*arguments)
                except (AssertionError, QnodeError) as error:
                    troubles.append(error)

            thread = threading.Thread(target=safe)
            thread.start()
            return thread

        # Keys of Bob's masters, which wait here: each front end and the node fetch some.
        theirs: list[tuple[str, list[StoredKey]]] = []
        for number in range(3 * n_rounds):
            sae = ("s", "t")[number % 2]
            theirs.append((sae, waiting(bob, alice, part, slaves=(sae,))))
        filler = running(stock)
        threads = []
        askers = [
            *(
                (
                    lambda n, pair, one=one: take(one, n, slave=pair),
                    lambda ids, sae, one=one: fetch(one, ids, slave=sae),
                )
                for one in front_ends
            ),
            (
                lambda n, pair: alice.take_from_stock("m", pair, n),
                lambda ids, sae: alice.deliver_to_slave(sae, "m", ids),
            ),
        ]
        for number, (ask, ask_slave) in enumerate(askers):
            mine = theirs[number::3]

            def both(ask: Any, ask_slave: Any, number: int, mine: Any) -> None:
                for sae, keys in mine:  # one thread at a time uses a front end's store
                    slave(ask_slave, [keys], [sae])
                master(ask, str(number))

            threads.append(running(both, ask, ask_slave, number, mine))
        for thread in threads:
            thread.join(WITHIN_S)
        done.set()
        filler.join(WITHIN_S)
        assert not troubles, troubles
        every = [key for keys in given for key in keys]
        assert len({key.key_id for key in every}) == len(every) == len({key.key for key in every})
        for keys in given:
            ids = [key.key_id for key in keys]
            sae = next(one for one in ("s", "t") if _is_for(bob, one, ids))
            assert bits(bob.deliver_to_slave(sae, "m", ids)) == bits(keys)
        assert Counter(key.key for keys in fetched for key in keys) == Counter(
            key.key for _, keys in theirs for key in keys
        )
        assert alice.counts().delivered == len(every) + 3 * n_rounds * part
        assert alice.counts().here == 2000 - alice.counts().delivered == live_chunks(alice)
        for one in front_ends:
            one.leave()


def _is_for(store: Any, slave: str, key_ids: list[UUID]) -> bool:
    try:
        store.deliver_to_slave(slave, "nobody", key_ids)
    except NotNamed:
        return False
    except KeyNotFound:
        return True
    raise AssertionError("nobody has keys")


def test_a_limit_holds_across_front_ends(tmp_path: Path) -> None:
    with two_stores(tmp_path) as (site, alice, bob):
        front_ends = [front_end(site, name) for name in ("one", "two")]
        ready(alice, *front_ends)
        stocked(alice, bob, 30)
        with pytest.raises(AboveSaeLimit):
            take(front_ends[0], 11, limit=10)
        got = sum(len(take(front_ends[number % 2], 2, limit=10)) for number in range(5))
        assert got == 10
        for one in front_ends:
            with pytest.raises(SaeLimitReached) as reached:
                take(one, 2, limit=10)
            assert 0 < reached.value.wait_s <= 12.0
            one.leave()


async def test_the_node_counts_for_a_limit_together_with_front_ends(tmp_path: Path) -> None:
    with two_stores(tmp_path) as (site, alice, bob):
        one = front_end(site, "one")
        ready(alice, one)
        stocked(alice, bob, 30)
        saes = (
            SaeSection(sae_id="m", kme_id="kme-alice", peers=("s",), keys_per_minute=10),
            SaeSection(sae_id="s", kme_id="kme-bob", peers=("m",)),
        )
        of_link, shared = MemorySupply(chunks=6), AsyncStore(alice, 1 << 20)
        supply = SiteKeySupply({"kme-bob": of_link}, SaeDirectory("kme-alice", saes, ("kme-bob",)), shared)
        await supply.allocate("m", ("s",), 6, 256)
        with pytest.raises(NotEnoughKeys):
            await supply.allocate("m", ("s",), 2, 256)  # which does not count
        with pytest.raises(SaeLimitReached):
            take(one, 5, limit=10)
        assert len(take(one, 4, limit=10)) == 4
        with pytest.raises(SaeLimitReached):
            await supply.allocate("m", ("s",), 1, 256)
        with pytest.raises(AboveSaeLimit):
            await supply.allocate("m", ("s",), 6, 512)
        one.leave()


def test_a_database_set_back_behind_a_front_end_is_voided_before_anybody_delivers(tmp_path: Path) -> None:
    with two_stores(tmp_path) as (site, alice, bob):
        one = front_end(site, "one")
        ready(alice, one)
        stocked(alice, bob, 6)
        alice.expire(0.0, LIFETIME_S)  # the last that the node's own anchor sees
        backup = site.copy_to(tmp_path / "backup")
        given = take(one, 4)
        alice.close()
        site.restore_database_from(backup)
        one.close()

        one = front_end(site, "one")
        assert "waits until the node has opened" in one.look()
        again = site.open()
        condition = when_open(again.condition, one)
        assert condition.state == StoreCondition.NEEDS_PEER_CONFIRMATION
        assert "front end one" in condition.reason
        again.tend_front_ends(LIFETIME_S)
        with pytest.raises(StoreError, match="waits for the peer"):
            take(one, 1)
        assert again.confirm_generation(bob.view_of_peer()) or again.condition().serves
        with pytest.raises(NotEnoughKeys):
            take(one, 1)
        assert len(bits(given)) == 4
        one.leave()
        again.close()


def test_a_database_that_is_replaced_while_it_is_open_is_noticed_by_front_end_and_node(
    tmp_path: Path,
) -> None:
    with two_stores(tmp_path) as (site, alice, bob):
        one = front_end(site, "one")
        ready(alice, one)
        stocked(alice, bob, 6)
        site.restore_database_from(site.copy_to(tmp_path / "backup"))  # the same state, and no session ended
        with pytest.raises(StoreAway, match="a new epoch has begun"):
            take(one, 1)
        with pytest.raises(StoreUnusable, match="start again"):
            alice.tend_front_ends(LIFETIME_S)
        one.close()


def test_a_front_end_of_a_replaced_database_does_not_leave_and_the_node_waits_for_what_it_delivered(
    tmp_path: Path,
) -> None:
    with two_stores(tmp_path) as (site, alice, bob):
        one = front_end(site, "one")
        ready(alice, one)
        stocked(alice, bob, 6)
        backup = site.copy_to(tmp_path / "backup")
        take(one, 1)
        site.restore_database_from(backup)  # no session ended
        one.leave()
        alice.close()
        with site.open() as again, pytest.raises(StoreAway, match="the front end one must say"):
            again.condition()


def test_a_front_end_that_knows_more_than_its_database_does_not_leave(tmp_path: Path) -> None:
    with two_stores(tmp_path) as (site, alice, bob):
        one = front_end(site, "one")
        ready(alice, one)
        stocked(alice, bob, 6)
        take(one, 1)
        with site.server.admin() as session:  # as in a server that was set back together with its memory
            session.execute(f"UPDATE {site.schema}.site SET generation = generation - 1")
            one.leave()
            assert session.execute(f"SELECT name FROM {site.schema}.front_end").fetchall() == [("one",)]


async def test_requests_that_are_given_up_leave_no_busy_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_stores(tmp_path) as (site, alice, _):
        one = front_end(site, "one")
        ready(alice, one)
        looks, hangs, goes_on = 0, threading.Event(), threading.Event()
        perform, look = one.perform, one.look

        def hanging(*arguments: Any) -> None:
            hangs.set()
            goes_on.wait(WITHIN_S)
            perform(*arguments)

        def counted() -> str:
            nonlocal looks
            looks += 1
            return look()

        monkeypatch.setattr(one, "perform", hanging)
        monkeypatch.setattr(one, "look", counted)
        supply = FrontEndSupply(one, SaeDirectory("kme-alice", (), ("kme-bob",)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supply.run)

            async def ask() -> None:
                with pytest.raises(QnodeError):
                    await supply.fetch("s", "m", (UUID(int=1),))

            nursery.start_soon(ask)
            await trio.to_thread.run_sync(hangs.wait, WITHIN_S)
            with trio.move_on_after(0.01):
                await ask()
            looks = 0
            goes_on.set()
            await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
        assert looks <= 1
        one.close()


def test_a_backup_that_is_put_back_twice_begins_two_epochs(tmp_path: Path) -> None:
    epochs = set()
    with two_stores(tmp_path) as (site, alice, _):
        backup = site.copy_to(tmp_path / "backup")
        for _ in range(2):
            alice.close()
            site.restore_database_from(backup)
            alice = site.open()
            with site.server.admin() as session:
                epochs.add(session.execute(f"SELECT epoch FROM {site.schema}.front_end_gate").fetchone()[0])
        alice.close()
    assert len(epochs) == 2


def test_the_node_waits_for_a_front_end_that_is_missing_after_the_server_was_another(tmp_path: Path) -> None:
    with two_stores(tmp_path) as (site, alice, bob):
        one, two = front_end(site, "one"), front_end(site, "two")
        ready(alice, one, two)
        stocked(alice, bob, 6)
        take(two, 1)
        two.leave()
        one.close()  # like a crash: it has not left
        alice.close()
        with site.server.admin() as session:  # as after a restart of the server
            session.execute(f"UPDATE {site.schema}.front_end_gate SET server = 'another'")
        one = front_end(site, "one")
        with site.open() as again:
            with pytest.raises(StoreAway, match="the front end one must say"):
                again.condition()
            assert when_open(again.condition, one).serves
            ready(again, one)
            assert len(take(one, 5)) == 5
            one.leave()


def test_a_front_end_without_its_anchor_says_so_and_if_it_is_lost_every_key_is_void(tmp_path: Path) -> None:
    with two_stores(tmp_path) as (site, alice, bob):
        one = front_end(site, "one")
        ready(alice, one)
        stocked(alice, bob, 6)
        take(one, 1)
        one.close()
        alice.close()
        (site.folder / "anchor-one").unlink()
        one = front_end(site, "one")
        assert one.look() == ""  # no other epoch: nothing can be lost
        one.close()
        (site.folder / "anchor-one").unlink()
        with site.server.admin() as session:
            session.execute(f"UPDATE {site.schema}.front_end_gate SET server = 'another'")
        again = site.open()
        one = front_end(site, "one")
        until = time.monotonic() + WITHIN_S
        while "--anchor-lost" not in one.look() and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(StoreAway):
            again.condition()
        one = front_end(site, "one", anchor_lost=True)
        assert when_open(again.condition, one).state == StoreCondition.NEEDS_PEER_CONFIRMATION
        assert again.counts().here == 0
        again.close()
        one.close()


def test_a_front_end_that_hangs_in_a_transaction_does_not_stop_the_node(tmp_path: Path) -> None:
    with two_stores(tmp_path) as (site, alice, bob):
        one = front_end(site, "one")
        ready(alice, one)
        stocked(alice, bob, 6)
        session = one._session
        assert session is not None
        session.engine.begin()
        began = time.monotonic()
        stocked(alice, bob, 1)  # after the server has ended that session
        assert time.monotonic() - began < WITHIN_S
        with pytest.raises(StoreAway):
            take(one, 1)
        until = time.monotonic() + WITHIN_S
        while one.look() and time.monotonic() < until:
            time.sleep(0.01)
        assert len(take(one, 7)) == 7
        one.leave()


def test_a_damaged_unit_spoils_its_own_request_alone_and_the_node_discards_it(tmp_path: Path) -> None:
    with two_stores(tmp_path) as (site, alice, bob):
        one = front_end(site, "one")
        ready(alice, one)
        stocked(alice, bob, 5)
        ids = [key.key_id for key in waiting(bob, alice, 2)]
        with site.server.admin() as session:  # Bob's chunks begin in the second unit
            session.execute(
                f"UPDATE {site.schema}.sealed_unit SET sealed = 'spoilt' WHERE kind = 'chunk' AND unit = 1"
            )
        master, slave = Take("m", "s", 2), Fetch("s", "m", ids)
        one.perform([slave, master], {})
        assert len(master.keys) == 2
        assert not slave.keys
        assert "does not open" in str(slave.error)
        with pytest.raises(KeyNotFound):
            alice.deliver_to_slave("s", "m", ids)
        with pytest.raises(KeyNotFound):
            fetch(one, ids)
        assert len(take(one, 3)) == 3
        one.leave()


def test_two_front_ends_of_one_name_do_not_run_at_once(tmp_path: Path) -> None:
    with two_stores(tmp_path) as (site, alice, _):
        one = front_end(site, "one")
        ready(alice, one)
        assert "another front end of the name one runs" in front_end(site, "one").look()
        one.leave()


def test_a_front_end_whose_anchor_cannot_be_written_gives_nothing_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_stores(tmp_path) as (site, alice, bob):
        one = front_end(site, "one")
        ready(alice, one)
        stocked(alice, bob, 6)

        def fail(*_arguments: object) -> None:
            raise OSError("no disk")

        monkeypatch.setattr("qnode.keys._anchor.Anchor.advance", fail)
        with pytest.raises(StoreUnusable, match="no disk"):
            take(one, 1)
        monkeypatch.undo()
        with pytest.raises(StoreUnusable):
            take(one, 1)
        assert alice.stock_count("m", "s") == 5  # destroyed, not given
        one.close()
