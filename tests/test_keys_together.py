"""Changes asked for by many threads at once, or by one: one commit for all, each whole or not at all."""

import random
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from keys_support import Site, add_block, assigned, make_block, memory_folder, pairs, preshared

from qnode.errors import KeyNotFound, LinkDown, NotEnoughKeys, StoreError, StoreUnusable
from qnode.keys import (
    BlockState,
    Counts,
    Pad,
    PadsLeft,
    SqliteKeyStore,
    StoredKey,
    Waiting,
    _accepted,
    _restore,
)

pytestmark = pytest.mark.usefixtures("each_store")

MOST_STATEMENTS_ALONE = 18  # one of them a lock, at a server
MOST_STATEMENTS_MORE = 5


@contextmanager
def counted_statements(store: SqliteKeyStore) -> Iterator[list[str]]:
    """Collect the statements of a store by their texts without values, except those of triggers."""
    statements: Any = store._database._engine.statements
    found: list[str] = []

    def note(text: str) -> None:
        if text not in found[-1:]:  # otherwise a trigger
            found.append(text)

    if isinstance(statements, sqlite3.Connection):
        statements.set_trace_callback(note)
        yield found
        statements.set_trace_callback(None)
        found[:] = [re.sub(r"(x?'[^']*'|\b[0-9.]+\b)", "?", text) for text in found]
        return
    execute, run = statements.execute, statements.run

    def noted_execute(sql: str, *values: Any) -> Any:
        note(sql)
        return execute(sql, *values)

    def noted_run(sql: str) -> Any:
        note(sql)
        return run(sql)

    statements.execute, statements.run = noted_execute, noted_run
    yield found
    del statements.execute, statements.run


class Crowd:
    """Threads that all stand before the store's door when it opens."""

    def __init__(self, store: SqliteKeyStore) -> None:
        self.store = store
        self.results: dict[int, object] = {}
        self.commits = 0

    def run(self, *moves: Callable[[], object]) -> list[object]:
        """Make the moves in one crowd; return what each gave, or its error."""
        engine = self.store._database._engine
        commit = engine.commit

        def count() -> None:
            self.commits += 1
            commit()

        engine.commit = count  # type: ignore[method-assign]
        self._make(moves)
        engine.commit = commit  # type: ignore[method-assign]
        return [self.results[number] for number in range(len(moves))]

    def _make(self, moves: Sequence[Callable[[], object]]) -> None:
        database = self.store._database

        def one(number: int, move: Callable[[], object]) -> None:
            try:
                self.results[number] = move()
            except StoreError as error:
                self.results[number] = error

        threads = [threading.Thread(target=one, args=(number, move)) for number, move in enumerate(moves)]
        with database._lock:
            for number, thread in enumerate(threads):
                thread.start()
                while len(database._arriving) <= number:
                    time.sleep(0.0005)
        for thread in threads:
            thread.join(60)


class OneThread(Crowd):
    """One thread that makes all moves together."""

    def _make(self, moves: Sequence[Callable[[], object]]) -> None:
        for number, answer in enumerate(self.store.together(moves)):
            self.results[number] = answer.value if answer.error is None else answer.error


@pytest.fixture(params=[Crowd, OneThread])
def crowd_of(request: pytest.FixtureRequest) -> type[Crowd]:
    """Those who ask at once."""
    kind: type[Crowd] = request.param
    return kind


def test_changes_that_wait_together_share_one_commit_and_one_step_of_the_anchor(
    tmp_path: Path, crowd_of: type[Crowd]
) -> None:
    site = Site(tmp_path / "a", "alice")
    with site.open() as store:
        store.load_preshared(preshared(64))
        before = store.positions()
        crowd = crowd_of(store)
        pads = crowd.run(*[store.reserve_send_pad] * 20)
        assert crowd.commits == 1
        assert store.positions().generation == before.generation + 1
        ids = {pad.pad_id for pad in pads if isinstance(pad, Pad)}
        assert len(ids) == 20
        assert store._database.anchor is not None
        assert store._database.anchor.positions == store.positions()


