"""Alice's side of a session: sends the emission runs, aligns Bob's probes, takes part in Bob's blocks."""

from functools import partial

import numpy as np
import structlog
import trio

from qnode.block.outcome import BlockLost
from qnode.block.span import BlockSpan
from qnode.choices import LockState
from qnode.errors import ProtocolError
from qnode.keys import MOST_SKIPPED
from qnode.link.messages import (
    AlignmentProbeMessage,
    AlignmentResult,
    BlockProposed,
    EmissionRunStarted,
    NodeMessage,
)
from qnode.node.dialogue.alice import run_alice_block
from qnode.node.dialogue.channel import BlockChannel
from qnode.node.quantum.recorder import AliceRecorder, recorded_lookup
from qnode.node.quantum.transmitter_port import TransmitterPort
from qnode.node.session.router import SessionRouter
from qnode.node.status.link_figures import LinkFigures
from qnode.tags.alignment import AlignmentProbe, correlate
from qnode.tags.types import Slots, SymbolLookup

log = structlog.get_logger()

# The largest span of a block in slots; the record of announced clicks of a longer one would not fit in
# memory.
LONGEST_SPAN_SLOTS = 1 << 44


class AliceSide:
    """Alice's side of one session."""

    def __init__(
        self,
        router: SessionRouter,
        source: TransmitterPort,
        figures: LinkFigures,
        nursery: trio.Nursery,
        recorder: AliceRecorder,
    ) -> None:
        self._router = router
        self._source = source
        self._figures = figures
        self._nursery = nursery
        self._recorder = recorder
        self._aligning = False

    async def start(self) -> None:
        """Send each emission run when it begins."""
        told: int | None = None
        while True:
            changed, run = self._source.changed, self._source.run
            if run is not None and run.run_id != told:
                await self._router.context.session.send(
                    EmissionRunStarted(
                        run_id=run.run_id,
                        started_at_s=run.started_at_s,
                        qubit_rate_hz=self._router.context.link.source.qubit_rate_hz,
                    )
                )
                told = run.run_id
            await changed.wait()

    async def handle(self, message: NodeMessage) -> None:
        """Handle a proposal or a probe."""
        if isinstance(message, BlockProposed):
            if not 0 < message.n_slots <= LONGEST_SPAN_SLOTS:
                raise ProtocolError(f"a block of {message.n_slots} slots was proposed")
            last_block_id = self._router.context.session.standing.last_block_id
            if not last_block_id < message.block_id <= last_block_id + MOST_SKIPPED:
                raise ProtocolError(
                    f"block {message.block_id} was proposed, though this site was at {last_block_id}"
                )
            self._figures.quantum.clicks_heard()
            self._figures.quantum.note_lock(LockState.LOCKED)
            channel = self._router.open_channel(message.block_id, back_pressure=True)
            span = BlockSpan(message.run_id, message.first_slot, message.n_slots)
            self._nursery.start_soon(self._router.run_block, channel, partial(self._block, span))
        elif isinstance(message, AlignmentProbeMessage):
            if self._aligning:  # a search needs hundreds of megabytes
                raise ProtocolError("an alignment probe before the one before it was answered")
            self._aligning = True
            self._figures.quantum.note_lock(LockState.ALIGNING)
            self._nursery.start_soon(self._align, message)
        # Other messages are late ones of a block that has ended.

    async def _block(self, span: BlockSpan, channel: BlockChannel) -> None:
        ledger = self._source.ledger(span.run_id)
        announced = ledger.open_block()
        assert self._source.run is not None  # the run of this ledger
        recording = self._recorder.open_block(self._source.run)
        try:
            lookup: SymbolLookup = partial(self._source.lookup, span.run_id)
            if recording is not None:
                lookup = recorded_lookup(lookup, recording, span.first_slot)

            def note(slots: Slots) -> None:
                ledger.announce(announced, slots)
                self._figures.quantum.clicks_heard()

            await run_alice_block(
                self._router.context, channel, span, lookup, note, self._figures.blocks, recording
            )
        finally:
            ledger.close(announced)

    async def _align(self, message: AlignmentProbeMessage) -> None:
        """Find the offset at which Bob's clicks fit the sent symbols; these clicks never enter a key."""
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
            if found is not None:
                first_slot = (found.offset + int(ticks[0])) // 2
                if not self._source.ledger(message.run_id).reveal(range(first_slot, found.last_slot + 1)):
                    raise ProtocolError("an alignment probe of clicks that were announced")
        except BlockLost:
            found = None
        log.info(
            "alignment.answered",
            clicks=len(ticks),
            found=found is not None,
            significance=round(found.significance, 1) if found else None,
        )
        self._aligning = False
        await self._router.context.session.send(
            AlignmentResult(
                probe_id=message.probe_id,
                offset=found.offset if found else None,
                score=found.score if found else 0.0,
                significance=found.significance if found else 0.0,
            )
        )
