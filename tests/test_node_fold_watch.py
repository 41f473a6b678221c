"""What the person at the bench sees: folded histograms and visibility of generated tags."""

from dataclasses import replace

import numpy as np
import pytest
from msgspec.structs import replace as changed
from operate_support import well_status
from tags_generator import Link
from test_node_adjustments import Pass
from test_node_receiver import CONFIG

from qnode.node.quantum.fold_watch import FEWEST_TAGS, FoldWatch
from qnode.operate.status.bench import bench_lines, histogram
from qnode.operate.status.model import FoldedStatus
from qnode.tags.folding import BINS, MOST_FOLDED
from qnode.tags.synchroniser import Synchroniser, SyncResult
from qnode.tags.types import TagBlock

LINK = Link()
RECORDED = LINK.tags(3.0, seed=4)


def results(block_s: float) -> list[SyncResult]:
    synchroniser = Synchroniser(CONFIG.link.source, CONFIG.link.receiver, np.random.default_rng(1).bytes)
    return [synchroniser.feed(block) for block in RECORDED.blocks(block_s)]


async def shown(block_s: float) -> list[FoldedStatus]:
    run = Pass()
    found = list[FoldedStatus]()
    for block in RECORDED.blocks(block_s):
        await run.feed(block)
        folded = run.receiver._figures.quantum.status.folded
        if folded is not None and (not found or found[-1] is not folded):
            found.append(folded)
    return found


@pytest.mark.parametrize("block_s", [0.02, 0.1, 0.7])
async def test_pulses_stand_in_the_middle_of_the_z_arm_and_at_the_quarters_of_the_x_arm(
    block_s: float,
) -> None:
    found = await shown(block_s)
    assert len(found) >= 2
    last = found[-1]
    assert sum(last.z_bins) >= FEWEST_TAGS
    z, x = np.array(last.z_bins), np.array(last.x_bins)
    middle = z[BINS // 2 - 12 : BINS // 2 + 12].sum() / z.sum()
    assert middle > 0.8
    boundary, central = x[: BINS // 2], x[BINS // 2 :]
    assert abs(int(np.argmax(boundary)) - BINS // 4) <= 3
    assert abs(int(np.argmax(central)) - BINS // 4) <= 3
    assert last.out_of_gate is not None
    assert last.out_of_gate < 0.2


async def test_histograms_share_no_tag_and_none_has_few() -> None:
    found = await shown(0.1)
    tags = sum(sum(one.z_bins) for one in found)
    assert tags <= np.count_nonzero(RECORDED.tags.channels == 0)
    assert all(sum(one.z_bins) >= FEWEST_TAGS for one in found)


async def test_of_a_long_block_the_last_tags_are_folded() -> None:
    run = Pass()
    for block in list(RECORDED.blocks(0.1))[:10]:
        await run.feed(block)
    assert run.receiver._fold._bins.sum() <= 10 * MOST_FOLDED


def test_without_a_clock_nothing_is_shown() -> None:
    result = results(0.1)[-3]
    watch = FoldWatch(0.5)
    for step in range(1, 20):
        watch.see(replace(result, until_ps=step * 10**11))
    assert watch.status() is not None
    watch.see(replace(result, folded=None))
    assert watch.status() is None


def test_the_page_shows_rates_visibility_and_both_histograms() -> None:
    bins = [0] * BINS
    bins[24] = 600
    bins[25] = 100
    folded = FoldedStatus(z_bins=bins, x_bins=bins[::-1], out_of_gate=0.041, visibility=0.948)
    status = well_status()
    at_bob = changed(status, quantum=changed(status.quantum, folded=folded))
    page = "\n".join(bench_lines(at_bob))
    assert "locked for 1 h" in page
    assert "Z 60 kcps   X 61 kcps   outside the gates 4.1 %   clock ±38 ps" in page
    assert "visibility now 94.8 %" in page
    assert "last block: QBER Z 1.6 %   e_vis 2.0 %" in page
    assert page.count("#") == 2 * 7
    assert "highest 600" in page
    without = "\n".join(bench_lines(status))
    assert "Bob's site has the histograms" in without


def test_an_empty_histogram_is_a_frame() -> None:
    lines = histogram("X", [0, 0])
    assert lines[0] == "  X; highest 0"
    assert lines[1:-1] == ["  |  |"] * 6


def test_no_tags_fold_to_nothing() -> None:
    synchroniser = Synchroniser(CONFIG.link.source, CONFIG.link.receiver, np.random.default_rng(1).bytes)
    assert synchroniser.feed(TagBlock(np.zeros(0, np.int64), np.zeros(0, np.int8), 10)).folded is None