def test_a_change_that_is_refused_takes_nobody_with_it(tmp_path: Path, crowd_of: type[Crowd]) -> None:
    with Site(tmp_path / "a", "alice").open() as store:
        store.load_preshared(preshared(64))
        for refused_at in range(3):
            moves: list[Callable[[], object]] = [store.reserve_send_pad] * 3
            moves[refused_at] = lambda: store.confirm(999)
            left = store.pads_left().send
            results = crowd_of(store).run(*moves)
            assert [isinstance(result, StoreError) for result in results] == [
                position == refused_at for position in range(3)
            ]
            assert store.pads_left().send == left - 2


def test_what_a_refused_change_had_begun_is_undone_beside_others_that_are_kept(
    tmp_path: Path, crowd_of: type[Crowd]
) -> None:
    with Site(tmp_path / "a", "alice").open() as store:
        store.load_preshared(preshared(64))
        add_block(make_block(1, 40), store)
        before = store.counts()
        # Too many: all free chunks were taken before that is found.
        pad, refused, another = crowd_of(store).run(
            store.reserve_send_pad, lambda: store.assign("m", ["s"], 1000, 256, 0.0), store.reserve_send_pad
        )
        assert isinstance(refused, NotEnoughKeys)
        assert isinstance(pad, Pad)
        assert isinstance(another, Pad)
        assert store.counts() == before


def test_what_a_refused_change_had_gathered_is_undone_beside_others_that_are_kept(tmp_path: Path) -> None:
    with Site(tmp_path / "a", "alice").open() as alice, Site(tmp_path / "b", "bob").open() as bob:
        add_block(make_block(1, 40), alice, bob)
        ids = [key.key_id for key in alice.deliver_to_master(assigned(alice, bob, 4))]
        before = bob.counts(), bob.audit_standing().entries_total

        def refuse() -> None:
            with bob._database.change(anchored=False, gathers=True) as tx:
                _accepted.deliver(tx, "s", "m", ids[1:3])
                raise NotEnoughKeys(1, 0)

        def fetch(some: list[UUID]) -> list[UUID]:
            return [key.key_id for key in bob.deliver_to_slave("s", "m", some)]

        first, refused, last = bob.together([partial(fetch, ids[:1]), refuse, partial(fetch, ids[1:])])
        assert isinstance(refused.error, NotEnoughKeys)
        assert (first.value, last.value) == (ids[:1], ids[1:])
        counts, n_entries = bob.counts(), bob.audit_standing().entries_total
        assert (counts.delivered - before[0].delivered, counts.assigned, n_entries - before[1]) == (4, 0, 2)
        with bob._database.look() as tx:
            assert tx.one("SELECT chunks_left FROM block") == (36,)
            assert tx.one("SELECT count(*) FROM waiting_pair") == (0,)


def test_a_change_reads_what_deliveries_before_it_have_gathered(tmp_path: Path) -> None:
    with Site(tmp_path / "a", "alice").open() as alice, Site(tmp_path / "b", "bob").open() as bob:
        add_block(make_block(1, 8), alice, bob)
        number = assigned(alice, bob, 2)
        n_entries = alice.audit_standing().entries_total
        moves: list[Callable[[], object]] = [
            partial(alice.deliver_to_master, number),
            partial(alice.record_changes, ("set", "something", "")),
            partial(alice.void_all, "test"),
        ]
        assert all(answer.error is None for answer in alice.together(moves))
        assert alice.audit_standing().entries_total == n_entries + 2
        counts = alice.counts()
        assert (counts.delivered, counts.void) == (2, 6)


