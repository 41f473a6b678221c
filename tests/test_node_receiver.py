"""Bob's receiver: when it counts slots anew."""

import os
from pathlib import Path
from typing import Any, cast

import numpy as np

from qnode.config import SiteConfig, load
from qnode.devices.protocols import EmissionRun, TagSource
from qnode.node.bob import BobPart
from qnode.node.figures import Figures
from qnode.node.receiver import Receiver
from qnode.tags.synchroniser import Synchroniser
from qnode.tags.types import TagBlock

CONFIG = load(Path(__file__).parent.parent / "config" / "bob.toml", SiteConfig)


class DarkSource:
    paced = False


class KnownRun:
    """As much of a session's part as tags without a click need."""

    run = EmissionRun(run_id=1, started_at_s=0.0)
    last_block_id = 7


async def test_blocks_from_before_a_restart_that_turn_out_misaligned_later_do_not_restart_it_again() -> None:
    figures = Figures(CONFIG, simulated=True)
    receiver = Receiver(CONFIG, figures)
    receiver._part = cast(BobPart, KnownRun())
    synchroniser = Synchroniser(CONFIG.link.source, CONFIG.link.receiver, os.urandom)

    async def counted_anew(until_ps: int) -> int:
        dark = TagBlock(np.zeros(0, np.int64), np.zeros(0, np.int8), until_ps)
        await receiver._process(cast(TagSource, DarkSource()), synchroniser, dark)
        return receiver._numbering

    assert await counted_anew(1_000) == 1  # the run has begun
    figures.sampled(8, 4900, 10_000)  # a block proposed later: its slots are miscounted
    cast(Any, receiver._part).last_block_id = 12
    assert await counted_anew(2_000) == 2
    figures.sampled(11, 5100, 10_000)  # was in the air
    assert await counted_anew(3_000) == 2
    figures.sampled(13, 150, 10_000)
    assert await counted_anew(4_000) == 2
    figures.sampled(14, 5000, 10_000)
    assert await counted_anew(5_000) == 3
