"""Both sites' stores under random moves, lost and repeated messages, crashes and restores: I1 to I5, I10.

The machine plays the network and the two nodes. It holds what really left the stores (keys for SAEs, pads)
and checks after every step that nothing left twice, to the wrong SAE, with other bits, or after a restore.
"""

import random
import shutil
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from uuid import UUID

import pytest
from keys_support import LAYOUT, Site, chunks_of, make_block, memory_folder, preshared

from qnode.choices import Role
from qnode.errors import KeyNotFound, LinkDown, NotEnoughKeys, NotNamed, PoolExhausted, StoreError
from qnode.keys import (
    Assignment,
    BlockState,
    Handover,
    PadId,
    SqliteKeyStore,
    StoreCondition,
    StoredKey,
    key_id,
)

pytestmark = pytest.mark.usefixtures("each_store")

SAES = ("s1", "s2")
N_CHUNKS = 9
TTL_S = 100.0
CONFIRMED_OR_PREPARED = (BlockState.PREPARED, BlockState.AVAILABLE)


def other(role: Role) -> Role:
    return "bob" if role == "alice" else "alice"


class TwoSites:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.sites: dict[Role, Site] = {
            "alice": Site(self.folder / "a", "alice"),
            "bob": Site(self.folder / "b", "bob"),
        }
        self.stores: dict[Role, SqliteKeyStore] = {role: site.open() for role, site in self.sites.items()}
        for store in self.stores.values():
            store.load_preshared(preshared(400))
        self.now = 0.0
        self.block_id = 0
        self.chunks_prepared = {"alice": 0, "bob": 0}
        self.truth: dict[UUID, bytes] = {}  # key_ID of a chunk: the block's bytes from there on
        self.assignments: list[Assignment] = []
        self.handovers: list[Handover] = []
        self.masters_got: dict[UUID, tuple[Role, bytes]] = {}
        self.slaves_got: dict[tuple[UUID, str], tuple[Role, bytes]] = {}
        self.chunks_out: dict[Role, set[UUID]] = {"alice": set(), "bob": set()}
        self.pads_out: dict[Role, dict[PadId, bytes]] = {"alice": {}, "bob": {}}
        self.pads_verified: dict[Role, set[PadId]] = {"alice": set(), "bob": set()}
        self.pads_of_old_pools: set[bytes] = set()
        self.n_pools = 1
        self.backups: list[Site] = []
        self.n_copies = 0
        self.restored = False
        for _ in range(2):
            self.add_block("answered", "answered")

    def close(self) -> None:
        for store in self.stores.values():
            store.close()

    def role(self) -> Role:
        return self.rng.choice(("alice", "bob"))

    def fate(self) -> str:
        """Say what becomes of a message: mostly it arrives, and its answer too."""
        return self.rng.choice(["answered"] * 6 + ["unanswered", "lost"])

    # Blocks

    def distill_a_block(self) -> None:
        self.add_block(self.fate(), self.fate())

    def add_block(self, to_alice: str, to_bob: str) -> None:
        self.block_id = 1 + max(self.block_id, *(store.last_block_id for store in self.stores.values()))
        block = make_block(self.block_id, N_CHUNKS)
        for role, store in self.stores.items():
            if store.condition().state == StoreCondition.SERVING:
                store.record_block_opened(self.block_id, 0.0)
                store.prepare(block)
                self.chunks_prepared[role] += N_CHUNKS
        for i in range(N_CHUNKS):
            self.truth[key_id(block.key[:32], i)] = block.key[LAYOUT.overhead_bytes + 32 * i :]
        fates: dict[Role, str] = {"alice": to_alice, "bob": to_bob}
        for role, fate in fates.items():
            if (
                fate != "lost"
                and self.stores[other(role)].block_state(self.block_id) in CONFIRMED_OR_PREPARED
            ):
                self.refusable(lambda: self.stores[role].confirm(self.block_id))  # noqa: B023 - called at once

    def resume(self) -> None:
        """Finish what a cut left open, as the nodes would: both confirm, or both void."""
        for role, store in self.stores.items():
            peer = self.stores[other(role)]
            for block_id in store.unconfirmed_blocks():
                if peer.block_state(block_id) in CONFIRMED_OR_PREPARED:
                    self.refusable(lambda: store.confirm(block_id))  # noqa: B023 - called at once
                else:
                    self.refusable(lambda: store.void_block(block_id, "peer has none"))  # noqa: B023

    # Keys

    def ask_for_keys(self) -> None:
        role, fate = self.role(), self.fate()
        number, size_bits = self.rng.randint(1, 3), self.rng.choice([256, 256, 256, 64, 600])
        n_slaves, stock = self.rng.randint(1, 2), self.rng.random() < 0.3
        slaves = SAES[: 1 if stock else n_slaves]
        try:
            assignment = self.stores[role].assign("m", slaves, number, size_bits, self.now, stock=stock)
        except (NotEnoughKeys, LinkDown):
            return
        self.assignments.append(assignment)
        if fate != "lost" and self.send_assignment(assignment) and fate == "answered":
            if stock or self.rng.random() < 0.3:
                self.stores[role].acknowledge(assignment.assignment_id)
            if not stock:
                try:
                    keys = self.stores[role].deliver_to_master(assignment.assignment_id)
                except StoreError:  # given up, for it does not open
                    assert self.stores[role]._database.new_losses
                    return
                self.master_gets(role, keys, size_bits)

    def ask_for_too_many(self) -> None:
        """Be refused after all free chunks were taken, which must be undone."""
        role = self.role()
        with suppress(LinkDown), pytest.raises(NotEnoughKeys):
            self.stores[role].assign("m", SAES, 1000, 256, self.now)

    def repeat_an_assignment(self) -> None:
        fate = self.fate()
        if not self.assignments:
            return
        assignment = self.rng.choice(self.assignments[-6:])
        accepted = self.send_assignment(assignment)
        owner = self.stores[assignment.owner]
        if accepted and fate == "answered" and assignment in owner.unacknowledged_assignments():
            self.refusable(lambda: owner.acknowledge(assignment.assignment_id))

    def void_an_unacknowledged_assignment(self) -> None:
        role, fate = self.role(), self.fate()
        open_ones = self.stores[role].unacknowledged_assignments()
        if open_ones:
            oldest = open_ones[0]
            voided = self.refusable(lambda: self.stores[role].void_assignment(oldest.assignment_id))
            if voided and fate != "lost":
                self.refusable(lambda: self.stores[other(role)].void_accepted(oldest))

    def deliver_to_master(self) -> None:
        if not self.assignments:
            return
        assignment = self.rng.choice(self.assignments[-6:])
        if not self.send_assignment(assignment):
            return
        try:
            keys = self.stores[assignment.owner].deliver_to_master(assignment.assignment_id)
        except StoreError:
            return
        self.master_gets(assignment.owner, keys, assignment.size_bits)

    def take_from_stock(self) -> None:
        role, number = self.role(), self.rng.randint(1, 3)
        try:
            keys = self.stores[role].take_from_stock("m", SAES[0], number)
        except (NotEnoughKeys, LinkDown):
            return
        self.master_gets(role, keys, 256)

    def deliver_to_slave(self) -> None:
        if not self.masters_got:
            return
        slave = self.rng.choice([SAES[0]] * 6 + [SAES[1], "stranger"])
        newest = [asked for asked in self.masters_got if (asked, slave) not in self.slaves_got][-2:]
        if not newest or self.rng.random() < 0.2:
            newest = list(self.masters_got)[-6:]
        ids = self.rng.sample(newest, min(len(newest), self.rng.choice([1, 1, 2])))
        site = other(self.masters_got[ids[0]][0])
        try:
            keys = self.stores[site].deliver_to_slave(slave, "m", ids)
        except (KeyNotFound, NotNamed, LinkDown):
            return
        assert slave in SAES
        for asked, key in zip(ids, keys, strict=True):
            master_site, master_key = self.masters_got[asked]
            assert key.key_id == asked
            assert key.key == master_key  # I1
            assert site == other(master_site)  # I2: never in both directions
            assert (asked, slave) not in self.slaves_got  # I2, I5
            self.slaves_got[asked, slave] = site, key.key

    def time_passes(self) -> None:
        role = self.role()
        self.now += self.rng.choice([1.0, 1.0, 30.0, 150.0])
        self.refusable(lambda: self.stores[role].expire(self.now, TTL_S))

    def give_away(self) -> None:
        role, number, fate = self.role(), self.rng.randint(1, 6), self.fate()
        store = self.stores[role]
        handover = store.pending_handover()
        if handover is None:
            try:
                handover = store.give_away(number)
            except (NotEnoughKeys, LinkDown):
                return
            self.handovers.append(handover)
        if fate == "lost":
            return
        peer = self.stores[other(role)]
        if self.rng.random() < 0.1:  # the peer refuses, if it has not taken it before
            self.refusable(lambda: peer.void_handover(handover))
        taken = self.refusable(lambda: peer.take_over(handover))
        if taken and fate == "answered":
            self.refusable(lambda: store.finish_handover(handover.handover_id))
        elif not taken and self.refusable(lambda: peer.void_handover(handover)) and self.fate() == "answered":
            self.refusable(lambda: store.void_handover(handover))

    def repeat_a_handover(self) -> None:
        if not self.handovers:
            return
        handover = self.rng.choice(self.handovers)
        self.refusable(lambda: self.stores[other(handover.giver)].take_over(handover))

    # Pads

    def authenticate_a_message(self) -> None:
        role, fate = self.role(), self.fate()
        try:
            pad = self.stores[role].reserve_send_pad()
        except (PoolExhausted, LinkDown):
            return
        assert pad.pad_id not in self.pads_out[role]  # I10
        assert pad.pad not in self.pads_out[role].values()
        assert pad.pad not in self.pads_of_old_pools
        self.pads_out[role][pad.pad_id] = pad.pad
        if fate != "lost":
            self.verify(role, pad.pad_id)

    def replay_a_message(self) -> None:
        if self.pads_out["alice"]:
            self.verify("alice", self.rng.choice(sorted(self.pads_out["alice"])))

    # Faults

    def crash(self) -> None:
        """Kill the process: its files stay as they are, or the anchor's last write did not arrive."""
        role, anchor_lags = self.role(), self.rng.random() < 0.5
        before = self.copy(role)
        if anchor_lags:
            try:
                self.stores[role].reserve_send_pad()  # its result is lost with the process
            except (PoolExhausted, LinkDown):
                anchor_lags = False
        after = self.copy(role)
        if anchor_lags:
            shutil.copy(before.anchor, after.anchor)
        waited = self.stores[role].condition().state
        self.stores[role].close()
        self.sites[role] = after
        self.stores[role] = after.open(create=False)
        assert self.stores[role].condition().state == waited

    def back_up(self) -> None:
        self.backups.append(self.copy(self.role()))

    def restore(self) -> None:
        """Put a backup in the place of one site's database, or of both, with their anchors or without."""
        roles: list[Role] = self.rng.choice([["alice"], ["bob"], ["alice", "bob"]])
        for role in roles:
            backups = [backup for backup in self.backups if backup.role == role]
            before = self.stores[role].positions()
            self.stores[role].close()
            if backups and self.rng.random() < 0.8:
                self.sites[role].restore_database_from(self.rng.choice(backups))
            if self.rng.random() < 0.5:
                self.sites[role].anchor.unlink(missing_ok=True)
            has_anchor = self.sites[role].anchor.exists()
            self.stores[role] = self.sites[role].open(create=False)
            counts = self.stores[role].counts()
            if has_anchor and self.stores[role].positions().generation > before.generation:
                assert counts.available_own + counts.available_peer + counts.prepared + counts.assigned == 0
            self.restored = True
            self.chunks_prepared[role] = sum(counts_of(self.stores[role]))
        if self.rng.random() < 0.8:
            self.hello()

    def hello(self) -> None:
        """Meet again and again, as sites do of which one hears that it was set back, until they agree."""
        for _ in range(4):
            states = {store.condition().state for store in self.stores.values()}
            roots = {store.session_root() for store in self.stores.values()}
            if len(roots) > 1 or StoreCondition.NEEDS_RESTORE in states:  # the proofs differ, or all is void
                self.load_a_new_preshared_key()
            said = {
                role: (store.positions().generation, store.standing(), store.view_of_peer())
                for role, store in self.stores.items()
            }
            voided = False
            for role, store in self.stores.items():
                generation, standing, view = said[other(role)]
                store.note_peer(generation, standing)
                voided |= store.confirm_generation(view, standing)
            if not voided:
                break
        for role in ("alice", "bob"):
            assert self.stores[role].condition().state == StoreCondition.SERVING
            self.stores[role].keep_pad_segments(self.stores[other(role)].pad_segments())
        self.tell_losses()

    def load_a_new_preshared_key(self) -> None:
        """Do what `qnodectl restore` does, at both sites."""
        for role, store in self.stores.items():
            store.load_preshared(preshared(400 + self.n_pools), replace=True)
            self.chunks_prepared[role] = sum(counts_of(store))
            self.pads_of_old_pools |= set(self.pads_out[role].values())
            self.pads_out[role], self.pads_verified[role] = {}, set()
        self.n_pools += 1

    def damage(self) -> None:
        """Flip a bit of what is sealed, chunks and pads alike; the session's own secrets stay."""
        flip_a_bit(self.stores[self.role()], self.rng)

    def tell_losses(self) -> None:
        for _ in range(6):
            losses = [(role, loss) for role, store in self.stores.items() for loss in store.open_losses()]
            if not losses or any(store.condition().reason for store in self.stores.values()):
                return
            for role, loss in losses:
                if self.refusable(lambda: self.stores[other(role)].accept_loss(loss), counted=False):  # noqa: B023
                    self.stores[role].finish_loss(loss.loss_id)
        raise AssertionError("the sites go on telling each other of losses")

    # What must hold after every step

    def every_chunk_is_accounted_for(self) -> None:
        for role, store in self.stores.items():
            assert sum(counts_of(store)) == self.chunks_prepared[role]

    def what_is_available_here_is_at_least_prepared_there(self) -> None:
        if self.restored:
            return  # the restored site has voided it; the other one follows in the hello
        for role, store in self.stores.items():
            for block in store.recent_blocks(20):
                if block.state == BlockState.AVAILABLE:
                    state = self.stores[other(role)].block_state(block.block_id)
                    assert state in CONFIRMED_OR_PREPARED  # I3

    # Helpers

    def master_gets(self, role: Role, keys: list[StoredKey], size_bits: int) -> None:
        for key in keys:
            assert key.key == self.truth[key.key_id][: size_bits // 8]  # I1
            assert key.key_id not in self.masters_got  # I2, I5
            self.masters_got[key.key_id] = role, key.key
            self.chunks_out[role].add(key.key_id)
        assert not self.chunks_out["alice"] & self.chunks_out["bob"]  # I2

    def send_assignment(self, assignment: Assignment) -> bool:
        return self.refusable(
            lambda: self.stores[other(assignment.owner)].accept_assignment(assignment, self.now)
        )

    def verify(self, sender: Role, pad_id: PadId) -> None:
        receiver = self.stores[other(sender)]
        try:
            pad = receiver.receive_pad(pad_id)
            receiver.confirm_receive_pad(pad_id)
        except StoreError:
            return
        assert pad == self.pads_out[sender][pad_id]
        assert pad_id not in self.pads_verified[sender]  # no replay
        self.pads_verified[sender].add(pad_id)

    def copy(self, role: Role) -> Site:
        self.n_copies += 1
        anchor = self.sites[role].anchor.exists()  # a store that waits without one has none yet
        return self.sites[role].copy_to(self.folder / f"copy{self.n_copies}", anchor=anchor)

    def refusable(self, move: Callable[[], object], *, counted: bool = True) -> bool:
        """Make a move that the store may refuse; a refusal must change nothing that is counted."""
        before = {role: counts_of(store) for role, store in self.stores.items()}
        lost = {role: len(store._database.new_losses) for role, store in self.stores.items()}
        try:
            move()
        except StoreError:
            if counted and lost == {
                role: len(store._database.new_losses) for role, store in self.stores.items()
            }:
                assert {role: counts_of(store) for role, store in self.stores.items()} == before
            return False
        return True


def counts_of(store: SqliteKeyStore) -> tuple[int, ...]:
    counts = store.counts()
    return (
        counts.available_own,
        counts.available_peer,
        counts.prepared,
        counts.assigned,
        counts.delivered,
        counts.void,
        counts.expired,
    )


def flip_a_bit(store: SqliteKeyStore, rng: random.Random, kind: str = "") -> None:
    """Flip one bit of a sealed unit of ``kind``, or of any that holds keys or pads."""
    with store._database.change(anchored=False, while_waiting=True) as tx:
        rows = tx.connection.execute(
            "SELECT kind, segment, unit, sealed FROM sealed_unit WHERE kind = ?1 OR (?1 = '' AND kind IN "
            "('chunk', 'block_secret', 'pad_send', 'pad_receive'))",
            (kind,),
        ).fetchall()
        if not rows:
            return
        kind, segment, unit, sealed = rng.choice(rows)
        spoilt = bytearray(sealed)
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        tx.connection.execute(
            "UPDATE sealed_unit SET sealed = ? WHERE kind = ? AND segment = ? AND unit = ?",
            (bytes(spoilt), kind, segment, unit),
        )


# How often each move is made; restores are rare, for they void everything.
WEIGHTS: dict[Callable[[TwoSites], None], int] = {
    TwoSites.distill_a_block: 8,
    TwoSites.resume: 4,
    TwoSites.ask_for_keys: 16,
    TwoSites.ask_for_too_many: 3,
    TwoSites.repeat_an_assignment: 6,
    TwoSites.void_an_unacknowledged_assignment: 2,
    TwoSites.deliver_to_master: 6,
    TwoSites.take_from_stock: 6,
    TwoSites.deliver_to_slave: 16,
    TwoSites.time_passes: 4,
    TwoSites.give_away: 8,
    TwoSites.repeat_a_handover: 4,
    TwoSites.authenticate_a_message: 8,
    TwoSites.replay_a_message: 4,
    TwoSites.crash: 4,
    TwoSites.back_up: 2,
    TwoSites.restore: 1,
    TwoSites.hello: 4,
    TwoSites.damage: 1,
    TwoSites.tell_losses: 4,
}


@pytest.mark.parametrize("seed", range(1, 7))
def test_no_sequence_of_moves_losses_crashes_and_restores_breaks_an_invariant(
    seed: int,
) -> None:
    with memory_folder() as folder, closing(TwoSites(folder, seed)) as two:
        moves = two.rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=300)
        for move in moves:
            move(two)
            two.every_chunk_is_accounted_for()
            two.what_is_available_here_is_at_least_prepared_there()
        # The machine is worth its name only if much was really delivered.
        assert len(two.masters_got) > 20
        assert len(two.slaves_got) > 8