def test_calls_of_one_commit_write_each_row_once(tmp_path: Path) -> None:
    """The statements of keys agreed ahead: alone, and what each further call of a commit adds."""
    with Site(tmp_path / "a", "alice").open() as alice, Site(tmp_path / "b", "bob").open() as bob:
        add_block(make_block(1, 200), alice, bob)
        stock = alice.assign("m", ["s"], 60, 256, 0.0, stock=True)
        bob.accept_assignment(stock, 0.0)
        alice.acknowledge(stock.assignment_id)
        taken: list[StoredKey] = []

        def take() -> None:
            taken.extend(alice.take_from_stock("m", "s", 1))

        def fetch() -> None:
            bob.deliver_to_slave("s", "m", [taken.pop(0).key_id])

        for store, move in ((alice, take), (bob, fetch)):
            numbers = []
            for n_calls in (1, 8):
                with counted_statements(store) as statements:
                    assert all(answer.error is None for answer in store.together([move] * n_calls))
                numbers.append(len(statements))
                writes = [one for one in statements if re.match("UPDATE|INSERT|DELETE", one)]
                often = [one for one, n in Counter(writes).items() if n > 1]
                assert all(re.search("_assignment|audit_entry", one) for one in often), often
            alone, together = numbers
            assert alone <= MOST_STATEMENTS_ALONE
            assert together - alone <= 7 * MOST_STATEMENTS_MORE


def test_two_who_ask_for_the_same_keys_together_are_not_both_served(
    tmp_path: Path, crowd_of: type[Crowd]
) -> None:
    with Site(tmp_path / "a", "alice").open() as alice, Site(tmp_path / "b", "bob").open() as bob:
        add_block(make_block(1, 40), alice, bob)
        keys = alice.deliver_to_master(assigned(alice, bob, 4))
        ids = [key.key_id for key in keys]
        results = crowd_of(bob).run(*[lambda: bob.deliver_to_slave("s", "m", ids)] * 3)
        served = [result for result in results if isinstance(result, list)]
        assert [pairs(result) for result in served] == [pairs(keys)]
        assert sum(isinstance(result, KeyNotFound) for result in results) == 2
        two = crowd_of(alice).run(*[lambda: alice.assign("m", ["s"], 4, 256, 0.0)] * 2)
        for assignment in two:
            bob.accept_assignment(assignment, 0.0)  # type: ignore[arg-type]  # refuses a chunk used twice


@pytest.mark.sqlite
def test_when_the_disk_is_full_all_are_told_and_nothing_has_changed(
    tmp_path: Path, crowd_of: type[Crowd]
) -> None:
    site = Site(tmp_path / "a", "alice")
    with site.open() as store:
        store.load_preshared(preshared(64))
        connection = store._database._tx.connection
        (n_pages,) = connection.execute("PRAGMA page_count").fetchone()
        store.record_block_opened(1, 0.0)
        before, left = store.positions(), store.pads_left()
        connection.execute(f"PRAGMA max_page_count = {n_pages}")
        results = crowd_of(store).run(
            store.reserve_send_pad,
            store.reserve_send_pad,
            lambda: store.prepare(make_block(1, 5000)),
            store.reserve_send_pad,
        )
        # SQLite undoes all that came before in the transaction; those behind begin another.
        served = [result for result in results if isinstance(result, Pad)]
        assert isinstance(results[2], StoreError)
        assert all("disk is full" in str(result) for result in results if result not in served)
        assert store.positions().generation == before.generation + (1 if served else 0)
        assert store.pads_left().send == left.send - len(served)
        connection.execute("PRAGMA max_page_count = 100000")
        store.prepare(make_block(1, 5000))


