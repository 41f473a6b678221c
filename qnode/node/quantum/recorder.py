"""The recordings of a site: which tags or symbols may be recorded.

A block counts as recorded from its opening on. The site states this to the peer, because the key is also the
peer's. Data of blocks that were opened before the recorder came are therefore never recorded:

* At Alice's site, only symbols of blocks that were opened as recorded.
* At Bob's site, raw tags only after all slots before the first such block are complete.
* A block that is opened after the end of a recording also counts as recorded, if some of its tags were
  recorded.

A recording covers one emission run. At Bob's site it also covers one opening of the TDC, one numbering of
slots and one turn of the TDC's counter. When one of these ends, the recording ends.
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
_HELD_BACK_PS = (
    2 * INTERVAL_PS
)  # the largest part of the tags that the synchroniser has not yet assigned to slots


class AliceRecorder:
    """Begins recordings of Alice's symbols; `recorded_lookup` passes the symbols on."""

    def __init__(self, config: SiteConfig, recordings: Recordings, *, simulated: bool) -> None:
        self._config = config
        self._recordings = recordings
        self._simulated = simulated
        self._begun: tuple[Recording, int] | None = None

    def open_block(self, run: EmissionRun) -> Recording | None:
        """Return the recording of a new block of ``run``; None if it is not recorded."""
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
    """Return ``lookup`` that also records the symbols from ``first_slot`` on.

    The slot before the first one of a block may be in the key of a block that is not recorded.
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
    """The position of a block of tags: run, numbering of slots, and the slots complete before it.

    ``reached_slot``: all slots below were complete; -1 without lock. ``origin_s``: Bob's wall clock at tag
    time zero.
    """

    run: EmissionRun
    numbering: int
    reached_slot: int
    origin_s: float


@dataclass(frozen=True)
class _Place:
    """A slot in a numbering, and its recording."""

    recording: Recording
    numbering: int
    slot: int


@dataclass
class _Given:
    """Recorded tags of a numbering, up to a tag time; ``below``: of slots below this, once known."""

    recording: Recording
    numbering: int
    until_ps: int
    below: int | None = None


class BobRecorder:
    """Records Bob's tags; the tags come in a thread, the blocks in the event loop."""

    def __init__(self, config: SiteConfig, recordings: Recordings, *, simulated: bool) -> None:
        self._config = config
        self._recordings = recordings
        self._simulated = simulated
        self._lock = threading.Lock()
        self._first: _Place | None = None  # the start of the first block that was opened as recorded
        self._begun: _Place | None = None  # all tags from this slot on are recorded
        self._given: _Given | None = None  # the tags that were recorded last
        self._reached_slot, self._until_ps = -1, 0  # of the previous block of tags

    def open_block(self, numbering: int, first_slot: int) -> Recording | None:
        """Return the recording of a new block; None if it is not recorded.

        ``numbering`` changes when slots are numbered again. The returned recording may have ended already, if
        tags of the block were recorded before its opening.
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
        """Record raw tags, once none of their slots can belong to an unrecorded block."""
        recording = self._recordings.current
        block = replace(block, until_ps=signed_64(block.until_ps))
        if recording is not None and block.until_ps > _LATEST_RECORDED_PS:
            recording.end("the TDC's counter of picoseconds wraps now; it can be recorded again in a minute")
            recording = None
        if recording is not None and not self._begins(recording, passage):
            recording = None
        self._note(block, passage, recording)  # before recording them: a block may be opened meanwhile
        if recording is None:
            return
        for first in range(0, block.times_ps.shape[0], MOST_ENTRIES):
            some = slice(first, first + MOST_ENTRIES)
            times = block.times_ps[some].astype("<i8").tobytes()
            recording.put(Tags(times, block.channels[some].astype("|i1").tobytes()))

    def end_block(self, recording: Recording, numbering: int, block_id: int, span: BlockSpan) -> None:
        """Note a completely announced block, unless some of its tags came before the recording."""
        with self._lock:
            begun = self._begun
        if begun is None or begun.recording is not recording or begun.numbering != numbering:
            return
        if span.first_slot >= begun.slot:
            recording.put(WholeBlock(RecordedBlock(block_id, span.first_slot, span.n_slots)))

    def _note(self, block: TagBlock, passage: Passage, recording: Recording | None) -> None:
        """Note the end of the recorded tags, or, if none are recorded now, the slot after the last ones."""
        given, reached_slot = self._given, passage.reached_slot
        with self._lock:
            if recording is not None:
                latest_ps = int(block.times_ps.max(initial=block.until_ps))
                until_ps = min(latest_ps, block.until_ps + FURTHEST_AHEAD_PS)  # later tags are not used
                self._given = _Given(recording, passage.numbering, until_ps)
            elif given is not None and given.below is None and given.numbering == passage.numbering:
                followed = 0 <= self._reached_slot < reached_slot  # through the previous block of tags
                if followed and signed_64(self._until_ps - given.until_ps) >= _HELD_BACK_PS:
                    given.below = reached_slot
            self._reached_slot, self._until_ps = reached_slot, block.until_ps

    def _begins(self, recording: Recording, passage: Passage) -> bool:
        """Return whether the recording has begun, or begins here."""
        with self._lock:
            first, begun = self._first, self._begun
            if begun is not None and begun.recording is recording:
                if begun.numbering != passage.numbering:
                    recording.end("Alice's emission run ended, or the tags or slots started again")
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
