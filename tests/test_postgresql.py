"""The store on a PostgreSQL server: what a server can do to it that a file cannot.

The tests that both stores share run on it with ``make test-postgresql``.
"""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import test_keys_states
import trio
from daemons_support import alter
from keys_support import add_block, assigned, make_block, memory_folder, pairs, preshared
from link_room import link_node
from postgresql_support import PostgresqlSite, Server, missing

import qnode.keys
from qnode.config import PostgresqlSection, SiteConfig, load
from qnode.errors import ConfigError, KeyNotFound, LinkDown, StoreAway, StoreError, StoreUnusable
from qnode.keys import StoreCondition, StoredKey
from qnode.keys._opening import SCHEMA_VERSION
from qnode.keys._tx import Issued
from qnode.loopback.prepare import LoopbackConfig, Staging, prepare
from qnode.node.check import check_site
from qnode.node.process import open_link_store

BACK_WITHIN_S = 60
CONFIG = Path(__file__).parent.parent / "config"

needs_server = pytest.mark.skipif(bool(missing()), reason=missing() or "nothing is missing")


@pytest.fixture(autouse=True)
def sites_on_a_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("skipif"):
        server = request.getfixturevalue("postgresql")
        monkeypatch.setattr(PostgresqlSite, "server", server, raising=False)
        monkeypatch.setattr("qnode.keys._postgresql_store.RETRY_S", 0.05)


@contextmanager
def stores(folder: Path) -> Iterator[tuple[Any, Any]]:
    with (
        PostgresqlSite(folder / "a", "alice").open() as alice,
        PostgresqlSite(folder / "b", "bob").open() as bob,
    ):
        for store in (alice, bob):
            store.load_preshared(preshared(64))
        for block_id in (1, 2):
            add_block(make_block(block_id, 40), alice, bob)
        yield alice, bob


def when_back(call: Callable[[], Any]) -> Any:
    """Return what a call gives once the server is back."""
    until = time.monotonic() + BACK_WITHIN_S
    while True:
        try:
            return call()
        except StoreAway:
            assert time.monotonic() < until, "the store does not come back"
            time.sleep(0.05)


def wait_until_told(call: Callable[[], Any], reason: str) -> None:
    """Wait until a call of a store that is away says that ``reason`` (a pattern)."""
    until = time.monotonic() + BACK_WITHIN_S
    while True:
        with pytest.raises(StoreAway) as told:
            call()
        if re.search(reason, str(told.value)):
            return
        assert time.monotonic() < until, str(told.value)
        time.sleep(0.02)


def end_sessions(server: Server) -> None:
    """End every session of a store, as a restart of the server does."""
    with server.admin() as session:
        session.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'qnode' "
            "AND pid != pg_backend_pid()"
        )


def columns(schema: str) -> set[tuple[str, str]]:
    """Return the tables and columns that an SQL file creates."""
    text = Path(qnode.keys.__file__).with_name(schema).read_text()
    return {
        (table, line.split()[0])
        for table, body in re.findall(r"CREATE TABLE (\w+) \([^\n]*\n(.*?)\n\)", text, re.DOTALL)
        for line in body.split("\n")
        if not line.lstrip().startswith(("PRIMARY", "--"))
    }


def test_both_databases_have_the_same_tables_and_columns() -> None:
    of_file = columns(f"schema_v{SCHEMA_VERSION}.sql")
    of_server = columns(f"schema_v{SCHEMA_VERSION}_postgresql.sql")
    of_server_alone = {
        "schema_version",
        "front_end",
        "front_end_gate",
        "front_end_node",
        "front_end_demand",
        "sae_rate",
    }
    assert {item for item in of_server if item[0] not in of_server_alone} == of_file
    assert {table for table, _ in of_server} >= of_server_alone
    assert len(of_file) > 60


