"""Adjustments of the receiver: what is cut, what is counted, and that nothing else changes."""

from typing import cast

import numpy as np
import pytest
import trio
from tags_generator import SLOT_HZ, Link
from test_node_receiver import CONFIG, AligningPart, RecordedSource, receiver_of, until

from qnode.devices.protocols import TagSource
from qnode.node.quantum.adjustments import Adjustments, Cut
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.receiver import PACED_DEPTH, Receiver
from qnode.node.quantum.receiver_requests import ClickAnnouncement
from qnode.node.status.link_figures import LinkFigures
from qnode.tags.synchroniser import Synchroniser
from qnode.tags.types import OUTCOME_BOUNDARY, OUTCOME_CENTRAL, SlotRange, TagBlock

BLOCK_S = 0.1
LINK = Link()
RECORDED = LINK.tags(3.0, seed=4)


class Pass:
    """The recorded tags through a receiver, some blocks with a cut."""

    def __init__(self) -> None:
        self.part = AligningPart()
        self.receiver: Receiver = receiver_of(LinkFigures(CONFIG))
        self.receiver._part = cast(BobSide, self.part)
        self.synchroniser = Synchroniser(
            CONFIG.link.source, CONFIG.link.receiver, np.random.default_rng(1).bytes
        )
        self.source = cast(TagSource, RecordedSource(RECORDED, BLOCK_S))

    async def feed(self, block: TagBlock, cut: Cut | None = None) -> None:
        await self.receiver._process(self.source, self.synchroniser, block, 0.0, 0, cut)

    @property
    def announced(self) -> list[ClickAnnouncement]:
        return [one for one in self.part.heard if isinstance(one, ClickAnnouncement)]

    def clicks(self) -> tuple[np.ndarray, np.ndarray]:
        parts = [one.clicks for one in self.announced]
        return np.concatenate([one.slots for one in parts]), np.concatenate([one.outcomes for one in parts])

    def cuts(self) -> list[SlotRange]:
        return joined_cuts(self.announced)


def joined_cuts(announced: list[ClickAnnouncement]) -> list[SlotRange]:
    """Return the cuts after the first announcement, adjacent ones as one."""
    cuts = list[SlotRange]()
    for one in announced[1:]:
        for cut in one.cuts:
            if cuts and cuts[-1].end == cut.first:
                cuts[-1] = SlotRange(cuts[-1].first, cut.end)
            else:
                cuts.append(cut)
    return cuts


def slot_at(tag_ps: int) -> int:
    """Return the slot of a tag time, within a microsecond."""
    return LINK.first_slot + round((tag_ps - LINK.start_ps) * SLOT_HZ / 1e12)


async def test_the_time_of_an_adjustment_is_cut_and_nothing_else_changes() -> None:
    blocks = list(RECORDED.blocks(BLOCK_S))
    plain, adjusted = Pass(), Pass()
    for number, block in enumerate(blocks):
        await plain.feed(block)
        await adjusted.feed(block, Cut(1, 200_000_000_000) if number == 15 else None)
    (cut,) = adjusted.cuts()
    first, last = slot_at(blocks[14].until_ps), slot_at(blocks[15].until_ps + 200_000_000_000)
    tolerance = round(0.051 * SLOT_HZ)  # whole intervals of the tracking
    assert first - tolerance <= cut.first <= first
    assert last <= cut.end <= last + tolerance
    slots, outcomes = plain.clicks()
    kept = (slots < cut.first) | (slots > cut.end)  # the last slot is cut in part
    assert not kept.all()
    cut_slots, cut_outcomes = adjusted.clicks()
    assert np.array_equal(cut_slots[cut_slots != cut.end], slots[kept])
    differ = np.count_nonzero(cut_outcomes[cut_slots != cut.end] != outcomes[kept])
    assert differ < 10  # of several clicks in a slot, chance chooses one


async def test_clicks_of_the_x_arm_are_counted_after_the_cut() -> None:
    blocks = list(RECORDED.blocks(BLOCK_S))
    run = Pass()
    adjustments = run.receiver.adjustments
    for block in blocks[:12]:
        await run.feed(block)
    with adjustments.adjust(0.05):
        cut = adjustments.due()
        await run.feed(blocks[12], cut)
        adjustments.passed_on(cut)
        assert adjustments.due() is cut  # not at its end yet
    cut = adjustments.due()
    adjustments.passed_on(cut)
    assert adjustments.due() is None
    await run.feed(blocks[13], cut)
    for block in blocks[14:]:
        await run.feed(block)
    counted = await adjustments.x_clicks(1.0)
    slots, outcomes = run.clicks()
    first = run.cuts()[-1].end
    later = outcomes[slots >= first]
    # The clicks of the first result after the cut are not counted, as its first slot is not known.
    assert counted.central == pytest.approx(np.count_nonzero(later == OUTCOME_CENTRAL), rel=0.08)
    assert counted.boundary == pytest.approx(np.count_nonzero(later == OUTCOME_BOUNDARY), rel=0.08)
    rate_hz = (counted.central + counted.boundary) / counted.lasting_s
    last = slot_at(blocks[-1].until_ps)
    assert rate_hz == pytest.approx(
        np.count_nonzero(later >= OUTCOME_CENTRAL) / ((last - first) / SLOT_HZ), rel=0.05
    )


