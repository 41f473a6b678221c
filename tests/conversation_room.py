"""One site of the conversation that is frozen in `fixtures/protocol_1`, by the code of today.

Symbols, clicks, seeds and stores are those of the fixtures, so that both sites say the same again.
"""

import importlib.util
import random
import secrets
import shutil
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import trio

import qnode.node.dialogue.bob
from qnode.block.running_rate import RunningRate
from qnode.choices import ROLES
from qnode.config import (
    BlockParameters,
    EstimationParameters,
    Etsi014Section,
    LinkParameters,
    NodeSection,
    OperateSection,
    PeerSection,
    ReconciliationParameters,
    Role,
    SiteConfig,
    SourceParameters,
    StoreSection,
    TlsFiles,
)
from qnode.devices.protocols import EmissionRun
from qnode.distill.block_counts import BlockCounts
from qnode.distill.selftest import self_test
from qnode.errors import LinkError
from qnode.keys import Counts, Release, SqliteKeyStore, open_store
from qnode.link.frames import FrameStream
from qnode.link.hello import LocalEnd, Standing, exchange_hello
from qnode.link.messages import Message
from qnode.link.protocol import link_for_protocol
from qnode.link.session import Session, open_session
from qnode.node.dialogue.context import BlockContext
from qnode.node.dialogue.tag_order import TagOrder
from qnode.node.monitoring.randomness import Draw, system_bytes
from qnode.node.quantum.alice import AliceSide
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.receiver_requests import AlignmentRequest, ClickAnnouncement
from qnode.node.quantum.recorder import AliceRecorder, BobRecorder
from qnode.node.quantum.transmitter_port import TransmitterPort
from qnode.node.session.router import SessionRouter
from qnode.node.status.link_figures import LinkFigures
from qnode.node.supply.async_store import AsyncStore, PeerMemory, runs_of
from qnode.operate.recording.recordings import Recordings
from qnode.tags.alignment import AlignmentProbe
from qnode.tags.marks import Marks
from qnode.tags.types import Clicks

FROZEN = Path(__file__).parent / "fixtures" / "protocol_1"


