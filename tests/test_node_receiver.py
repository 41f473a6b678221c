"""Bob's receiver: when it counts slots anew, and when it wants its tag source opened anew."""

import itertools
import math
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import trio
from tags_generator import SLOT_HZ, Link, Recorded, symbols
from trio.testing import MockClock

from qnode.choices import LockState
from qnode.config import SiteConfig, load
from qnode.devices.contract import LONGEST_SILENCE_S
from qnode.devices.protocols import EmissionRun, TagSource
from qnode.errors import DeviceError, LinkError, TransientDeviceError
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.clock_watch import ClockWatch
from qnode.node.quantum.receiver import PACED_DEPTH, Receiver
from qnode.node.quantum.receiver_requests import AlignmentRequest, ClickAnnouncement, ReceiverRequest
from qnode.node.quantum.recorder import BobRecorder
from qnode.node.quantum.tag_faults import WELL_AGAIN_S, TagFaults
from qnode.node.status.link_figures import LinkFigures
from qnode.node.status.site_figures import SiteFigures
from qnode.operate.recording.recordings import Recordings
from qnode.operate.status.metrics import render_metrics
from qnode.tags.alignment import correlate
from qnode.tags.marks import NO_MARKS
from qnode.tags.order import OrderStatistics
from qnode.tags.sync_statistics import SyncStatistics
from qnode.tags.synchroniser import Synchroniser, SyncResult
from qnode.tags.types import NO_CLICKS, SlotRange, TagBlock
from qnode.units import PS_PER_S

SECONDS = 3.0
RECORDED = Link().tags(SECONDS, seed=4)
CONFIG = load(Path(__file__).parent.parent / "config" / "bob.toml", SiteConfig)


class DarkSource:
    paced = False
    origin_s = 0.0


class KnownRun:
    """As much of a session's part as tags without a click need."""

    run = EmissionRun(run_id=1, started_at_s=0.0)
    last_block_id = 7


async def test_blocks_from_before_a_restart_that_turn_out_misaligned_later_do_not_restart_it_again() -> None:
    figures = LinkFigures(CONFIG)
    receiver = Receiver(CONFIG, figures, BobRecorder(CONFIG, Recordings(), simulated=True))
    receiver._part = cast(BobSide, KnownRun())
    synchroniser = Synchroniser(CONFIG.link.source, CONFIG.link.receiver, os.urandom)

    async def counted_anew(until_ps: int) -> int:
        dark = TagBlock(np.zeros(0, np.int64), np.zeros(0, np.int8), until_ps)
        await receiver._process(cast(TagSource, DarkSource()), synchroniser, dark, 0.0)
        return receiver._numbering

    assert await counted_anew(1_000) == 1  # the run has begun
    figures.blocks.sampled(8, 4900, 10_000)  # a block proposed later: its slots are miscounted
    cast(Any, receiver._part).last_block_id = 12
    assert await counted_anew(2_000) == 2
    figures.blocks.sampled(11, 5100, 10_000)  # was in the air
    assert await counted_anew(3_000) == 2
    figures.blocks.sampled(13, 150, 10_000)
    assert await counted_anew(4_000) == 2
    figures.blocks.sampled(14, 5000, 10_000)
    assert await counted_anew(5_000) == 3


class ListeningPart(KnownRun):
    """A session's part that keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[ReceiverRequest] = []

    async def do(self, request: ReceiverRequest) -> None:
        self.heard.append(request)


class LosingLock:
    """A synchroniser that loses lock in the feed in which it cuts the last slots that it was locked in."""

    cuts = (SlotRange(500, 900),)

    def restart(self) -> None:
        pass

    def feed(self, block: TagBlock, _settling_ps: int | None = None) -> SyncResult:
        return SyncResult(
            LockState.SEARCHING,
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
    receiver = Receiver(CONFIG, LinkFigures(CONFIG), BobRecorder(CONFIG, Recordings(), simulated=True))
    part = ListeningPart()
    receiver._part = cast(BobSide, part)
    dark = TagBlock(np.zeros(0, np.int64), np.zeros(0, np.int8), 1_000)
    await receiver._process(cast(TagSource, DarkSource()), cast(Synchroniser, LosingLock()), dark, 0.0)
    (announcement,) = part.heard
    assert isinstance(announcement, ClickAnnouncement)
    assert (announcement.cuts, announcement.reached_slot, len(announcement.clicks)) == (
        LosingLock.cuts,
        900,
        0,
    )


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
    receiver = Receiver(CONFIG, LinkFigures(CONFIG), BobRecorder(CONFIG, Recordings(), simulated=True))
    receiver._part = cast(BobSide, KnownRun())
    with trio.fail_after(30), pytest.raises(BaseExceptionGroup) as caught:
        await receiver.use(cast(TagSource, JumpingTdc(int(jump_s * PS_PER_S))), 10.0)
    assert caught.group_contains(TransientDeviceError, match="jumped", depth=1)


def test_single_misplaced_tags_are_taken_as_they_come() -> None:
    watch = ClockWatch()
    for second in range(100):
        watch.see_tags(10, OrderStatistics(late=9 * (second + 1)), float(second))


class AligningPart(ListeningPart):
    """A session's part whose Alice finds where probes fit."""

    async def do(self, request: ReceiverRequest) -> None:
        if not isinstance(request, AlignmentRequest):
            await super().do(request)
            return
        offsets = request.offsets
        with request.reply:
            request.reply.send_nowait(correlate(request.probe, symbols, offsets.start, offsets.stop - 1))


