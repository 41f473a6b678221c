"""What of a site may be recorded, and from where on.

A block counts as recorded from its opening on, and says so to the peer, whose key it is too. So what was
opened before a recorder came is never handed on: of Alice, symbols of blocks that were opened as recorded; of
Bob, raw tags only after all slots before the first such block are complete; and a block that is opened after
a recording ended, but some of whose tags were handed on before, counts as recorded too. A recording is of one
emission run, at Bob also of one opening of the TDC, one numbering of slots and one turn of the TDC's counter;
when that ends, so does the recording.
"""

import threading
import time
from dataclasses import dataclass, replace

import numpy as np

from qnode.block.span import BlockSpan
from qnode.config import SiteConfig
from qnode.devices.protocols import EmissionRun
from qnode.operate.recording.frames import MOST_ENTRIES, Begun, Symbols, Tags, WholeBlock
from qnode.operate.recording.recordings import Recording, Recordings
from qnode.tags.order import FURTHEST_AHEAD_PS
from qnode.tags.site_recording import RecordedBlock
from qnode.tags.tag_time import signed_64
from qnode.tags.tracking import INTERVAL_PS
from qnode.tags.types import Codes, Slots, SymbolLookup, TagBlock
from qnode.units import PS_PER_S

_LATEST_RECORDED_PS = (1 << 63) - 60 * PS_PER_S  # a block of tags is shorter than what remains
_HELD_BACK_PS = 2 * INTERVAL_PS  # so much of the tags, or less, the synchroniser has not made slots of yet


class AliceRecorder:
    """Begins recordings of Alice's symbols; `recorded_lookup` hands them on."""

    def __init__(self, config: SiteConfig, recordings: Recordings, *, simulated: bool) -> None:
        self._config = config
        self._recordings = recordings
        self._simulated = simulated
        self._begun: tuple[Recording, int] | None = None

    def open_block(self, run: EmissionRun) -> Recording | None:
        """Return the recording that a new block of ``run`` belongs to, None where nobody records it."""
        recording = self._recordings.current
        if recording is None:
            return None
        if self._begun is None or self._begun[0] is not recording:
            recording.put(_begun(self._config, run, simulated=self._simulated, started_at_s=run.started_at_s))
            self._begun = (recording, run.run_id)
        elif self._begun[1] != run.run_id:
            recording.end("Alice's emission run ended")
            return None
        return recording


def recorded_lookup(lookup: SymbolLookup, recording: Recording, first_slot: int) -> SymbolLookup:
    """Return ``lookup`` that also hands on what is asked for from ``first_slot`` on.

    The slot before a block's first may be in the key of a block that nobody records.
    """

    def look(slots: Slots) -> Codes:
        symbols = lookup(slots)
        own = int(np.searchsorted(slots, first_slot))
        for first in range(own, slots.shape[0], MOST_ENTRIES):
            some = slice(first, first + MOST_ENTRIES)
            recording.put(Symbols(slots[some].astype("<i8").tobytes(), symbols[some].tobytes()))
        return symbols

    return look


@dataclass(frozen=True)
class Passage:
    """Where a block of tags stands: its run, the numbering of slots, and which slots were complete before it.

    ``reached_slot``: all below were; -1 while there is no lock. ``origin_s``: Bob's time of day of tag time
    zero.
    """

    run: EmissionRun
    numbering: int
    reached_slot: int
    origin_s: float


@dataclass(frozen=True)
class _Place:
    """A slot in a numbering, and the recording that it matters to."""

    recording: Recording
    numbering: int
    slot: int


@dataclass
class _Given:
    """Tags that were handed on, in a numbering, up to a tag time; ``below``: of slots below, once known."""

    recording: Recording
    numbering: int
    until_ps: int
    below: int | None = None


