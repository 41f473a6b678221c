"""From clicks to sifted blocks, through the messages that the two sites would exchange."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qnode.block.running_rate import CLICKS_FOR_RATE
from qnode.block.span_policy import RecentBlocks, choose_span_s
from qnode.config import LinkParameters
from qnode.distill.bits import Bits
from qnode.distill.bits.planes import joined, plane
from qnode.distill.counts import TagCounts
from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.gap_codec import decode_gaps, encode_gaps
from qnode.distill.sifting.sift import (
    SiftedBlock,
    SiftRecord,
    keep_bits,
)
from qnode.distill.sifting.span_counts import SpanCounts
from qnode.tags.site_recording import RecordedBlock
from qnode.tags.synchroniser import SyncResult
from qnode.tags.types import OUTCOME_LATE, Clicks, SymbolLookup


@dataclass(frozen=True)
class Span:
    """The slots of a block, ``first <= slot < end``, and the number of slots without lock."""

    first: int
    end: int
    cut: int = 0


@dataclass(frozen=True, eq=False)
class BothSides:
    """A sifted block at both sites.

    ``received``: Bob's bits, secret like ``alice.bits``. ``tags``: the counts of Bob's tags.
    """

    span: Span
    clicks: int
    announced_bytes: int
    alice: SiftedBlock
    received: Bits
    tags: TagCounts

    def __repr__(self) -> str:
        return f"BothSides({self.span}, {len(self.received)} bits)"


class BlockSifter:
    """Announces, looks up and sifts the clicks of one block: the messages between Bob and Alice."""

    def __init__(self, first_slot: int, end_slot: int) -> None:
        self._first, self.end = first_slot, end_slot
        self._record = SiftRecord(first_slot)
        self._counts = SpanCounts(first_slot, end_slot - first_slot)
        self._late: list[Bits] = []
        self._x_arm: list[Bits] = []
        self._announced_bytes = 0

    def add(self, result: SyncResult, lookup: SymbolLookup) -> None:
        """Add the part of the next result in the block's slots."""
        low, high = np.searchsorted(result.clicks.slots, (self._first, self.end))
        clicks = Clicks(result.clicks.slots[low:high], result.clicks.outcomes[low:high])
        self._counts.add_marks(result.marks)
        self._counts.add_cuts(result.cuts)
        if not len(clicks):
            return
        first = int(clicks.slots[0])
        announced = Announced.of(clicks)
        payload = encode_gaps(announced, first)
        self._record.add(decode_gaps(payload, first, self.end - first), lookup)
        self._counts.add_clicks(announced)
        self._late.append(plane(clicks.outcomes, OUTCOME_LATE))
        self._x_arm.append(announced.x_arm)
        self._announced_bytes += len(payload)

    def finish(self) -> BothSides:
        """Close the block."""
        tags = self._counts.tag_counts()
        span = Span(self._first, self.end, self.end - self._first - sum(tags.live_slots))
        alice = self._record.finish()
        received = keep_bits(joined(self._late), joined(self._x_arm), alice.keep)
        return BothSides(span, len(alice.keep), self._announced_bytes, alice, received, tags)


def sifted_blocks(
    results: Iterable[SyncResult],
    lookup: SymbolLookup,
    link: LinkParameters,
    recent: RecentBlocks | None = None,
) -> Iterator[BothSides]:
    """Yield each complete block; an unfinished last one is left out.

    As between two nodes, a block's span is chosen in advance from the rate so far and from the
    ``recent`` blocks, never from its own clicks.
    """
    rate = _Rate(link, recent if recent is not None else RecentBlocks())
    sifter: BlockSifter | None = None
    for result in results:
        rate.add(result)
        if sifter is None:
            if rate.known:  # the block begins at the present slot
                sifter = BlockSifter(result.reached, result.reached + rate.span_slots())
            continue
        sifter.add(result, lookup)
        while result.reached >= sifter.end:
            yield sifter.finish()
            sifter = BlockSifter(sifter.end, sifter.end + rate.span_slots())
            sifter.add(result, lookup)


def sifted_spans(
    results: Iterable[SyncResult], lookup: SymbolLookup, blocks: Sequence[RecordedBlock]
) -> Iterator[tuple[int, BothSides]]:
    """Yield number and sifted block of each of ``blocks``, which ascend and do not overlap.

    Blocks that began before the first lock, and those whose end is not reached, are left out.
    """
    waiting = list(reversed(blocks))
    sifter: BlockSifter | None = None
    locked_from: int | None = None
    for result in results:
        if locked_from is None and result.cuts:
            locked_from = result.cuts[0].end  # the first cut is everything before the first lock
        if locked_from is None:
            continue
        while waiting:
            block = waiting[-1]
            if block.first_slot < locked_from:
                waiting.pop()
                continue
            if sifter is None:
                sifter = BlockSifter(block.first_slot, block.end_slot)
            sifter.add(result, lookup)
            if result.reached < block.end_slot:
                break
            yield block.block_id, sifter.finish()
            waiting.pop()
            sifter = None


class _Rate:
    """Sifted bits a slot, from all Z clicks so far."""

    def __init__(self, link: LinkParameters, recent: RecentBlocks) -> None:
        self._link = link
        self._recent = recent
        self._z_clicks = 0
        self._slots = 0
        self._reached = 0

    def add(self, result: SyncResult) -> None:
        cut = sum(one.end - one.first for one in result.cuts)
        self._slots += result.reached - self._reached - cut
        self._reached = result.reached
        self._z_clicks += result.z_clicks

    @property
    def known(self) -> bool:
        return self._z_clicks >= CLICKS_FOR_RATE and self._slots > 0

    def span_slots(self) -> int:
        source = self._link.source
        sifted_hz = source.p_z * self._z_clicks / self._slots * source.qubit_rate_hz
        span_s = choose_span_s(self._link, sifted_hz, self._recent.rates())
        return max(1, round(span_s * source.qubit_rate_hz))
