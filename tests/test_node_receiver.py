"""Bob's receiver: when it counts slots anew, and when it wants its tag source opened anew."""

import itertools
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import trio

from qnode.config import SiteConfig, load
from qnode.devices.protocols import EmissionRun, TagSource
from qnode.errors import TransientDeviceError
from qnode.node.bob import Announcement, BobPart, Errand
from qnode.node.clock_watch import ClockWatch
from qnode.node.figures import Figures
from qnode.node.receiver import Receiver
from qnode.node.recorder import BobRecorder
from qnode.operate.recordings import Recordings
from qnode.tags.marks import NO_MARKS
from qnode.tags.order import OrderStatistics
from qnode.tags.sync_statistics import SyncStatistics
from qnode.tags.synchroniser import Synchroniser, SyncResult, SyncState
from qnode.tags.types import NO_CLICKS, SlotRange, TagBlock
from qnode.units import PS_PER_S

CONFIG = load(Path(__file__).parent.parent / "config" / "bob.toml", SiteConfig)


class DarkSource:
    paced = False
    origin_s = 0.0


class KnownRun:
    """As much of a session's part as tags without a click need."""

    run = EmissionRun(run_id=1, started_at_s=0.0)
    last_block_id = 7


async def test_blocks_from_before_a_restart_that_turn_out_misaligned_later_do_not_restart_it_again() -> None:
    figures = Figures(CONFIG, simulated=True)
    receiver = Receiver(CONFIG, figures, BobRecorder(CONFIG, Recordings(), simulated=True))
    receiver._part = cast(BobPart, KnownRun())
    synchroniser = Synchroniser(CONFIG.link.source, CONFIG.link.receiver, os.urandom)

    async def counted_anew(until_ps: int) -> int:
        dark = TagBlock(np.zeros(0, np.int64), np.zeros(0, np.int8), until_ps)
        await receiver._process(cast(TagSource, DarkSource()), synchroniser, dark, 0.0)
        return receiver._numbering

    assert await counted_anew(1_000) == 1  # the run has begun
    figures.sampled(8, 4900, 10_000)  # a block proposed later: its slots are miscounted
    cast(Any, receiver._part).last_block_id = 12
    assert await counted_anew(2_000) == 2
    figures.sampled(11, 5100, 10_000)  # was in the air
    assert await counted_anew(3_000) == 2
    figures.sampled(13, 150, 10_000)
    assert await counted_anew(4_000) == 2
    figures.sampled(14, 5000, 10_000)
    assert await counted_anew(5_000) == 3


class ListeningPart(KnownRun):
    """A session's part that keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[Errand] = []

    async def do(self, errand: Errand) -> None:
        self.heard.append(errand)


class LosingLock:
    """A synchroniser that loses lock in the feed in which it cuts the last slots that it was locked in."""

    cuts = (SlotRange(500, 900),)

    def restart(self) -> None:
        pass

    def feed(self, block: TagBlock) -> SyncResult:
        return SyncResult(
            SyncState.SEARCHING,
            NO_CLICKS,
            NO_MARKS,
            self.cuts,
            900,
            None,
            (),
            SyncStatistics(),
            OrderStatistics(),
            block.until_ps,
        )


async def test_slots_that_were_cut_when_lock_was_lost_are_announced_though_no_click_is() -> None:
    receiver = Receiver(
        CONFIG, Figures(CONFIG, simulated=True), BobRecorder(CONFIG, Recordings(), simulated=True)
    )
    part = ListeningPart()
    receiver._part = cast(BobPart, part)
    dark = TagBlock(np.zeros(0, np.int64), np.zeros(0, np.int8), 1_000)
    await receiver._process(cast(TagSource, DarkSource()), cast(Synchroniser, LosingLock()), dark, 0.0)
    (news,) = part.heard
    assert isinstance(news, Announcement)
    assert (news.cuts, news.reached_slot, len(news.clicks)) == (LosingLock.cuts, 900, 0)


class JumpingTdc:
    """A TDC whose clock jumps, and which says nothing of it."""

    paced = True
    origin_s = 0.0

    def __init__(self, jump_ps: int) -> None:
        self._jump_ps = jump_ps

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        rng = np.random.default_rng(1)
        for until_ps in itertools.count(PS_PER_S // 10, PS_PER_S // 10):
            times_ps = np.sort(rng.integers(until_ps - PS_PER_S // 10, until_ps, 2000))
            jump_ps = self._jump_ps if until_ps > 3 * PS_PER_S // 10 else 0
            yield TagBlock(times_ps + jump_ps, (times_ps % 2).astype(np.int8), until_ps + min(jump_ps, 0))
            await trio.sleep(0.02)


@pytest.mark.parametrize("jump_s", [-1000.0, 40.0])
async def test_a_tag_source_whose_clock_has_jumped_is_opened_anew(jump_s: float) -> None:
    receiver = Receiver(
        CONFIG, Figures(CONFIG, simulated=True), BobRecorder(CONFIG, Recordings(), simulated=True)
    )
    receiver._part = cast(BobPart, KnownRun())
    with trio.fail_after(30), pytest.raises(BaseExceptionGroup) as caught:
        await receiver.use(cast(TagSource, JumpingTdc(int(jump_s * PS_PER_S))), 10.0)
    assert caught.group_contains(TransientDeviceError, match="jumped", depth=1)


def test_single_misplaced_tags_are_taken_as_they_come() -> None:
    watch = ClockWatch()
    for second in range(100):
        watch.see_tags(10, OrderStatistics(late=9 * (second + 1)), float(second))