@dataclass
class RecordedSource:
    """A paced source that yields at once all that a link gave, in blocks of ``block_s``, then nothing."""

    recorded: Recorded
    block_s: float
    scramble_ps: int = 0
    paced: bool = True

    @property
    def origin_s(self) -> float:
        link = self.recorded.link
        return link.first_slot / SLOT_HZ - link.start_ps / PS_PER_S

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        for block in self.recorded.blocks(self.block_s, self.scramble_ps):
            yield block
        await trio.sleep_forever()


def receiver_of(figures: LinkFigures) -> Receiver:
    return Receiver(CONFIG, figures, BobRecorder(CONFIG, Recordings(), simulated=True))


@pytest.mark.parametrize("block_s", [0.005, 0.02, 0.1])
async def test_click_and_sifted_rates_are_right_whatever_the_size_of_tag_blocks(block_s: float) -> None:
    figures, part, source = LinkFigures(CONFIG), AligningPart(), RecordedSource(RECORDED, block_s)
    receiver = receiver_of(figures)
    receiver._part = cast(BobSide, part)
    synchroniser = Synchroniser(CONFIG.link.source, CONFIG.link.receiver, np.random.default_rng(1).bytes)
    shown = list[dict[str, float]]()
    for block in RECORDED.blocks(block_s):
        await receiver._process(cast(TagSource, source), synchroniser, block, 0.0)
        quantum = figures.status().quantum
        if quantum.click_rates_hz:
            shown.append(quantum.click_rates_hz)
            assert quantum.sifted_rate_bits_per_s == quantum.click_rates_hz["z"] * CONFIG.link.source.p_z
    heard = [one for one in part.heard[1:] if isinstance(one, ClickAnnouncement)]
    first = cast(ClickAnnouncement, part.heard[0])
    cut_slots = sum(one.cut_slots for one in heard)
    seconds = (heard[-1].reached_slot - first.reached_slot - cut_slots) / SLOT_HZ
    true_z_hz = sum(one.z_clicks for one in heard) / seconds
    true_x_hz = sum(len(one.clicks) - one.z_clicks for one in heard) / seconds
    assert 12_000 < true_z_hz < 15_500  # of 15,500 tags a second those within gates
    assert shown[-1] == pytest.approx({"z": true_z_hz, "x": true_x_hz}, rel=0.03)
    later = shown[len(shown) // 3 :]
    assert len(later) > 1.5 / block_s
    assert all(one == pytest.approx({"z": true_z_hz, "x": true_x_hz}, rel=0.06) for one in later)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.01)


async def test_rates_and_lock_are_taken_back_when_no_tags_come(mock_clock: MockClock) -> None:
    mock_clock.rate = 1.0
    figures = LinkFigures(CONFIG)
    receiver = receiver_of(figures)
    receiver._part = cast(BobSide, AligningPart())
    source = RecordedSource(RECORDED, 0.1)
    with pytest.RaisesGroup(TransientDeviceError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.use, cast(TagSource, source), 1000.0)
            await until(lambda: (figures.quantum.status.tag_time_s or 0.0) > SECONDS - 0.1)
            receiver.look_after()
            figures.quantum.filled = 0.27
            well = figures.status()
            assert well.quantum.locked
            assert well.quantum.click_rates_hz["z"] > 10_000
            mock_clock.jump(LONGEST_SILENCE_S)
            receiver.look_after()
            silent = figures.status()
            assert (silent.quantum.lock.state, silent.quantum.click_rates_hz) == ("lost", {})
            assert silent.quantum.sifted_rate_bits_per_s is None
            assert silent.block.filled is None
            assert "no tags" in silent.quantum.lock.because
            assert (
                'qkd_quantum_locked{link="turin"} 0.0'
                in render_metrics(SiteFigures(CONFIG.node, [figures]).status()).decode()
            )
            mock_clock.jump(1000.0)
    assert figures.status().quantum.lock.because == "no source of tags is running"