@pytest.mark.sqlite
def test_a_reader_is_served_though_the_disk_is_full_for_a_writer_beside_it(
    tmp_path: Path, crowd_of: type[Crowd]
) -> None:
    with Site(tmp_path / "a", "alice").open() as store:
        store.load_preshared(preshared(64))
        store.record_block_opened(1, 0.0)
        connection = store._database._tx.connection
        (n_pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {n_pages}")
        pad, counts, too_much, state = crowd_of(store).run(
            store.reserve_send_pad,
            store.counts,
            lambda: store.prepare(make_block(1, 5000)),
            lambda: store.block_state(1),
        )
        assert isinstance(too_much, StoreError)
        assert isinstance(pad, Pad | StoreError)
        assert isinstance(counts, Counts)
        assert (counts.prepared, state) == (0, BlockState.UNKNOWN)


def test_when_the_anchor_cannot_be_written_nobody_gets_a_key(tmp_path: Path, crowd_of: type[Crowd]) -> None:
    site = Site(tmp_path / "a", "alice")
    with site.open() as store:
        store.load_preshared(preshared(64))
        anchor = store._database.anchor
        assert anchor is not None
        anchor.close()
        try:
            results = crowd_of(store).run(*[store.reserve_send_pad] * 3)
            assert all(isinstance(result, StoreUnusable) for result in results)
            with pytest.raises(StoreUnusable):
                store.pads_left()
        finally:
            store._database.anchor = None  # closed already


@pytest.mark.sqlite
def test_after_an_error_of_the_disk_nothing_that_waited_is_committed(
    tmp_path: Path, crowd_of: type[Crowd]
) -> None:
    site = Site(tmp_path / "a", "alice")
    with site.open() as store:
        store.load_preshared(preshared(64))

        def meet_a_bad_sector() -> None:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
            with store._database.change(anchored=False):
                raise error

        left = store.pads_left().send
        results = crowd_of(store).run(*[store.reserve_send_pad] * 3, meet_a_bad_sector, store.pads_left)
        assert isinstance(results[3], StoreUnusable)
        served = [result for result in results if isinstance(result, Pad)]
        assert all(isinstance(result, StoreUnusable | Pad | PadsLeft) for result in results)
    with site.open(create=False) as store:
        assert store.pads_left().send == left - len(served)


@pytest.mark.parametrize("seed", range(2))
def test_many_threads_at_both_sites_never_share_a_key_and_what_they_saw_was_durable(seed: int) -> None:
    with memory_folder() as folder, ExitStack() as stack:
        sites = {"alice": Site(folder / "a", "alice"), "bob": Site(folder / "b", "bob")}
        stores = {role: stack.enter_context(site.open()) for role, site in sites.items()}
        for store in stores.values():
            store.load_preshared(preshared(512))
        for block_id in range(1, 5):
            add_block(make_block(block_id, 300), *stores.values())
        got: list[tuple[str, list[StoredKey]]] = []
        errors: list[BaseException] = []

        def move_keys(role: str, number: int) -> None:
            rng = random.Random(f"{seed}/{role}/{number}")
            owner, peer = stores[role], stores["bob" if role == "alice" else "alice"]
            try:
                for _ in range(12):
                    assignment = owner.assign("m", ["s"], rng.randint(1, 9), 256, 0.0)
                    peer.accept_assignment(assignment, 0.0)
                    keys = owner.deliver_to_master(assignment.assignment_id)
                    owner.reserve_send_pad()
                    ids = [key.key_id for key in keys]
                    rng.shuffle(ids)
                    fetched = peer.deliver_to_slave("s", "m", ids)
                    assert sorted(pairs(fetched)) == sorted(pairs(keys))
                    got.append((role, keys))
            except BaseException as error:  # noqa: BLE001 - told to the test's thread
                errors.append(error)

        threads = [
            threading.Thread(target=move_keys, args=(role, number)) for role in stores for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert errors == []
        ids = [key.key_id for _, keys in got for key in keys]
        assert len(set(ids)) == len(ids) > 200
        counts = {role: store.counts() for role, store in stores.items()}
        # A copy of what is on disk now is what a crash now would leave: nothing seen is missing from it.
        for role, site in sites.items():
            copy = site.copy_to(folder / f"copy-{role}")
            with copy.open(create=False) as again:
                assert again.counts() == counts[role]
                assert again.positions() == stores[role].positions()


def test_a_change_that_lets_the_store_wait_stops_those_after_it_in_the_same_commit(tmp_path: Path) -> None:
    with Site(tmp_path, "alice").open() as store:
        add_block(make_block(1, 8), store)

        def assign() -> None:
            store.assign("m", ["s"], 1, 256, 0.0)

        def wait() -> None:
            with store._database.change(anchored=False, while_waiting=True) as tx:
                _restore.wait(tx, Waiting.OLDER, "it was set back")

        first, second, third, fourth = store.together([assign, assign, wait, assign])
        assert first.error is second.error is third.error is None
        assert isinstance(fourth.error, LinkDown)
        assert store.counts().assigned == 2
