"""Bob's receiver: from the tag source to clicks in Alice's slots, independent of sessions.

Rates and lock use tag time. An unpaced source waits while there is no session. A paced source continues, and
clicks that cannot be announced are dropped and counted.
"""

import math
import os
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from qnode.choices import LockState
from qnode.config import SiteConfig
from qnode.devices.contract import LONGEST_SILENCE_S, tag_block_fault, tag_source_fault
from qnode.devices.protocols import EmissionRun, TagSource
from qnode.devices.supervisor import silence_limit
from qnode.errors import DeviceError, LinkError
from qnode.node.monitoring.watch import TagCounter
from qnode.node.quantum.adjustments import Adjustments, Cut
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.click_rates import ClickRates
from qnode.node.quantum.clock_watch import ClockWatch
from qnode.node.quantum.fold_watch import FoldWatch
from qnode.node.quantum.receiver_requests import AlignmentRequest, ClickAnnouncement, ReceiverRequest
from qnode.node.quantum.recorder import BobRecorder, Passage
from qnode.node.quantum.tag_faults import TagFaults
from qnode.node.status.link_figures import LinkFigures
from qnode.node.status.liveness import Liveness
from qnode.tags.alignment import Alignment
from qnode.tags.offset_search import OffsetSearch
from qnode.tags.synchroniser import Synchroniser, SyncResult
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S

log = structlog.get_logger()

# Tag blocks between the source and the pipeline. Hardware yields a block every few milliseconds.
PACED_DEPTH = 32
UNPACED_DEPTH = 4


@dataclass(frozen=True, eq=False)
class _Arrived:
    """Tags with their time of arrival by a monotonic clock: they may wait while Alice searches.

    ``dropped``: the number of missing tags before the block for which this node had no room. ``cut``: the
    tags to be cut because a setting has changed.
    """

    block: TagBlock
    at_s: float
    dropped: int = 0
    cut: Cut | None = None


class ClickReceiver(Protocol):
    """Where Bob's clicks come from."""

    async def serve(self, side: BobSide) -> None:
        """Send what is received through ``side`` until its session ends."""

    async def use(self, source: TagSource, silence_limit_s: float) -> None:
        """Process the tags of an opened source until it ends."""

    def look_after(self) -> None:
        """Take back what is shown of the tags when none have come for a while."""


