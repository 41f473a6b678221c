"""What the watchdog is fed by: progress of store and pipeline."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import cast

import numpy as np
import trio
from keys_support import Site as StoreSite
from keys_support import preshared
from link_room import link_node

from qnode.config import SiteConfig, load
from qnode.devices.protocols import EmissionRun, Transmitter
from qnode.node.quantum.receiver import Receiver
from qnode.node.quantum.recorder import BobRecorder, Passage
from qnode.node.quantum.transmitter_port import TransmitterPort
from qnode.node.status.link_figures import LinkFigures
from qnode.node.status.liveness import STEP_LIMIT_S, STORE_LIMIT_S, Liveness
from qnode.operate.recording.recordings import Recordings
from qnode.tags.synchroniser import Synchroniser
from qnode.tags.types import NO_TAGS, Codes, Slots, TagBlock

BOB = load(Path(__file__).parent.parent / "config" / "bob.toml", SiteConfig)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_node_whose_store_hangs_is_not_alive_until_it_answers(tmp_path: Path) -> None:
    clock = Clock()
    with StoreSite(tmp_path / "b", "bob").open() as store:
        store.load_preshared(preshared(64))
        node = link_node(BOB, store)
        node.liveness = liveness = Liveness(clock)
        await node.refresh()
        clock.now_s += STORE_LIMIT_S - 1
        assert liveness.is_alive()
        async with trio.open_nursery() as nursery:
            with store._database._lock:  # a disk that hangs blocks the writer, and all others behind it
                nursery.start_soon(node.refresh)
                await trio.sleep(0.05)
                clock.now_s += 1
                assert not liveness.is_alive()
        assert liveness.is_alive()


class Stuck:
    """Part of a pipeline: a step that ends when it may."""

    def __init__(self) -> None:
        self.began, self.may_end = Event(), Event()

    def feed(self, block: TagBlock, _settling_ps: int | None = None) -> None:
        self.began.set()
        self.may_end.wait(60)

    def symbols(self, run_id: int, slots: Slots) -> Codes:
        self.feed(NO_TAGS)
        return np.zeros(slots.shape, np.uint8)


async def check_step(liveness: Liveness, clock: Clock, stuck: Stuck, step: Callable[[], object]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, step)
        await trio.to_thread.run_sync(stuck.began.wait, 60)
        assert liveness.is_alive()
        clock.now_s += STEP_LIMIT_S
        liveness.store_answered()
        assert not liveness.is_alive()
        stuck.may_end.set()
    assert liveness.is_alive()


async def test_a_node_is_not_alive_while_a_step_of_its_pipeline_hangs() -> None:
    clock, stuck = Clock(), Stuck()
    liveness = Liveness(clock)
    receiver = Receiver(BOB, LinkFigures(BOB), BobRecorder(BOB, Recordings(), simulated=True), liveness)
    synchroniser = cast(Synchroniser, stuck)
    passage = Passage(EmissionRun(7, 0.0), 1, -1, 0.0)
    await check_step(liveness, clock, stuck, partial(receiver._feed, synchroniser, NO_TAGS, passage))
    stuck = Stuck()
    source = TransmitterPort(liveness)
    source.transmitter, source.run = cast(Transmitter, stuck), EmissionRun(7, 0.0)
    await check_step(liveness, clock, stuck, partial(source.lookup, 7, np.arange(3)))
