"""Bob's side of a session: alignment of clicks, proposals of blocks one ahead, announcement of clicks.

The receiver (`qnode.node.quantum.receiver`) outlives sessions. It passes its requests to the present session
one at a time, so that a slow link slows down the processing of tags.
"""

import math
from functools import partial

import numpy as np
import structlog
import trio

from qnode.block.outcome import BlockLost, Reason
from qnode.block.pipeline_depth import pipeline_depth
from qnode.block.running_rate import RunningRate
from qnode.block.span import BlockSpan
from qnode.devices.protocols import EmissionRun
from qnode.errors import LinkError, ProtocolError
from qnode.link.messages import AlignmentProbeMessage, AlignmentResult, EmissionRunStarted, NodeMessage
from qnode.node.dialogue.bob import BobBlock
from qnode.node.dialogue.channel import ANSWER_LIMIT_S, BlockChannel
from qnode.node.quantum.receiver_requests import AlignmentRequest, ClickAnnouncement, ReceiverRequest
from qnode.node.quantum.recorder import BobRecorder
from qnode.node.session.router import SessionRouter, Work
from qnode.node.status.link_figures import LinkFigures
from qnode.tags.alignment import Alignment
from qnode.tags.types import Clicks

log = structlog.get_logger()


class BobSide:
    """Bob's side of one session."""

    def __init__(
        self,
        router: SessionRouter,
        figures: LinkFigures,
        rate: RunningRate,
        nursery: trio.Nursery,
        recorder: BobRecorder,
    ) -> None:
        self._router = router
        self._figures = figures
        self._rate = rate
        self._nursery = nursery
        self._recorder = recorder
        self._link = router.context.link
        self._places = trio.Semaphore(pipeline_depth(self._link.block.sifted_bits))
        self._to_propose, self._proposals = trio.open_memory_channel[BobBlock](math.inf)
        self._current: BobBlock | None = None
        self._upcoming: BobBlock | None = None
        self._dropped = 0
        self._numbering = 0
        self._probes: dict[int, trio.MemorySendChannel[AlignmentResult]] = {}
        self._next_block_id = 0
        self._requests_in, self._requests = trio.open_memory_channel[ReceiverRequest](0)
        self.run: EmissionRun | None = None
        self.run_known = trio.Event()
        self.ready = trio.Event()

    async def start(self) -> None:
        """Serve the receiver's requests until the session ends."""
        context = self._router.context
        ours = (await context.store.positions()).last_block_id
        theirs = context.session.peer.last_block_id or 0
        self._next_block_id = max(ours, theirs) + 1
        self._rate.begin_session()
        self._nursery.start_soon(self._propose_in_turn)
        self.ready.set()
        with self._requests:
            try:
                async for request in self._requests:
                    if isinstance(request, AlignmentRequest):
                        await self._align(request)
                    else:
                        await self._announce(request)
            finally:
                if self._current is not None and self._current.opened:
                    self._figures.blocks.lost(
                        self._current.channel.block_id, Reason.LINK, "the session with the peer ended"
                    )
                self._figures.quantum.current_block = self._figures.quantum.filled = None

    @property
    def last_block_id(self) -> int:
        """The number of the latest block, proposed or about to be."""
        return self._next_block_id - 1

    async def do(self, request: ReceiverRequest) -> None:
        """Pass a request to the session; returns when the session accepts it.

        Raises:
            LinkError: the session has ended.
        """
        try:
            await self._requests_in.send(request)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LinkError("the session has ended") from None

    async def handle(self, message: NodeMessage) -> None:
        """Handle an emission run, or the answer to a probe."""
        if isinstance(message, EmissionRunStarted):
            self.run = EmissionRun(run_id=message.run_id, started_at_s=message.started_at_s)
            self.run_known.set()
        elif isinstance(message, AlignmentResult):
            waiting = self._probes.pop(message.probe_id, None)
            if waiting is not None:
                waiting.send_nowait(message)

    # Alignment

    async def _align(self, request: AlignmentRequest) -> None:
        probe, offsets = request.probe, request.offsets
        deliver, receive = trio.open_memory_channel[AlignmentResult](1)
        self._probes[probe.number] = deliver
        with request.reply:
            await self._router.context.session.send(
                AlignmentProbeMessage(
                    run_id=request.run_id,
                    probe_id=probe.number,
                    ticks=probe.ticks.astype("<i8").tobytes(),
                    first_tick=offsets.start,
                    last_tick=offsets.stop - 1,
                )
            )
            try:
                with trio.fail_after(ANSWER_LIMIT_S):
                    answer = await receive.receive()
            except trio.TooSlowError:
                raise ProtocolError(f"no AlignmentResult within {ANSWER_LIMIT_S:g} s") from None
            found = None
            if answer.offset is not None:
                if answer.offset not in offsets:
                    raise ProtocolError(f"an alignment offset of {answer.offset}, which was not asked for")
                last_slot = (int(probe.ticks[-1]) + answer.offset) // 2
                found = Alignment(
                    probe.number, answer.offset, round(answer.score), answer.significance, last_slot
                )
            await request.reply.send(found)

    # Blocks

    async def _announce(self, announcement: ClickAnnouncement) -> None:
        self._rate.add(
            announcement.run_id,
            announcement.reached_slot,
            cut_slots=announcement.cut_slots,
            clicks=len(announcement.clicks),
            z_clicks=announcement.z_clicks,
        )
        self._dropped += announcement.dropped
        if self._current is not None:
            if self._current.span.run_id != announcement.run_id or self._numbering != announcement.numbering:
                self._abandon(Reason.EMISSION, "slots are counted anew")
            elif self._passed_without_lock(announcement):
                self._abandon(Reason.LOCK, "no lock for longer than a block")
        self._numbering = announcement.numbering
        if self._current is None:
            if self._rate.known:
                self._current = await self._propose(announcement.run_id, announcement.reached_slot)
                self._upcoming = await self._propose(announcement.run_id, self._current.span.end_slot)
            return
        block, clicks, position = self._current, announcement.clicks, 0
        while True:
            await block.agreed.wait()
            first, end = np.searchsorted(clicks.slots, (block.span.first_slot, block.span.end_slot))
            first = max(position, first)
            block.note(announcement.marks, announcement.cuts)
            await block.announce(
                Clicks(clicks.slots[first:end], clicks.outcomes[first:end]), announcement.arrived_s
            )
            position = end
            if announcement.reached_slot < block.span.end_slot:
                break
            error_rate_is_known = self._figures.history.error_rate.value is not None
            self._distil(block)
            distilled = block
            assert self._upcoming is not None
            block = self._current = self._upcoming  # from here on its own task reports the other block
            if announcement.can_wait and not error_rate_is_known:
                await (
                    distilled.decided.wait()
                )  # otherwise each block that begins meanwhile also discloses a sample
            self._upcoming = await self._propose(announcement.run_id, block.span.end_slot)
        span = block.span
        self._figures.quantum.current_block = block.channel.block_id
        self._figures.quantum.filled = min(
            1.0, max(0.0, (announcement.reached_slot - span.first_slot) / span.n_slots)
        )

    def _passed_without_lock(self, announcement: ClickAnnouncement) -> bool:
        """Return whether the block agreed ahead has passed, most of it without lock.

        It would be empty, and so would any block agreed now for slots that have passed.
        """
        if self._upcoming is None or announcement.reached_slot < self._upcoming.span.end_slot:
            return False
        return 2 * announcement.cut_slots > self._upcoming.span.n_slots

    async def _propose(self, run_id: int, first_slot: int) -> BobBlock:
        """Begin to agree on a block with the span of the span policy."""
        rates = self._figures.history.recent.rates()
        if self._link.block.sifted_bits == "auto":
            n_slots = await trio.to_thread.run_sync(self._rate.span_slots, self._link, rates)
        else:
            n_slots = self._rate.span_slots(self._link, rates)
        channel = self._router.open_channel(self._next_block_id)
        self._next_block_id += 1
        block = BobBlock(
            self._router.context,
            channel,
            BlockSpan(run_id, first_slot, n_slots),
            self._figures.blocks,
            self._recorder.open_block(self._numbering, first_slot),
        )
        self._to_propose.send_nowait(block)
        return block

    async def _propose_in_turn(self) -> None:
        """Propose blocks in the order of their numbers, each when few enough are in progress."""
        async for block in self._proposals:
            await self._places.acquire()
            if block.withdrawn:
                self._places.release()
            else:
                block.proposed = True
                await block.propose()

    def _distil(self, block: BobBlock) -> None:
        dropped, self._dropped = self._dropped, 0
        span_s = block.span.n_slots / self._link.source.qubit_rate_hz
        self._figures.blocks.announced(block.channel.block_id, span_s)
        if block.recording is not None:
            self._recorder.end_block(block.recording, self._numbering, block.channel.block_id, block.span)

        async def work(channel: BlockChannel) -> None:
            await block.distil(dropped, self._figures.history.error_rate.value)

        self._nursery.start_soon(self._run, block, work)

    def _abandon(self, reason: Reason, detail: str) -> None:
        """Discard the blocks that are announced or agreed; their slots will never be complete.

        A block that still waits is not proposed any more: Alice would refuse it if its run has ended, and the
        session would end.
        """
        for block in (self._current, self._upcoming):
            if block is None:
                continue
            lose = partial(_lose, reason, detail, told=not block.proposed)
            if block.proposed:
                self._nursery.start_soon(self._run, block, lose)
            else:
                block.withdrawn = True
                self._nursery.start_soon(self._router.run_block, block.channel, lose)
        self._current = self._upcoming = None

    async def _run(self, block: BobBlock, work: Work) -> None:
        if not block.agreed.is_set():  # otherwise not even a cancellation comes before it is reported
            await block.agreed.wait()
        try:
            await self._router.run_block(block.channel, work)
        finally:
            block.decided.set()
            self._places.release()


async def _lose(reason: str, detail: str, _dialogue: BlockChannel, *, told: bool) -> None:
    raise BlockLost(reason, detail, told=told)
