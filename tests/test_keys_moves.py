"""Assign, release, deliver, expire, reopen at two stores, in any order that hypothesis thinks of.

The machine keeps to the order in which a node asks for moves, and forgets or repeats any as a cut does.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from keys_support import Site, add_block, chunks_of, make_block

from qnode.errors import KeyNotFound, NotEnoughKeys, ShareUsedUp, StoreError
from qnode.keys import Assignment, KeyRange, SqliteKeyStore, StoredKey, key_id
from qnode.keys._accepted import SHARE

pytestmark = pytest.mark.usefixtures("each_store")

N_CHUNKS = 24
MOST_CHUNKS = 30
TTL_S = 100.0
SLAVES = ("s1", "s2")
WHICH = st.integers(0, 5)


class Moves(RuleBasedStateMachine):
    """Alice assigns, Bob's encryptors fetch."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.sites = Site(Path(self.folder.name) / "a", "alice"), Site(Path(self.folder.name) / "b", "bob")
        self.alice, self.bob = (site.open() for site in self.sites)
        self.bits: dict[UUID, bytes] = {}
        for block_id in (1, 2):
            block = make_block(block_id, N_CHUNKS)
            add_block(block, self.alice, self.bob)
            for i in range(N_CHUNKS):
                start = block.layout.overhead_bytes + 32 * i
                self.bits[key_id(block.key[:32], i)] = block.key[start:]
        self.now = 0.0
        self.open: list[Assignment] = []
        self.taken: Counter[int] = Counter()
        self.masters_got: dict[UUID, Assignment] = {}
        self.expired: set[int] = set()
        self.slaves_got: set[tuple[UUID, str]] = set()

    def teardown(self) -> None:
        self.alice.close()
        self.bob.close()
        self.folder.cleanup()

    # Moves

    @rule(
        number=st.integers(1, 6),
        width=st.sampled_from([1, 1, 1, 2]),
        n_slaves=st.integers(1, 2),
        fate=st.integers(0, 5),
    )
    def assign(self, number: int, width: int, n_slaves: int, fate: int) -> None:
        self._assign(SLAVES[:n_slaves], number, width, fate, stock=False)

    @rule(number=st.integers(2, 6), fate=st.integers(0, 5))
    def assign_stock(self, number: int, fate: int) -> None:
        self._assign(SLAVES[:1], number, 1, fate, stock=True)

    def _assign(self, slaves: tuple[str, ...], number: int, width: int, fate: int, *, stock: bool) -> None:
        try:
            assignment = self.alice.assign("m", slaves, number, 256 * width, self.now, stock=stock)
        except NotEnoughKeys:
            return
        self.open.append(assignment)
        if fate:  # it is heard of, and mostly the answer too
            self._announce(assignment, heard=fate > 1)

    @precondition(lambda self: self.open)
    @rule(which=WHICH, heard=st.booleans())
    def announce(self, which: int, heard: bool) -> None:
        assignment = self._pick(which)
        if self._acknowledged(assignment) == 0:
            self._announce(assignment, heard=heard)

    def _announce(self, assignment: Assignment, *, heard: bool) -> None:
        before = self.bob.counts()
        try:
            self.bob.accept_assignment(assignment, self.now, most_chunks=MOST_CHUNKS)
        except ShareUsedUp:
            assert self.bob.counts() == before
            return
        except StoreError:  # it was accepted, and has expired there
            assert self.bob.counts() == before
            return
        if heard:
            self.alice.acknowledge(assignment.assignment_id)

    @precondition(lambda self: self.open)
    @rule(which=WHICH)
    def deliver_to_master(self, which: int) -> None:
        assignment = self._pick(which)
        if assignment.stock:
            return
        if self._acknowledged(assignment) != 1:
            self.alice.begin_release(assignment.assignment_id)
            with pytest.raises(StoreError):
                self.alice.deliver_to_master(assignment.assignment_id)
            return
        self._master_gets(self.alice.deliver_to_master(assignment.assignment_id), assignment)
        self.open.remove(assignment)

    @rule(number=st.integers(1, 4))
    def take_from_stock(self, number: int) -> None:
        stock = {item.assignment_id: item.n_keys for item in self.alice.stock_items()}
        try:
            keys = self.alice.take_from_stock("m", "s1", number)
        except NotEnoughKeys:
            assert sum(stock.values()) < number
            return
        left = {item.assignment_id: item.n_keys for item in self.alice.stock_items()}
        taken_of = Counter({one: stock[one] - left.get(one, 0) for one in stock})
        by_id = {assignment.assignment_id: assignment for assignment in self.open}
        for one in sorted(stock):
            n_keys = taken_of[one]
            self.taken[one] += n_keys
            self._master_gets(keys[:n_keys], by_id[one])
            keys = keys[n_keys:]
            if one not in left:
                self.open.remove(by_id[one])

    @precondition(lambda self: self.masters_got)
    @rule(which=st.integers(0, 100), slave=st.sampled_from(SLAVES))
    def deliver_to_slave(self, which: int, slave: str) -> None:
        asked = list(self.masters_got)[which % len(self.masters_got)]
        assignment = self.masters_got[asked]
        if slave not in assignment.slave_saes:
            return
        try:
            (key,) = self.bob.deliver_to_slave(slave, "m", [asked])
        except KeyNotFound:
            assert (asked, slave) in self.slaves_got or assignment.assignment_id in self.expired
            return
        assert key.key == self.bits[asked][: assignment.size_bits // 8]  # I1
        assert (asked, slave) not in self.slaves_got  # I2
        self.slaves_got.add((asked, slave))

    @precondition(lambda self: self.open)
    @rule(which=WHICH, steps=st.integers(1, 3), repeated=st.booleans())
    def release(self, which: int, steps: int, repeated: bool) -> None:
        """Take keys back, as far as a cut allows."""
        assignment = self._pick(which)
        release = self.alice.begin_release(assignment.assignment_id)
        assert release.n_taken == self.taken[assignment.assignment_id]
        if steps == 1:
            return
        try:
            for _ in range(1 + repeated):
                self.bob.release_accepted(release)
        except StoreError:  # all of it has expired there
            if not release.n_taken:
                self.bob.void_accepted(assignment)
            self.alice.void_assignment(assignment.assignment_id)
            self.open.remove(assignment)
            return
        if steps == 3:
            self.alice.finish_release(assignment.assignment_id)
            self.open.remove(assignment)

    @rule(at_alice=st.booleans(), passes_s=st.sampled_from([1.0, 60.0, 150.0]))
    def expire(self, at_alice: bool, passes_s: float) -> None:
        self.now += passes_s
        before = self._held_at_bob()
        (self.alice if at_alice else self.bob).expire(self.now, TTL_S)
        self.expired |= before - self._held_at_bob()
        self.open = [one for one in self.open if self._acknowledged(one) is not None]

    @rule(at_alice=st.booleans())
    def reopen(self, at_alice: bool) -> None:
        """Close a store and open it again; what waited is found again."""
        if at_alice:
            self.alice.close()
            self.alice = self.sites[0].open(create=False)
        else:
            self.bob.close()
            self.bob = self.sites[1].open(create=False)

    # What must hold

    @invariant()
    def totals_are_the_sums_of_what_is_there(self) -> None:
        for store in (self.alice, self.bob):
            connection = _connection(store)
            sums: list[Any] = [
                connection.execute(f"SELECT coalesce(sum({what}), 0) FROM {where}").fetchone()[0]
                for what, where in (
                    ("(n_keys - n_taken) * chunks_per_key", "own_assignment"),
                    (
                        "(n_keys - n_taken) * chunks_per_key",
                        "own_assignment WHERE stock AND acknowledged = 1",
                    ),
                    ("keys_left * chunks_per_key", "peer_assignment"),
                )
            ]
            totals = connection.execute("SELECT own_chunks, stock_chunks, peer_chunks FROM site").fetchone()
            assert list(totals) == sums
            counts = store.counts()
            gone = counts.delivered + counts.void + counts.expired
            assert counts.here + gone == 2 * N_CHUNKS

    @invariant()
    def what_is_free_here_is_free_there_or_promised_to_nobody_else(self) -> None:
        free = {role: _free(store) for role, store in (("alice", self.alice), ("bob", self.bob))}
        # I3: what Alice may assign is free for Alice at Bob's site as well.
        assert free["alice"] <= free["bob"]
        promised = [chunk for assignment in self.open for chunk in self._rest(assignment)]
        assert len(promised) == len(set(promised))
        assert not free["alice"] & set(promised)

    @invariant()
    def a_pair_has_no_more_waiting_than_its_share(self) -> None:
        most = MOST_CHUNKS * SHARE / (1 + SHARE)
        waiting = _connection(self.bob).execute("SELECT chunks FROM waiting_pair").fetchall()
        (n_all,) = _connection(self.bob).execute("SELECT peer_chunks FROM site").fetchone()
        assert all(0 < chunks <= min(n_all, most) for (chunks,) in waiting)

    # Helpers

    def _pick(self, which: int) -> Assignment:
        return self.open[which % len(self.open)]

    def _acknowledged(self, assignment: Assignment) -> int | None:
        """Return 0 while the peer may not know it, 1 when it is held, 2 in release; None if not open."""
        sql = "SELECT acknowledged FROM own_assignment WHERE assignment_id = ?"
        row = _connection(self.alice).execute(sql, (assignment.assignment_id,)).fetchone()
        return None if row is None else row[0]

    def _held_at_bob(self) -> set[int]:
        return {row[0] for row in _connection(self.bob).execute("SELECT assignment_id FROM peer_assignment")}

    def _rest(self, assignment: Assignment) -> set[tuple[int, int]]:
        chunks = [(item.block_id, item.first + i) for item in assignment.ranges for i in range(item.count)]
        assert set(chunks) == chunks_of(assignment)
        width = len(chunks) // assignment.n_keys
        return set(chunks[self.taken[assignment.assignment_id] * width :])

    def _master_gets(self, keys: list[StoredKey], assignment: Assignment) -> None:
        for key in keys:
            assert key.key == self.bits[key.key_id][: assignment.size_bits // 8]  # I1
            assert key.key_id not in self.masters_got  # I2
            self.masters_got[key.key_id] = assignment


def _connection(store: SqliteKeyStore) -> Any:
    return store._database._tx.connection


def _free(store: SqliteKeyStore) -> set[tuple[int, int]]:
    """Return the chunks that Alice may assign, as a store sees them."""
    rows = _connection(store).execute("SELECT block_id, first, count FROM free_range WHERE owner = 'alice'")
    return {(block_id, first + i) for block_id, first, count in rows for i in range(count)}


TestMoves = pytest.mark.timeout(300)(Moves.TestCase)
TestMoves.settings = settings(
    max_examples=40,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_an_assignment_may_take_several_parts_of_one_range(tmp_path: Path) -> None:
    with Site(tmp_path / "b", "bob").open() as bob:
        add_block(make_block(1, 40), bob)
        free = bob.counts().available_peer

        def accept(assignment_id: int, *firsts: int) -> None:
            ranges = tuple(KeyRange(1, first, 2) for first in firsts)
            assignment = Assignment(
                assignment_id=assignment_id,
                owner="alice",
                master_sae="m",
                slave_saes=("s",),
                size_bits=256,
                ranges=ranges,
            )
            bob.accept_assignment(assignment, 0.0)

        accept(1, 2, 6, 10)
        assert bob.counts().available_peer == free - 6
        for taken in (2, 6, 10):
            with pytest.raises(StoreError, match="not all free"):
                accept(2, taken)
        accept(2, 0, 4, 8, 12)
        assert bob.counts().available_peer == free - 14
