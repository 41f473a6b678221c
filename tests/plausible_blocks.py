"""Synthetic public records of honest blocks, and what attacks make of them."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from qnode.bench.drawn_blocks import DrawnLink
from qnode.cli.loopback import load_loopback
from qnode.distill.block_counts import BlockCounts
from qnode.distill.plausibility import examine
from qnode.loopback.prepare import LoopbackConfig

CONFIG = Path(__file__).parent.parent / "config"


def shipped(name: str) -> LoopbackConfig:
    return load_loopback(CONFIG / f"{name}.toml")


def honest_link(name: str) -> DrawnLink:
    config = shipped(name)
    return DrawnLink(config.link, config.simulation)


def failed(counts: BlockCounts, link: DrawnLink, **changes: Any) -> set[str]:
    """Return the checks that a block fails, with some of its counts changed."""
    changed = msgspec.structs.replace(counts, **changes)
    return {found.check for found in examine(changed, link.link) if not found.plausible}


def one_block(link: DrawnLink, seed: int = 1) -> BlockCounts:
    return next(link.blocks(1, np.random.default_rng(seed)))