async def test_faults_of_tags_are_an_alarm_that_ends_and_blames_the_hardware_for_its_own_alone() -> None:
    figures = LinkFigures(CONFIG)
    faults = TagFaults(figures)
    order = OrderStatistics()

    def see(now_s: float, dropped: int = 0, **more: int) -> list[str]:
        nonlocal order
        order = replace(order, **{name: getattr(order, name) + n for name, n in more.items()})
        faults.see(order, dropped, now_s)
        return [alarm.text for alarm in figures.status().alarms if alarm.name == "tags.malformed"]

    assert see(0.0) == []
    assert see(1.0, lost=3_451_252, dropped=3_451_252) == []
    assert see(2.0, lost=40, dropped=33, late=2) == [
        "2 tags later than the order window (link.receiver.order_window_ps), 0 far ahead of the clock, "
        "0 on unknown channels, 7 lost by the hardware"
    ]
    assert "3 tags later" in see(3.0, late=1)[0]
    assert see(12.0) != []
    assert see(13.0) == []
    assert "1 tags later" in see(14.0, late=1)[0]
    faults.begin()  # the source is opened anew, and its order window counts from zero
    order = OrderStatistics()
    assert "1 tags later" in see(15.0, lost=2)[0]
    totals = figures.status().totals
    assert (totals.tags_lost, totals.tags_out_of_order) == (9, 4)


async def test_alarms_about_tags_end_when_their_source_has_ended(mock_clock: MockClock) -> None:
    figures = LinkFigures(CONFIG)
    receiver = receiver_of(figures)

    def alarms() -> set[str]:
        receiver.look_after()
        return {alarm.name for alarm in figures.status().alarms}

    receiver._faults.no_room(1000, trio.current_time())
    receiver._faults.see(replace(OrderStatistics(), late=1), 0, trio.current_time())
    mock_clock.jump(WELL_AGAIN_S - 1.0)
    assert alarms() == {"tags.overrun", "tags.malformed"}
    mock_clock.jump(1.0)
    assert alarms() == set()


@pytest.mark.parametrize(("window_ps", "some_late"), [(10_000_000, True), (50_000_000, False)])
async def test_tags_may_be_as_late_as_the_configured_order_window(window_ps: int, some_late: bool) -> None:
    receives = msgspec.structs.replace(CONFIG.link.receiver, order_window_ps=window_ps)
    config = msgspec.structs.replace(CONFIG, link=msgspec.structs.replace(CONFIG.link, receiver=receives))
    figures = LinkFigures(config)
    receiver = Receiver(config, figures, BobRecorder(config, Recordings(), simulated=True))
    receiver._part = cast(BobSide, AligningPart())
    source = RecordedSource(RECORDED, 0.1, scramble_ps=50_000_000, paced=False)
    with pytest.RaisesGroup(TransientDeviceError, flatten_subgroups=True):
        await receiver.use(cast(TagSource, source), 1.0)
    totals = figures.status().totals
    assert totals.tags > 90_000
    assert (totals.tags_out_of_order > 5) == some_late


class FastSource:
    """A paced source that yields 40 blocks at once, of which one says what was lost before, and one later."""

    paced = True
    origin_s = 0.0

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        rng = np.random.default_rng(1)
        for number in range(1, 42):
            times_ps = np.sort(rng.integers(0, PS_PER_S // 100, 1000)) + number * PS_PER_S // 100
            until_ps = (number + 1) * PS_PER_S // 100
            yield TagBlock(times_ps, np.zeros(1000, np.int8), until_ps, lost=5 if number == 38 else 0)
            if number == 40:
                await trio.sleep(0.5)


class OneBlock(FastSource):
    """A source that yields one block."""

    def __init__(self, block: TagBlock, origin_s: float = 0.0) -> None:
        self.block = block
        self.origin_s = origin_s

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        yield self.block


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (OneBlock(TagBlock(np.arange(9), np.zeros(8, np.int8), 10)), "9 tags and channels 8"),
        (OneBlock(TagBlock(np.arange(9), np.zeros(9, np.int8), 10, lost=-1)), "lost is -1"),
        (OneBlock(TagBlock(np.arange(9), np.zeros(9, np.int8), 10), math.nan), "origin_s is nan"),
    ],
)
async def test_a_tag_source_that_yields_what_none_may_is_opened_anew(source: OneBlock, said: str) -> None:
    wrong = pytest.RaisesExc(DeviceError, match=said)
    with pytest.RaisesGroup(wrong, flatten_subgroups=True, allow_unwrapped=True):
        await receiver_of(LinkFigures(CONFIG)).use(cast(TagSource, source), 10.0)