@needs_server
def test_keys_are_the_same_at_both_sites_and_are_given_once(tmp_path: Path) -> None:
    with stores(tmp_path) as (alice, bob):
        keys = alice.deliver_to_master(assigned(alice, bob, 4))
        ids = [key.key_id for key in keys]
        assert pairs(bob.deliver_to_slave("s", "m", ids)) == pairs(keys)
        with pytest.raises(KeyNotFound):
            bob.deliver_to_slave("s", "m", ids)
        assert alice.stored_key_count() == 36
        assert alice.counts().delivered == bob.counts().delivered == 4
        assert alice.audit_page(1, 0, 1000).rows


# How often each call may wait for the server: for what is in the rows, for what they name, and at the end.
MOST_WAITS = {
    "assign": 2,
    "accept_assignment": 2,
    "acknowledge": 2,
    "deliver_to_master": 3,
    "deliver_to_slave": 3,
    "take_from_stock": 3,
}


@needs_server
def test_a_call_waits_for_the_server_twice_or_three_times(tmp_path: Path) -> None:
    with stores(tmp_path) as (alice, bob):
        waits: dict[str, int] = {}

        def call(store: Any, name: str, *arguments: Any, **options: Any) -> Any:
            statements = store._database._engine.statements
            before = statements.waits
            result = getattr(store, name)(*arguments, **options)
            waits[name] = statements.waits - before
            return result

        assignment = call(alice, "assign", "m", ["s", "t"], 3, 512, 0.0)
        call(bob, "accept_assignment", assignment, 0.0, most_chunks=1000)
        call(alice, "acknowledge", assignment.assignment_id)
        keys = call(alice, "deliver_to_master", assignment.assignment_id)
        for slave in ("s", "t"):  # of three keys, and the last of them
            got = call(bob, "deliver_to_slave", slave, "m", [key.key_id for key in keys])
            assert pairs(got) == pairs(keys)
            assert waits["deliver_to_slave"] <= MOST_WAITS["deliver_to_slave"]
        stock = alice.assign("m", ["s"], 4, 256, 0.0, stock=True)
        bob.accept_assignment(stock, 0.0)
        alice.acknowledge(stock.assignment_id)
        call(alice, "take_from_stock", "m", "s", 2)
        assert waits.keys() == MOST_WAITS.keys()
        assert {name: n for name, n in waits.items() if n > MOST_WAITS[name]} == {}


@needs_server
def test_a_failed_statement_undoes_its_change_and_the_store_goes_on(tmp_path: Path) -> None:
    with stores(tmp_path) as (alice, _):
        before = alice.counts(), alice.positions()

        def change(statements: list[str]) -> None:
            with alice._database.change(anchored=True) as tx:
                for statement in statements:
                    tx.connection.execute(statement)

        for failing in (
            ["INSERT INTO site (one) VALUES (2)"],
            ["UPDATE block SET chunks_left = -1", "SELECT 1"],
            ["SELECT no_such_column FROM site", "UPDATE site SET delivered = 1"],
        ):
            with pytest.raises(StoreError):
                change(failing)
            assert when_back(lambda: (alice.counts(), alice.positions())) == before
        with pytest.raises(StoreError), alice._database.look() as tx:
            tx.connection.execute("SELECT 1 / 0").fetchone()
        assert alice.counts() == before[0]
        assert alice.reserve_send_pad()


@needs_server
def test_a_statement_that_was_skipped_at_its_first_use_is_run_at_the_next(tmp_path: Path) -> None:
    with stores(tmp_path) as (alice, _):
        for failing in (["UPDATE block SET chunks_left = -1"], []):
            with suppress(StoreError), alice._database.change(anchored=False) as tx:
                for statement in (*failing, "UPDATE site SET expired = expired + 7"):
                    tx.connection.execute(statement)
        assert alice.counts().expired == 7


