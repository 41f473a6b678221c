"""Bob's part: he has his clicks aligned, proposes blocks one ahead, and announces into them.

The receiver (`qnode.node.receiver`) outlives sessions; what it finds reaches the present session as errands,
one at a time, so that back-pressure goes from the link to the tags.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import structlog
import trio

from qnode.config import LinkParameters
from qnode.devices.protocols import EmissionRun
from qnode.errors import LinkError, ProtocolError
from qnode.link.messages import AlignmentProbeMessage, AlignmentResult, EmissionRunStarted, NodeMessage
from qnode.node.block_policy import RecentBlocks, choose_span_s
from qnode.node.bob_block import BobBlock
from qnode.node.conversation import Conversation, Work
from qnode.node.decision import MOST_ANNOUNCED_CLICKS
from qnode.node.dialogue import BlockLost, BlockSpan, Dialogue
from qnode.node.figures import Figures
from qnode.node.in_flight import blocks_in_flight
from qnode.node.recorder import BobRecorder
from qnode.tags.alignment import Alignment, AlignmentProbe
from qnode.tags.marks import NO_MARKS, Marks
from qnode.tags.types import Clicks, SlotRange

log = structlog.get_logger()

# The running rate is known well enough to choose a span after this many Z clicks.
CLICKS_FOR_RATE = 2_000
# How far back the running rate looks, in Z clicks.
RATE_WINDOW_CLICKS = 500_000
# A rate that keeps the expected clicks of a block below what can be sifted.
MOST_EXPECTED_CLICKS = 0.9 * MOST_ANNOUNCED_CLICKS


@dataclass(frozen=True)
class Announcement:
    """Clicks of a run, and what else its tags show; both complete below ``reached_slot`` and not beyond.

    ``z_clicks``: how many of them are of the Z arm. ``numbering`` changes when slots are counted anew.
    ``cuts``: slots since the last announcement without lock; ``dropped``: so many clicks could not be
    announced. ``can_wait``: their source does, when no more is taken.
    """

    run_id: int
    numbering: int
    clicks: Clicks
    z_clicks: int
    reached_slot: int
    cuts: tuple[SlotRange, ...]
    dropped: int
    can_wait: bool = False
    marks: Marks = NO_MARKS

    @property
    def cut_slots(self) -> int:
        """How many slots since the last announcement had no lock."""
        return sum(cut.end - cut.first for cut in self.cuts)


@dataclass(frozen=True)
class ProbeErrand:
    """Find where ``probe`` fits, among the given offsets; the answer goes to ``reply``."""

    run_id: int
    probe: AlignmentProbe
    offsets: range
    reply: trio.MemorySendChannel[Alignment | None]


Errand = Announcement | ProbeErrand


class RunningRate:
    """Clicks and sifted bits per slot, from the clicks accepted so far; older ones fade."""

    def __init__(self, p_z: float) -> None:
        self._p_z = p_z
        self._clicks = 0.0
        self._z_clicks = 0.0
        self._slots = 0.0
        self._run_id: int | None = None
        self._reached_slot = 0

    def begin_session(self) -> None:
        """Take no account of the slots since the last announcement: their clicks were told to nobody."""
        self._run_id = None

    def add(self, announcement: Announcement) -> None:
        """Take the clicks of one announcement into account."""
        passed = announcement.reached_slot - self._reached_slot - announcement.cut_slots
        same_run = self._run_id == announcement.run_id
        self._run_id, self._reached_slot = announcement.run_id, announcement.reached_slot
        if not same_run or passed <= 0:
            return
        self._clicks += len(announcement.clicks)
        self._z_clicks += announcement.z_clicks
        self._slots += passed
        if self._z_clicks > RATE_WINDOW_CLICKS:
            self._clicks /= 2
            self._z_clicks /= 2
            self._slots /= 2

    @property
    def known(self) -> bool:
        """Tell whether the rate is good enough to choose a span."""
        return self._z_clicks >= CLICKS_FOR_RATE

    @property
    def sifted_per_slot(self) -> float:
        """Sifted bits per slot: Alice sent Z in a share p_Z of the slots in which Bob's Z arm clicked."""
        return self._p_z * self._z_clicks / self._slots if self._slots else 0.0

    async def span_slots(self, link: LinkParameters, recent: RecentBlocks) -> int:
        """Return how many slots the next block takes.

        It is the block policy's answer at the running rate, but no more than has clicks that can be sifted.
        """
        rate_hz = link.source.qubit_rate_hz
        sifted_hz = self.sifted_per_slot * rate_hz
        if link.block.sifted_bits == "auto":
            span_s = await trio.to_thread.run_sync(choose_span_s, link, sifted_hz, recent.rates())
        else:
            span_s = choose_span_s(link, sifted_hz, None)
        most = MOST_EXPECTED_CLICKS * self._slots / self._clicks if self._clicks else math.inf
        return max(1, round(min(span_s * rate_hz, most)))


