"""A block whose commit is cut: it counts as what the sites make of it when they meet again."""

from pathlib import Path
from typing import Literal

import pytest
import trio
from conversation_room import (
    LINK,
    KeepingFigures,
    config_of,
    copied,
    fill_block,
    find_slots,
    hold_conversation,
    open_copy,
)
from trio.testing import memory_stream_pair

from qnode.config import Role
from qnode.errors import LinkError, StoreError
from qnode.keys import BlockState, PreparedBlock, SqliteKeyStore
from qnode.link.frames import FrameStream
from qnode.node.quantum.bob import BobSide
from qnode.node.supply.async_store import AsyncStore
from qnode.operate.blocks.row import DecidedBlock

LEFT_BY_FIXTURE = 3  # a block that Alice's store has prepared and that its session never confirmed
ROLES: tuple[Role, Role] = ("alice", "bob")


class RecordingFigures(KeepingFigures):
    """LinkFigures that also keep which blocks disclosed a sample."""

    def __init__(self, role: Role) -> None:
        super().__init__(config_of(role, LINK))

    def gave_key(self) -> dict[int, DecidedBlock]:
        """Return the blocks that gave key, once it is seen that the sums are theirs."""
        rows = {row.block_id: row for row in self.blocks.table.latest(20) if row.outcome == "accepted"}
        status = self.status()
        assert status.block.accepted == len(rows)
        assert status.totals.secret_bits == sum(row.secret_bits for row in rows.values())
        rows.pop(LEFT_BY_FIXTURE, None)
        return rows


async def both_sites(
    stores: dict[Role, SqliteKeyStore], figures: dict[Role, RecordingFigures]
) -> dict[Role, BaseException | None]:
    """Hold one session in which Bob fills one block; return how it ended at each site."""
    ended: dict[Role, BaseException | None] = {}

    async def one_block(part: BobSide) -> None:
        await fill_block(part, await find_slots(part))
        while figures["alice"].status().block.in_flight:  # noqa: ASYNC110
            await trio.sleep(0.01)

    async def one(role: Role, stream: trio.abc.Stream) -> None:
        try:
            await hold_conversation(
                role, stores[role], FrameStream(stream), figures=figures[role], work=one_block
            )
            ended[role] = None
        except (LinkError, BaseExceptionGroup) as error:
            ended[role] = error

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for role, stream in zip(ROLES, memory_stream_pair(), strict=True):
                nursery.start_soon(one, role, stream)
    return ended


def cut_commit(
    monkeypatch: pytest.MonkeyPatch, stores: dict[Role, SqliteKeyStore], sites: tuple[Role, ...], how: str
) -> set[int]:
    """Let the first confirmation of a block fail at ``sites``; clear what is returned to heal them."""
    confirm, left = AsyncStore.confirm, {id(stores[role]) for role in sites}

    async def cut(self: AsyncStore, block_id: int) -> None:
        if block_id != LEFT_BY_FIXTURE and id(self._store) in left:
            left.remove(id(self._store))
            raise LinkError("the line is cut") if how == "line" else StoreError("the disk is full")
        await confirm(self, block_id)

    monkeypatch.setattr(AsyncStore, "confirm", cut)
    return left


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("sites", "how"), [(("bob",), "line"), (("alice", "bob"), "line"), (("alice",), "disk")]
)
async def test_a_block_that_is_confirmed_at_the_next_meeting_is_accepted_and_costs_no_sample_of_the_next(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sites: tuple[Role, ...],
    how: Literal["line", "disk"],
) -> None:
    folder = copied(tmp_path / "data")
    figures = {role: RecordingFigures(role) for role in ROLES}
    with open_copy(folder, "alice") as alice, open_copy(folder, "bob") as bob:
        stores: dict[Role, SqliteKeyStore] = {"alice": alice, "bob": bob}
        cuts = cut_commit(monkeypatch, stores, sites, how)
        ended = await both_sites(stores, figures)
        cuts.clear()
        assert figures["bob"].counts, ended
        (block_id,) = figures["bob"].counts
        for role in sites:
            status = figures[role].status()
            assert stores[role].block_state(block_id) == BlockState.PREPARED
            assert (figures[role].gave_key(), status.block.in_flight) == ({}, 1)
            assert block_id not in {row.block_id for row in figures[role].blocks.table.latest(10)}
        await both_sites(stores, figures)
        later_block_id = max(figures["bob"].counts)
        secret_bits = stores["bob"].block_record(block_id).secret_bits
        for role in ROLES:
            assert stores[role].block_state(block_id) == BlockState.AVAILABLE
            rows = figures[role].gave_key()
            assert list(rows) == [block_id, later_block_id]
            assert rows[block_id].secret_bits == secret_bits
            assert rows[block_id].eps_sec == LINK.estimation.eps_sec
            assert rows[block_id].n_z == int(figures[role].counts[block_id].n_z.total)
            assert figures[role].status().block.in_flight == 0
        assert figures["bob"].samples == [block_id]  # the first one, of which nothing was known
        assert later_block_id > block_id


@pytest.mark.timeout(600)
async def test_after_a_restart_the_block_counts_with_what_the_store_knows_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(tmp_path / "data")
    figures = {role: RecordingFigures(role) for role in ROLES}
    with open_copy(folder, "alice") as alice, open_copy(folder, "bob") as bob:
        stores: dict[Role, SqliteKeyStore] = {"alice": alice, "bob": bob}
        cuts = cut_commit(monkeypatch, stores, ROLES, "line")
        await both_sites(stores, figures)
        cuts.clear()
        (block_id,) = figures["bob"].counts
        figures["alice"] = RecordingFigures("alice")  # another process
        await both_sites(stores, figures)
        record = stores["alice"].block_record(block_id)
        rows = figures["alice"].gave_key()
        assert len(rows) == 2
        assert (rows[block_id].secret_bits, rows[block_id].n_z) == (record.secret_bits, None)
        assert rows[block_id].eps_sec == LINK.estimation.eps_sec


@pytest.mark.timeout(600)
async def test_a_block_that_only_one_site_had_prepared_is_lost_for_the_reason_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(tmp_path / "data")
    figures = {role: RecordingFigures(role) for role in ROLES}
    with open_copy(folder, "alice") as alice, open_copy(folder, "bob") as bob:
        stores: dict[Role, SqliteKeyStore] = {"alice": alice, "bob": bob}
        prepare, fails, bob_has_prepared = AsyncStore.prepare, [True], trio.Event()

        async def cut(self: AsyncStore, block: PreparedBlock) -> None:
            if self._store is alice and fails:
                fails.clear()
                await bob_has_prepared.wait()
                raise LinkError("the line is cut")
            await prepare(self, block)
            bob_has_prepared.set()

        monkeypatch.setattr(AsyncStore, "prepare", cut)
        await both_sites(stores, figures)
        (block_id,) = figures["bob"].counts
        states = [stores[role].block_state(block_id) for role in ROLES]
        assert states == [BlockState.UNKNOWN, BlockState.PREPARED]
        await both_sites(stores, figures)
        states = [stores[role].block_state(block_id) for role in ROLES]
        assert states == [BlockState.UNKNOWN, BlockState.VOID]
        for role in ROLES:
            rows = {row.block_id: row for row in figures[role].blocks.table.latest(20)}
            assert (rows[block_id].outcome, rows[block_id].secret_bits) == ("link", 0)
            assert len(figures[role].gave_key()) == 1