class BobRecorder:
    """Begins recordings of Bob's tags and hands them on; tags in a thread, blocks in the event loop."""

    def __init__(self, config: SiteConfig, recordings: Recordings, *, simulated: bool) -> None:
        self._config = config
        self._recordings = recordings
        self._simulated = simulated
        self._lock = threading.Lock()
        self._first: _Place | None = None  # where the first block begins that was opened as recorded
        self._begun: _Place | None = None  # from which slot on all tags are handed on
        self._given: _Given | None = None  # what was handed on last
        self._reached_slot, self._until_ps = -1, 0  # of the block of tags before

    def open_block(self, numbering: int, first_slot: int) -> Recording | None:
        """Return the recording that a new block belongs to, None where nobody records it.

        ``numbering`` changes when slots are counted anew. The recording has ended where the block is opened
        so late that tags of it were handed on before.
        """
        recording = self._recordings.current
        with self._lock:
            if recording is None:
                given = self._given
                if given is None or given.numbering != numbering:
                    return None
                return given.recording if given.below is None or first_slot < given.below else None
            first = self._first
            if first is None or first.recording is not recording or first.numbering != numbering:
                self._first = _Place(recording, numbering, first_slot)
        return recording

    def hand_on(self, block: TagBlock, passage: Passage) -> None:
        """Hand on tags as they came, once no slot in them can be of a block that is not recorded."""
        recording = self._recordings.current
        block = replace(block, until_ps=signed_64(block.until_ps))
        if recording is not None and block.until_ps > _LATEST_RECORDED_PS:
            recording.end("the TDC's counter of picoseconds wraps now; it can be recorded again in a minute")
            recording = None
        if recording is not None and not self._begins(recording, passage):
            recording = None
        self._note(block, passage, recording)  # before any is handed on: a block may be opened meanwhile
        if recording is None:
            return
        for first in range(0, block.times_ps.shape[0], MOST_ENTRIES):
            some = slice(first, first + MOST_ENTRIES)
            times = block.times_ps[some].astype("<i8").tobytes()
            recording.put(Tags(times, block.channels[some].astype("|i1").tobytes()))

    def end_block(self, recording: Recording, numbering: int, block_id: int, span: BlockSpan) -> None:
        """Note that a block was wholly announced, unless some of its tags came before the recording's."""
        with self._lock:
            begun = self._begun
        if begun is None or begun.recording is not recording or begun.numbering != numbering:
            return
        if span.first_slot >= begun.slot:
            recording.put(WholeBlock(RecordedBlock(block_id, span.first_slot, span.n_slots)))

    def _note(self, block: TagBlock, passage: Passage, recording: Recording | None) -> None:
        """Note up to where tags are handed on, or, when none are, below which slot the last were."""
        given, reached_slot = self._given, passage.reached_slot
        with self._lock:
            if recording is not None:
                latest_ps = int(block.times_ps.max(initial=block.until_ps))
                until_ps = min(latest_ps, block.until_ps + FURTHEST_AHEAD_PS)  # beyond, none is used
                self._given = _Given(recording, passage.numbering, until_ps)
            elif given is not None and given.below is None and given.numbering == passage.numbering:
                followed = 0 <= self._reached_slot < reached_slot  # through the block of tags before
                if followed and signed_64(self._until_ps - given.until_ps) >= _HELD_BACK_PS:
                    given.below = reached_slot
            self._reached_slot, self._until_ps = reached_slot, block.until_ps

    def _begins(self, recording: Recording, passage: Passage) -> bool:
        """Tell whether the recording has begun, or begins here."""
        with self._lock:
            first, begun = self._first, self._begun
            if begun is not None and begun.recording is recording:
                if begun.numbering != passage.numbering:
                    recording.end("Alice's emission run ended, or the tags or their slots were begun anew")
                return begun.numbering == passage.numbering
            if first is None or first.recording is not recording or first.numbering != passage.numbering:
                return False
            if passage.reached_slot < first.slot:
                return False
            begin = _begun(
                self._config,
                passage.run,
                simulated=self._simulated,
                origin_s=passage.origin_s,
                first_slot=passage.reached_slot,
            )
            recording.put(begin)
            self._begun = _Place(recording, passage.numbering, passage.reached_slot)
            return True


def _begun(
    config: SiteConfig,
    run: EmissionRun,
    *,
    simulated: bool,
    started_at_s: float | None = None,
    origin_s: float | None = None,
    first_slot: int = 0,
) -> Begun:
    return Begun(
        role=config.node.role,
        kme_id=config.node.kme_id,
        peer_kme_id=config.peer.kme_id,
        simulated=simulated,
        run_id=run.run_id,
        began_at_s=time.time(),
        start_uncertainty_s=config.node.start_uncertainty_s,
        link=config.link,
        started_at_s=started_at_s,
        origin_s=origin_s,
        first_slot=first_slot,
    )
