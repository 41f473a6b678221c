"""Keys assigned and not delivered become free again at both sites; a pair has a share of the store."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from keys_support import Site, add_block, make_block, memory_folder, pairs, sqlite_of

from qnode.errors import KeyNotFound, ShareUsedUp, StoreError
from qnode.keys import Assignment, KeyRange, SqliteKeyStore, StoredKey
from qnode.keys._accepted import SHARE
from qnode.keys._vault import Vault

pytestmark = pytest.mark.usefixtures("each_store")

Pair = tuple[SqliteKeyStore, SqliteKeyStore]


@pytest.fixture
def sites() -> Iterator[tuple[Site, Site]]:
    with memory_folder() as folder:
        yield Site(folder / "a", "alice"), Site(folder / "b", "bob")


@pytest.fixture
def filled(sites: tuple[Site, Site]) -> Iterator[Pair]:
    """A block of 40 chunks, available at both sites; 20 are Alice's to assign."""
    with sites[0].open() as alice, sites[1].open() as bob:
        add_block(make_block(1, 40), alice, bob)
        yield alice, bob


def stock_of(alice: SqliteKeyStore, bob: SqliteKeyStore, number: int) -> Assignment:
    stock = alice.assign("m", ["s"], number, 256, 0.0, stock=True)
    bob.accept_assignment(stock, 0.0)
    alice.acknowledge(stock.assignment_id)
    return stock


def released(alice: SqliteKeyStore, bob: SqliteKeyStore, assignment_id: int) -> None:
    bob.release_accepted(alice.begin_release(assignment_id))
    alice.finish_release(assignment_id)


@pytest.mark.parametrize("accepted", [True, False])
def test_released_keys_can_be_assigned_again_and_none_is_lost(filled: Pair, accepted: bool) -> None:
    alice, bob = filled
    first = alice.assign("m", ["s", "t"], 5, 512, 0.0)
    if accepted:
        bob.accept_assignment(first, 0.0)
    assert [release.assignment for release in alice.open_releases()] == [first]
    released(alice, bob, first.assignment_id)
    assert alice.open_releases() == []
    again = alice.assign("n", ["u"], 20, 256, 0.0)
    assert again.ranges == (KeyRange(1, 0, 20),)
    bob.accept_assignment(again, 0.0)
    keys = alice.deliver_to_master(again.assignment_id)
    assert pairs(bob.deliver_to_slave("u", "n", [key.key_id for key in keys])) == pairs(keys)
    for store in filled:
        assert store.counts().void == store.counts().expired == 0


def test_of_stock_that_is_released_what_was_taken_still_waits_for_its_slave(filled: Pair) -> None:
    alice, bob = filled
    stock = stock_of(alice, bob, 6)
    taken = alice.take_from_stock("m", "s", 2)
    released(alice, bob, stock.assignment_id)
    assert alice.stored_key_count() == 18
    with pytest.raises(StoreError):
        alice.take_from_stock("m", "s", 1)
    assert pairs(bob.deliver_to_slave("s", "m", [key.key_id for key in taken])) == pairs(taken)
    assert (alice.counts().assigned, bob.counts().assigned) == (0, 0)
    assert alice.counts().available_own == bob.counts().available_peer == 18


def test_from_the_beginning_of_a_release_nothing_of_it_is_served_here(filled: Pair) -> None:
    alice, bob = filled
    stock = stock_of(alice, bob, 4)
    open_one = alice.assign("m", ["s"], 1, 256, 0.0)
    for assignment_id in (stock.assignment_id, open_one.assignment_id):
        alice.begin_release(assignment_id)
        alice.begin_release(assignment_id)
        with pytest.raises(StoreError):
            alice.acknowledge(assignment_id)
    assert alice.stock_count("m", "s") == alice.counts().stock == 0
    assert alice.stock_items() == []
    with pytest.raises(StoreError):
        alice.take_from_stock("m", "s", 1)
    with pytest.raises(StoreError):
        alice.deliver_to_master(open_one.assignment_id)


def test_a_pair_of_which_nothing_waits_takes_no_room_in_the_books(filled: Pair) -> None:
    alice, bob = filled
    assignment = alice.assign("m", ["s", "t"], 3, 256, 0.0)
    bob.accept_assignment(assignment, 0.0)
    keys = alice.deliver_to_master(assignment.assignment_id)
    bob.deliver_to_slave("s", "m", [key.key_id for key in keys])
    bob.expire(1000.0, 10.0)
    with bob._database.look() as tx:
        assert tx.one("SELECT count(*) FROM waiting_pair") == (0,)