class BobPart:
    """What Bob says and hears in one session."""

    def __init__(
        self,
        conversation: Conversation,
        figures: Figures,
        rate: RunningRate,
        nursery: trio.Nursery,
        recorder: BobRecorder,
    ) -> None:
        self._conversation = conversation
        self._figures = figures
        self._rate = rate
        self._nursery = nursery
        self._recorder = recorder
        self._link = conversation.site.link
        self._places = trio.Semaphore(blocks_in_flight(self._link.block.sifted_bits))
        self._to_propose, self._proposals = trio.open_memory_channel[BobBlock](math.inf)
        self._current: BobBlock | None = None
        self._upcoming: BobBlock | None = None
        self._dropped = 0
        self._numbering = 0
        self._probes: dict[int, trio.MemorySendChannel[AlignmentResult]] = {}
        self._next_block_id = 0
        self._errands_in, self._errands = trio.open_memory_channel[Errand](0)
        self.run: EmissionRun | None = None
        self.run_known = trio.Event()
        self.ready = trio.Event()

    async def start(self) -> None:
        """Do the receiver's errands until the session ends."""
        site = self._conversation.site
        ours = (await site.storage.positions()).last_block_id
        theirs = site.session.peer.last_block_id or 0
        self._next_block_id = max(ours, theirs) + 1
        self._rate.begin_session()
        self._nursery.start_soon(self._propose_in_turn)
        self.ready.set()
        with self._errands:
            try:
                async for errand in self._errands:
                    if isinstance(errand, ProbeErrand):
                        await self._align(errand)
                    else:
                        await self._announce(errand)
            finally:
                if self._current is not None:
                    self._figures.lost(
                        self._current.dialogue.block_id, "link", "the session with the peer ended"
                    )
                self._figures.current_block = self._figures.filled = None

    @property
    def last_block_id(self) -> int:
        """The number of the latest block, proposed or about to be."""
        return self._next_block_id - 1

    async def do(self, errand: Errand) -> None:
        """Hand over an errand; returns when it is taken up.

        Raises:
            LinkError: the session has ended.
        """
        try:
            await self._errands_in.send(errand)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LinkError("the session has ended") from None

    async def handle(self, message: NodeMessage) -> None:
        """Take news of an emission run, or the answer to a probe."""
        if isinstance(message, EmissionRunStarted):
            self.run = EmissionRun(run_id=message.run_id, started_at_s=message.started_at_s)
            self.run_known.set()
        elif isinstance(message, AlignmentResult):
            waiting = self._probes.pop(message.probe_id, None)
            if waiting is not None:
                waiting.send_nowait(message)

    # Alignment

    async def _align(self, errand: ProbeErrand) -> None:
        probe, offsets = errand.probe, errand.offsets
        deliver, receive = trio.open_memory_channel[AlignmentResult](1)
        self._probes[probe.number] = deliver
        with errand.reply:
            await self._conversation.site.session.send(
                AlignmentProbeMessage(
                    run_id=errand.run_id,
                    probe_id=probe.number,
                    ticks=probe.ticks.astype("<i8").tobytes(),
                    first_tick=offsets.start,
                    last_tick=offsets.stop - 1,
                )
            )
            answer = await receive.receive()
            found = None
            if answer.offset is not None:
                if answer.offset not in offsets:
                    raise ProtocolError(f"an alignment offset of {answer.offset}, which was not asked for")
                last_slot = (int(probe.ticks[-1]) + answer.offset) // 2
                found = Alignment(
                    probe.number, answer.offset, round(answer.score), answer.significance, last_slot
                )
            await errand.reply.send(found)

    # Blocks

    async def _announce(self, news: Announcement) -> None:
        self._rate.add(news)
        self._dropped += news.dropped
        if self._current is not None:
            if self._current.span.run_id != news.run_id or self._numbering != news.numbering:
                self._abandon("emission", "slots are counted anew")
            elif self._passed_without_lock(news):
                self._abandon("lock", "no lock for longer than a block")
        self._numbering = news.numbering
        if self._current is None:
            if self._rate.known:
                self._current = await self._propose(news.run_id, news.reached_slot)
                self._upcoming = await self._propose(news.run_id, self._current.span.end_slot)
            return
        block, clicks, position = self._current, news.clicks, 0
        while True:
            await block.agreed.wait()
            first, end = np.searchsorted(clicks.slots, (block.span.first_slot, block.span.end_slot))
            first = max(position, first)
            block.note(news.marks, news.cuts)
            await block.announce(Clicks(clicks.slots[first:end], clicks.outcomes[first:end]))
            position = end
            if news.reached_slot < block.span.end_slot:
                break
            error_rate_is_known = self._figures.error_rate.value is not None
            self._distil(block)
            distilled = block
            assert self._upcoming is not None
            block = self._current = self._upcoming  # the other is written down by its own task from here on
            if news.can_wait and not error_rate_is_known:
                await distilled.decided.wait()  # or each block that is begun meanwhile pays for a sample, too
            self._upcoming = await self._propose(news.run_id, block.span.end_slot)
        span = block.span
        self._figures.current_block = block.dialogue.block_id
        self._figures.filled = min(1.0, max(0.0, (news.reached_slot - span.first_slot) / span.n_slots))

    def _passed_without_lock(self, news: Announcement) -> bool:
        """Tell whether the block agreed ahead has passed, most of it without lock.

        It would be empty, and so would any that are agreed only now for slots that have passed.
        """
        if self._upcoming is None or news.reached_slot < self._upcoming.span.end_slot:
            return False
        return 2 * news.cut_slots > self._upcoming.span.n_slots

    async def _propose(self, run_id: int, first_slot: int) -> BobBlock:
        """Begin to agree on a block of the span that the block policy asks for."""
        n_slots = await self._rate.span_slots(self._link, self._figures.recent)
        dialogue = self._conversation.open_dialogue(self._next_block_id)
        self._next_block_id += 1
        block = BobBlock(
            self._conversation.site,
            dialogue,
            BlockSpan(run_id, first_slot, n_slots),
            self._figures,
            self._recorder.open_block(self._numbering, first_slot),
        )
        self._to_propose.send_nowait(block)
        return block

    async def _propose_in_turn(self) -> None:
        """Propose blocks in the order of their numbers, each once few enough are in flight."""
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
        self._figures.announced(block.dialogue.block_id, span_s)
        if block.recording is not None:
            self._recorder.end_block(block.recording, self._numbering, block.dialogue.block_id, block.span)

        async def work(dialogue: Dialogue) -> None:
            await block.distil(dropped, self._figures.error_rate.value)

        self._nursery.start_soon(self._run, block, work)

    def _abandon(self, reason: str, detail: str) -> None:
        """Give up the blocks that are announced or agreed; their slots will never be complete.

        One that still waits for its place is not proposed any more: Alice would not agree to it where its run
        has ended, and the session would end with it.
        """
        for block in (self._current, self._upcoming):
            if block is None:
                continue
            lose = partial(_lose, reason, detail, told=not block.proposed)
            if block.proposed:
                self._nursery.start_soon(self._run, block, lose)
            else:
                block.withdrawn = True
                self._nursery.start_soon(self._conversation.run_block, block.dialogue, lose)
        self._current = self._upcoming = None

    async def _run(self, block: BobBlock, work: Work) -> None:
        if not block.agreed.is_set():  # else not even a cancellation comes before it is written down
            await block.agreed.wait()
        try:
            await self._conversation.run_block(block.dialogue, work)
        finally:
            block.decided.set()
            self._places.release()


async def _lose(reason: str, detail: str, _dialogue: Dialogue, *, told: bool) -> None:
    raise BlockLost(reason, detail, told=told)