def _photons() -> ModuleType:
    spec = importlib.util.spec_from_file_location("frozen_photons", FROZEN / "photons.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


photons = _photons()
# Sessions of one test detect the same clicks again.
clicks_between = lru_cache(maxsize=256)(photons.clicks)

LINK = LinkParameters(
    name="frozen",
    source=SourceParameters(mu=photons.MU, mu_uncertainty=(0.0, 0.0), p=photons.P, p_z=photons.P_Z),
    block=BlockParameters(sifted_bits=55_000, minimum_secret_bits=2048),
    estimation=EstimationParameters(x_mode="visibility", asymmetry_bound="joint"),
    reconciliation=ReconciliationParameters(method="cascade"),
)
RUN_ID = 7
PROBE_SLOTS = 6000
OFFSETS = range(4001)
RATE_SLOTS = 200_000
CHUNK_SLOTS = 250_000


def other(role: Role) -> Role:
    return "bob" if role == "alice" else "alice"


def copied(folder: Path, source: Path = FROZEN / "data") -> Path:
    """Copy frozen data directories to ``folder``, with the rights that a store asks for."""
    shutil.copytree(source, folder)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


def open_copy(folder: Path, role: Role) -> SqliteKeyStore:
    return open_store(
        folder / role / "db" / "keys.db",
        role=role,
        store_key=(folder / role / "store_key").read_bytes(),
        anchor=folder / role / "anchor",
        kme_id=f"kme-{role}",
        peer_kme_id=f"kme-{other(role)}",
        create=False,
    )


def config_of(role: Role, link: LinkParameters) -> SiteConfig:
    nowhere = Path("/nonexistent")
    files = TlsFiles(ca=nowhere, certificate=nowhere, key=nowhere)
    return SiteConfig(
        node=NodeSection(role=role, kme_id=f"kme-{role}", allow_simulated=True),
        link=link,
        peer=PeerSection(kme_id=f"kme-{other(role)}", address="", tls=files),
        store=StoreSection(path=nowhere, anchor=nowhere, store_key=nowhere, preshared_key=nowhere),
        etsi014=Etsi014Section(listen="", tls=files),
        operate=OperateSection(control_socket=nowhere),
        devices={},
    )


_SEEDED: dict[Role, Draw] = {}


def seed_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the seeds and nonces that a site draws in a dialogue follow from its role."""
    for role in ROLES:
        drawn = random.Random(f"frozen {role}").randbytes

        async def draw(number: int, drawn: Callable[[int], bytes] = drawn) -> bytes:
            return drawn(number)

        monkeypatch.setitem(_SEEDED, role, draw)
    # The nonces of Bob come from the same bytes as the seeds.
    seeded = SimpleNamespace(token_bytes=drawn, compare_digest=secrets.compare_digest)
    monkeypatch.setattr(qnode.node.dialogue.bob, "secrets", seeded)


async def _in_loop(function: Any) -> Any:
    return function()


def end_of(role: Role, store: SqliteKeyStore, link: LinkParameters, **changes: Any) -> LocalEnd:
    positions = store.positions()
    memory = PeerMemory(store.view_of_peer(), runs_of(store.pad_segments()))
    standing = Standing(
        last_block_id=positions.last_block_id,
        generation=positions.generation,
        pool_epoch=positions.pool_epoch,
        positions=msgspec.msgpack.encode(memory),
    )
    values: dict[str, Any] = {
        "role": role,
        "kme_id": f"kme-{role}",
        "peer_kme_id": f"kme-{other(role)}",
        "parameters": link,
        "secrets": store,
        "standing": lambda: standing,
        "software": "qnode of bac72f2",
        "simulated": True,
        "run_sync": _in_loop,
        "random_bytes": random.Random(f"hello of {role}").randbytes,
    }
    return LocalEnd(**(values | changes))


class KeepingFigures(LinkFigures):
    """The figures of a link, which also keep the counts of blocks and which of them disclosed a sample."""

    def __init__(self, config: SiteConfig) -> None:
        super().__init__(config)
        self.counts: dict[int, BlockCounts] = {}
        self.samples: list[int] = []
        verified, sampled = self.blocks.verified, self.blocks.sampled

        def keep_counts(block_id: int, counts: BlockCounts) -> None:
            self.counts[block_id] = counts
            verified(block_id, counts)

        def keep_sample(block_id: int, error_bits: int, measured_bits: int) -> None:
            self.samples.append(block_id)
            sampled(block_id, error_bits, measured_bits)

        self.blocks.verified = keep_counts  # type: ignore[method-assign]
        self.blocks.sampled = keep_sample  # type: ignore[method-assign]


Lie = Callable[[Message], Iterable[Message]]


@dataclass(frozen=True)
class Known:
    """What a site knows after the conversation; ``outcomes``: by block, with the secret bits."""

    protocol: int
    outcomes: dict[int, tuple[str, int]]
    counts: dict[int, BlockCounts]
    stored: Counts


async def hold_conversation(
    role: Role,
    store: SqliteKeyStore,
    frames: FrameStream,
    link: LinkParameters = LINK,
    *,
    figures: KeepingFigures | None = None,
    work: Callable[[BobSide], Awaitable[None]] | None = None,
    lie: Lie | None = None,
    most_chunks: int = 1 << 20,
    **changes: Any,
) -> Known:
    """Say and hear all of the conversation, or as much as Bob's ``work`` is; ``changes``: to the `LocalEnd`.

    ``figures``: of a site that goes on after an earlier conversation. ``lie``: what this site says in place
    of each message.
    """
    await trio.to_thread.run_sync(self_test)  # compiles before a session waits for it
    local = end_of(role, store, link, **changes)
    greeted = await exchange_hello(frames, local, connected=role == "bob")
    figures = figures or KeepingFigures(config_of(role, link))
    async with open_session(frames, local, greeted) as session, trio.open_nursery() as nursery:
        if lie is not None:
            _say_by(session, lie)
        site = BlockContext(
            role=role,
            link=link_for_protocol(link, session.protocol),
            session=session,
            store=AsyncStore(store, most_chunks=most_chunks),
            tag_order=TagOrder(),
            simulated=True,
            draw=_SEEDED.get(role, system_bytes),
        )
        conversation = SessionRouter(site, figures.blocks, nursery)
        if role == "alice":
            with suppress(LinkError):  # Bob says goodbye
                await conversation.run(_alice(conversation, figures, nursery))
        else:
            recorder = BobRecorder(config_of(role, link), Recordings(), simulated=True)
            part = BobSide(conversation, figures, RunningRate(photons.P_Z), nursery, recorder)
            nursery.start_soon(conversation.run, part)
            if work is not None:
                await work(part)
            else:
                await _measure(part)
                await _ask_for_keys(conversation, store)
        nursery.cancel_scope.cancel()
    decided = figures.blocks.table.latest(10)
    outcomes = {one.block_id: (one.outcome, one.secret_bits) for one in decided}
    return Known(session.protocol, outcomes, figures.counts, store.counts())


def _say_by(session: Session, lie: Lie) -> None:
    say = session.send

    async def send(message: Message) -> None:
        for told in lie(message):
            await say(told)

    session.send = send  # type: ignore[method-assign]


def _alice(conversation: SessionRouter, figures: LinkFigures, nursery: trio.Nursery) -> AliceSide:
    source: Any = TransmitterPort()
    source.transmitter = SimpleNamespace(symbols=lambda run_id, slots: photons.symbols(slots))
    source.run = EmissionRun(run_id=RUN_ID, started_at_s=1_800_000_000.0)
    recorder = AliceRecorder(config_of("alice", conversation.context.link), Recordings(), simulated=True)
    return AliceSide(conversation, source, figures, nursery, recorder)


async def _measure(part: BobSide) -> None:
    """Have a probe aligned; announce a block that gives key and one with many errors; give two up."""
    reached = await find_slots(part)
    for noisy in (False, True):
        reached = await fill_block(part, reached, noisy=noisy)
    await _both_agreed(part)
    await part.do(announcement(reached, reached + 1, numbering=2))
    await _both_agreed(part)


async def _both_agreed(part: BobSide) -> None:
    while part._current is None or part._upcoming is None:  # noqa: ASYNC110
        await trio.sleep(0.01)
    await part._current.agreed.wait()
    await part._upcoming.agreed.wait()


async def find_slots(part: BobSide) -> int:
    """Have a probe aligned, and announce until blocks are agreed; return the slot that was reached."""
    await part.ready.wait()
    await part.run_known.wait()
    slots, outcomes = clicks_between(0, PROBE_SLOTS)
    of_z = outcomes <= photons.LATE
    ticks = 2 * slots[of_z] + outcomes[of_z]
    deliver, receive = trio.open_memory_channel[Any](1)
    await part.do(AlignmentRequest(RUN_ID, AlignmentProbe(1, 0, ticks - ticks[0]), OFFSETS, deliver))
    found = await receive.receive()
    assert found.offset == ticks[0]
    reached = int(found.last_slot) + 1
    await part.do(announcement(0, reached))
    await part.do(announcement(reached, reached + RATE_SLOTS))
    await _both_agreed(part)
    return reached + RATE_SLOTS


async def fill_block(part: BobSide, reached: int, *, noisy: bool = False) -> int:
    """Announce the present block whole and wait until it is decided; return the slot that was reached."""
    block = part._current
    assert block is not None
    while reached < block.span.end_slot:
        end = min(block.span.end_slot, reached + CHUNK_SLOTS)
        await part.do(announcement(reached, end, noisy=noisy))
        reached = end
    await block.decided.wait()
    return reached


def announcement(first: int, end: int, *, noisy: bool = False, numbering: int = 1) -> ClickAnnouncement:
    clicks = Clicks(*clicks_between(first, end, noisy=noisy))
    n_z = int(np.count_nonzero(clicks.outcomes <= photons.LATE))
    crossed, _ = clicks_between(first, end, cross_only=True)
    none = np.empty(0, np.int64)
    marks = Marks(out_of_gate=clicks.slots[::30], double_clicks=none, cross_clicks=crossed, too_close=none)
    return ClickAnnouncement(RUN_ID, numbering, clicks, n_z, end, (), 0, marks=marks)


async def _ask_for_keys(conversation: SessionRouter, store: SqliteKeyStore) -> None:
    assignment = store.assign("sae-b", ["sae-a"], 2, 256, now=0.0)
    await conversation.keys.assignments.announce(assignment)
    store.acknowledge(assignment.assignment_id)
    await conversation.keys.hand_over(store.give_away(2))
    given_up = store.assign("sae-b", ["sae-a"], 1, 256, now=0.0)
    await conversation.keys.assignments.announce(given_up)
    await conversation.keys.assignments.release([Release(assignment=given_up)])
