"""Clicks for emulated time taggers that stand alone: dark counts of both detectors, at their own rate."""

from collections.abc import AsyncGenerator, Callable
from typing import Final

import numpy as np
import trio

from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S

Clicks = Callable[[], AsyncGenerator[TagBlock, None]]
"""Yields tags as they happen: `ReceiverEnd.tags` of the simulation, or `dark_counts`."""

BLOCK_S: Final = 0.02


def dark_counts(rate_hz: float, seed: int = 1) -> Clicks:
    """Return clicks at random times, ``rate_hz`` in each of the two channels, from time zero on."""

    async def clicks() -> AsyncGenerator[TagBlock, None]:
        random = np.random.default_rng(seed)
        began_s, number = trio.current_time(), 0
        while True:
            number += 1
            await trio.sleep_until(began_s + number * BLOCK_S)
            n = random.poisson(2 * rate_hz * BLOCK_S)
            first_ps, end_ps = (round(at * BLOCK_S * PS_PER_S) for at in (number - 1, number))
            times_ps = np.sort(random.integers(first_ps, end_ps, n))
            yield TagBlock(times_ps, random.integers(0, 2, n).astype(np.int8), end_ps)

    return clicks