def test_an_assignment_that_was_released_before_it_was_heard_is_accepted_no_more(filled: Pair) -> None:
    alice, bob = filled
    assignment = alice.assign("m", ["s"], 3, 256, 0.0)
    released(alice, bob, assignment.assignment_id)
    with pytest.raises(StoreError, match="released"):
        bob.accept_assignment(assignment, 0.0)  # in a call that hung since the session before
    assert alice.counts().available_own == bob.counts().available_peer == 20
    bob.take_over(alice.give_away(20))


def test_a_release_that_a_cut_left_open_is_repeated(sites: tuple[Site, Site]) -> None:
    with sites[0].open() as alice, sites[1].open() as bob:
        add_block(make_block(1, 40), alice, bob)
        stock_of(alice, bob, 6)
        alice.take_from_stock("m", "s", 2)
        bob.release_accepted(alice.begin_release(1))
    with sites[0].open(create=False) as alice, sites[1].open(create=False) as bob:
        (release,) = alice.open_releases()
        assert release.n_taken == 2
        assert alice.unacknowledged_assignments() == []  # voiding it all would lose what was taken
        bob.release_accepted(release)
        alice.finish_release(1)
        with pytest.raises(StoreError):
            alice.finish_release(1)
        assert alice.counts().available_own == bob.counts().available_peer == 18


def test_keys_that_were_fetched_or_are_gone_are_not_freed(filled: Pair) -> None:
    alice, bob = filled
    assignment = alice.assign("m", ["s", "t"], 3, 256, 0.0)
    bob.accept_assignment(assignment, 0.0)
    release = alice.begin_release(assignment.assignment_id)
    names = list(bob._database.issued.places)
    bob.deliver_to_slave("s", "m", [UUID(bytes=names[0])])
    with pytest.raises(StoreError, match="fetched"):
        bob.release_accepted(release)
    bob.expire(1000.0, 10.0)
    with pytest.raises(StoreError, match="gone"):
        bob.release_accepted(release)
    alice.void_assignment(assignment.assignment_id)
    assert (alice.counts().void, bob.counts().expired) == (3, 3)


def test_of_stock_that_the_peer_frees_no_more_what_is_left_expires(filled: Pair) -> None:
    alice, bob = filled
    stock = stock_of(alice, bob, 4)
    (taken,) = alice.take_from_stock("m", "s", 1)
    release = alice.begin_release(stock.assignment_id)
    assert bob.expire(1000.0, 10.0) == 4
    with pytest.raises(StoreError, match="gone"):
        bob.release_accepted(release)
    alice.leave_to_expire(stock.assignment_id)
    assert alice.expire(1000.0, 10.0) == 3
    assert alice.open_releases() == []
    with pytest.raises(KeyNotFound):
        bob.deliver_to_slave("s", "m", [taken.key_id])


def test_stock_that_the_peer_may_have_freed_does_not_expire_alone(filled: Pair) -> None:
    alice, bob = filled
    stock = stock_of(alice, bob, 4)
    alice.take_from_stock("m", "s", 1)
    bob.release_accepted(alice.begin_release(stock.assignment_id))  # the answer is lost in a cut
    assert alice.expire(1000.0, 10.0) == 0
    (release,) = alice.begin_open_releases()
    bob.release_accepted(release)
    alice.finish_release(stock.assignment_id)
    assert alice.counts().available_own == bob.counts().available_peer == 19


def test_a_release_that_the_peer_refused_is_tried_again_and_nothing_of_it_is_served(filled: Pair) -> None:
    alice, bob = filled
    stock = stock_of(alice, bob, 4)
    alice.take_from_stock("m", "s", 1)
    alice.begin_release(stock.assignment_id)
    alice.leave_to_expire(stock.assignment_id)  # Bob's disk was full
    assert alice.stock_count("m", "s") == 0
    for serve in (alice.acknowledge, alice.deliver_to_master):
        with pytest.raises(StoreError):
            serve(stock.assignment_id)
    (release,) = alice.begin_open_releases()
    assert alice.expire(1000.0, 10.0) == 0
    bob.release_accepted(release)
    alice.finish_release(stock.assignment_id)
    assert alice.counts().available_own == bob.counts().available_peer == 19


def test_a_backup_from_before_a_release_is_found_out(sites: tuple[Site, Site]) -> None:
    with sites[0].open() as alice, sites[1].open() as bob:
        add_block(make_block(1, 40), alice, bob)
        stock_of(alice, bob, 4)
        backups = [site.copy_to(site.folder / "backup") for site in sites]
        released(alice, bob, 1)
    for site, backup in zip(sites, backups, strict=True):
        site.restore_database_from(backup)
        with site.open(create=False) as store:
            assert store.counts().here == 0


