"""The figures of a site: what is taken back when it is not so any more."""

import time
from contextlib import suppress
from pathlib import Path

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

from qnode.choices import LockState
from qnode.config import Role, SiteConfig, load
from qnode.errors import LinkError
from qnode.keys import SqliteKeyStore
from qnode.link.frames import FrameStream
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.transmitter_port import TransmitterPort
from qnode.node.status.link_figures import LinkFigures
from qnode.node.status.quantum_figures import LONGEST_UNANNOUNCED_S
from qnode.tags.types import UNKNOWN_SYMBOL, Codes, Slots

ROLES: tuple[Role, Role] = ("alice", "bob")
CONFIG = Path(__file__).parent.parent / "config"


def figures_of(role: Role) -> LinkFigures:
    return LinkFigures(load(CONFIG / f"{role}.toml", SiteConfig))


def test_alice_has_lock_as_long_as_bob_announces_clicks(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    alice = figures_of("alice")

    def lock() -> str:
        alice.quantum.look_after_lock()
        return alice.status().quantum.lock.state

    assert lock() == "searching"
    alice.quantum.clicks_heard()
    alice.quantum.note_lock(LockState.LOCKED)
    assert lock() == "locked"
    now_s += LONGEST_UNANNOUNCED_S
    assert lock() == "lost"
    assert "Bob has announced no clicks" in alice.status().quantum.lock.because
    alice.quantum.clicks_heard()
    assert lock() == "locked"
    alice.quantum.note_lock(LockState.SEARCHING, "not connected to Bob")
    now_s += LONGEST_UNANNOUNCED_S
    assert lock() == "searching"


@pytest.mark.timeout(600)
async def test_both_sites_count_the_clicks_that_were_found_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup = TransmitterPort.lookup

    def forgetful(self: TransmitterPort, run_id: int, slots: Slots) -> Codes:
        codes = lookup(self, run_id, slots).copy()
        codes[slots % 50 == 0] = UNKNOWN_SYMBOL  # as if they were too old for the transmitter's record
        return codes

    monkeypatch.setattr(TransmitterPort, "lookup", forgetful)
    announced = 0

    async def one_block(part: BobSide) -> None:
        nonlocal announced
        reached = await find_slots(part)
        part._dropped = 5  # found before the session stood, and counted by the receiver
        block = part._current
        assert block is not None
        await fill_block(part, reached)
        announced = block._announced.total

    folder = copied(tmp_path / "data")
    books = {role: KeepingFigures(config_of(role, LINK)) for role in ROLES}

    async def one(role: Role, store: SqliteKeyStore, stream: trio.abc.Stream) -> None:
        with suppress(LinkError, BaseExceptionGroup):
            await hold_conversation(role, store, FrameStream(stream), figures=books[role], work=one_block)

    with open_copy(folder, "alice") as alice, open_copy(folder, "bob") as bob, trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            for role, store, stream in zip(ROLES, (alice, bob), memory_stream_pair(), strict=True):
                nursery.start_soon(one, role, store, stream)
    unknown = books["bob"].status().totals.clicks_dropped
    assert 0.01 * announced < unknown < 0.04 * announced
    assert books["alice"].status().totals.clicks_dropped == unknown + 5
