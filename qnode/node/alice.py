"""Alice's part: she tells her emission runs, aligns Bob's probes, and takes part in his blocks."""

from contextlib import aclosing
from functools import partial

import numpy as np
import structlog
import trio

from qnode.devices.protocols import EmissionRun, Transmitter
from qnode.errors import ProtocolError
from qnode.link.messages import (
    AlignmentProbeMessage,
    AlignmentResult,
    BlockProposed,
    EmissionRunStarted,
    NodeMessage,
    RunNeeded,
)
from qnode.node.alice_block import run_alice_block
from qnode.node.conversation import Conversation
from qnode.node.dialogue import BlockLost, BlockSpan, Dialogue
from qnode.node.figures import Figures
from qnode.tags.alignment import AlignmentProbe, correlate
from qnode.tags.types import Codes, Slots

log = structlog.get_logger()

# Slots that one block may span; beyond it the record of announced clicks would not fit in memory.
LONGEST_SPAN_SLOTS = 1 << 44


class Source:
    """The transmitter as the rest of the node sees it: there or not, and its present emission run."""

    def __init__(self) -> None:
        self.transmitter: Transmitter | None = None
        self.run: EmissionRun | None = None
        self.changed = trio.Event()

    async def use(self, transmitter: Transmitter) -> None:
        """Follow an opened transmitter until it is closed."""
        self.transmitter = transmitter
        try:
            async with aclosing(transmitter.runs()) as runs:
                async for run in runs:
                    self._set(run)
                    log.info("emission.started", run=run.run_id)
        finally:
            self.transmitter = None
            self._set(None)

    def _set(self, run: EmissionRun | None) -> None:
        self.run = run
        self.changed.set()
        self.changed = trio.Event()

    def lookup(self, run_id: int, slots: Slots) -> Codes:
        """Return the symbols of ``slots``.

        Raises:
            BlockLost: this run is over.
        """
        transmitter, run = self.transmitter, self.run
        if transmitter is None or run is None or run.run_id != run_id:
            raise BlockLost("emission", "the emission run of this block has ended")
        return transmitter.symbols(run_id, slots)


class Revealed:
    """Slots whose bits the answers to probes gave away: no click in them may ever be sifted."""

    def __init__(self) -> None:
        self._ranges: dict[int, list[range]] = {}

    def add(self, run_id: int, slots: range) -> None:
        """Note that ``slots`` of a run can be inferred from an answer."""
        self._ranges.setdefault(run_id, []).append(slots)

    def check(self, run_id: int, slots: Slots) -> None:
        """Refuse an announcement (ascending ``slots``) that touches what was revealed.

        Raises:
            ProtocolError: it does.
        """
        for revealed in self._ranges.get(run_id, []):
            first, end = np.searchsorted(slots, (revealed.start, revealed.stop))
            if first != end:
                raise ProtocolError("clicks were announced that an alignment has given away")


class AlicePart:
    """What Alice says and hears in one session."""

    def __init__(
        self, conversation: Conversation, source: Source, figures: Figures, nursery: trio.Nursery
    ) -> None:
        self._conversation = conversation
        self._source = source
        self._figures = figures
        self._nursery = nursery
        self._revealed = Revealed()

    async def start(self) -> None:
        """Tell each emission run as it begins."""
        told: int | None = None
        while True:
            changed, run = self._source.changed, self._source.run
            if run is not None and run.run_id != told:
                await self._conversation.site.session.send(
                    EmissionRunStarted(
                        run_id=run.run_id,
                        started_at_s=run.started_at_s,
                        qubit_rate_hz=self._conversation.site.link.source.qubit_rate_hz,
                    )
                )
                told = run.run_id
            await changed.wait()

    async def handle(self, message: NodeMessage) -> None:
        """Take a proposal or a probe."""
        if isinstance(message, BlockProposed):
            if not 0 < message.n_slots <= LONGEST_SPAN_SLOTS:
                raise ProtocolError(f"a block of {message.n_slots} slots was proposed")
            self._figures.note_lock("locked")
            dialogue = self._conversation.open_dialogue(message.block_id)
            span = BlockSpan(message.run_id, message.first_slot, message.n_slots)
            self._nursery.start_soon(self._conversation.run_block, dialogue, partial(self._block, span))
        elif isinstance(message, AlignmentProbeMessage):
            self._figures.note_lock("aligning")
            self._nursery.start_soon(self._align, message)
        elif isinstance(message, RunNeeded):
            log.warning("emission.unfollowed", reason=message.reason)
        # What else may come is the tail of a block that has ended.

    async def _block(self, span: BlockSpan, dialogue: Dialogue) -> None:
        lookup = partial(self._source.lookup, span.run_id)
        check = partial(self._revealed.check, span.run_id)
        await run_alice_block(self._conversation.site, dialogue, span, lookup, check, self._figures)

    async def _align(self, message: AlignmentProbeMessage) -> None:
        """Find where Bob's clicks fit what was sent; these clicks never enter a key."""
        try:
            ticks = np.frombuffer(message.ticks, "<i8").astype(np.int64)
        except ValueError:
            raise ProtocolError("an alignment probe that is no list of ticks") from None
        probe = AlignmentProbe(message.probe_id, 0, ticks)
        lookup = partial(self._source.lookup, message.run_id)
        try:
            found = await trio.to_thread.run_sync(
                correlate, probe, lookup, message.first_tick, message.last_tick
            )
        except BlockLost:
            found = None
        if found is not None:
            first_slot = (found.offset + int(ticks[0])) // 2
            self._revealed.add(message.run_id, range(first_slot, found.last_slot + 1))
        log.info(
            "alignment.answered",
            clicks=len(ticks),
            found=found is not None,
            significance=round(found.significance, 1) if found else None,
        )
        await self._conversation.site.session.send(
            AlignmentResult(
                probe_id=message.probe_id,
                offset=found.offset if found else None,
                score=found.score if found else 0.0,
                significance=found.significance if found else 0.0,
            )
        )