def test_a_pair_whose_slave_never_fetches_leaves_room_and_the_next_one_has_its_share(
    sites: tuple[Site, Site],
) -> None:
    most = 1000
    with sites[0].open() as alice, sites[1].open() as bob:
        add_block(make_block(1, 4000), alice, bob)

        def ask(master: str, slaves: list[str], number: int) -> Assignment:
            assignment = alice.assign(master, slaves, number, 256, 0.0)
            bob.accept_assignment(assignment, 0.0, most_chunks=most)
            alice.acknowledge(assignment.assignment_id)
            return assignment

        def ask_until_refused(master: str, slave: str) -> int:
            n_waiting = 0
            while True:
                try:
                    n_waiting += ask(master, [slave], 10).n_keys
                except ShareUsedUp:
                    before = bob.counts()
                    (release,) = alice.open_releases()
                    released(alice, bob, release.assignment.assignment_id)
                    assert bob.counts() == before  # a refusal costs no key
                    return n_waiting

        assert ask_until_refused("m", "s") == most * SHARE // (1 + SHARE)
        with pytest.raises(ShareUsedUp):  # also among others
            ask("m", ["t", "s"], 1)
        released(alice, bob, alice.open_releases()[0].assignment.assignment_id)
        second = ask_until_refused("n", "s")
        third = ask_until_refused("o", "s")
        assert second > third > 0
        assert bob.counts().assigned < most
        released(alice, bob, alice.assign("m", ["s"], 1, 256, 0.0, stock=True).assignment_id)
        ask("p", ["u"], 128)  # never refused, as nothing of it waits
        # A pair that fetches has room again.
        keys: list[StoredKey] = alice.deliver_to_master(1)
        bob.deliver_to_slave("s", "m", [key.key_id for key in keys])
        assert bob.counts().void == 0


@pytest.mark.sqlite
def test_keys_that_wait_cost_nothing_at_the_opening_and_are_found_when_asked_for(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    n_keys = 1500
    with sites[0].open() as alice, sites[1].open() as bob:
        for block_id in (1, 2, 3):
            add_block(make_block(block_id, n_keys), alice, bob)
        keys = []
        for _ in range(n_keys):
            assignment = alice.assign("m", ["s"], 1, 256, 0.0)
            bob.accept_assignment(assignment, 0.0)
            keys += alice.deliver_to_master(assignment.assignment_id)
    opened: list[str] = []
    read = Vault.read

    def counting(self: Vault, kind: str, *rest: int) -> bytes:
        opened.append(kind)
        return read(self, kind, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Vault, "read", counting)
    with sites[1].open(create=False) as bob:
        assert opened == ["canary"]
        statements: list[str] = []
        sqlite_of(bob).set_trace_callback(statements.append)
        assert bob.counts().assigned == n_keys
        sqlite_of(bob).set_trace_callback(None)
        assert not [sql for sql in statements if "assignment" in sql]
        newest, oldest = keys[-1], keys[0]
        assert pairs(bob.deliver_to_slave("s", "m", [newest.key_id])) == pairs([newest])
        assert opened.count("block_secret") == 1
        bob.expire(0.0, 1e9)
        assert pairs(bob.deliver_to_slave("s", "m", [oldest.key_id])) == pairs([oldest])
        for gone in (newest, oldest):
            with pytest.raises(KeyNotFound):
                bob.deliver_to_slave("s", "m", [gone.key_id])
        ids = [key.key_id for key in keys[1:-1]]
        assert pairs(bob.deliver_to_slave("s", "m", ids)) == pairs(keys[1:-1])
        assert bob.counts().assigned == 0


def test_keys_that_wait_unnamed_expire_and_stay_gone(sites: tuple[Site, Site]) -> None:
    with sites[0].open() as alice, sites[1].open() as bob:
        add_block(make_block(1, 40), alice, bob)
        assignment = alice.assign("m", ["s"], 5, 256, 0.0)
        bob.accept_assignment(assignment, 0.0)
        keys = alice.deliver_to_master(assignment.assignment_id)
    with sites[1].open(create=False) as bob:
        assert bob.expire(1000.0, 10.0) == 5
        with pytest.raises(KeyNotFound):
            bob.deliver_to_slave("s", "m", [keys[0].key_id])
        assert bob.counts().expired == 5