async def test_clicks_from_before_an_adjustment_are_never_counted_for_it(
    autojump_clock: trio.abc.Clock,
) -> None:
    run = Pass()
    for block in list(RECORDED.blocks(BLOCK_S))[:25]:
        await run.feed(block)
    adjustments = run.receiver.adjustments
    await adjustments.x_clicks(0.5)
    with adjustments.adjust(0.0):
        pass
    for block in list(RECORDED.blocks(BLOCK_S))[25:]:
        await run.feed(block)  # they had arrived before
    with trio.move_on_after(1.0) as scope:
        await adjustments.x_clicks(0.1)
    assert scope.cancelled_caught


def test_a_cut_that_found_no_room_comes_with_the_next_block() -> None:
    adjustments = Adjustments(6e8)
    with adjustments.adjust(0.2):
        assert adjustments.due() == Cut(1, 200_000_000_000)
    assert adjustments.due() is not None
    assert adjustments.due() is not None  # the block was dropped
    adjustments.passed_on(adjustments.due())
    assert adjustments.due() is None


def test_of_two_adjustments_before_a_block_the_longer_settling_counts() -> None:
    adjustments = Adjustments(6e8)
    with adjustments.adjust(0.5):
        pass
    with adjustments.adjust(0.1):
        pass
    assert adjustments.due() == Cut(2, 500_000_000_000)


def test_of_two_adjustments_at_once_the_longer_settling_counts() -> None:
    adjustments = Adjustments(6e8)
    with adjustments.adjust(0.1), adjustments.adjust(0.5):
        pass
    assert adjustments.due() == Cut(2, 500_000_000_000)


def test_a_settling_time_goes_on_when_the_source_of_tags_is_opened_again() -> None:
    """The times of the new source say nothing of those of the old one, so all of it is cut again."""
    run = Pass()
    adjustments = run.receiver.adjustments
    with adjustments.adjust(0.5):
        pass
    adjustments.passed_on(adjustments.due())
    assert adjustments.due() is None
    run.receiver.adjustments.repeat()
    assert adjustments.due() == Cut(1, 500_000_000_000)


async def test_a_paced_source_hands_each_cut_on_once() -> None:
    class Adjusting(RecordedSource):
        async def tags(self):  # type: ignore[no-untyped-def]
            number = 0
            async for block in super().tags():
                yield block
                number += 1
                if number == 15:
                    with receiver.adjustments.adjust(0.0):
                        pass
                await trio.lowlevel.checkpoint()

    part, figures = AligningPart(), LinkFigures(CONFIG)
    receiver = receiver_of(figures)
    receiver._part = cast(BobSide, part)
    source = cast(TagSource, Adjusting(RECORDED, BLOCK_S))
    assert len(list(RECORDED.blocks(BLOCK_S))) < PACED_DEPTH
    with trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.use, source, 100.0)
            await until(lambda: (figures.quantum.status.tag_time_s or 0.0) > 2.85)
            nursery.cancel_scope.cancel()
    announced = [one for one in part.heard if isinstance(one, ClickAnnouncement)]
    (cut,) = joined_cuts(announced)
    assert (cut.end - cut.first) / SLOT_HZ == pytest.approx(BLOCK_S, abs=0.11)


async def test_an_adjustment_before_the_emission_run_is_known_is_cut_and_counted_later() -> None:
    """Hardware that does not wait yields tags before the session: a block with a cut may be dropped."""
    blocks = list(RECORDED.blocks(BLOCK_S))
    run = Pass()
    adjustments = run.receiver.adjustments
    with adjustments.adjust(0.05):
        pass
    run.receiver._part = None
    run.source = cast(TagSource, RecordedSource(RECORDED, BLOCK_S, paced=True))
    for block in blocks[:3]:
        cut = adjustments.due()
        assert cut is not None
        adjustments.passed_on(cut)
        adjustments.passed_on(adjustments.due())  # the next block, before this one is processed
        await run.feed(block, cut)
    run.receiver._part = cast(BobSide, run.part)
    for block in blocks[3:]:
        cut = adjustments.due()
        adjustments.passed_on(cut)
        await run.feed(block, cut)
    assert adjustments.due() is None
    with trio.fail_after(1):
        assert (await adjustments.x_clicks(0.5)).boundary > 0


def test_a_settling_time_goes_on_after_a_restart() -> None:
    synchroniser = Synchroniser(CONFIG.link.source, CONFIG.link.receiver, np.random.default_rng(1).bytes)
    synchroniser.feed(next(RECORDED.blocks(BLOCK_S)), 10**12)
    synchroniser.restart()
    assert [cut.reason for cut in synchroniser._cut_ps] == ["adjusted"]