def test_accepting_out_of_thousands_of_random_ranges_never_shares_a_chunk(tmp_path: Path) -> None:
    rng = random.Random(5)
    with Site(tmp_path / "a", "alice").open() as alice, Site(tmp_path / "b", "bob").open() as bob:
        for store in (alice, bob):
            store.record_block_opened(1, 0.0)
            store.prepare(make_block(1, 600))
            store.confirm(1)
        owned: dict[Role, set[int]] = {"alice": set(), "bob": set()}
        stores: dict[Role, SqliteKeyStore] = {"alice": alice, "bob": bob}
        for _ in range(120):
            role: Role = rng.choice(["alice", "bob"])
            try:
                if rng.random() < 0.5:
                    handover = stores[role].give_away(rng.randint(1, 40))
                    stores[other(role)].take_over(handover)
                    stores[role].finish_handover(handover.handover_id)
                else:
                    assignment = stores[role].assign(
                        "m", ["s1"], rng.randint(1, 6), 256 * rng.randint(1, 3), 0.0
                    )
                    stores[other(role)].accept_assignment(assignment, 0.0)
                    chunks = {position for _, position in chunks_of(assignment)}
                    assert not chunks & (owned["alice"] | owned["bob"])
                    owned[role] |= chunks
            except NotEnoughKeys:
                continue
        assert alice.counts().available_own == bob.counts().available_peer
        assert alice.counts().available_peer == bob.counts().available_own