class Receiver:
    """The pipeline behind Bob's tag source. It outlives sessions, so that lock survives a cut of the link.

    ``adjustments``: whoever changes a setting of the receiver does it there.
    """

    def __init__(
        self,
        config: SiteConfig,
        figures: LinkFigures,
        recorder: BobRecorder,
        liveness: Liveness | None = None,
        tags: TagCounter | None = None,
    ) -> None:
        self._config = config
        self._liveness = liveness or Liveness()
        self._tags = tags or TagCounter(frozenset())
        self._recorder = recorder
        self._figures = figures
        self._part: BobSide | None = None
        self._attached = trio.Event()
        self._run: EmissionRun | None = None
        self._numbering = 0
        self._reached_slot = -1
        self._restarted_after_block_id = 0
        self._unannounced = 0
        self._dropped = self._lost = (
            0  # tags before the next block: dropped by this node, lost by the hardware
        )
        self._in_hand: _Arrived | None = None  # its tags are not in the figures yet
        self._heard_at_s = self._noted_at_s = math.inf
        self._faults = TagFaults(figures)
        self._rates = ClickRates(config.link.source.qubit_rate_hz)
        self._fold = FoldWatch(1.0 - config.link.source.p_z)
        self._watch = ClockWatch()
        self.adjustments = Adjustments(config.link.source.qubit_rate_hz)
        self._search = OffsetSearch(config.node.start_uncertainty_s, config.link.source.qubit_rate_hz)

    async def serve(self, part: BobSide) -> None:
        """Send requests through ``part`` until its session ends."""
        await part.ready.wait()
        self._part = part
        self._attached.set()
        try:
            await trio.sleep_forever()
        finally:
            if self._part is part:
                self._part = None
                self._attached = trio.Event()
                part.run_known.set()  # waiting tasks check again

    async def use(self, source: TagSource, silence_limit_s: float) -> None:
        """Process the tags of an opened source until it ends.

        Raises:
            TransientDeviceError: its clock has jumped, Alice finds no alignment, or it yielded nothing for
                ``silence_limit_s``, not even an empty block.
            DeviceError: it violates the contract of a tag source (`qnode.devices.contract`).
        """
        _refuse(tag_source_fault(source))
        self._watch = ClockWatch()
        self._tags.begin()
        self._faults.begin()
        synchroniser = Synchroniser(self._config.link.source, self._config.link.receiver, os.urandom)
        self._run = None
        # A source that waits for the node is not silent.
        self._heard_at_s = trio.current_time() if source.paced else math.inf
        depth = PACED_DEPTH if source.paced else UNPACED_DEPTH
        put, take = trio.open_memory_channel[_Arrived](depth)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, source, put, silence_limit_s)
                async with take:
                    try:
                        async for arrived in take:
                            self._in_hand = arrived
                            await self._process(
                                source,
                                synchroniser,
                                arrived.block,
                                arrived.at_s,
                                arrived.dropped,
                                arrived.cut,
                            )
                    finally:
                        self._count_waiting(take)
        finally:
            self._heard_at_s = self._noted_at_s = math.inf
            self.adjustments.repeat()
            self._take_back("no source of tags is running")

    def _count_waiting(self, take: trio.MemoryReceiveChannel[_Arrived]) -> None:
        """Count the tags that wait for their turn when their source fails."""
        waiting = [] if self._in_hand is None else [self._in_hand]
        self._in_hand = None
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                waiting.append(take.receive_nowait())
        self._faults.left_over(
            sum(arrived.block.times_ps.shape[0] for arrived in waiting),
            self._lost + sum(arrived.block.lost - arrived.dropped for arrived in waiting),
        )
        self._lost = self._dropped = 0

    def look_after(self) -> None:
        """Withdraw the figures of the tags if none have come for a while; called from time to time."""
        self._faults.look_after(trio.current_time())
        if trio.current_time() - self._heard_at_s >= LONGEST_SILENCE_S:
            self._take_back(f"no tags for more than {LONGEST_SILENCE_S:g} s")
        elif trio.current_time() - self._noted_at_s >= LONGEST_SILENCE_S:  # tags come, and wait for Alice
            self._rates.forget()
            self._figures.quantum.forget_rates()

    def _take_back(self, because: str) -> None:
        self._rates.forget()
        self._figures.quantum.lose_lock(because)

    async def _read(
        self, source: TagSource, put: trio.MemorySendChannel[_Arrived], silence_limit_s: float
    ) -> None:
        """Put tag blocks into the bounded channel; a paced source overruns if it is full."""
        with silence_limit(silence_limit_s) as silence:
            async with put, aclosing(source.tags()) as blocks:
                async for block in blocks:
                    silence.heard()
                    _refuse(tag_block_fault(block))
                    self._tags.see(block)
                    if source.paced:
                        self._heard_at_s = trio.current_time()
                        self._offer(put, block)
                        continue
                    silence.hold()
                    cut = self.adjustments.due()
                    await put.send(_Arrived(block, trio.current_time(), cut=cut))
                    self.adjustments.passed_on(cut)
                    silence.heard()

    def _offer(self, put: trio.MemorySendChannel[_Arrived], block: TagBlock) -> None:
        """Put a block into the channel, or drop it and count its tags."""
        now_s = trio.current_time()
        lost = self._lost + block.lost
        told = TagBlock(block.times_ps, block.channels, block.until_ps, lost + self._dropped)
        try:
            cut = self.adjustments.due()
            put.send_nowait(_Arrived(told, now_s, self._dropped, cut))
        except trio.WouldBlock:
            n_tags = block.times_ps.shape[0]
            self._lost, self._dropped = lost, self._dropped + n_tags
            self._faults.no_room(n_tags, now_s)
        else:
            self.adjustments.passed_on(cut)
            self._lost = self._dropped = 0
            self._faults.room(now_s)

    async def _process(
        self,
        source: TagSource,
        synchroniser: Synchroniser,
        block: TagBlock,
        arrived_s: float,
        dropped: int = 0,
        cut: Cut | None = None,
    ) -> None:
        part = await self._present_part(source)
        run = part.run if part is not None else self._run
        if run is None:
            self._figures.quantum.note_lock(LockState.SEARCHING, "no emission run of Alice is known")
            self.adjustments.repeat()
            self._in_hand = None
            self._faults.left_over(block.times_ps.shape[0], block.lost - dropped)
            return
        # Ignore blocks that were in progress at the last restart, even if they prove misaligned only now.
        misaligned = self._figures.history.misaligned_block_id > self._restarted_after_block_id
        if self._run is None or run.run_id != self._run.run_id or misaligned:
            self._run = run
            self._restarted_after_block_id = self._figures.history.misaligned_block_id
            if part is not None:
                self._restarted_after_block_id = max(self._restarted_after_block_id, part.last_block_id)
            self._numbering += 1
            self._reached_slot = -1
            self._rates.forget()
            synchroniser.restart()
        passage = Passage(run, self._numbering, self._reached_slot, source.origin_s)
        result = await trio.to_thread.run_sync(self._feed, synchroniser, block, passage, cut)
        self._in_hand = None  # from here on its tags are in the figures
        self.adjustments.see(result, cut)
        self._reached_slot = result.reached if result.state is LockState.LOCKED else -1
        self._note(result, block, "" if part is not None else "not connected to Alice")
        self._noted_at_s = trio.current_time() if source.paced else math.inf
        self._faults.see(result.order, dropped, arrived_s)
        self._watch.see_tags(block.times_ps.shape[0], result.order, arrived_s)
        if source.paced and result.state is LockState.LOCKED:
            self._search.note(run.run_id, result.reached, arrived_s)
        if part is None:  # hardware continues without a session: lock is kept, clicks are dropped
            self._drop(len(result.clicks))
            if result.probe is not None:
                synchroniser.alignment_failed(result.probe.number)
            return
        if part.run is not run:
            self._drop(len(result.clicks))
            return  # these tags belong to a run that has ended
        # At the end of lock the last slots may have been cut without a click: the block must count them.
        if result.state is LockState.LOCKED or len(result.clicks) or result.cuts or len(result.marks):
            announcement = self._announcement(run, result, arrived_s, can_wait=not source.paced)
            if not await self._do(part, announcement):
                self._unannounced += announcement.dropped
                self._drop(len(result.clicks))
        if result.probe is not None:
            found = await self._align(source, part, run, result, arrived_s)
            if found is None:
                synchroniser.alignment_failed(result.probe.number)
            else:
                synchroniser.aligned(found)
            if self._part is part:  # otherwise nobody has answered
                self._search.answered(trio.current_time(), found=found is not None)

    def _drop(self, clicks: int) -> None:
        """Count clicks that cannot be announced; the next block reports them to Alice."""
        self._unannounced += clicks
        self._figures.blocks.dropped(clicks)

    def _feed(
        self, synchroniser: Synchroniser, block: TagBlock, passage: Passage, cut: Cut | None = None
    ) -> SyncResult:
        """Pass the tags to the recorder, and find their clicks (in a thread)."""
        with self._liveness.step():
            self._recorder.hand_on(block, passage)
            return synchroniser.feed(block, None if cut is None else cut.settling_ps)

    async def _present_part(self, source: TagSource) -> BobSide | None:
        """Return the present session's side; an unpaced source waits for one with an emission run."""
        while self._part is None or self._part.run is None:
            if source.paced:
                return None
            if self._part is None:
                await self._attached.wait()
            else:
                await self._part.run_known.wait()
        return self._part

    async def _align(
        self,
        source: TagSource,
        part: BobSide,
        run: EmissionRun,
        result: SyncResult,
        arrived_s: float,
    ) -> Alignment | None:
        """Ask Alice to align the probe; the tags of ``result`` came at ``arrived_s``."""
        probe = result.probe
        assert probe is not None
        # Tag time is that of the TDC's clock; after hours its deviation exceeds the search window.
        elapsed_s = probe.start_ps / PS_PER_S / (1.0 + 1e-6 * result.statistics.clock_offset_ppm)
        into_run_s = source.origin_s + elapsed_s - run.started_at_s
        attempt = self._search.next(probe, run.run_id, into_run_s, result.until_ps, arrived_s)
        reply, answer = trio.open_memory_channel[Alignment | None](1)
        if not await self._do(part, AlignmentRequest(run.run_id, attempt.probe, attempt.offsets, reply)):
            return None
        try:
            found = await answer.receive()
        except trio.EndOfChannel:
            return None  # the session ended during the search
        rate_hz = self._config.link.source.qubit_rate_hz
        if found is not None and (astray_s := attempt.astray_s(found, rate_hz)) is not None:
            log.warning("alignment.astray", astray_s=round(astray_s, 3))
        return found

    async def _do(self, part: BobSide, request: ReceiverRequest) -> bool:
        try:
            await part.do(request)
        except LinkError:
            return False
        return True

    def _announcement(
        self, run: EmissionRun, result: SyncResult, arrived_s: float, *, can_wait: bool
    ) -> ClickAnnouncement:
        dropped, self._unannounced = self._unannounced, 0
        return ClickAnnouncement(
            run_id=run.run_id,
            numbering=self._numbering,
            clicks=result.clicks,
            z_clicks=result.z_clicks,
            reached_slot=result.reached,
            cuts=result.cuts,
            dropped=dropped,
            can_wait=can_wait,
            marks=result.marks,
            arrived_s=arrived_s,
        )

    def _note(self, result: SyncResult, block: TagBlock, hindrance: str) -> None:
        """Update the figures with the result of one tag block; ``hindrance``: the obstacle to lock."""
        quantum, statistics = self._figures.quantum, result.statistics
        before, until_s = quantum.status, result.until_ps / PS_PER_S
        self._rates.see(result)
        self._fold.see(result)
        rates = self._rates.by_arm_hz()
        source = self._config.link.source
        quantum.show(
            lock=before.lock.to(
                result.state.value, "" if result.state is LockState.LOCKED else hindrance, at=time.time()
            ),
            tag_time_s=until_s,
            click_rates_hz=rates,
            sifted_rate_bits_per_s=rates["z"] * source.p_z if rates else None,
            clock_offset_ppm=statistics.clock_offset_ppm,
            phase_residual_ps=statistics.phase_residual_ps,
            vector_strength=statistics.vector_strength,
            folded=self._fold.status(),
            cut_s=before.cut_s + sum(cut.end - cut.first for cut in result.cuts) / source.qubit_rate_hz,
        )
        quantum.count(tags=block.times_ps.shape[0], clicks=len(result.clicks))
        if before.lock.state != result.state:
            log.info("quantum.lock", state=result.state.value, tag_time_s=round(until_s, 3))


def _refuse(fault: str) -> None:
    if fault:
        raise DeviceError(fault)