async def test_tags_that_find_no_room_are_counted_as_dropped_here() -> None:
    figures = LinkFigures(CONFIG)
    receiver = receiver_of(figures)
    receiver._part = cast(BobSide, KnownRun())
    await receiver.use(cast(TagSource, FastSource()), 10.0)
    totals = figures.status().totals
    assert totals.tag_overruns in (40 - PACED_DEPTH - 1, 40 - PACED_DEPTH)  # one may be taken out at once
    assert totals.tags_dropped == 1000 * totals.tag_overruns
    assert totals.tags_lost == 5
    alarms = {alarm.name: alarm.text for alarm in figures.status().alarms}
    assert f"it dropped {totals.tags_dropped} of them" in alarms["tags.overrun"]
    assert "5 lost by the hardware" in alarms["tags.malformed"]
    receiver._faults.room(trio.current_time() + 20.0)
    assert "tags.overrun" not in {alarm.name for alarm in figures.status().alarms}


class FailingSource(FastSource):
    """A source that fails with blocks still on their way, one of which says what was lost before."""

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        async with aclosing(super().tags()) as blocks:
            async for block in blocks:
                yield block
                if block.lost:
                    raise TransientDeviceError("unplugged")
                await trio.lowlevel.checkpoint()


async def test_each_tag_of_a_source_that_fails_is_processed_or_counted_as_dropped() -> None:
    figures = LinkFigures(CONFIG)
    receiver = receiver_of(figures)
    receiver._part = cast(BobSide, KnownRun())
    with pytest.RaisesGroup(TransientDeviceError, flatten_subgroups=True):
        await receiver.use(cast(TagSource, FailingSource()), 10.0)
    totals = figures.status().totals
    assert totals.tags + totals.tags_dropped == 38 * 1000
    assert totals.tags_dropped > 1000 * totals.tag_overruns
    assert totals.tags_lost == 5


async def test_clicks_that_can_be_announced_to_nobody_are_counted() -> None:
    figures = LinkFigures(CONFIG)
    receiver = receiver_of(figures)
    part = AligningPart()
    receiver._part = cast(BobSide, part)
    source = cast(TagSource, RecordedSource(RECORDED, 0.1))
    synchroniser = Synchroniser(CONFIG.link.source, CONFIG.link.receiver, np.random.default_rng(1).bytes)
    blocks = list(RECORDED.blocks(0.1))
    for block in blocks[:-5]:
        await receiver._process(source, synchroniser, block, 0.0)
    assert figures.status().totals.clicks_dropped == 0
    receiver._part = None  # the session ended
    before = figures.status().totals.clicks
    for block in blocks[-5:]:
        await receiver._process(source, synchroniser, block, 0.0)
    after = figures.status().totals
    assert after.clicks_dropped == after.clicks - before > 10_000


async def test_clicks_of_an_announcement_that_the_end_of_the_session_cut_are_counted() -> None:
    class LeavingPart(AligningPart):
        async def do(self, request: ReceiverRequest) -> None:
            await super().do(request)
            if isinstance(request, ClickAnnouncement) and len(self.heard) > 10:
                raise LinkError("the session has ended")

    figures, part = LinkFigures(CONFIG), LeavingPart()
    receiver = receiver_of(figures)
    receiver._part = cast(BobSide, part)
    source = cast(TagSource, RecordedSource(RECORDED, 0.1))
    synchroniser = Synchroniser(CONFIG.link.source, CONFIG.link.receiver, np.random.default_rng(1).bytes)
    for block in RECORDED.blocks(0.1):
        await receiver._process(source, synchroniser, block, 0.0)
        if len(part.heard) > 11:
            break
    (first, second) = (cast(ClickAnnouncement, one) for one in part.heard[10:])
    assert (first.dropped, second.dropped) == (0, len(first.clicks))
    assert figures.status().totals.clicks_dropped == len(first.clicks) + len(second.clicks)


async def test_rates_are_taken_back_while_tags_wait_for_alice(mock_clock: MockClock) -> None:
    mock_clock.rate = 1.0
    asked = trio.Event()

    class SlowPart(AligningPart):
        async def do(self, request: ReceiverRequest) -> None:
            await super().do(request)
            if len(self.heard) > 20:
                asked.set()
                await trio.sleep_forever()

    figures, source = LinkFigures(CONFIG), RecordedSource(RECORDED, 0.1)
    receiver = receiver_of(figures)
    receiver._part = cast(BobSide, SlowPart())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.use, cast(TagSource, source), 1000.0)
        await asked.wait()
        receiver.look_after()
        assert figures.status().quantum.click_rates_hz
        mock_clock.jump(LONGEST_SILENCE_S - 1)
        receiver._heard_at_s = trio.current_time()  # tags go on coming
        mock_clock.jump(1.0)
        receiver.look_after()
        quantum = figures.status().quantum
        assert (quantum.lock.state, quantum.click_rates_hz) == ("locked", {})
        nursery.cancel_scope.cancel()