@needs_server
def test_a_statement_that_fails_late_is_in_the_answer_of_its_own_call(tmp_path: Path) -> None:
    with stores(tmp_path) as (alice, _):

        def change(statement: str) -> None:
            with alice._database.change(anchored=True) as tx:
                tx.connection.execute("SELECT 1 FROM site").fetchone()
                tx.connection.execute(statement)

        def refused() -> None:
            alice.acknowledge(999)

        for number, last in enumerate((alice.reserve_send_pad, refused), 1):
            pads = alice.pads_left()
            first, second, third = alice.together(
                [
                    partial(change, f"UPDATE site SET tags_used = {1000 * number}"),
                    partial(change, "UPDATE block SET chunks_left = -1"),  # shows while the third call waits
                    last,
                ]
            )
            assert second.error is not None
            assert (alice.pads_left().used >= 1000 * number) == (first.error is None)
            if last is refused:
                assert third.error is not None
            else:
                assert (alice.pads_left().send < pads.send) == (third.error is None)


@needs_server
def test_random_moves_losses_crashes_and_restores_break_no_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The property test of both stores; ``make test-postgresql`` makes ten times as many moves."""
    monkeypatch.setattr(test_keys_states, "Site", PostgresqlSite)
    with memory_folder() as folder, closing(test_keys_states.TwoSites(folder, 1)) as two:
        moves = test_keys_states.WEIGHTS
        for move in two.rng.choices(list(moves), list(moves.values()), k=180):
            move(two)
            two.every_chunk_is_accounted_for()
            two.what_is_available_here_is_at_least_prepared_there()
        assert len(two.masters_got) > 8


@needs_server
def test_a_second_process_is_refused_as_long_as_the_first_has_the_store(tmp_path: Path) -> None:
    site = PostgresqlSite(tmp_path / "a", "alice")
    with site.open(), pytest.raises(StoreUnusable, match="another process has this store open"):
        site.open()
    site.open(create=False).close()


@needs_server
def test_a_store_whose_session_was_ended_opens_again_by_itself(tmp_path: Path) -> None:
    with stores(tmp_path) as (alice, bob):
        before = alice.counts(), alice.positions()
        end_sessions(PostgresqlSite.server)
        with pytest.raises(StoreAway, match="is away"):
            alice.reserve_send_pad()
        assert alice.new_losses() == []
        assert when_back(lambda: (alice.counts(), alice.positions())) == before
        assert alice.condition().state == StoreCondition.SERVING
        keys = alice.deliver_to_master(when_back(lambda: assigned(alice, bob, 2)))
        assert pairs(when_back(lambda: bob.deliver_to_slave("s", "m", [keys[0].key_id]))) == pairs(keys[:1])


@needs_server
@pytest.mark.parametrize("arrived", [False, True])
def test_a_delivery_whose_commit_is_in_doubt_is_never_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    with stores(tmp_path) as (alice, bob):
        assignment = assigned(alice, bob, 3)
        generation = alice.positions().generation
        engine = alice._database._engine
        commit = engine.commit

        def cut() -> None:
            if arrived:
                commit()
            end_sessions(PostgresqlSite.server)
            commit()

        monkeypatch.setattr(engine, "commit", cut)
        with pytest.raises(StoreAway):
            alice.deliver_to_master(assignment)
        when_back(alice.counts)
        assert alice.positions().generation == generation + arrived
        assert alice._database.anchor.positions.generation == generation + arrived
        if arrived:
            with pytest.raises(StoreError):
                alice.deliver_to_master(assignment)
        else:
            assert len(alice.deliver_to_master(assignment)) == 3


@needs_server
def test_an_older_database_that_comes_back_is_found_by_its_anchor(tmp_path: Path) -> None:
    site, peer = PostgresqlSite(tmp_path / "a", "alice"), PostgresqlSite(tmp_path / "b", "bob")
    with site.open() as alice, peer.open() as bob:
        for store in (alice, bob):
            store.load_preshared(preshared(64))
        add_block(make_block(1, 40), alice, bob)
        backup = site.copy_to(tmp_path / "backup")
        alice.deliver_to_master(assigned(alice, bob, 3))
        end_sessions(PostgresqlSite.server)
        site.restore_database_from(backup)
        condition = when_back(alice.condition)
        assert condition.state == StoreCondition.NEEDS_PEER_CONFIRMATION
        assert "older" in condition.reason
        with pytest.raises(LinkDown):
            alice.assign("m", ["s"], 1, 256, 0.0)
        assert alice.counts().available_own == 0


@needs_server
def test_a_server_that_is_killed_under_load_loses_no_key_that_was_given_and_gives_none_twice(
    tmp_path: Path,
) -> None:
    server = PostgresqlSite.server
    got: list[list[StoredKey]] = []
    with stores(tmp_path) as (alice, bob):
        stopped = threading.Event()

        def take() -> None:
            while not stopped.is_set():
                try:
                    got.append(alice.deliver_to_master(assigned(alice, bob, 1)))
                except StoreAway:
                    time.sleep(0.02)
                except StoreError:  # no keys are left, or its commit was in doubt
                    if len(got) > 2 and stopped.wait(0.02):
                        return

        taker = threading.Thread(target=take)
        taker.start()
        for _ in range(2):
            enough = len(got) + 2
            until = time.monotonic() + BACK_WITHIN_S
            while len(got) < enough and time.monotonic() < until:
                time.sleep(0.01)
            server.stop("KILL")
            server.start()
        when_back(alice.counts)
        when_back(bob.counts)
        stopped.set()
        taker.join(BACK_WITHIN_S)
        keys = [key for some in got for key in some]
        assert len({key.key_id for key in keys}) == len(keys) >= 4
        for key in keys:
            fetched = when_back(partial(bob.deliver_to_slave, "s", "m", [key.key_id]))
            assert pairs(fetched) == pairs([key])
        assert alice.condition().state == StoreCondition.SERVING


@needs_server
def test_a_database_that_became_read_only_is_away_and_comes_back(tmp_path: Path) -> None:
    with stores(tmp_path) as (alice, _):
        alice._database._engine.statements.run("SET default_transaction_read_only = on")
        with pytest.raises(StoreAway, match="read-only"):
            alice.reserve_send_pad()
        assert when_back(alice.reserve_send_pad)


def spoil(site: PostgresqlSite, statement: str) -> None:
    with site.server.admin() as session:
        session.execute(f"SET search_path TO {site.schema}")
        session.execute(statement)


@needs_server
@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE schema_version SET version = 3", "schema 3, but this qnode knows"),
        ("ALTER TABLE site DROP COLUMN lineage", "no column site.lineage"),
        ("UPDATE site SET kme_id = 'another'", "kme_id of this store is 'another'"),
        ("DROP TABLE schema_version", "no key store; name another schema"),
        ("UPDATE sealed_unit SET sealed = 'x'", "the store key does not open this store"),
    ],
)
def test_a_schema_that_cannot_be_trusted_is_refused_and_mended_it_serves(
    tmp_path: Path, statement: str, told: str
) -> None:
    site = PostgresqlSite(tmp_path / "a", "alice")
    with site.open() as store:
        backup = site.copy_to(tmp_path / "backup")
        spoil(site, statement)
        end_sessions(site.server)
        wait_until_told(store.counts, told)
        site.restore_database_from(backup)
        assert when_back(store.counts).delivered == 0
    spoil(site, statement)
    with pytest.raises(StoreUnusable, match=told):
        site.open()


@needs_server
def test_a_store_that_is_gone_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    site = PostgresqlSite(tmp_path / "a", "alice")
    with pytest.raises(StoreUnusable, match="there is no key store"):
        site.open(create=False)
    site.open().close()
    spoil(site, f"DROP SCHEMA {site.schema} CASCADE")
    with pytest.raises(StoreUnusable, match=r"its anchor .* remembers it"):
        site.open()


@needs_server
def test_a_store_that_its_role_may_not_use_is_not_taken_for_one_that_is_gone(tmp_path: Path) -> None:
    server = PostgresqlSite.server
    plain = PostgresqlSection(parameters=f"host={server.folder} dbname=postgres user=plain", schema="dumped")

    def begin() -> Any:
        return qnode.keys.open_server_store(
            plain, beside=tmp_path / "no" / "keys.db", role="alice", store_key=bytes(32),
            anchor=tmp_path / "anchor", kme_id="a", peer_kme_id="b", create=True,
        )  # fmt: skip

    with server.admin() as session:
        session.execute("CREATE ROLE plain LOGIN")
        session.execute("GRANT CREATE ON DATABASE postgres TO plain")
        try:
            begin().close()
            session.execute("REASSIGN OWNED BY plain TO qnode")  # as a dump restored without owners
            with pytest.raises(StoreUnusable, match="the role plain may not use the schema dumped; GRANT"):
                begin()
            session.execute("GRANT USAGE ON SCHEMA dumped TO plain")
            with pytest.raises(StoreUnusable, match=r"plain may not use the table dumped\.\w+; GRANT"):
                begin()
            session.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA dumped TO plain")
            begin().close()
        finally:
            session.execute("DROP SCHEMA IF EXISTS dumped CASCADE")
            session.execute("DROP OWNED BY plain")
            session.execute("DROP ROLE plain")


@needs_server
def test_a_backup_is_made_in_a_folder_that_was_never_made_and_drafts_of_a_crash_go(tmp_path: Path) -> None:
    beside = tmp_path / "no" / "keys.db"
    address = PostgresqlSection(parameters=PostgresqlSite.server.parameters, schema="backed_up")

    def begin() -> Any:
        return qnode.keys.open_server_store(
            address, beside=beside, role="alice", store_key=bytes(32), anchor=tmp_path / "anchor",
            kme_id="a", peer_kme_id="b", create=True,
        )  # fmt: skip

    with closing(begin()) as store:
        store.save_backup({}, "x").close()
    assert beside.parent.stat().st_mode & 0o777 == 0o700
    draft = beside.with_name("keys.db.backup.new")
    draft.write_bytes(b"left by a crash")
    with closing(begin()) as store:
        assert not draft.exists()
        store.save_backup({}, "x").close()


@needs_server
def test_keys_are_fetched_from_one_and_the_same_database_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stores(tmp_path) as (alice, bob):
        ids = [key.key_id for key in alice.deliver_to_master(assigned(alice, bob, 2))]
        may_lack = Issued.may_lack
        lost: list[bool] = []

        def and_the_session_ends(self: Issued, names: Any) -> bool:
            lacks = may_lack(self, names)
            if not lost:
                lost.append(True)
                end_sessions(PostgresqlSite.server)
                with pytest.raises(StoreAway):
                    bob.counts()
            return lacks

        monkeypatch.setattr(Issued, "may_lack", and_the_session_ends)
        with pytest.raises(StoreAway):  # not KeyNotFound, which would be final
            bob.deliver_to_slave("s", "m", ids)
        assert len(when_back(partial(bob.deliver_to_slave, "s", "m", ids))) == 2


@needs_server
def test_a_schema_that_vanishes_under_a_running_store_is_told(tmp_path: Path) -> None:
    with stores(tmp_path) as (alice, _):
        spoil_schema = f"DROP SCHEMA {re.sub('.*/', '', alice._opened.name)} CASCADE"
        with PostgresqlSite.server.admin() as session:
            session.execute(spoil_schema)
        wait_until_told(alice.counts, r"its anchor .* remembers it")


@needs_server
async def test_a_server_that_cancels_a_statement_is_told_and_does_not_end_the_node(tmp_path: Path) -> None:
    with stores(tmp_path) as (alice, _):
        node = link_node(load(CONFIG / "alice.toml", SiteConfig), alice)
        statements = alice._database._engine.statements
        with PostgresqlSite.server.admin() as session, session.transaction():
            session.execute(
                f"LOCK TABLE {re.sub('.*/', '', alice._opened.name)}.site IN ACCESS EXCLUSIVE MODE"
            )
            statements.run("SET statement_timeout = 20")
            await node.refresh()
            (alarm,) = node.figures.status().alarms
            assert alarm.name == "store.failed"
            assert "statement timeout" in alarm.text
        statements.run("SET statement_timeout = 0")
        assert (await node.store.counts()).available_own == 40
        assert node.liveness.is_alive()


@needs_server
def test_a_server_that_does_not_flush_is_refused(tmp_path: Path) -> None:
    site = PostgresqlSite(tmp_path / "a", "alice")
    with site.server.admin() as session:
        session.execute("ALTER SYSTEM SET full_page_writes = off")
        session.execute("SELECT pg_reload_conf()")
    try:
        until = time.monotonic() + BACK_WITHIN_S
        told = ""
        while "full_page_writes = off" not in told:
            assert time.monotonic() < until
            try:
                site.open().close()
            except StoreError as error:
                told = str(error)
    finally:
        with site.server.admin() as session:
            session.execute("ALTER SYSTEM RESET full_page_writes")
            session.execute("SELECT pg_reload_conf()")


@needs_server
def test_a_password_in_the_parameters_is_refused_and_one_in_a_file_is_in_no_text(tmp_path: Path) -> None:
    from qnode.keys._postgresql import check_parameters, connect, name_of

    with pytest.raises(ConfigError, match="password_file") as refusal:
        check_parameters("host=h password=hunter2")
    assert "hunter2" not in str(refusal.value)
    with pytest.raises(ConfigError, match="postgresql"):
        check_parameters("no such = thing")
    for typed in (
        "host=h password=two hunter2",
        "host=h sslpassword=hunter2",
        "postgresql://user:hunter2%zz@host/database",
        "postgresql://user:hunter2@host/database",
        "host=h hunter2=x",
        "host=h hunter2",
        "host='h hunter2",
        "postgresql://h/database?hunter2=x",
        "host=user:hunter2@h",
        "host=h dbname=postgresql://user:hunter2@h/database",
        "host=h dbname='user=u word=hunter2'",
    ):
        with pytest.raises(ConfigError) as refusal:
            check_parameters(typed)
        assert "hunter2" not in str(refusal.value)
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    address = PostgresqlSection(parameters=PostgresqlSite.server.parameters, password_file=secret)
    with pytest.raises(ConfigError, match="can be read by others"):
        connect(address)
    secret.chmod(0o600)
    engine = connect(address)
    try:
        assert "hunter2" not in f"{address!r}{name_of(address)}{engine.name}"
    finally:
        engine.close()
    for parameters in ("host=/nowhere", "host=/nowhere sslmode=hunter2", "host=/nowhere gssencmode=hunter2"):
        with pytest.raises(StoreAway, match="cannot be reached") as refused:
            connect(PostgresqlSection(parameters=parameters, password_file=secret))
        assert "hunter2" not in str(refused.value)


@needs_server
async def test_the_status_names_a_server_that_is_away_until_it_is_back(tmp_path: Path) -> None:
    with stores(tmp_path) as (alice, _):
        node = link_node(load(CONFIG / "alice.toml", SiteConfig), alice)
        await node.refresh()
        assert node.figures.status().alarms == []
        PostgresqlSite.server.stop()
        await node.refresh()
        (alarm,) = node.figures.status().alarms
        assert alarm.name == "store.failed"
        assert "is away" in alarm.text
        with pytest.raises(StoreAway):
            await node.store.assign("m", ("s",), 1, 256)
        PostgresqlSite.server.start()
        with trio.fail_after(BACK_WITHIN_S):
            while True:
                with suppress(StoreAway):
                    await node.store.expire(1e6)
                    break
                await trio.sleep(0.05)
        assert (await node.store.counts()).available_own == 40
        assert node.store.unsettled  # the next session settles what was open
        assert node.liveness.is_alive()


def site_on_server(folder: Path, schema: str, parameters: str = "") -> SiteConfig:
    file = prepare(folder, LoopbackConfig(), Staging(1.0)).site_files["alice"]
    alter(
        file,
        store__postgresql={"parameters": parameters or PostgresqlSite.server.parameters, "schema": schema},
    )
    return load(file, SiteConfig)


@needs_server
async def test_a_store_whose_server_is_away_at_the_start_is_shown_and_opens_by_itself(tmp_path: Path) -> None:
    config = site_on_server(tmp_path, "away_at_start")
    for last_block_id in (0, 1):  # a new store, which needs its pre-shared key, and one that is there
        PostgresqlSite.server.stop()
        with closing(open_link_store(config)) as store:
            node, began = link_node(config, store), time.time()
            await node.refresh()
            (alarm,) = node.figures.status().alarms
            assert alarm.name == "store.failed"
            assert "cannot be reached" in alarm.text
            assert alarm.since >= began
            PostgresqlSite.server.start()
            with trio.fail_after(BACK_WITHIN_S):
                while True:
                    with suppress(StoreAway):
                        positions = await node.store.positions()
                        break
                    await trio.sleep(0.02)
            assert (positions.pool_epoch, positions.last_block_id) == (1, last_block_id)
            assert (await node.store.pads_left()).send > 0
            if last_block_id == 0:
                await node.store.record_block_opened(1, 0.0)


@needs_server
def test_a_store_away_at_the_start_is_closed_at_once(tmp_path: Path) -> None:
    store = open_link_store(site_on_server(tmp_path, "never_there", "host=/nowhere"))
    with pytest.raises(StoreAway, match="cannot be reached"):
        store.counts()
    assert store.new_losses() == []
    assert store.uncleared == 0
    assert "away" in repr(store)
    store.close()
    with pytest.raises(StoreUnusable, match="was closed"):
        store.counts()


@needs_server
def test_a_role_that_may_not_make_its_schema_is_refused_at_the_start(tmp_path: Path) -> None:
    with PostgresqlSite.server.admin() as session:
        session.execute("CREATE ROLE bare LOGIN")
        parameters = PostgresqlSite.server.parameters.replace("user=qnode", "user=bare")
        try:
            with pytest.raises(StoreUnusable, match=r"permission denied .* GRANT the role bare"):
                open_link_store(site_on_server(tmp_path, "not_allowed", parameters))
        finally:
            session.execute("DROP ROLE bare")


@needs_server
def test_a_site_file_that_names_a_server_has_its_store_there(tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "data", LoopbackConfig(), Staging(1.0))
    file = prepared.site_files["alice"]
    alter(file, store__postgresql={"parameters": PostgresqlSite.server.parameters, "schema": "of_a_site"})
    assert check_site(file).faults == []
    config = load(file, SiteConfig)
    with closing(open_link_store(config)) as store:
        assert store.pads_left().send > 0
        assert repr(store).startswith("PostgresqlKeyStore(")
    assert not config.store.path.exists()
    with closing(open_link_store(config)) as store:
        assert store.condition().state == StoreCondition.SERVING
    alter(file, store__postgresql__parameters="host=/nowhere password=hunter2")
    (fault,) = check_site(file).faults
    assert "has a password" in fault
    assert "hunter2" not in fault
    alter(file, store__postgresql={"parameters": "host=h", "schema": "two words"})
    with pytest.raises(ConfigError, match=r"store.postgresql.schema"):
        load(file, SiteConfig)
    alter(file, store__postgresql=None)
    with pytest.raises(StoreUnusable, match="its anchor"):
        open_link_store(load(file, SiteConfig))


def test_without_a_server_in_its_file_a_node_does_not_import_the_driver() -> None:
    look = "import sys, qnode.node.process, qnode.cli.main; sys.exit('psycopg' in sys.modules)"
    subprocess.run([sys.executable, "-c", look], check=True)


@needs_server
def test_a_change_reads_what_was_committed_while_it_waited_for_the_lock_whatever_the_server_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c default_transaction_isolation=serializable")
    with (
        PostgresqlSite(tmp_path / "a", "alice").open() as store,
        store._database.change(anchored=False, while_waiting=True) as tx,
    ):
        assert tx.connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
